"""The worker process: loads one model and serves its jobs over the socket it was given, until the parent goes away.

The reader takes frames off the socket; the threads of `lanes` render templates, tokenize and build samplers; the main
thread owns the engine and decodes; the sender writes what a decode led to while the next one runs; the pulse tells that
they get on. Whatever ends the reader (the parent closed the socket, or died) ends the process, at once or when the
prompts are stored that shall outlive it, so a worker never outlives its server by more than that.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter, sleep
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from shimmy import log
from shimmy.engine import last_words, loading, threads
from shimmy.engine.llama.binding import aborts
from shimmy.engine.prepare_lanes import Cancelled, Lanes, Work
from shimmy.engine.pulse import Pulse, engine
from shimmy.engine.schedule.embedder import Embedder, EmbeddingTask
from shimmy.engine.schedule.interfaces import JobEvent
from shimmy.engine.schedule.scheduler import Scheduler
from shimmy.engine.schedule.task import Task
from shimmy.engine.speculate import draft_model
from shimmy.engine.tune.cpu_affinity import Placement, engine_threads
from shimmy.engine.tune.tuner import Tuner, Tuning
from shimmy.errors import NO_MORE_THREADS, Internal, ModelUnavailable, ShimmyError
from shimmy.messages.event import Accepted, Echo
from shimmy.messages.model_info import PromptCacheStats
from shimmy.system import cpu
from shimmy.wire import codec, frames, reports, worker_options
from shimmy.wire.liveness import look_every_s

if TYPE_CHECKING:
    from shimmy.engine.kv.prompt_store import PromptStore  # few workers need them
    from shimmy.engine.llama.model import LlamaModel
    from shimmy.engine.prepare_prompt import PromptPreparer

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 16
# The threads of Python take turns this often; the default of 5 ms would let a template delay a decode by that much.
_SWITCH_INTERVAL_S = 0.0005
# A worker with nothing to do for so long gives memory back.
_REST_AFTER_S = 10.0
# Nothing has run for so long: whoever comes next will hardly come while a prompt is copied for the disk.
_LEISURE_S = 1.0
# What a worker that shall end may still write; its server kills it after five seconds.
_LAST_WRITES_S = 3.0

# Threads that a worker starts after the engine's: those that prepare and send, that write prompts, with deep stacks.
_N_OTHER_THREADS = 4

# A job with no more new tokens than this has its first one as soon as it could be told that it is accepted.
_FEW_TOKENS = 16
# Whoever waits for a first token is told it before the next decode takes all processors.
_FIRST_TOKEN_S = 0.001


class _Prepared(NamedTuple):
    """A job, and what nobody has been told about it yet."""

    task: Task
    unsaid: list[JobEvent]


# An int is the id of a job to cancel, None the end.
_Order = _Prepared | EmbeddingTask | int | worker_options.CpuShare | None


class ParentConnection:
    """The worker's end of the socket; any thread may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._reader = frames.FrameReader()

    def send(self, message: frames.Frame) -> None:
        self.send_frame(frames.frame(message))

    def send_frame(self, data: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):  # the reader sees the end of the connection and ends us
            self._socket.sendall(data)

    def received(self) -> Iterator[frames.Frame]:
        """The parent's frames, until it closes its end."""
        while data := self._socket.recv(_READ_BYTES):
            for message in self._reader.feed(data):
                yield from codec.one_by_one(message)

    @property
    def n_bytes(self) -> int:
        """How long the last frame was."""
        return self._reader.n_bytes


