"""What a worker says, on the wire and off it: nothing is lost or too large, and only sense gets through."""

import asyncio
import base64
import copy
import json
import math
import random
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from time import thread_time
from typing import Any, cast

import pytest

from shimmy import errors
from shimmy.errors import BadRequest, ContextExceeded, ModelUnavailable, ShimmyError, WorkerDied
from shimmy.messages.event import (
    Accepted,
    Candidate,
    Echo,
    Finished,
    FinishReason,
    JobOutput,
    Piece,
    PromptProgress,
    QueuePlace,
    Timings,
    TokenLogprob,
    Usage,
    Vectors,
)
from shimmy.messages.model_info import Adapter, LoadProgress, ModelFacts, PromptCacheStats, WorkerLoad
from shimmy.messages.reply import Channels, ReplyFormat, ToolFormat
from shimmy.messages.request import EmbedRequest, GenerateRequest, TextPrompt
from shimmy.metrics import Metrics
from shimmy.wire import frames, reports, values
from shimmy.workers.worker_client import Hooks, WorkerClient
from tests.fakes import FINISHED


@pytest.mark.parametrize("traffic", [PromptCacheStats(), PromptCacheStats(1, 2, 3, 4, 5, 6)])
def test_traffic_survives_the_wire(traffic: PromptCacheStats) -> None:
    (message,) = frames.FrameReader().feed(frames.frame(reports.traffic_frame(traffic)))
    assert reports.read_traffic(message) == traffic


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
    with pytest.raises(frames.ProtocolError):
        reports.read_traffic(reports.traffic_frame(PromptCacheStats(1, 2, 3, 4, 5, 6)) | wrong)


def test_facts_survive_the_wire_and_broken_ones_are_a_protocol_error() -> None:
    facts = ModelFacts(8, 8, 9, 1, 2, 3, "tiny", "haswell", True, adapters=(Adapter("a", 0.5), Adapter("b", 0.0)))
    (message,) = frames.FrameReader().feed(frames.frame({"op": "opened", "facts": reports.facts_to_wire(facts)}))
    assert reports.read_facts(message["facts"]) == facts
    adapters: list[object] = [None, 5, [5], [{}], [{"path": "a", "scale": "x"}]]
    broken: list[object] = [None, [], {}, message["facts"] | {"new": 1}]
    broken += [message["facts"] | {"adapters": wrong} for wrong in adapters]
    for fields in broken:
        with pytest.raises(frames.ProtocolError):
            reports.read_facts(fields)


@pytest.mark.parametrize(
    "event",
    [
        Accepted(12),
        Accepted(12, ReplyFormat(), ("`not` at `#` is not enforced", "another")),
        QueuePlace(0),
        PromptProgress(12, 4, 8, 1.5),
        Piece("é\n", 2),
        Vectors((b"\0\0\x80?", b"\0\0\0\0")),
        Vectors(()),
        Finished(FinishReason.STOP, Usage(2, 1, 3), Timings(0.5, 1.5, 2.5), "END"),
        Finished(FinishReason.LENGTH, Usage(1, 0, 3), Timings(0.5, 1.5, 2.5)),
    ],
)
def test_an_event_survives_the_wire(event: JobOutput) -> None:
    (message,) = frames.FrameReader().feed(frames.frame({"op": "step", "events": [reports.event_to_wire(9, event)]}))
    assert reports.read_event(message["events"][0]) == (9, event)


def test_an_error_keeps_its_class_message_and_field() -> None:
    job_id, error = reports.read_event(reports.event_to_wire(1, ContextExceeded("too long", param="messages")))
    assert job_id == 1
    assert type(error) is ContextExceeded
    assert (error.message, error.param) == ("too long", "messages")
    assert type(errors.from_code("nonsense", "m")) is errors.Internal


FORMAT_FIELDS = asdict(ReplyFormat())
NOT_A_NUMBER = base64.b64encode(struct.pack("<2f", 1.0, math.nan)).decode()
INFINITE = base64.b64encode(struct.pack("<2f", -math.inf, math.inf)).decode()


