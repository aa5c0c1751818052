import base64
import math
import struct

import pytest

from shimmy import errors
from shimmy.engine import wire
from shimmy.errors import BadRequest, ContextExceeded
from shimmy.messages import (
    Accepted,
    Adapter,
    ChatPrompt,
    EmbeddingJob,
    Event,
    Finished,
    FinishReason,
    Job,
    Message,
    ModelFacts,
    Piece,
    Prompt,
    PromptTraffic,
    SamplingParams,
    TextPrompt,
    Timings,
    TokenPrompt,
    ToolCall,
    Usage,
    Vectors,
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


@pytest.mark.parametrize("traffic", [PromptTraffic(), PromptTraffic(1, 2, 3, 4, 5, 6)])
def test_traffic_survives_the_wire(traffic: PromptTraffic) -> None:
    (message,) = wire.FrameReader().feed(wire.frame(wire.traffic_frame(traffic)))
    assert wire.read_traffic(message) == traffic


@pytest.mark.parametrize(
    "wrong",
    [
        {"new": 1},
        {"n_hits": None},
        {"n_hits": -1},
        {"read_bytes": "1"},
        {"n_hits": True},
        {"stored_bytes": -1},
        {"stored_bytes": 2**63},
        {"n_hits": 0.5},
    ],
)
def test_traffic_that_is_none_is_a_protocol_error(wrong: dict[str, object]) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.read_traffic(wire.traffic_frame(PromptTraffic(1, 2, 3, 4, 5, 6)) | wrong)


def test_facts_survive_the_wire_and_broken_ones_are_a_protocol_error() -> None:
    facts = ModelFacts(8, 8, 9, 1, 2, 3, "tiny", "haswell", True, adapters=(Adapter("a", 0.5), Adapter("b", 0.0)))
    (message,) = wire.FrameReader().feed(wire.frame({"op": "opened", "facts": wire.facts_to_wire(facts)}))
    assert wire.read_facts(message["facts"]) == facts
    adapters: list[object] = [None, 5, [5], [{}], [{"path": "a", "scale": "x"}]]
    broken: list[object] = [None, [], {}, message["facts"] | {"new": 1}]
    broken += [message["facts"] | {"adapters": wrong} for wrong in adapters]
    for fields in broken:
        with pytest.raises(wire.ProtocolError):
            wire.read_facts(fields)


@pytest.mark.parametrize(
    "event",
    [
        Accepted(12),
        Piece("é\n", 2),
        Vectors((b"\0\0\x80?", b"\0\0\0\0")),
        Vectors(()),
        Finished(FinishReason.STOP, Usage(1, 2, 3), Timings(0.5, 1.5, 2.5), "END"),
        Finished(FinishReason.LENGTH, Usage(1, 0, 3), Timings(0.5, 1.5, 2.5)),
    ],
)
def test_an_event_survives_the_wire(event: Event) -> None:
    (message,) = wire.FrameReader().feed(wire.frame({"op": "step", "events": [wire.event_to_wire(9, event)]}))
    assert wire.read_event(message["events"][0]) == (9, event)


def test_an_error_keeps_its_class_message_and_field() -> None:
    job_id, error = wire.read_event(wire.event_to_wire(1, ContextExceeded("too long", param="messages")))
    assert job_id == 1
    assert type(error) is ContextExceeded
    assert (error.message, error.param) == ("too long", "messages")
    assert type(errors.from_code("nonsense", "m")) is errors.Internal


def test_frames_cut_at_every_place_come_out_whole() -> None:
    data = wire.frame({"op": "a"}) + wire.frame({"op": "b", "text": "x" * 50})
    for cut in range(len(data) + 1):
        reader = wire.FrameReader()
        frames = [*reader.feed(data[:cut]), *reader.feed(data[cut:])]
        assert [frame["op"] for frame in frames] == ["a", "b"]


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


NOT_A_NUMBER = base64.b64encode(struct.pack("<2f", 1.0, math.nan)).decode()
INFINITE = base64.b64encode(struct.pack("<2f", -math.inf, math.inf)).decode()


@pytest.mark.parametrize(
    "fields",
    [
        [], [1], [1, "nonsense"], [1, "piece"], [1, "finished", "no reason", [], [], None], [1, "vectors"],
        [1, "vectors", 5], [1, "vectors", [5]], [1, "vectors", ["AAA="]], [1, "vectors", ["AAAAAA"]],
        [1, "vectors", ["AA AA"]], [1, "vectors", ["é"]], [1, "vectors", [NOT_A_NUMBER]], [1, "vectors", [INFINITE]],
    ],
)  # fmt: skip
def test_events_that_are_none_are_protocol_errors(fields: list[object]) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.read_event(fields)


def test_an_error_that_is_none_is_a_protocol_error() -> None:
    with pytest.raises(wire.ProtocolError):
        wire.read_error("text")
    assert isinstance(wire.read_error({"code": "invalid_value", "message": "m"}), BadRequest)


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