class Worker:
    """The threads around one loaded model."""

    def __init__(self, connection: ParentConnection, pulse: Pulse) -> None:
        self._connection = connection
        self._pulse = pulse
        self._lanes = Lanes(self._prepare, pulse.preparing)
        self._to_schedule: SimpleQueue[_Order] = SimpleQueue()
        self._unsaid: list[JobEvent] = []  # until the next decode has been done; of the thread that decodes
        self._to_send: SimpleQueue[tuple[list[JobEvent], tuple[int, int]]] = SimpleQueue()
        self._reported = (0, 0)  # jobs running and waiting, as the parent was told last
        self._scheduler: Scheduler | None = None  # of a model that writes text
        self._embedder: Embedder | None = None  # of one that makes embeddings; it may do both
        self._drafter: draft_model.DraftModel | None = None
        self._prompts: PromptStore | None = None  # those on the disk, where some shall be kept
        self._is_stored = threading.Event()  # at the end, what is worth it
        self._preparer: PromptPreparer
        self._model: LlamaModel
        self._n_threads: int  # those that are good for it
        self._n_threads_now: int  # of these, what its share is
        self._tuner: Tuner
        self._placement: Placement

    def run(self) -> int:
        """Load the model the parent names and serve it until the end; returns an exit code only when it cannot."""
        received = self._connection.received()
        first = next(received, None)
        if first is None:
            return 1  # the server ended before it said what to load
        options = codec.read_options(first)
        self._pulse.set_interval(look_every_s(options.worker_timeout_s, options.load_timeout_s))
        log.set_up(options.log_level, options.log_format)
        log.take_stderr()
        # From here on the end of the connection ends the process, in the middle of a load too.
        threads.start(self._read, received, name="reader")
        self._n_threads = options.n_threads or cpu.n_physical_cores()
        aborts.handler = lambda reason: self._refuse(Path(options.model_path), reason)
        started_s = perf_counter()
        # It brings jinja2, which takes as long as a small model; `loading.validate` needs it, behind the model.
        threads.start(import_module, "shimmy.engine.prepare_prompt", name="import")
        try:
            options = self._with_gguf(options)
            tuning = Tuning(options)
            self._n_threads = _n_allowed(tuning.settings.n_threads)
            options = replace(options, weights=tuning.settings.weights)
            sources = loading.open_sources(options)
            self._n_threads_now = options.share.n_threads(self._n_threads)
            self._model, offers = loading.load(options, self._n_threads_now)
            loaded_s = perf_counter()
            self._preparer, facts = loading.validate(self._model, offers, options)
            self._drafter = draft_model.load(options, self._model, self._n_threads_now)
        except ShimmyError as error:
            self._connection.send(reports.refused_frame(error))
            return 1
        aborts.handler = lambda reason: self._connection.send(
            reports.dying_frame(Internal(f"the engine gave up: {reason}"))
        )
        facts = replace(facts, load_s=loaded_s - started_s, validation_s=perf_counter() - loaded_s)
        if self._model.writes:
            self._prompts = loading.open_prompts(sources, self._model, self._preparer, options, self._tell_of_prompts)
            self._scheduler = Scheduler(
                self._model,
                self._tell,
                speculate=options.speculate,
                drafter=self._drafter,
                prompts=self._prompts,
            )
        if self._model.embeddings:
            self._embedder = Embedder(self._model.embeddings, self._emit)
        self._tuner = Tuner(tuning, facts.size_bytes if self._model.writes else None)
        self._placement = Placement(engine_threads())
        self._connection.send(reports.opened_frame(facts))
        threads.start(self._send, name="sender")
        return self._serve()

    def _refuse(self, path: Path, reason: str) -> NoReturn:
        """The engine gives up on a model that is being loaded."""
        message = f"the engine cannot use `{path.name}`: {loading.explained(path, reason)}"
        self._connection.send(reports.refused_frame(ModelUnavailable(message)))
        os._exit(1)

    def _serve(self) -> NoReturn:
        while True:
            engine.n_steps += 1
            self._take_orders(block=not any(self._load))
            self._placement.hold(self._n_threads_now)
            if self._scheduler and (self._scheduler.n_running or self._scheduler.n_waiting):
                n_begun = self._scheduler.n_begun
                self._scheduler.step()
                if self._scheduler.n_begun > n_begun:
                    sleep(_FIRST_TOKEN_S)
            if self._embedder and self._embedder.n_tasks:
                self._embedder.step()
            if self._reported != self._load:
                self._tell([])  # a cancelled job says nothing itself

    @property
    def _load(self) -> tuple[int, int]:
        """Jobs that run, and those that wait; all embeddings run, in turn."""
        n_running, n_waiting = (self._scheduler.n_running, self._scheduler.n_waiting) if self._scheduler else (0, 0)
        return n_running + (self._embedder.n_tasks if self._embedder else 0), n_waiting

    def _with_gguf(self, options: worker_options.WorkerOptions) -> worker_options.WorkerOptions:
        """`options` with the path of a GGUF, made of the SafeTensors folder that they name; raises ModelUnavailable."""
        folder = Path(options.model_path)
        if not folder.is_dir():
            return options
        from shimmy.engine import convert_checkpoint  # few workers need it

        told_percent = -1

        def tell(share: float) -> None:
            nonlocal told_percent
            engine.n_steps += 1
            if int(100 * share) != told_percent:
                told_percent = int(100 * share)
                self._connection.send(reports.progress_frame(share))

        cache_dir = None if options.cache_dir is None else Path(options.cache_dir)
        path = convert_checkpoint.gguf_of(folder, cache_dir, options.safetensors_type, self._n_threads, tell)
        return replace(options, model_path=str(path))

    def _take_orders(self, *, block: bool) -> None:
        while block or not self._to_schedule.empty():
            order = self._next_order()
            block = False
            match order:
                case None:
                    if self._scheduler:
                        self._scheduler.store_all(perf_counter() + _LAST_WRITES_S)
                    self._is_stored.set()
                case worker_options.CpuShare():
                    self._placement.release()
                    self._n_threads_now = order.n_threads(self._n_threads)
                    self._model.set_threads(self._n_threads_now)
                    if self._drafter:
                        self._drafter.set_threads(self._n_threads_now)
                    self._connection.send({"op": "shared"})
                case _Prepared(task, unsaid) if self._scheduler:
                    self._unsaid += unsaid
                    if self._scheduler.n_new(task) > _FEW_TOKENS:
                        self._tell([])
                    self._scheduler.submit(task)
                case EmbeddingTask() if self._embedder:
                    self._embedder.submit(order)
                case int():
                    if self._scheduler:
                        self._scheduler.cancel(order)
                    if self._embedder:
                        self._embedder.cancel(order)

    def _next_order(self) -> _Order:
        """Wait for it; what is worth doing meanwhile is done where that takes long."""
        with contextlib.suppress(Empty):
            return self._to_schedule.get_nowait()
        self._placement.release()
        engine.end()
        for wait_s in self._pastimes():
            try:
                order = self._to_schedule.get(timeout=wait_s)
            except Empty:
                continue
            engine.begin()
            self._tuner.interrupt()
            return order
        raise AssertionError("pastimes never end")

    def _pastimes(self) -> Iterator[float | None]:
        """Does one thing after the other that no job needs now, and before each tells how long to wait for an order."""
        if self._scheduler is not None:
            yield _LEISURE_S
            while self._scheduler.store_one():
                yield _LEISURE_S
            yield _REST_AFTER_S
            self._scheduler.rest()
        while True:
            yield self._tuner.wait_s
            self._tuner.idle()

    def _tell_of_prompts(self, traffic: PromptCacheStats) -> None:
        self._connection.send(reports.traffic_frame(traffic))

    def _read(self, received: Iterator[frames.Frame]) -> None:
        try:
            for message in received:
                match message["op"]:
                    case "cancel":
                        self._lanes.cancel(message["id"])
                        self._to_schedule.put(message["id"])
                    case "share":
                        self._to_schedule.put(worker_options.CpuShare(message["n_workers"], message["n_loading"]))
                    case _:
                        self._begin(message)
        except ConnectionResetError:
            pass  # the server has ended, or wants us to, and left something unread
        except (OSError, frames.ProtocolError) as exc:
            logger.error("lost the server: %s", exc)
        finally:
            if self._prompts is not None:
                self._to_schedule.put(None)
                self._is_stored.wait(_LAST_WRITES_S)
            log.flush()
            os._exit(0)  # the main thread may be deep in a decode; nothing here needs cleaning up

    def _begin(self, message: frames.Frame) -> None:
        try:
            self._lanes.put(message, self._connection.n_bytes)
        except ShimmyError as error:
            self._decline(message, error)

    def _decline(self, message: frames.Frame, error: ShimmyError) -> None:
        if message["op"] == "call":
            self._connection.send(reports.failure_frame(message["id"], error))
        else:
            self._emit([(message["id"], error)])

    def _prepare(self, work: Work) -> None:
        """Do what a frame asks for; on any of several threads."""
        try:
            if work.frame["op"] == "call":
                self._answer(work)
            else:
                self._prepare_job(work)
        except Cancelled:
            pass
        except ShimmyError as error:
            self._decline(work.frame, error)
        except Exception:
            logger.exception("could not prepare a request")
            self._decline(work.frame, Internal("the worker could not prepare the request"))

    def _prepare_job(self, work: Work) -> None:
        if work.frame["op"] == "job":
            self._hand_on(self._preparer.task(codec.read_job(work.frame), work.pause))
        else:
            self._to_schedule.put(self._preparer.embedding_task(codec.read_embed(work.frame), work.pause))
        if work.is_cancelled:  # and the scheduler may have been told before it had the job
            self._to_schedule.put(work.id)

    def _hand_on(self, task: Task) -> None:
        job_id = task.job.id
        events: list[JobEvent] = [(job_id, Accepted(task.n_prompt, task.format, task.warnings))]
        if task.job.echo:
            events.append((job_id, Echo(self._preparer.echo(task))))
        if any(self._load):  # the thread that decodes may be long in coming to it
            self._emit(events)
            events = []
        self._to_schedule.put(_Prepared(task, events))

    def _answer(self, work: Work) -> None:
        value = self._preparer.call(work.frame["name"], work.frame["arguments"], work.pause)
        for part in reports.result_frames(work.id, value):
            self._connection.send(part)

    def _tell(self, events: list[JobEvent]) -> None:
        """Say what a decode led to, and before that what was not said when it began."""
        unsaid, self._unsaid = self._unsaid, []
        self._emit(unsaid + events)

    def _emit(self, events: list[JobEvent]) -> None:
        """Say what happened, in order; encoding and writing it takes a tenth of a millisecond that no job waits for."""
        self._reported = self._load
        self._to_send.put((events, self._reported))

    def _send(self) -> None:
        while True:
            events, load = self._to_send.get()
            for data in reports.step_frames(events, load):
                self._connection.send_frame(data)


