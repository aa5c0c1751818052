import math
from dataclasses import MISSING, fields, replace
from typing import Any

import pytest

from shimmy.messages.request import (
    ChatPrompt,
    EmbeddingJob,
    EmbedRequest,
    FillPrompt,
    GenerateRequest,
    Grammar,
    GrammarKind,
    Job,
    Message,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolChoice,
)
from shimmy.wire import codec, frames, worker_options

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
        job = Job(7, GenerateRequest("m", prompt, params, stop=("x", "y"), lora=lora))
        (message,) = frames.FrameReader().feed(frames.frame(codec.job_frame(job)))
        assert codec.read_job(message) == job


# Every field of each has another value than its default: one that is left behind comes out as that.
SAMPLING = SamplingParams(
    5, 0.1, 0.2, 2.0, 7, 0.5, 0.25, 0.75, 1.5, 3, -1, 1.25, 0.3, 0.4, 0.6, 1.5, 4, -1, ("a",), 0.7, 0.2, 2, 4.0, 0.3,
    ((3, -math.inf),), ignore_eos=True,
)  # fmt: skip
CHAT = ChatPrompt(
    (replace(CALL, content="x", name="ann", tool_call_id="c0", reasoning_content="hm"),),
    add_generation_prompt=False,
    tools=(Tool("look", "sees", "{}", strict=True, lark="start: /x/"), Tool("other")),
    tool_choice=ToolChoice(required=True, name="look", parallel=False),
    template_arguments='{"enable_thinking":false}',
    continue_final_message=True,
    parse_special=True,
)
REQUEST = GenerateRequest(
    "m", CHAT, SAMPLING, 9, ("x", "y"), cache_prompt=False, keep_alive_s=math.inf, lora=((1, 0.5), (0, -1.0)),
    grammar=Grammar(GrammarKind.REGEX, "a+", strict=False), n_logprobs=3, echo=True, n_thinking=0,
    tells_progress=True, constrained_by="tools",
)  # fmt: skip


@pytest.mark.parametrize("record", [REQUEST, SAMPLING, CHAT, CHAT.messages[0], CHAT.tools[0], CHAT.tool_choice])
def test_the_job_with_everything_has_everything(record: Any) -> None:
    for field in fields(record):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        assert getattr(record, field.name) != default


def test_every_field_of_a_request_survives_the_wire() -> None:
    others = [replace(REQUEST, prompt=FillPrompt("a", "b")), replace(REQUEST, sampling=replace(SAMPLING, seed=6))]
    large = replace(REQUEST, prompt=replace(CHAT, messages=(*CHAT.messages * 1000, Message("user", "é" * 1_000_000))))
    jobs = [Job(number, request) for number, request in enumerate([REQUEST, *others])]
    for sent in (jobs[:1], jobs, [Job(9, large)], [*jobs, Job(9, large)]):
        (message,) = frames.FrameReader().feed(b"".join(frames.parts(codec.jobs_frame(sent))))
        read = [codec.read_job(each) for each in codec.one_by_one(message)]
        assert read == sent
        assert [type(each.request.grammar.kind) for each in read if each.request.grammar] == [GrammarKind] * len(sent)


def test_a_job_of_embeddings_survives_the_wire() -> None:
    for n_dimensions in (None, 256):
        job = EmbeddingJob(7, EmbedRequest("m", ("é", (1, 2), "x"), n_dimensions))
        (message,) = frames.FrameReader().feed(frames.frame(codec.embed_frame(job)))
        assert codec.read_embed(message) == job


def test_options_survive_the_wire() -> None:
    options = worker_options.WorkerOptions(
        "m", 8, 1, 32, None, None, None, (("a", 0.5), ("b", 0.0)), ("c",),
        share=worker_options.CpuShare(2, 1), embeddings=True,
        pooling="cls",
    )  # fmt: skip
    (message,) = frames.FrameReader().feed(frames.frame(codec.open_frame(options)))
    assert codec.read_options(message) == options
    assert codec.read_share(codec.share_frame(options.share)) == options.share


def test_frames_cut_at_every_place_come_out_whole() -> None:
    data = frames.frame({"op": "a"}) + frames.frame({"op": "b", "text": "x" * 50})
    for cut in range(len(data) + 1):
        reader = frames.FrameReader()
        messages = [*reader.feed(data[:cut]), *reader.feed(data[cut:])]
        assert [message["op"] for message in messages] == ["a", "b"]


def test_a_large_frame_comes_in_parts_and_out_whole() -> None:
    message = {"op": "a", "text": "é" * 500_000, "tokens": list(range(300_000)), "small": 1}
    parts = [*frames.parts(message)]
    assert max(map(len, parts)) < 2**20
    reader = frames.FrameReader()
    assert [frame for part in parts for frame in reader.feed(part)] == [message]
    assert [*reader.feed(frames.frame({"op": "b"}))] == [{"op": "b"}]
    assert [*frames.parts({"op": "b"})] == [frames.frame({"op": "b"})]


def test_parts_are_bounded_together() -> None:
    reader = frames.FrameReader(max_bytes=1000)
    part = (1 << 31 | 600).to_bytes(4, "big") + b" " * 600
    assert [*reader.feed(part)] == []
    with pytest.raises(frames.ProtocolError, match="a frame of 1200 bytes"):
        list(reader.feed(part))


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02{]", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x02{}"]
)
def test_nonsense_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(frames.ProtocolError):
        list(frames.FrameReader().feed(data))


def test_deep_nesting_is_a_protocol_error_and_not_a_crash() -> None:
    payload = b"[" * 100_000
    with pytest.raises(frames.ProtocolError):
        list(frames.FrameReader().feed(len(payload).to_bytes(4, "big") + payload))


@pytest.mark.parametrize(
    ("share", "n_cores", "n_threads"),
    [
        (worker_options.CpuShare(), 4, 4),
        (worker_options.CpuShare(2), 4, 2),
        (worker_options.CpuShare(1, 1), 4, 3),
        (worker_options.CpuShare(2, 1), 4, 1),
        (worker_options.CpuShare(1, 1), 2, 1),
        (worker_options.CpuShare(3, 9), 2, 1),
    ],
)
def test_a_share_is_at_least_one_thread(share: worker_options.CpuShare, n_cores: int, n_threads: int) -> None:
    assert share.n_threads(n_cores) == n_threads
