"""The parent's end of the wire, with a worker played by the test: what it believes, and what it does about nonsense."""

import asyncio
import contextlib
import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import pytest

from shimmy.errors import BadRequest, ModelUnavailable, Overloaded, ShimmyError, ShuttingDown, WorkerDied
from shimmy.messages.event import (
    Accepted,
    Candidate,
    Echo,
    Embeddings,
    Finished,
    JobOutput,
    JobProgress,
    Piece,
    TokenLogprob,
    Vectors,
)
from shimmy.messages.model_info import PromptCacheStats
from shimmy.messages.reply import ReplyFormat
from shimmy.messages.request import (
    ChatPrompt,
    EmbedRequest,
    GenerateRequest,
    Message,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from shimmy.wire import codec, frames, reports
from shimmy.wire.worker_options import WorkerOptions
from shimmy.workers import outbox, worker_end, worker_watch
from shimmy.workers import spawn as process
from shimmy.workers.spawn import worker_command
from shimmy.workers.start_worker import start_worker
from shimmy.workers.worker_client import Hooks, WorkerClient
from shimmy.workers.worker_streams import JobStream
from tests.fakes import FINISHED, FakeWorker, on_loop

OPTIONS = WorkerOptions("tiny.gguf", 512, 4, 64, None, None, None)
REQUEST = GenerateRequest("tiny", TextPrompt("hi"), SamplingParams(seed=3), n_predict=5, stop=("x",))


class FakeProcess:
    """A process that ends when the test says so. Looks that find it running are counted."""

    pid = 4711

    def __init__(self) -> None:
        self.status: int | None = None
        self.n_kills = 0
        self.n_vain_looks = 0

    def kill(self) -> None:
        self.n_kills += 1
        self.status = -9

    def poll(self) -> int | None:
        self.n_vain_looks += self.status is None
        return self.status


class Peer:
    """A client, and the worker's end of its socket in the hand of the test."""

    def __init__(
        self,
        client: WorkerClient,
        process: FakeProcess,
        deaths: list[WorkerClient],
        traffic: list[PromptCacheStats],
    ) -> None:
        self.client = client
        self.process = process
        self.deaths = deaths
        self.traffic = traffic
        self._frames: list[frames.Frame] = []
        self._parser = frames.FrameReader()
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def hear(self) -> frames.Frame:
        """The next frame of the client."""
        while not self._frames:
            data = await self.reader.read(1 << 16)
            assert data, "the client has closed the connection"
            self._frames += self._parser.feed(data)
        return self._frames.pop(0)

    def say(self, message: frames.Frame) -> None:
        self.writer.write(frames.frame(message))

    def step(self, *events: tuple[int, JobOutput | ShimmyError], load: Sequence[int] = (0, 0, 0)) -> None:
        self.say({"op": "step", "events": [reports.event_to_wire(*event) for event in events], "load": load})

    async def until_heard(self) -> None:
        """Return when the client has read everything said so far: it answers in the order of what it hears."""
        call = asyncio.ensure_future(self.client.tokenize("", add_special=False, parse_special=False))
        while (message := await self.hear())["op"] != "call":
            pass
        self.say({"op": "result", "id": message["id"], "value": [], "more": False})
        await call

    def end(self, status: int) -> None:
        """The process ends, and with it its end of the socket."""
        if self.process.status is None:
            self.process.status = status
        self.writer.close()


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[Peer]:
    ours, theirs = socket.socketpair()
    process, deaths, traffic = FakeProcess(), list[WorkerClient](), list[PromptCacheStats]()
    hooks = Hooks(deaths.append, on_prompts=traffic.append)
    _, client = await asyncio.get_running_loop().create_unix_connection(
        lambda: WorkerClient("tiny", cast("subprocess.Popen[bytes]", process), hooks), sock=ours
    )
    peer = Peer(client, process, deaths, traffic)
    peer.reader, peer.writer = await asyncio.open_unix_connection(sock=theirs)
    try:
        yield peer
    finally:
        client.opened.cancel()  # unless the test was about it
        peer.end(0)
        await client.close()


async def end_of(stream: JobStream) -> list[JobProgress | Echo | Piece | Finished | ShimmyError]:
    """All that comes out of a stream, its error last."""
    events: list[JobProgress | Echo | Piece | Finished | ShimmyError] = []
    try:
        async for event in stream:
            events.append(event)  # noqa: PERF401 - what came before an error is wanted too
    except ShimmyError as error:
        events.append(error)
    return events


# -- one job's stream ------------------------------------------------------------------------------------------------


@on_loop
async def test_pieces_nobody_has_taken_are_joined_and_their_tokens_added() -> None:
    stream = JobStream(1, lambda _: None)
    events = aiter(stream)
    stream.put(Accepted(2))
    stream.put(Piece("a", 1))
    assert await anext(events) == Piece("a", 1)
    for text in ("b", "cc", "d"):
        stream.put(Piece(text, len(text)))
    assert await anext(events) == Piece("bccd", 4)
    stream.put(Piece("e", 1))
    stream.put(FINISHED)
    assert [event async for event in events] == [Piece("e", 1), FINISHED]


@on_loop
async def test_few_pieces_with_log_probabilities_are_joined_at_once() -> None:
    """Whoever reads slowly makes nobody wait while thousands of candidates are written down together."""
    stream = JobStream(1, lambda _: None)
    stream.put(Accepted(2))
    told = TokenLogprob(Candidate(5, b"a", -1.0), (Candidate(5, b"a", -1.0),) * 20)
    for _ in range(40):
        stream.put(Piece("a", 1, (told,)))
    stream.put(FINISHED)
    *pieces, finished = await end_of(stream)
    assert finished == FINISHED
    assert [piece.n_tokens for piece in pieces if isinstance(piece, Piece)] == [16, 16, 8]
    assert all(len(piece.text) == len(piece.logprobs) for piece in pieces if isinstance(piece, Piece))


@on_loop
async def test_an_error_comes_after_the_text_before_it() -> None:
    stream = JobStream(1, lambda _: None)
    error = WorkerDied("signal 9")
    for event in (Accepted(2), Piece("so ", 1), Piece("far", 1), error):
        stream.put(event)
    assert await end_of(stream) == [Piece("so far", 2), error]


@on_loop
async def test_a_yes_may_be_awaited_again_and_again() -> None:
    stream = JobStream(1, lambda _: None)
    waiting = [asyncio.create_task(stream.accepted()) for _ in range(3)]
    waiting[0].cancel()
    stream.put(Accepted(7))
    assert await asyncio.gather(*waiting[1:]) == [Accepted(7), Accepted(7)]
    assert await stream.accepted() == Accepted(7)


@on_loop
async def test_closing_cancels_a_job_that_runs_once_and_one_that_has_ended_never() -> None:
    cancelled: list[int] = []
    running, ended = JobStream(1, cancelled.append), JobStream(2, cancelled.append)
    ended.put(Accepted(1))
    ended.put(FINISHED)
    for stream in (running, running, ended, ended):
        stream.close()
    assert cancelled == [1]
    assert await end_of(ended) == [FINISHED]
    assert isinstance((await end_of(running))[-1], WorkerDied)


# -- a client and its worker -----------------------------------------------------------------------------------------


@on_loop
async def test_what_a_worker_is_told_first_and_what_it_answers() -> None:
    async with connected() as peer:
        peer.client.open(OPTIONS)
        assert codec.read_options(await peer.hear()) == OPTIONS
        peer.say({"op": "opened", "facts": asdict(FakeWorker.facts)})
        assert await peer.client.opened == FakeWorker.facts
        assert peer.client.facts == FakeWorker.facts
        assert peer.client.pid == FakeProcess.pid


@on_loop
async def test_a_refused_load_is_the_workers_error() -> None:
    async with connected() as peer:
        peer.say({"op": "refused", "error": reports.error_to_wire(ModelUnavailable("no decoder"))})
        with pytest.raises(ModelUnavailable, match="no decoder"):
            await peer.client.opened


@on_loop
async def test_a_job_goes_out_as_it_was_asked_for_and_its_events_come_back() -> None:
    async with connected() as peer:
        stream = peer.client.submit(REQUEST)
        job = codec.read_job(await peer.hear())
        assert job.request == REQUEST
        peer.step((job.id, Accepted(4)), load=(1, 0, 7))
        assert await stream.accepted() == Accepted(4)
        assert (peer.client.load, peer.client.n_jobs) == ((1, 0, 7), 1)
        peer.step((job.id, Piece("a", 1)), (job.id, FINISHED))
        assert await end_of(stream) == [Piece("a", 1), FINISHED]
        assert (peer.client.load, peer.client.n_jobs) == ((0, 0, 0), 0)


@on_loop
async def test_each_job_gets_its_own_events() -> None:
    async with connected() as peer:
        streams = [peer.client.submit(REQUEST) for _ in range(3)]
        ids = [(await peer.hear())["id"] for _ in streams]
        assert len(set(ids)) == 3
        error = BadRequest("no", param="seed")
        peer.step(*((job_id, Accepted(1)) for job_id in (ids[0], ids[2])))
        peer.step((ids[2], Piece("c", 1)), (ids[0], Piece("a", 1)), (ids[1], error))
        peer.step((ids[0], FINISHED), (ids[2], FINISHED))
        assert await end_of(streams[0]) == [Piece("a", 1), FINISHED]
        assert await end_of(streams[2]) == [Piece("c", 1), FINISHED]
        with pytest.raises(BadRequest) as caught:
            await streams[1].accepted()
        assert (caught.value.message, caught.value.param) == ("no", "seed")


@on_loop
async def test_a_cancelled_job_is_cancelled_in_the_worker_and_its_late_events_go_nowhere() -> None:
    async with connected() as peer:
        stream = peer.client.submit(REQUEST)
        job_id = (await peer.hear())["id"]
        stream.close()
        assert await peer.hear() == {"op": "cancel", "id": job_id}
        assert peer.client.n_jobs == 0
        peer.step((job_id, Piece("late", 1)), (job_id, FINISHED))
        await peer.until_heard()
        assert peer.client.is_alive


def choices(prompt: Prompt, n: int) -> list[GenerateRequest]:
    return [replace(REQUEST, prompt=prompt, sampling=replace(REQUEST.sampling, seed=seed)) for seed in range(n)]


@on_loop
async def test_a_prompt_goes_out_once_for_all_its_choices() -> None:
    async with connected() as peer:
        requests = [*choices(TextPrompt("x" * 10_000), 128), *choices(TokenPrompt((1, 2)), 3)]
        streams = peer.client.submit_all(requests)
        message = await peer.hear()
        assert len(frames.frame(message)) < 20_000
        jobs = [codec.read_job(each) for each in codec.one_by_one(message)]
        assert [job.request for job in jobs] == requests
        assert len({job.id for job in jobs}) == 131
        assert jobs[0].request.prompt is jobs[127].request.prompt
        streams[5].close()
        assert await peer.hear() == {"op": "cancel", "id": jobs[5].id}
        peer.step((jobs[130].id, Accepted(2)), (jobs[130].id, FINISHED))
        assert await end_of(streams[130]) == [FINISHED]
        assert peer.client.n_jobs == 129


LARGE = GenerateRequest("tiny", TextPrompt("é" * 3_000_000))


@on_loop
async def test_a_worker_that_does_not_read_is_sent_no_more_than_its_socket_takes() -> None:
    async with connected() as peer:
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        streams = [peer.client.submit(LARGE) for _ in range(5)]
        for _ in range(2000):
            await asyncio.sleep(0)
        assert peer.client._transport.get_write_buffer_size() < 2**19
        assert peer.client.n_jobs == 5
        streams[3].close()
        streams[4].close()
        call = asyncio.ensure_future(peer.client.detokenize((7,)))
        await asyncio.sleep(0)
        call.cancel()
        small = peer.client.submit(REQUEST)
        peer.reader._transport.resume_reading()  # type: ignore[attr-defined]
        ops = [await peer.hear() for _ in range(4)]
        # A small job is not behind all large ones, and what was called back before its turn has never been sent.
        assert [(each["op"], len(each["prompt"]["text"])) for each in ops[:2]] == [("job", 3_000_000), ("job", 2)]
        assert [len(each["prompt"]["text"]) for each in ops[2:]] == [3_000_000] * 2
        small.close()
        assert await peer.hear() == {"op": "cancel", "id": ops[1]["id"]}


@on_loop
async def test_a_job_that_is_being_sent_is_cancelled_behind_it() -> None:
    async with connected() as peer:
        stream = peer.client.submit(LARGE)
        for _ in range(5):
            await asyncio.sleep(0)
        stream.close()
        job_id = (await peer.hear())["id"]
        assert await peer.hear() == {"op": "cancel", "id": job_id}


@on_loop
async def test_choices_that_are_cancelled_before_their_frame_went_out_are_not_in_it() -> None:
    async with connected() as peer:
        first, *others = peer.client.submit_all(choices(LARGE.prompt, 4))
        first.close()
        others[1].close()
        assert [seed for _, _, seed in (await peer.hear())["jobs"]] == [1, 3]


@on_loop
async def test_more_than_memory_should_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING_BYTES", 7_000_000)
    async with connected() as peer:
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        streams = [peer.client.submit(LARGE) for _ in range(2)]
        with pytest.raises(Overloaded, match="try again later"):
            peer.client.submit(LARGE)
        assert peer.client.n_jobs == 2
        for stream in streams:
            stream.close()
        peer.client.submit(LARGE)


@on_loop
async def test_writing_the_largest_frames_leaves_others_their_turns() -> None:
    async with connected() as peer:
        messages = tuple([Message("user", "hi")] * 16_384)
        prompts = (ChatPrompt(messages), TextPrompt("\0" * 16_000_000), TokenPrompt(tuple(range(1_000_000))))
        longest_s = 0.0
        for prompt in prompts:
            peer.client.submit(replace(REQUEST, prompt=prompt))
            hearing = asyncio.ensure_future(peer.hear())
            while not hearing.done():
                before_s = time.thread_time()
                peer.client._outbox._step()
                longest_s = max(longest_s, time.thread_time() - before_s)
                await asyncio.sleep(0)
            assert codec.read_job(hearing.result()).request.prompt == prompt
        assert longest_s < 0.15, "and that is what encoding one of them takes at once"


# -- embeddings ------------------------------------------------------------------------------------------------------

EMBED = EmbedRequest("tiny", ("a", (1, 2)), 2)
ONE, OTHER = b"\0\0\x80?\0\0\0\0", b"\0\0\0\0\0\0\x80?"


@on_loop
async def test_vectors_are_collected_until_their_job_ends() -> None:
    async with connected() as peer:
        stream = peer.client.embed(EMBED)
        job = codec.read_embed(await peer.hear())
        assert job.request == EMBED
        assert (peer.client.n_jobs, peer.client.is_idle) == (1, False)
        peer.step((job.id, Vectors((ONE,))), load=(1, 0, 7))
        peer.step((job.id, Vectors((OTHER,))), (job.id, FINISHED))
        assert await stream.result() == Embeddings((ONE, OTHER), FINISHED)
        await peer.client.until_idle()
        assert (peer.client.n_jobs, peer.client.is_idle) == (0, True)
        stream.close()


@on_loop
async def test_a_job_of_embeddings_that_nobody_waits_for_is_cancelled() -> None:
    async with connected() as peer:
        stream = peer.client.embed(EMBED)
        job_id = (await peer.hear())["id"]
        waiting = asyncio.ensure_future(stream.result())
        peer.step((job_id, Vectors((ONE,))))
        await peer.until_heard()
        waiting.cancel()
        stream.close()
        stream.close()
        assert await peer.hear() == {"op": "cancel", "id": job_id}
        peer.step((job_id, Vectors((OTHER,))), (job_id, FINISHED))
        await peer.until_heard()
        assert peer.client.is_alive
        assert peer.client.is_idle


@on_loop
async def test_a_job_of_embeddings_ends_with_its_error_or_its_worker() -> None:
    async with connected() as peer:
        refused, lost = peer.client.embed(EMBED), peer.client.embed(EMBED)
        peer.step(((await peer.hear())["id"], BadRequest("no", param="input")))
        with pytest.raises(BadRequest, match="no"):
            await refused.result()
        await peer.hear()
        peer.end(-9)
        with pytest.raises(WorkerDied):
            await lost.result()


@pytest.mark.parametrize(
    "events",
    [
        (Vectors((ONE, OTHER, ONE)),),
        (Vectors((ONE, ONE[:4])),),
        (Vectors((ONE,)), Vectors((ONE[:4],))),
        (Vectors((ONE,)), FINISHED),
        (Piece("text", 1),),
        (Accepted(1),),
    ],
)
@on_loop
async def test_a_worker_that_answers_a_job_of_embeddings_with_something_else_is_ended(
    events: tuple[JobOutput, ...],
) -> None:
    async with connected() as peer:
        stream = peer.client.embed(EMBED)
        job_id = (await peer.hear())["id"]
        peer.step(*((job_id, event) for event in events))
        with pytest.raises(WorkerDied):
            await stream.result()
        assert peer.process.n_kills == 1


@on_loop
async def test_a_worker_that_answers_text_with_vectors_is_ended() -> None:
    async with connected() as peer:
        stream = peer.client.submit(REQUEST)
        peer.step(((await peer.hear())["id"], Vectors((ONE,))))
        with pytest.raises(WorkerDied):
            await stream.accepted()
        assert peer.process.n_kills == 1


@on_loop
async def test_what_a_worker_reads_and_writes_of_prompts_is_passed_on() -> None:
    async with connected() as peer:
        peer.say(reports.traffic_frame(PromptCacheStats(n_misses=1)))
        peer.say(reports.traffic_frame(PromptCacheStats(1, 0, 400, 1000, 2000, 5000)))
        await peer.until_heard()
        assert peer.traffic == [PromptCacheStats(n_misses=1), PromptCacheStats(1, 0, 400, 1000, 2000, 5000)]


@on_loop
async def test_calls_are_answered_in_any_order() -> None:
    async with connected() as peer:
        prompt = ChatPrompt((Message("user", "hi"),))
        calls = (
            asyncio.ensure_future(peer.client.tokenize("é", add_special=True, parse_special=False)),
            asyncio.ensure_future(peer.client.detokenize((5, 6))),
            asyncio.ensure_future(peer.client.apply_template(prompt)),
        )
        heard = [await peer.hear() for _ in calls]
        assert [message["name"] for message in heard] == ["tokenize", "detokenize", "apply_template"]
        assert heard[0]["arguments"] == {"text": "é", "add_special": True, "parse_special": False}
        assert heard[1]["arguments"] == {"tokens": [5, 6]}
        assert codec.prompt_from_wire(heard[2]["arguments"]["prompt"]) == prompt
        answers: tuple[str | list[int], ...] = ("rendered" * 10_000, "text", [1, 2])
        for message, value in zip(reversed(heard), answers, strict=True):
            for part in reports.result_frames(message["id"], value):
                peer.say(part)
        tokens, *texts = [await call for call in calls]
        assert (list(tokens), texts) == ([1, 2], ["text", "rendered" * 10_000])


@on_loop
async def test_a_call_may_fail_and_an_answer_nobody_waits_for_is_dropped() -> None:
    async with connected() as peer:
        leaving = asyncio.ensure_future(peer.client.detokenize((1,)))
        gone = await peer.hear()
        leaving.cancel()
        assert await peer.hear() == {"op": "cancel", "id": gone["id"]}
        failing = asyncio.ensure_future(peer.client.detokenize((2,)))
        message = await peer.hear()
        peer.say({"op": "result", "id": gone["id"], "value": "late", "more": False})
        peer.say(reports.failure_frame(message["id"], BadRequest("no", param="tokens")))
        with pytest.raises(BadRequest, match="no"):
            await failing
        assert peer.client.is_alive


# -- how a worker ends -----------------------------------------------------------------------------------------------


@on_loop
async def test_a_dead_worker_fails_every_stream_and_call_and_takes_no_more() -> None:
    async with connected() as peer:
        streams = [peer.client.submit(REQUEST) for _ in range(3)]
        call = asyncio.ensure_future(peer.client.detokenize((1,)))
        ids = [(await peer.hear())["id"] for _ in streams]
        assert (await peer.hear())["op"] == "call"
        peer.step((ids[0], Accepted(2)), (ids[0], Piece("so far", 2)), load=(1, 2, 7))
        await streams[0].accepted()
        peer.end(-9)
        for stream, before in zip(streams, ([Piece("so far", 2)], [], []), strict=True):
            *events, error = await end_of(stream)
            assert events == before
            assert isinstance(error, WorkerDied)
            assert "`tiny`" in error.message
            assert "signal 9" in error.message
        with pytest.raises(WorkerDied):
            await streams[1].accepted()
        with pytest.raises(WorkerDied):
            await call
        assert not peer.client.is_alive
        assert (peer.client.load, peer.client.n_jobs) == ((0, 0, 0), 0)
        with pytest.raises(WorkerDied, match="the next request starts a new one"):
            peer.client.submit(REQUEST)
        with pytest.raises(WorkerDied):
            await peer.client.detokenize((1,))
        await peer.client.ended.wait()
        assert peer.deaths == [peer.client]


@on_loop
async def test_cancelling_a_job_of_a_dead_worker_is_fine() -> None:
    async with connected() as peer:
        stream = peer.client.submit(REQUEST)
        peer.end(0)
        await peer.client.ended.wait()
        stream.close()


@on_loop
async def test_a_worker_that_ends_while_it_loads_says_how() -> None:
    async with connected() as peer:
        peer.end(3)
        with pytest.raises(ModelUnavailable, match="ended while it loaded `tiny` \\(exit code 3\\)"):
            await peer.client.opened


@on_loop
async def test_a_worker_that_is_told_to_end_fails_its_jobs_as_unloaded() -> None:
    async with connected() as peer:
        stream = peer.client.submit(REQUEST)
        await peer.hear()
        closing = asyncio.ensure_future(peer.client.close())
        assert await peer.reader.read() == b"", "the worker sees the end of its socket"
        peer.end(0)
        await closing
        assert isinstance((await end_of(stream))[-1], ShuttingDown)
        assert peer.deaths == [peer.client]
        await peer.client.close()
        assert peer.deaths == [peer.client]


@on_loop
async def test_a_worker_that_stays_after_the_end_of_its_socket_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_end, "KILL_AFTER_S", 0.2)
    async with connected() as peer:
        peer.writer.close()
        await peer.client.ended.wait()
        assert peer.process.n_kills == 1
        assert peer.process.status == -9