def _n_allowed(n_threads: int) -> int:
    """How many of the `n_threads` that are good for the engine the system allows beside those of our own."""
    if n_threads == 1:
        return 1
    n_more = n_threads - 1 + _N_OTHER_THREADS  # the engine's first one is the main thread
    n_missing = n_more - threads.n_startable(n_more)
    if n_missing:
        logger.warning("fewer threads than the %d that would be good: %s", n_threads, NO_MORE_THREADS)
    return max(1, n_threads - n_missing)


def main(socket_fd: int) -> int:
    """Serve on the inherited socket `socket_fd`."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.SIG_IGN
        )  # terminals and supervisors send them to all processes; the server decides
    connection = ParentConnection(socket.socket(fileno=socket_fd))
    threading.excepthook = lambda ended: _give_up(connection, ended.exc_value)
    engine.begin()
    try:
        pulse = Pulse(lambda stalled_s: connection.send(reports.alive_frame(stalled_s)))
        pulse.start()
        return Worker(connection, pulse).run()
    except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
        _give_up(connection, error)


def _give_up(connection: ParentConnection, error: BaseException | None) -> NoReturn:
    """End the process: one of its threads cannot go on, and the others are of no use without it."""
    if not isinstance(error, ShimmyError):
        logger.error("the worker cannot go on", exc_info=error)
    connection.send(reports.dying_frame(last_words.reason(error or SystemExit())))
    log.flush()
    os._exit(1)