@pytest.mark.parametrize(
    "fields",
    [
        [], [1], [1, "nonsense"], [1, "piece"], [1, "finished", "no reason", [], [], None], [1, "vectors"],
        [1, "vectors", 5], [1, "vectors", [5]], [1, "vectors", ["AAA="]], [1, "vectors", ["AAAAAA"]],
        [1, "vectors", ["AA AA"]], [1, "vectors", ["é"]], [1, "vectors", [NOT_A_NUMBER]], [1, "vectors", [INFINITE]],
        [1, "accepted", 1, FORMAT_FIELDS, 5], [1, "accepted", 1, FORMAT_FIELDS, [5]],
        [1, "accepted", 1, FORMAT_FIELDS, ["x"] * 1000], [1, "place", -1], [1, "place", 0.5], [1, "place"],
        [1, "reading", 5, 6, 5, 0.0], [1, "reading", 5, 0, 6, 0.0], [1, "reading", 5, 0, 5, -1.0],
        [1, "reading", 5, 0, 5, math.inf], [1, "reading", 5, 0, "5", 0.0],
    ],
)  # fmt: skip
def test_events_that_are_none_are_protocol_errors(fields: list[object]) -> None:
    with pytest.raises(frames.ProtocolError):
        reports.read_event(fields)


def test_an_error_that_is_none_is_a_protocol_error() -> None:
    with pytest.raises(frames.ProtocolError):
        reports.read_error("text")
    assert isinstance(reports.read_error({"code": "invalid_value", "message": "m", "param": None}), BadRequest)


# -- what is too large for one frame ----------------------------------------------------------------------------------


def said(events: Sequence[reports.JobEvent]) -> list[reports.JobEvent]:
    """What is read of the frames that say `events`, each of which is small enough."""
    reader = frames.FrameReader(reports.MAX_REPORT_BYTES)
    read: list[reports.JobEvent] = []
    for data in reports.step_frames(events, WorkerLoad(2, 1, 300)):
        (message,) = reader.feed(data)
        load, some = reports.read_step(message)
        assert load == (2, 1, 300)
        read += some
    return read


def test_small_events_share_a_frame() -> None:
    events: list[reports.JobEvent] = [(1, Accepted(3)), (1, Piece("a", 1)), (2, BadRequest("no"))]
    (data,) = reports.step_frames(events, WorkerLoad(1))
    assert len(data) < 600
    assert said(events)[:2] == events[:2]
    assert len(list(reports.step_frames([], WorkerLoad()))) == 1, "a load that has changed is told alone, too"


def test_text_of_any_length_arrives_whole() -> None:
    text = "\U0001f600é\x00" * 200_000
    events = said([(1, Piece(text, 7)), (2, Piece("b", 1))])
    pieces = [event for job_id, event in events if job_id == 1 and isinstance(event, Piece)]
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.n_tokens for piece in pieces) == 7
    assert events[-1] == (2, Piece("b", 1))
    echoes = [event for _, event in said([(1, Echo(text))]) if isinstance(event, Echo)]
    assert "".join(echo.text for echo in echoes) == text


def test_log_probabilities_of_any_number_arrive_whole() -> None:
    candidate = Candidate(5, b"\xff" * 512, -1.5)
    logprobs = (TokenLogprob(candidate, (candidate,) * 20),) * 50
    for event in (Piece("x" * 40_000, 50, logprobs), Echo("", logprobs)):
        parts = [part for _, part in said([(1, event)]) if isinstance(part, Piece | Echo)]
        assert sum((part.logprobs for part in parts), ()) == logprobs
        assert "".join(part.text for part in parts) == event.text
    endless = TokenLogprob(Candidate(5, b"a" * 10_000, -1.5))
    ((_, piece),) = said([(1, Piece("a", 1, (endless,)))])
    assert isinstance(piece, Piece)
    assert len(piece.logprobs[0].chosen.data) == 512


def test_vectors_of_any_number_arrive_whole() -> None:
    vectors = tuple(struct.pack("<8192f", *[number] * 8192) for number in range(64))
    parts = [part for _, part in said([(1, Vectors(vectors))]) if isinstance(part, Vectors)]
    assert sum((part.vectors for part in parts), ()) == vectors


