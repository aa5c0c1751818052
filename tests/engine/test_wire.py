import math

import pytest

from shimmy.engine import wire
from shimmy.messages import (
    ChatPrompt,
    EmbeddingJob,
    Job,
    Message,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    ToolCall,
)

CALL = Message("assistant", None, tool_calls=(ToolCall("c1", "look", '{"a":1}'),))


@pytest.mark.parametrize(
    "prompt",
    [
        TextPrompt("naïve \ud800 text"),
        TokenPrompt((1, 2, 3)),
        ChatPrompt((Message("user", "hi", name="ann"), CALL, Message("tool", "ok", tool_call_id="c1")), False),
    ],
)
def test_a_job_survives_the_wire(prompt: Prompt) -> None:
    params = SamplingParams(seed=5, logit_bias=((3, -math.inf), (4, 1.5)), dry_sequence_breakers=("a",))
    for lora in (None, ((1, 0.5), (0, -1.0))):
        job = Job(7, prompt, params, None, ("x", "y"), True, lora)
        (message,) = wire.FrameReader().feed(wire.frame(wire.job_frame(job)))
        assert wire.read_job(message) == job


def test_a_job_of_embeddings_survives_the_wire() -> None:
    for n_dimensions in (None, 256):
        job = EmbeddingJob(7, ("é", (1, 2), "x"), n_dimensions)
        (message,) = wire.FrameReader().feed(wire.frame(wire.embed_frame(job)))
        assert wire.read_embed(message) == job


def test_options_survive_the_wire() -> None:
    options = wire.WorkerOptions(
        "m", 8, 1, 32, None, None, None, (("a", 0.5), ("b", 0.0)), ("c",), share=wire.Share(2, 1), embeddings=True,
        pooling="cls",
    )  # fmt: skip
    (message,) = wire.FrameReader().feed(wire.frame(wire.open_frame(options)))
    assert wire.read_options(message) == options


def test_frames_cut_at_every_place_come_out_whole() -> None:
    data = wire.frame({"op": "a"}) + wire.frame({"op": "b", "text": "x" * 50})
    for cut in range(len(data) + 1):
        reader = wire.FrameReader()
        frames = [*reader.feed(data[:cut]), *reader.feed(data[cut:])]
        assert [frame["op"] for frame in frames] == ["a", "b"]


def test_a_large_frame_comes_in_parts_and_out_whole() -> None:
    message = {"op": "a", "text": "é" * 500_000, "tokens": list(range(300_000)), "small": 1}
    parts = [*wire.parts(message)]
    assert max(map(len, parts)) < 2**20
    reader = wire.FrameReader()
    assert [frame for part in parts for frame in reader.feed(part)] == [message]
    assert [*reader.feed(wire.frame({"op": "b"}))] == [{"op": "b"}]
    assert [*wire.parts({"op": "b"})] == [wire.frame({"op": "b"})]


def test_parts_are_bounded_together() -> None:
    reader = wire.FrameReader(max_bytes=1000)
    part = (1 << 31 | 600).to_bytes(4, "big") + b" " * 600
    assert [*reader.feed(part)] == []
    with pytest.raises(wire.ProtocolError, match="a frame of 1200 bytes"):
        list(reader.feed(part))


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02{]", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x02{}"]
)
def test_nonsense_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(wire.ProtocolError):
        list(wire.FrameReader().feed(data))


def test_deep_nesting_is_a_protocol_error_and_not_a_crash() -> None:
    payload = b"[" * 100_000
    with pytest.raises(wire.ProtocolError):
        list(wire.FrameReader().feed(len(payload).to_bytes(4, "big") + payload))


@pytest.mark.parametrize(
    ("share", "n_cores", "n_threads"),
    [
        (wire.Share(), 4, 4),
        (wire.Share(2), 4, 2),
        (wire.Share(1, 1), 4, 3),
        (wire.Share(2, 1), 4, 1),
        (wire.Share(1, 1), 2, 1),
        (wire.Share(3, 9), 2, 1),
    ],
)
def test_a_share_is_at_least_one_thread(share: wire.Share, n_cores: int, n_threads: int) -> None:
    assert share.n_threads(n_cores) == n_threads