@on_loop
async def test_a_worker_that_never_stops_talking_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame makes sense, and all of them together take a processor."""
    monkeypatch.setattr(worker_watch, "_MAX_FRAMES_PER_S", 100)
    async with connected() as peer:
        peer.client.open(replace(OPTIONS, worker_timeout_s=8.0))
        peer.say({"op": "opened", "facts": asdict(FakeWorker.facts)})
        await peer.client.opened
        while not peer.process.n_kills:
            for _ in range(200):
                peer.say(reports.traffic_frame(PromptCacheStats()))
            await asyncio.sleep(0.01)
        await peer.client.ended.wait()
        assert "sends more than can be read" in peer.client.end_reason


@on_loop
async def test_jobs_do_not_wait_for_a_process_that_the_system_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for a disk which does not answer cannot even be killed."""
    monkeypatch.setattr(worker_end, "KILL_AFTER_S", 0)
    monkeypatch.setattr(worker_end, "LET_GO_AFTER_S", 0.05)
    monkeypatch.setattr(FakeProcess, "kill", lambda _: None)
    async with connected() as peer:
        stream = peer.client.submit(REQUEST)
        await peer.hear()
        peer.writer.close()
        (error,) = await end_of(stream)
        assert isinstance(error, WorkerDied)
        assert "cannot be ended" in error.message
        assert not peer.client.ended.is_set(), "its memory is not back"
        await peer.client.close()
        assert peer.deaths == []
        peer.end(-9)
        await peer.client.ended.wait()
        assert peer.deaths == [peer.client]