@pytest.mark.parametrize("value", [[], [5], list(range(8192)), list(range(100_000)), "", "é", "\U0001f600" * 100_000])
def test_answers_of_any_length_arrive_whole(value: "list[int] | str") -> None:
    reader = frames.FrameReader(reports.MAX_REPORT_BYTES)
    told = [frames.frame(message) for message in reports.result_frames(3, value)]
    parts = [reports.read_result(message) for data in told for message in reader.feed(data)]
    assert {call_id for call_id, _, _ in parts} == {3}
    assert [more for _, _, more in parts] == [True] * (len(parts) - 1) + [False]
    whole: list[Any] = [item for _, part, _ in parts for item in cast("Sequence[Any]", part)]
    assert whole == list(value)


def test_facts_of_any_length_fit_into_a_frame() -> None:
    adapters = tuple(Adapter("\U0001f600" * 400 + str(number), 1.0) for number in range(2000))
    facts = replace(FACTS, adapters=adapters, description="é" * 10_000)
    reader = frames.FrameReader(reports.MAX_REPORT_BYTES)
    (message,) = reader.feed(frames.frame(reports.opened_frame(facts)))
    read = reports.read_facts(message["facts"])
    assert 10 < len(read.adapters) < 1000
    assert read.adapters[0].path.endswith("\U0001f6000")


def test_a_frame_above_the_limit_of_its_reader_is_a_protocol_error() -> None:
    reader = frames.FrameReader(reports.MAX_REPORT_BYTES)
    with pytest.raises(frames.ProtocolError):
        list(reader.feed((reports.MAX_REPORT_BYTES + 1).to_bytes(4, "big")))


def test_what_people_are_shown_is_printable_and_short() -> None:
    error = reports.read_error({"code": "x\x1b[2J", "message": "\x1b[31m\ud800no\u202e" + "y" * 10_000, "param": None})
    assert len(error.message) == reports.MAX_MESSAGE
    assert error.message.startswith("\ufffd[31m\ufffdno\ufffdy")
    fields = json.loads(json.dumps(reports.facts_to_wire(FACTS)))
    shown = reports.read_facts(fields | {"description": "a\x07b\nc" * 1000})
    assert len(shown.description) == values.MAX_LABEL
    assert shown.description.startswith("a\ufffdb")
    told = reports.error_to_wire(ModelUnavailable("z" * 100_000, param="p" * 100_000))
    assert len(json.dumps(told)) < 4000


# -- frames that a worker should not have sent ------------------------------------------------------------------------

FACTS = ModelFacts(8, 8, 9, 1, 2, 3, "tiny", "haswell", True, None, 1.0, 0.5, (Adapter("a", 0.5),))
LOGPROB = TokenLogprob(Candidate(5, b"a", -1.5), (Candidate(5, b"a", -1.5), Candidate(6, b"\xff", math.nan)))
FORMAT = ReplyFormat(
    ("<think>", "</think>"),
    False,
    ToolFormat("<calls>", separator=":"),
    answer=("<a>", "</a>", "</b>"),
    channels=Channels.HARMONY,
)
ONE = struct.pack("<2f", 1.0, 0.0)


def _step(*events: reports.JobEvent) -> frames.Frame:
    return {"op": "step", "load": [1, 2, 3], "events": [reports.event_to_wire(*event) for event in events]}


# What a worker says in this order, of a job of text, one of embeddings and three calls: 1 to 5.
TALK: list[frames.Frame] = [
    reports.progress_frame(LoadProgress(0.5)),
    reports.progress_frame(LoadProgress(0.25, 1 << 40)),
    reports.opened_frame(FACTS),
    reports.alive_frame(0.5),
    reports.traffic_frame(PromptCacheStats(1, 2, 3, 4, 5, 6)),
    _step((1, Accepted(12, FORMAT)), (2, Vectors((ONE,)))),
    _step((1, Echo("a", (LOGPROB,)))),
    _step((1, Piece("a", 1, (LOGPROB,))), (1, Piece("b", 1))),
    {"op": "result", "id": 3, "value": [1, 2], "more": False},
    {"op": "result", "id": 4, "value": "a", "more": True},
    {"op": "result", "id": 4, "value": "b", "more": False},
    reports.failure_frame(5, BadRequest("no", param="messages")),
    _step((1, FINISHED), (2, BadRequest("no", param="input"))),
]
HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0.5, -0.5, 2**31, 2**63, 10**400, math.inf, -math.inf, math.nan),
    *("", "x" * 5_000, "\ud800\x00", "piece", "finished"),
    *([], [[]], [0] * 5_000, {}, {"op": "step"}, [1, "piece", "a", 1]),
)


