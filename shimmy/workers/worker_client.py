"""The parent's handle on one worker process: sends it jobs and calls, sorts what it says, notices its end.

Knows the wire; nothing of models beyond their path, and never imports what the worker imports. Runs on the event loop
only. The worker is not trusted: what it sends is data, and a frame that makes no sense ends it. `starting` makes a
client, `worker_watch` looks after its process, `worker_end` waits for the end of that.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from shimmy import background
from shimmy.errors import (
    ShimmyError,
    ShuttingDown,
    WorkerDied,
)
from shimmy.messages.event import Finished, JobOutput
from shimmy.messages.model_info import LoadProgress, ModelFacts, PromptCacheStats, WorkerLoad
from shimmy.messages.request import ChatPrompt, EmbeddingJob, EmbedRequest, GenerateRequest, Job
from shimmy.wire import codec, frames, reports, values, worker_options
from shimmy.workers import worker_end
from shimmy.workers.outbox import Outbox
from shimmy.workers.worker_end import WorkerEnd
from shimmy.workers.worker_streams import Answer, EmbeddingStream, JobStream
from shimmy.workers.worker_watch import WorkerWatch

if TYPE_CHECKING:
    import subprocess
    from array import array

    from shimmy.workers.worker_stderr import WorkerStderr

logger = logging.getLogger(__name__)

# Of what a worker has said, so much is read before others have their turn.
_READ_BYTES = 64 * 1024
# So many events of a job that was cancelled may have been on their way.
_N_LATE_EVENTS = 100_000
_SLACK = 1024  # tokens that the engine may add to `n_ctx` by rounding


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the owner of a worker wants to be told."""

    on_death: "Callable[[WorkerClient], None]" = lambda _: None  # once, however it ended
    on_busy: Callable[[], None] = lambda: None  # it got its first job, or has ended its last
    on_progress: Callable[[LoadProgress], None] = lambda _: None  # how far its load is
    on_prompts: Callable[[PromptCacheStats], None] = lambda _: None  # what went to the disk and came from there


