"""The parent's handle on one worker process: starts it, feeds it jobs, sorts what it says, notices its end.

Knows processes and the wire; nothing of models beyond their path, and never imports what the worker imports. Runs on
the event loop only. The worker is not trusted: what it sends is data, and a frame that makes no sense ends it.
"""

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from time import monotonic
from typing import Any

from shimmy.engine import wire
from shimmy.errors import ModelUnavailable, OutOfMemory, ShimmyError, ShuttingDown, WorkerDied
from shimmy.messages import Accepted, ChatPrompt, Event, Finished, GenerateRequest, Job, ModelFacts, Piece

logger = logging.getLogger(__name__)

_KILL_AFTER_S = 5.0
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def worker_command(socket_fd: int, name: str) -> list[str]:
    """The program itself with its hidden sub-command; `name` is only there for a person reading `ps`."""
    program = [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "shimmy"]
    return [*program, "worker", str(socket_fd), name]


class JobStream:
    """What the worker says about one job. Pieces not taken yet are joined, so a slow reader costs nothing."""

    def __init__(self, job_id: int, cancel: Callable[[int], None]) -> None:
        self._id = job_id
        self._cancel = cancel
        self._accepted: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._texts: list[str] = []
        self._n_tokens = 0
        self._end: Finished | ShimmyError | None = None
        self._is_over = False
        self._waiter: asyncio.Future[None] | None = None  # who waits for the next event

    def put(self, event: Event | ShimmyError) -> None:
        """Called by the client for each event of this job."""
        match event:
            case Piece(text, n_tokens):
                self._texts.append(text)
                self._n_tokens += n_tokens
            case Accepted():
                if not self._accepted.done():
                    self._accepted.set_result(event)
                return
            case _:
                self._end = event
                if not self._accepted.done() and isinstance(event, ShimmyError):
                    self._accepted.set_exception(event)
                    self._accepted.exception()  # a caller that left does not make this an unhandled one
        self._wake()

    async def accepted(self) -> Accepted:
        """The worker's yes; raises what it said instead."""
        return await asyncio.shield(self._accepted)

    def __aiter__(self) -> AsyncIterator[Piece | Finished]:
        """Pieces, then Finished; raises the error that ended the job. One reader."""
        return self

    async def __anext__(self) -> Piece | Finished:
        # Not a generator, and no asyncio.Event: this runs once for each token of each stream.
        while not self._texts and self._end is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._texts:
            piece = Piece("".join(self._texts), self._n_tokens)
            self._texts, self._n_tokens = [], 0
            return piece
        if isinstance(self._end, ShimmyError):
            raise self._end
        if self._is_over or self._end is None:
            raise StopAsyncIteration
        self._is_over = True
        return self._end

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Cancel the job unless it has ended; safe to call twice."""
        if self._end is None:
            self._cancel(self._id)
            self._end = WorkerDied("the job was cancelled")
            self._wake()


class WorkerClient(asyncio.Protocol):
    """A running worker with its model loaded; made by `start_worker`."""

    facts: ModelFacts

    def __init__(
        self,
        name: str,
        process: "subprocess.Popen[bytes]",
        on_death: Callable[["WorkerClient"], None],
        on_busy: Callable[[], None],
    ) -> None:
        self.name = name
        self.n_running = 0
        self.n_waiting = 0
        self.is_alive = True
        self._process = process
        self._on_death = on_death
        self._on_busy = on_busy  # called when the first job comes and when the last one ends
        self._share = wire.Share()
        self._n_untaken = 0  # shares that were told and are not taken yet
        self._taken = asyncio.Event()
        self._taken.set()
        self._reader = wire.FrameReader()
        self._transport: asyncio.Transport
        self._ids = itertools.count(1)
        self._streams: dict[int, JobStream] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
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
    def is_idle(self) -> bool:
        """Nobody waits for anything of it."""
        return not (self._streams or self._calls)

    async def until_idle(self) -> None:
        """Return when nobody waits for anything of it; at once when that is so, and when it has ended."""
        await self._idle.wait()

    # -- what the server asks ------------------------------------------------------------------------------------

    def submit(self, request: GenerateRequest) -> JobStream:
        """Hand a job to the worker; the answer to whether it takes it comes as `accepted`."""
        self._require_alive()
        job = Job(
            id=next(self._ids),
            prompt=request.prompt,
            sampling=request.sampling,
            n_predict=request.n_predict,
            stop=request.stop,
            cache_prompt=request.cache_prompt,
            lora=request.lora,
        )
        stream = self._streams[job.id] = JobStream(job.id, self._cancel)
        self._idle.clear()
        self._send(wire.job_frame(job))
        if len(self._streams) == 1:
            self._on_busy()
        return stream

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        arguments = {"text": text, "add_special": add_special, "parse_special": parse_special}
        return [int(token) for token in await self._call("tokenize", arguments)]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return str(await self._call("detokenize", {"tokens": list(tokens)}))

    async def apply_template(self, prompt: ChatPrompt) -> str:
        return str(await self._call("apply_template", {"prompt": wire.prompt_to_wire(prompt)}))

    async def close(self) -> None:
        """End the worker and wait for its end: its jobs fail, its memory is back when this returns."""
        self.is_closing = True
        if self.is_alive:
            self._transport.close()  # the worker ends itself when its socket does
        try:
            await asyncio.wait_for(self.ended.wait(), _KILL_AFTER_S)
        except TimeoutError:
            self._process.kill()
            self._transport.abort()  # what it has not read yet does not hold up the end
            await self.ended.wait()

    def open(self, options: wire.WorkerOptions) -> None:
        self._share = options.share
        self._send(wire.open_frame(options))

    # -- what the worker says ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self._on_frame(message)
        except (wire.ProtocolError, KeyError, TypeError, ValueError, OverflowError):
            logger.exception("worker `%s` (pid %d) sent nonsense and is ended", self.name, self.pid)
            self._process.kill()
            self._transport.abort()

    def _on_frame(self, message: wire.Frame) -> None:
        match message["op"]:
            case "step":
                self.n_running, self.n_waiting = (int(number) for number in message["load"])
                for fields in message["events"]:
                    self._on_event(*wire.read_event(fields))
            case "result":
                self._on_result(message)
            case "shared":
                self._n_untaken -= 1
                if self._n_untaken == 0:
                    self._taken.set()
            case "opened" if not self.opened.done():
                self.facts = wire.read_facts(message["facts"])
                self.idle_since_s = monotonic()
                self.opened.set_result(self.facts)
            case "refused" if not self.opened.done():
                self.opened.set_exception(wire.read_error(message["error"]))
            case op:
                raise wire.ProtocolError(f"a frame `{op}` that has no place here")

    def _on_event(self, job_id: int, event: Event | ShimmyError) -> None:
        stream = self._streams.get(job_id)
        if stream is None:
            return  # cancelled meanwhile
        if isinstance(event, Finished | ShimmyError):
            self._forget(job_id)
        stream.put(event)

    def _on_result(self, message: wire.Frame) -> None:
        future = self._calls.get(message["id"])  # `_call` takes it out; until then `_bury` must find it
        if future is None or future.done():
            return
        if "error" in message:
            future.set_exception(wire.read_error(message["error"]))
        else:
            future.set_result(message["value"])

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.is_alive = False
        asyncio.get_running_loop().create_task(self._bury())

    async def _bury(self) -> None:
        """Wait for the process, then tell everybody who waits for it."""
        loop = asyncio.get_running_loop()
        status = await loop.run_in_executor(None, self._wait)
        error: ShimmyError = ShuttingDown("the model is being unloaded")
        if not self.is_closing:
            error = WorkerDied(f"the worker of `{self.name}` ended ({_describe(status)}) while the request was running")
            logger.error("worker `%s` (pid %d) ended: %s", self.name, self.pid, _describe(status))
        if not self.opened.done():
            message = f"the worker ended while it loaded `{self.name}` ({_describe(status)}"
            if status == -signal.SIGKILL and not self.is_closing:
                hint = ", which a system sends that has run out of memory)"
                self.opened.set_exception(OutOfMemory(message + hint))
            else:
                self.opened.set_exception(ModelUnavailable(message + ")"))
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.put(error)
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(error)
        self._note_idle()
        self._taken.set()
        self.n_running = self.n_waiting = 0
        self._on_death(self)
        self.ended.set()

    def _wait(self) -> int:
        try:
            return self._process.wait(_KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    # -- sending -------------------------------------------------------------------------------------------------

    async def _call(self, name: str, arguments: dict[str, object]) -> Any:
        self._require_alive()
        call_id = next(self._ids)
        future = self._calls[call_id] = asyncio.get_running_loop().create_future()
        self._idle.clear()
        self._send({"op": "call", "id": call_id, "name": name, "arguments": arguments})
        try:
            return await future
        finally:
            self._calls.pop(call_id, None)
            self._note_idle()

    def _cancel(self, job_id: int) -> None:
        if self._forget(job_id) and self.is_alive:
            self._send({"op": "cancel", "id": job_id})

    def _forget(self, job_id: int) -> bool:
        is_known = self._streams.pop(job_id, None) is not None
        if is_known and not self._streams:
            self._on_busy()
            self._note_idle()
        return is_known

    def _note_idle(self) -> None:
        self.idle_since_s = monotonic()
        if self.is_idle:
            self._idle.set()

    def share(self, share: wire.Share) -> None:
        """Let it take its part of the processor; `until_shared` tells when it does."""
        if share != self._share and self.is_alive:
            self._share = share
            self._n_untaken += 1
            self._taken.clear()
            self._send({"op": "share", **asdict(share)})

    async def until_shared(self) -> None:
        """Return when it takes the part that it was told last; that is so once the decode under way is done."""
        await self._taken.wait()

    def _require_alive(self) -> None:
        if not self.is_alive:
            raise WorkerDied(f"the worker of `{self.name}` has ended; the next request starts a new one")

    def _send(self, message: wire.Frame) -> None:
        self._transport.write(wire.frame(message))


def _describe(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit code {status}"


def _spawn(command: list[str], socket_fd: int) -> "subprocess.Popen[bytes]":
    """A child that inherits the socket and our stderr, and no input.

    Its malloc asks for huge pages, where the system gives them to those who ask: the engine's buffers and the KV pool
    are walked from end to end for every token, and a decode is up to 7 % faster. The C library reads the setting only
    when a program starts; one that the user has made stays.
    """
    environment = {"GLIBC_TUNABLES": _HUGE_PAGES, **os.environ}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(socket_fd,), env=environment)


async def start_worker(
    name: str,
    options: wire.WorkerOptions,
    on_death: Callable[[WorkerClient], None],
    on_busy: Callable[[], None] = lambda: None,
) -> WorkerClient:
    """Start a process, have it load the model, and return it ready; raises ModelUnavailable with the reason."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = _spawn(worker_command(theirs.fileno(), name), theirs.fileno())
        except OSError as exc:
            ours.close()
            raise ModelUnavailable(f"no worker could be started for `{name}`: {exc.strerror}") from exc
    _, client = await asyncio.get_running_loop().create_unix_connection(
        lambda: WorkerClient(name, process, on_death, on_busy), sock=ours
    )
    client.open(options)
    try:
        await client.opened
    except BaseException:
        await client.close()
        raise
    return client