class _Process:
    pid = 4711

    def __init__(self) -> None:
        self.n_kills = 0

    def kill(self) -> None:
        self.n_kills += 1

    def poll(self) -> int | None:
        return -9


class _Transport(asyncio.Transport):
    """Takes all, and closes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def write(self, data: object) -> None:
        pass

    def abort(self) -> None:
        self.is_closed = True


class Line:
    """A client with a job of text, one of embeddings and three calls, and the test in the place of its worker."""

    def __init__(self) -> None:
        self.metrics, self.process, self.transport = Metrics(), _Process(), _Transport()
        hooks = Hooks(on_progress=self._progress, on_prompts=self._traffic)
        self.client = WorkerClient("tiny", cast("Any", self.process), hooks)
        self.client.connection_made(self.transport)
        self.stream = self.client.submit(GenerateRequest("tiny", TextPrompt("hi"), n_logprobs=2, echo=True))
        self.embedding = self.client.embed(EmbedRequest("tiny", ("a", "b"), 2))
        calls = (
            self.client.tokenize("text", add_special=False, parse_special=False),
            self.client.detokenize((1, 2)),
            self.client.detokenize((3, 4)),
        )
        self.calls = [asyncio.ensure_future(call) for call in calls]

    def _progress(self, progress: LoadProgress) -> None:
        self.metrics.memory_given.set(progress.percent + (progress.total_bytes or 0))

    def _traffic(self, traffic: PromptCacheStats) -> None:
        self.metrics.stored_prompt_lookups.add(traffic.n_hits, "tiny", "hit")
        self.metrics.stored_prompt_bytes.add(traffic.read_bytes, "tiny", "read")
        self.metrics.stored_prompts_size.set(traffic.stored_bytes or 0)

    def hear(self, data: bytes) -> None:
        for start in range(0, len(data), 1 << 16):
            if self.transport.is_closed:
                return
            part = data[start : start + (1 << 16)]
            self.client.get_buffer(-1)[: len(part)] = part
            self.client.buffer_updated(len(part))

    async def end(self) -> None:
        """Everybody who waits has an answer when the worker has ended, and the figures can be read."""
        if not self.transport.is_closed:
            self.transport.abort()
        self.client.connection_lost(None)
        await self.client.ended.wait()
        async with asyncio.timeout(5):
            for waiting in (self.stream.accepted(), self.embedding.result(), self.client.opened, *self.calls):
                (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
                assert not isinstance(outcome, Exception) or isinstance(outcome, ShimmyError), repr(outcome)
            await asyncio.gather(_read(self), return_exceptions=True)
        self.metrics.jobs_running.set(self.client.load.n_running, "tiny")
        self.metrics.jobs_queued.set(self.client.load.n_waiting, "tiny")
        assert self.metrics.render()


async def _read(line: Line) -> None:
    async for event in line.stream:
        if isinstance(event, Finished):
            line.metrics.prompt_tokens.add(event.usage.n_prompt, "tiny")
            line.metrics.queue_wait_s.observe(event.timings.queue_ms, "tiny")


def _frame(message: object) -> bytes:
    payload = json.dumps(message).encode()
    return len(payload).to_bytes(4, "big") + payload


def _places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside `value`."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _mutations(message: frames.Frame) -> Iterator[object]:
    """`message` with one value in it replaced, dropped, doubled or renamed."""
    message = json.loads(json.dumps(message))
    for path in _places(message):
        if not path:
            continue
        for hostile in HOSTILE:
            changed = copy.deepcopy(message)
            _inside(changed, path)[path[-1]] = hostile
            yield changed
        dropped, more = copy.deepcopy(message), copy.deepcopy(message)
        del _inside(dropped, path)[path[-1]]
        yield dropped
        holder = _inside(more, path)
        if isinstance(holder, list):
            holder.append(holder[path[-1]])
        else:
            holder["new"] = holder[path[-1]]
        yield more


def _inside(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


async def _talk(line: Line) -> None:
    for message in TALK:
        line.hear(_frame(message))


def test_the_whole_talk_makes_sense() -> None:
    async def run() -> None:
        line = Line()
        await asyncio.sleep(0)
        await _talk(line)
        assert line.process.n_kills == 0
        assert await line.client.opened == FACTS
        assert await line.stream.accepted() == Accepted(12, FORMAT)
        assert [await call for call in line.calls[:2]] == [array("i", [1, 2]), "ab"]
        await line.end()

    asyncio.run(run())


@pytest.mark.thorough
@pytest.mark.usefixtures("collections_as_in_a_server")
@pytest.mark.parametrize("place", range(len(TALK)), ids=[f"{n}-{message['op']}" for n, message in enumerate(TALK)])
def test_no_change_to_any_frame_hurts_the_parent(place: int) -> None:
    async def run() -> None:
        n_refused = 0
        for changed in _mutations(TALK[place]):
            line = Line()
            await asyncio.sleep(0)
            started_s = thread_time()
            for message in (*TALK[:place], changed, *TALK[place + 1 :]):
                line.hear(_frame(message))
            assert thread_time() - started_s < 0.5
            n_refused += line.process.n_kills > 0
            await line.end()
        assert n_refused > 10

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(4))
def test_frames_in_any_order_hurt_nobody(seed: int) -> None:
    async def run() -> None:
        pick = random.Random(seed)
        for _ in range(100):
            line = Line()
            await asyncio.sleep(0)
            for message in pick.choices(TALK, k=8):
                line.hear(_frame(message))
            await line.end()

    asyncio.run(run())


ENDLESS_TALK: dict[str, bytes] = {
    "a frame of brackets": _frame({"op": "step", "load": [0, 0, 0], "events": [[]] * 40_000}),
    "a frame of late events": _frame({"op": "step", "load": [0, 0, 0], "events": [[1, "piece", "a", 1]] * 7_000}) * 40,
    "pieces without text": _frame({"op": "step", "load": [0, 0, 0], "events": [[1, "piece", "", 0]] * 7_000}) * 40,
    "pieces of text": _frame({"op": "step", "load": [0, 0, 0], "events": [[1, "piece", "x" * 8_000, 0]] * 14}) * 800,
    "prompts": _frame({"op": "step", "load": [0, 0, 0], "events": [[1, "echo", "x" * 8_000, []]] * 14}) * 800,
    "an answer": _frame({"op": "result", "id": 3, "value": [1] * 50_000, "more": True}) * 100,
    "a long number": b'{"op":"step","load":[' + b"9" * 150_000 + b',0,0],"events":[]}',
    "deep brackets": b"\0\2\x71\0" + b"[" * 160_000,
    "an endless frame": b"\x7f\xff\xff\xff" + b"x" * 1_000_000,
}


@pytest.mark.usefixtures("collections_as_in_a_server")
@pytest.mark.parametrize("data", ENDLESS_TALK.values(), ids=ENDLESS_TALK.keys())
def test_a_flood_neither_holds_the_loop_nor_fills_the_memory(data: bytes) -> None:
    async def run() -> None:
        line = Line()
        await asyncio.sleep(0)
        line.client._n_tokens_max = 64
        line.stream._n_tokens_max = 64
        for message in TALK[:5]:
            line.hear(_frame(message))
        longest_s = 0.0
        for start in range(0, len(data), 1 << 16):
            started_s = thread_time()
            line.hear(data[start : start + (1 << 16)])
            longest_s = max(longest_s, thread_time() - started_s)
            if line.transport.is_closed:
                break
        assert line.process.n_kills == 1
        assert longest_s < 0.5  # ten times what it takes
        assert len(line.client._reader._buffer) <= reports.MAX_REPORT_BYTES + (1 << 16)
        await line.end()
        with pytest.raises(WorkerDied):
            line.client.submit(GenerateRequest("tiny", TextPrompt("hi")))

    asyncio.run(run())