class WorkerClient(asyncio.BufferedProtocol):
    """A running worker with its model loaded; made by `start_worker`."""

    facts: ModelFacts

    def __init__(self, name: str, child: "subprocess.Popen[bytes]", hooks: Hooks) -> None:
        self.name = name
        self.load = WorkerLoad()
        self.is_alive = True
        self._process = child
        self._hooks = hooks
        self._share = worker_options.CpuShare()
        self._n_untaken = 0  # shares that were sent and are not confirmed yet
        self._taken = asyncio.Event()
        self._taken.set()
        self._buffer = bytearray(_READ_BYTES)
        self._reader = frames.FrameReader(reports.MAX_REPORT_BYTES)
        self._transport: asyncio.Transport
        self._outbox = Outbox(self._write)
        self._last_id = 0  # of a job or a call
        self._n_late_events = 0  # that may still come of cancelled ones
        self._n_tokens_max = 2**24  # of a job, once it is known
        self._streams: dict[int, JobStream | EmbeddingStream] = {}
        self._calls: dict[int, Answer] = {}
        self.stderr: WorkerStderr | None = None
        self._end = WorkerEnd(child)
        self.end_reason = ""  # once it has ended
        self.lacked_device_memory = False  # the reason: a device had too little
        self.n_finished = 0  # jobs that came to a good end
        self._watch = WorkerWatch(lambda: (self.opened.done(), not self.is_idle), self.break_off)
        self.is_closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.idle_since_s = monotonic()  # meaningful while there are no jobs
        self.opened: asyncio.Future[ModelFacts] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def n_jobs(self) -> int:
        """Jobs handed over that have not ended."""
        return len(self._streams)

    @property
    def n_asked(self) -> int:
        """The same, and calls that were not answered."""
        return len(self._streams) + len(self._calls)

    @property
    def is_idle(self) -> bool:
        """No job or call is under way."""
        return not (self._streams or self._calls)

    async def until_idle(self) -> None:
        """Return when no job or call is under way, or the worker has ended; at once when that is so."""
        await self._idle.wait()

    # -- what the server asks ------------------------------------------------------------------------------------

    def submit(self, request: GenerateRequest) -> JobStream:
        """Hand a job to the worker; its `accepted` tells whether the worker takes it. Raises Overloaded."""
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[GenerateRequest]) -> list[JobStream]:
        """The same for jobs that differ only in prompts and seeds: what they share is sent once."""
        self._require_alive()
        jobs = [Job(self._next_id(), request) for request in requests]
        streams = [
            JobStream(
                job.id,
                self._cancel,
                self._n_tokens_max,
                echoed=job.request.echo,
                tells_progress=job.request.tells_progress,
            )
            for job in jobs
        ]
        n_bytes = sum(map(codec.size_of, {id(each.prompt): each.prompt for each in requests}.values()))
        self._begin(
            {job.id: stream for job, stream in zip(jobs, streams, strict=True)}, codec.jobs_frame(jobs), n_bytes
        )
        return streams

    def embed(self, request: EmbedRequest) -> EmbeddingStream:
        """Hand a job of embeddings to the worker."""
        self._require_alive()
        job = EmbeddingJob(self._next_id(), request)
        stream = EmbeddingStream(job, self._cancel)
        n_bytes = sum(len(each) if isinstance(each, str) else 8 * len(each) for each in request.inputs)
        self._begin({job.id: stream}, codec.embed_frame(job), n_bytes)
        return stream

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Sequence[int]:
        arguments = {"text": text, "add_special": add_special, "parse_special": parse_special}
        answer = Answer.tokens_of(text)
        tokens: array[int] = await self._call("tokenize", arguments, answer, len(text))
        return tokens

    async def detokenize(self, tokens: Sequence[int]) -> str:
        answer = Answer.text_of(len(tokens))
        text: str = await self._call("detokenize", {"tokens": tokens}, answer, 8 * len(tokens))
        return text

    async def apply_template(self, prompt: ChatPrompt) -> str:
        answer = Answer.rendered_prompt()
        arguments: dict[str, object] = {"prompt": codec.prompt_to_wire(prompt)}
        text: str = await self._call("apply_template", arguments, answer, codec.size_of(prompt))
        return text

    async def close(self) -> None:
        """End the worker and wait for that: its jobs fail, and its memory is free when this returns."""
        self.is_closing = True
        if self.is_alive:
            self._transport.close()  # the worker ends itself when its socket does
        try:
            await asyncio.wait_for(self.ended.wait(), worker_end.KILL_AFTER_S)
        except TimeoutError:
            self._process.kill()
            self._transport.abort()  # frames that it has not read do not delay the end
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), worker_end.LET_GO_AFTER_S)

    def open(self, options: worker_options.WorkerOptions) -> None:
        self._n_tokens_max = options.n_ctx + _SLACK
        self._watch.begin(options.worker_timeout_s, options.load_timeout_s)
        self._share = options.share
        self._transport.write(frames.frame(codec.open_frame(options)))  # before anything else

    # -- what the worker says ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def pause_writing(self) -> None:
        self._outbox.pause()

    def resume_writing(self) -> None:
        self._outbox.resume()

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - asyncio's signature
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._watch.heard()
        try:
            for message in self._reader.feed(self._buffer[:nbytes]):
                self._watch.count_frame()
                self._on_frame(message)
        except Exception as exc:  # whatever error a worker causes, only the worker ends
            if not isinstance(exc, frames.ProtocolError):
                logger.exception("what worker `%s` (pid %d) said cannot be acted on", self.name, self.pid)
            self.break_off(f"it said what makes no sense: {exc}")

    def break_off(self, reason: str) -> None:
        """Kill the worker; its jobs and calls fail with `reason`."""
        if self._end.kill_reason is None:
            self._end.kill_reason = reason
            logger.error("worker `%s` (pid %d) is killed: %s", self.name, self.pid, reason)
        self._process.kill()
        self._transport.abort()

    def _on_frame(self, message: frames.Frame) -> None:
        match message["op"]:
            case "step":
                self._watch.count_work()
                self.load, events = reports.read_step(message)
                for job_id, event in events:
                    self._on_event(job_id, event)
            case "result":
                self._watch.count_work()
                self._on_result(*reports.read_result(message))
            case "alive":
                self._watch.told(reports.read_alive(message))
            case "dying":
                self._end.last_words = reports.read_error(message.get("error"))
            case "progress" if not self.opened.done():
                self._hooks.on_progress(reports.read_progress(message))
            case "prompts":
                self._hooks.on_prompts(reports.read_traffic(message))
            case "shared" if self._n_untaken:
                self._n_untaken -= 1
                if self._n_untaken == 0:
                    self._taken.set()
            case "opened" if not self.opened.done():
                self.facts = reports.read_facts(message.get("facts"))
                self.idle_since_s = monotonic()
                self.opened.set_result(self.facts)
            case "refused" if not self.opened.done():
                self.opened.set_exception(reports.read_error(message.get("error")))
            case op:
                raise frames.ProtocolError(f"a frame `{values.printable(op, 40)}` that has no place here")

    def _on_event(self, job_id: int, event: JobOutput | ShimmyError) -> None:
        stream = self._streams.get(job_id)
        if stream is None:
            self._note_late(job_id)
            return
        stream.put(event)  # an event that the job cannot have ends the worker, and the job hears of that
        if isinstance(event, Finished | ShimmyError):
            self.n_finished += isinstance(event, Finished)
            self._forget(job_id)

    def _on_result(self, call_id: int, part: list[int] | str | ShimmyError, more: bool) -> None:
        answer = self._calls.get(call_id)  # `_call` takes it out; until then `_reap` must find it
        if answer is None:
            self._note_late(call_id)
        else:
            answer.put(part, more=more)

    def _note_late(self, job_id: int) -> None:
        """An event of a job that is not there: it was on its way when the job was cancelled, or it is nonsense."""
        self._n_late_events -= 1
        if job_id > self._last_id or self._n_late_events < 0:
            raise frames.ProtocolError("events of jobs that there are not")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.is_alive = False
        self._watch.end()
        self._outbox.close()
        reaping = asyncio.get_running_loop().create_task(self._reap())
        background.watch(reaping, f"ending the worker of `{self.name}`")

    async def _reap(self) -> None:
        """Wait for the end of the process, then fail its jobs and calls.

        A process that waits for a disk cannot be ended before the disk answers: its jobs do not wait for that.
        """
        status = await self._end.status(worker_end.KILL_AFTER_S + worker_end.LET_GO_AFTER_S)
        written = ""
        if self.stderr is not None:
            written = await self.stderr.last_words() if status and not self.is_closing else ""
            self.stderr.close()
        try:
            self._tell_of_end(status, written)
        finally:
            if status is None:
                logger.error("worker `%s` (pid %d) was killed, but the system keeps it", self.name, self.pid)
                await self._end.status(math.inf)
            try:
                self._hooks.on_death(self)
            finally:
                self.ended.set()

    def _tell_of_end(self, status: int | None, written: str) -> None:
        """Fail the load, the jobs and the calls; `written` is the last text on the worker's stderr."""
        self.end_reason = how = self._end.described(status, written)
        self.lacked_device_memory = self._end.lacked_device_memory(status, written)
        error: ShimmyError = ShuttingDown("the model is being unloaded")
        if not self.is_closing:
            error = WorkerDied(f"the worker of `{self.name}` ended ({how}) while the request was running")
            logger.error("worker `%s` (pid %d) ended: %s", self.name, self.pid, how)
        if not self.opened.done():
            failed = self._end.failed_load(self.name, how, status, written, is_closing=self.is_closing)
            self.opened.set_exception(failed)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.put(error)
        calls, self._calls = self._calls, {}
        for answer in calls.values():
            answer.put(error, more=False)
        self._note_idle()
        self._taken.set()
        self.load = WorkerLoad()

    # -- sending -------------------------------------------------------------------------------------------------

    async def _call(self, name: str, arguments: dict[str, object], answer: Answer, n_bytes: int) -> Any:
        self._require_alive()
        call_id = self._next_id()
        self._calls[call_id] = answer
        self._idle.clear()
        try:
            self._outbox.put({"op": "call", "id": call_id, "name": name, "arguments": arguments}, [call_id], n_bytes)
            return await answer.whole()
        except asyncio.CancelledError:
            self._call_off(call_id)
            raise
        finally:
            self._calls.pop(call_id, None)
            self._note_idle()

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _begin(self, streams: Mapping[int, JobStream | EmbeddingStream], message: frames.Frame, n_bytes: int) -> None:
        was_busy = bool(self._streams)
        self._outbox.put(message, streams, n_bytes)
        self._streams.update(streams)
        self._idle.clear()
        if not was_busy:
            self._hooks.on_busy()

    def _cancel(self, job_id: int) -> None:
        if self._forget(job_id):
            self._call_off(job_id)

    def _call_off(self, job_id: int) -> None:
        """Cancel a job or call in the worker, or take its frame back where nothing of that was sent yet."""
        if self.is_alive and not self._outbox.call_back(job_id):
            self._n_late_events += _N_LATE_EVENTS
            self._outbox.put({"op": "cancel", "id": job_id})

    def _forget(self, job_id: int) -> bool:
        is_known = self._streams.pop(job_id, None) is not None
        if is_known and not self._streams:
            self._hooks.on_busy()
            self._note_idle()
        return is_known

    def _note_idle(self) -> None:
        self.idle_since_s = monotonic()
        if self.is_idle:
            self._idle.set()

    def share(self, share: worker_options.CpuShare) -> None:
        """Tell the worker its CPU share; `until_shared` returns when it keeps to it."""
        if share != self._share and self.is_alive:
            self._share = share
            self._n_untaken += 1
            self._taken.clear()
            self._outbox.put(codec.share_frame(share))

    async def until_shared(self) -> None:
        """Return when the worker keeps to the share that it was told last, which it does after the decode under way."""
        await self._taken.wait()

    def _require_alive(self) -> None:
        if not self.is_alive:
            raise WorkerDied(f"the worker of `{self.name}` has ended; the next request starts a new one")

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