@pytest.mark.parametrize("n_unread_bytes", [0, 8 * 2**20], ids=["idle", "behind with its reading"])
def test_close_returns_only_when_a_deaf_worker_has_really_ended(
    n_unread_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_end, "KILL_AFTER_S", 0)
    ours, theirs = socket.socketpair()
    with theirs:  # the process inherits this end and keeps it open, but never looks at it
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(theirs.fileno(),))

    async def run() -> None:
        _, client = await asyncio.get_running_loop().create_unix_connection(
            lambda: WorkerClient("deaf", process, Hooks()), sock=ours
        )
        client.opened.cancel()
        client.submit(GenerateRequest("deaf", TextPrompt("x" * n_unread_bytes)))
        await client.close()
        assert process.returncode == -9
        assert client.ended.is_set()

    try:
        asyncio.run(run())
    finally:
        process.kill()
        process.communicate()


YES: list[Any] = [1, "accepted", 4, asdict(ReplyFormat()), []]
USAGE, TIMINGS = asdict(FINISHED.usage), asdict(FINISHED.timings)
NONSENSE: dict[str, bytes | dict[str, Any]] = {
    "a length beyond all measure": b"\xff\xff\xff\xff",
    "no JSON": b"\x00\x00\x00\x02{]",
    "no object": b"\x00\x00\x00\x02[]",
    "no op": {"id": 1},
    "an unknown op": {"op": "dance"},
    "a second yes": {"op": "opened", "facts": asdict(FakeWorker.facts)},
    "a no after the yes": {"op": "refused", "error": {}},
    "a step without events": {"op": "step", "load": [0, 0, 0]},
    "a step without a load": {"op": "step", "events": []},
    "a load of four": {"op": "step", "events": [], "load": [1, 2, 3, 4]},
    "a load of words": {"op": "step", "events": [], "load": ["many", "few", 0]},
    "a load without end": {"op": "step", "events": [], "load": [math.inf, 0, 0]},
    "a load of 400 digits": {"op": "step", "events": [], "load": [int("9" * 400), 0, 0]},
    "a load below zero": {"op": "step", "events": [], "load": [-1, 0, 0]},
    "a load of halves": {"op": "step", "events": [], "load": [0.5, 0, 0]},
    "a load of truths": {"op": "step", "events": [], "load": [True, 0, 0]},
    "an event that is none": {"op": "step", "events": [[1, "dance"]], "load": [0, 0, 0]},
    "events that are none": {"op": "step", "events": 5, "load": [0, 0, 0]},
    "an event that is an object": {"op": "step", "events": [{"kind": "piece"}], "load": [0, 0, 0]},
    "a job that there is not": {"op": "step", "events": [[7, "piece", "a", 1]], "load": [0, 0, 0]},
    "text before the yes": {"op": "step", "events": [[1, "piece", "a", 1]], "load": [0, 0, 0]},
    "an end before the yes": {
        "op": "step",
        "events": [[1, "finished", "stop", USAGE, TIMINGS, None]],
        "load": [0, 0, 0],
    },
    "two yeses": {"op": "step", "events": [YES, YES], "load": [0, 0, 0]},
    "a yes of 400 digits": {"op": "step", "events": [[1, "accepted", int("9" * 400), *YES[3:]]], "load": [0, 0, 0]},
    "a prompt that was not wanted": {"op": "step", "events": [YES, [1, "echo", "a", []]], "load": [0, 0, 0]},
    "a place that was not wanted": {"op": "step", "events": [YES, [1, "place", 0]], "load": [0, 0, 0]},
    "progress that was not wanted": {"op": "step", "events": [YES, [1, "reading", 2, 0, 1, 0.5]], "load": [0, 0, 0]},
    "more tokens than there are": {"op": "step", "events": [YES, [1, "piece", "a", 2**25]], "load": [0, 0, 0]},
    "an end of 400 digits": {
        "op": "step",
        "events": [YES, [1, "finished", "stop", USAGE | {"n_prompt": int("9" * 400)}, TIMINGS, None]],
        "load": [0, 0, 0],
    },
    "an end before its beginning": {
        "op": "step",
        "events": [YES, [1, "finished", "stop", USAGE, TIMINGS | {"queue_ms": -1.0}, None]],
        "load": [0, 0, 0],
    },
    "a share that nobody gave": {"op": "shared"},
    "a job that cannot be one": {"op": "step", "events": [[[1], "piece", "a", 1]], "load": [0, 0, 0]},
    "a piece without end": {"op": "step", "events": [YES, [1, "piece", "a", math.inf]], "load": [0, 0, 0]},
    "a reason that is none": {
        "op": "step",
        "events": [YES, [1, "finished", "bored", USAGE, TIMINGS, None]],
        "load": [0, 0, 0],
    },
    "traffic that is none": {"op": "prompts", "n_hits": -1},
    "an answer without an id": {"op": "result", "value": "1", "more": False},
    "an answer without a value": {"op": "result", "id": 2},
    "an answer to nobody": {"op": "result", "id": 999, "value": "1", "more": False},
    "an answer of another kind": {"op": "result", "id": 2, "value": [1], "more": False},
    "an answer of numbers": {"op": "result", "id": 2, "value": 5, "more": False},
    "an answer to no end": {"op": "result", "id": 2, "value": "x" * 10_000, "more": True},
    "an error that is none": {"op": "result", "id": 2, "error": "no"},
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_ends_the_worker_and_not_the_server(nonsense: bytes | dict[str, Any]) -> None:
    async def run() -> None:
        async with connected() as peer:
            peer.say({"op": "opened", "facts": asdict(FakeWorker.facts)})
            await peer.client.opened
            stream = peer.client.submit(REQUEST)
            call = asyncio.ensure_future(peer.client.detokenize((1,)))
            assert (await peer.hear())["id"] == 1
            assert (await peer.hear())["id"] == 2
            if isinstance(nonsense, bytes):
                peer.writer.write(nonsense)
            else:
                payload = json.dumps(nonsense).encode()
                peer.writer.write(len(payload).to_bytes(4, "big") + payload)
            await peer.client.ended.wait()
            (error,) = await end_of(stream)
            assert isinstance(error, WorkerDied)
            assert call.done(), "nobody told the caller"
            assert isinstance(call.exception(), WorkerDied)
            assert (peer.process.n_kills, peer.process.n_vain_looks) == (1, 0), "it is killed at once"
            assert peer.deaths == [peer.client]

    asyncio.run(run())


@pytest.mark.parametrize("facts", [None, 5, {}, {"n_ctx": 1}, asdict(FakeWorker.facts) | {"more": 1}])
def test_facts_that_are_none_end_the_load(facts: object) -> None:
    async def run() -> None:
        async with connected() as peer:
            peer.say({"op": "opened", "facts": facts})
            with pytest.raises(ModelUnavailable):
                await peer.client.opened
            assert peer.process.n_kills == 1

    asyncio.run(run())


# -- starting one ----------------------------------------------------------------------------------------------------


def test_a_worker_is_this_program_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_command(7, "tiny") == [sys.executable, "-m", "shimmy", "worker", "7", "tiny"]
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", "/proc/self/fd/3")
    assert worker_command(7, "tiny") == [sys.argv[0], "worker", "7", "tiny"]
    monkeypatch.setattr(sys, "executable", "/unpacked/shimmy")
    assert worker_command(7, "tiny") == ["/unpacked/shimmy", "worker", "7", "tiny"]


@on_loop
async def test_a_program_that_ends_at_once_is_a_load_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "worker_command", lambda _fd, _name: ["sh", "-c", "exit 5"])
    deaths: list[WorkerClient] = []
    with pytest.raises(ModelUnavailable, match="exit code 5"):
        await start_worker("tiny", OPTIONS, Hooks(deaths.append))
    assert len(deaths) == 1


@on_loop
async def test_a_program_that_cannot_be_started_is_a_load_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory, no processes or no files left: the caller gets an error of the tree, and nothing stays open."""
    monkeypatch.setattr(process, "worker_command", lambda _fd, _name: ["/nowhere/shimmy"])
    with pytest.raises(ModelUnavailable, match="tiny"):
        await start_worker("tiny", OPTIONS, Hooks())
