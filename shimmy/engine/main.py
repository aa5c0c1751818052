"""The worker process: loads one model and serves its jobs over the socket it inherits, until the parent goes away.

Its threads: the reader takes frames off the socket; the threads of `prepare_lanes` render templates, tokenize and build
samplers; the main thread owns the engine and decodes; the sender writes the events of one decode while the next one
runs; the pulse reports that the others make progress. When the reader ends (the parent closed the socket, or died), the
process ends: at once, or after it has stored the prompts that are kept on the disk, for `_LAST_WRITES_S` at most.
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
from shimmy.engine.llama import no_memory
from shimmy.engine.llama.binding import aborts
from shimmy.engine.llama.binding import log as engine_log
from shimmy.engine.parent_connection import ParentConnection
from shimmy.engine.prepare_lanes import Cancelled, Lanes, Work
from shimmy.engine.pulse import Pulse, engine
from shimmy.engine.schedule.embedder import Embedder, EmbeddingTask
from shimmy.engine.schedule.interfaces import JobEvent
from shimmy.engine.schedule.scheduler import Scheduler
from shimmy.engine.schedule.task import Task
from shimmy.engine.speculate import draft_model
from shimmy.engine.tune.cpu_affinity import Placement, engine_threads
from shimmy.engine.tune.device_trial import DeviceTrial
from shimmy.engine.tune.tuner import Tuner, Tuning
from shimmy.errors import NO_MORE_THREADS, Internal, ModelUnavailable, OutOfDeviceMemory, ShimmyError
from shimmy.messages.event import Accepted, Echo
from shimmy.messages.model_info import LoadProgress, PromptCacheStats, WorkerLoad
from shimmy.system import cpu
from shimmy.system.signals import ignore
from shimmy.wire import codec, frames, reports, worker_options
from shimmy.wire.worker_options import look_every_s

if TYPE_CHECKING:
    from shimmy.engine.kv.prompt_store import PromptStore  # few workers need them
    from shimmy.engine.llama.model import LlamaModel
    from shimmy.engine.prepare_prompt import PromptPreparer

logger = logging.getLogger(__name__)

# Python's threads switch this often; with the default of 5 ms a template would delay a decode by that much.
_SWITCH_INTERVAL_S = 0.0005
# An idle worker gives memory back after so long.
_REST_AFTER_S = 10.0
# A worker that was idle for so long copies prompts for the disk: a request will hardly arrive during one copy.
_IDLE_S = 1.0
# The time for storing prompts when the worker ends; its parent kills it after five seconds.
_LAST_WRITES_S = 3.0

# Threads that a worker starts after the engine's: to prepare, to send, to write prompts, and those with deep stacks.
_N_OTHER_THREADS = 4

# A job with no more new tokens than this has its first token so soon that its acceptance is sent along with it.
_FEW_TOKENS = 16
# After a job's first token the main thread sleeps so long: the sender writes the token before a decode takes all cores.
_FIRST_TOKEN_S = 0.001
_CONVERTED_EVERY_S = 0.3  # how far a conversion is, is told so often at most


class _Prepared(NamedTuple):
    """A job, and its events that have not been sent yet."""

    task: Task
    unsent: list[JobEvent]


# What other threads want of the main thread: a prepared job, a job's id to cancel, a new share, or None for the end.
_Order = _Prepared | EmbeddingTask | int | worker_options.CpuShare | None


class Worker:
    """The threads around one loaded model."""

    def __init__(self, connection: ParentConnection, pulse: Pulse) -> None:
        self._connection = connection
        self._pulse = pulse
        self._lanes = Lanes(self._prepare, pulse.preparing)
        self._inbox: SimpleQueue[_Order] = SimpleQueue()
        self._unsent: list[JobEvent] = []  # until after the next decode; of the main thread
        self._to_send: SimpleQueue[tuple[list[JobEvent], WorkerLoad]] = SimpleQueue()
        self._reported = (0, 0)  # jobs running and waiting, as the parent was told last
        self._scheduler: Scheduler | None = None  # where the model writes text
        self._embedder: Embedder | None = None  # where it makes embeddings; it may do both
        self._drafter: draft_model.DraftModel | None = None
        self._prompts: PromptStore | None = None  # prompts on the disk, where some shall be kept
        self._is_stored = threading.Event()  # set at the end, when the prompts are stored
        self._preparer: PromptPreparer
        self._model: LlamaModel
        self._n_threads: int  # the best number for this model on this machine
        self._n_threads_now: int  # of these, the worker's share beside other workers
        self._tuner: Tuner
        self._placement: Placement

    def run(self) -> int:
        """Load the model that the parent names and serve its jobs until the end; returns an exit code on failure."""
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
            self._model, offers = loading.load(options, self._n_threads_now, self._tell_progress)
            loaded_s = perf_counter()
            self._preparer, facts = loading.validate(self._model, offers, options)
            self._drafter = draft_model.load(options, self._model, self._n_threads_now)
        except ShimmyError as error:
            self._connection.send(reports.refused_frame(error))
            return 1
        aborts.handler = self._give_up_serving
        facts = replace(facts, load_s=loaded_s - started_s, validation_s=perf_counter() - loaded_s)
        if self._model.writes:
            self._prompts = loading.open_prompts(sources, self._model, self._preparer, options, self._tell_of_prompts)
            self._scheduler = Scheduler(
                self._model.backend,
                self._tell,
                speculate=options.speculate,
                drafter=self._drafter,
                prompts=self._prompts,
            )
        if self._model.embeddings:
            self._embedder = Embedder(self._model.embeddings, self._emit)
        trials = (tuning, DeviceTrial(options, tuning))
        self._tuner = Tuner(trials, facts.size_bytes if self._model.writes else None)
        self._placement = Placement(engine_threads())
        self._connection.send(reports.opened_frame(facts))
        threads.start(self._send, name="sender")
        return self._serve()

    def _refuse(self, path: Path, reason: str) -> NoReturn:
        """The engine gives up on a model that is being loaded."""
        message = f"the engine cannot use `{path.name}`: {loading.explained(path, reason)}"
        kind = OutOfDeviceMemory if no_memory.made_abort(engine_log.reason()) else ModelUnavailable
        self._connection.send(reports.refused_frame(kind(message)))
        os._exit(1)

    def _give_up_serving(self, reason: str) -> None:
        """The engine gives up on jobs that it computes."""
        kind = OutOfDeviceMemory if no_memory.made_abort(engine_log.reason()) else Internal
        self._connection.send(reports.dying_frame(kind(f"the engine gave up: {reason}")))

    def _serve(self) -> NoReturn:
        while True:
            engine.n_steps += 1
            self._drain_inbox(block=not any(self._load))
            self._placement.hold(self._n_threads_now)
            if self._scheduler and (self._scheduler.n_running or self._scheduler.n_waiting):
                n_begun = self._scheduler.n_begun
                self._scheduler.step()
                if self._scheduler.n_begun > n_begun:
                    sleep(_FIRST_TOKEN_S)
            if self._embedder and self._embedder.n_tasks:
                self._embedder.step()
            if self._reported != self._load:
                self._tell([])  # a cancelled job has no event of its own

    @property
    def _load(self) -> tuple[int, int]:
        """How many jobs run and how many wait; jobs of embeddings all count as running."""
        n_running, n_waiting = (self._scheduler.n_running, self._scheduler.n_waiting) if self._scheduler else (0, 0)
        return n_running + (self._embedder.n_tasks if self._embedder else 0), n_waiting

    def _with_gguf(self, options: worker_options.WorkerOptions) -> worker_options.WorkerOptions:
        """`options` with the path of a GGUF, converted from the SafeTensors folder that they name. Raises
        ModelUnavailable."""
        folder = Path(options.model_path)
        if not folder.is_dir():
            return options
        from shimmy.engine import convert_checkpoint  # few workers need it

        next_s = 0.0

        def tell(share: float) -> None:
            nonlocal next_s
            engine.n_steps += 1
            if share == 1 or perf_counter() >= next_s:
                next_s = perf_counter() + _CONVERTED_EVERY_S
                self._tell_progress(LoadProgress(share))

        cache_dir = None if options.cache_dir is None else Path(options.cache_dir)
        matrix = None if options.imatrix is None else Path(options.imatrix)
        path = convert_checkpoint.gguf_of(folder, cache_dir, options.safetensors_type, matrix, self._n_threads, tell)
        return replace(options, model_path=str(path))

    def _tell_progress(self, progress: LoadProgress) -> None:
        self._connection.send(reports.progress_frame(progress))

    def _drain_inbox(self, *, block: bool) -> None:
        """Do what the other threads have ordered; with `block`, wait for one order at least."""
        while block or not self._inbox.empty():
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
                case _Prepared(task, unsent) if self._scheduler:
                    self._unsent += unsent
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
        """Wait for an order; run idle chores where the wait is long."""
        with contextlib.suppress(Empty):
            return self._inbox.get_nowait()
        self._placement.release()
        engine.end()
        for wait_s in self._idle_chores():
            try:
                order = self._inbox.get(timeout=wait_s)
            except Empty:
                continue
            engine.begin()
            self._tuner.interrupt()
            return order
        raise AssertionError("idle chores never end")

    def _idle_chores(self) -> Iterator[float | None]:
        """Runs background chores one at a time; before each, yields how long to wait for an order first."""
        if self._scheduler is not None:
            yield _IDLE_S
            while self._scheduler.store_one():
                yield _IDLE_S
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
                        self._inbox.put(message["id"])
                    case "share":
                        self._inbox.put(codec.read_share(message))
                    case _:
                        self._begin(message)
        except ConnectionResetError:
            pass  # the parent has ended, or closed the socket, with frames of ours unread
        except (OSError, frames.ProtocolError) as exc:
            logger.error("lost the server: %s", exc)
        finally:
            if self._prompts is not None:
                self._inbox.put(None)
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
        """Answer a `call` frame, or make a task of a job and queue it. Several threads run this at once."""
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
            self._inbox.put(self._preparer.embedding_task(codec.read_embed(work.frame), work.pause))
        if work.is_cancelled:  # the scheduler may have seen the cancel before it had the job
            self._inbox.put(work.id)

    def _hand_on(self, task: Task) -> None:
        job_id = task.job.id
        events: list[JobEvent] = [(job_id, Accepted(task.n_prompt, task.format, task.warnings))]
        if task.job.request.echo:
            events.append((job_id, Echo(self._preparer.echo(task))))
        if any(self._load):  # the main thread may be in a long decode
            self._emit(events)
            events = []
        self._inbox.put(_Prepared(task, events))

    def _answer(self, work: Work) -> None:
        value = self._preparer.call(work.frame["name"], work.frame["arguments"], work.pause)
        for part in reports.result_frames(work.id, value):
            self._connection.send(part)

    def _tell(self, events: list[JobEvent]) -> None:
        """Send the events of a decode, after those that were held back until it was done."""
        unsent, self._unsent = self._unsent, []
        self._emit(unsent + events)

    def _emit(self, events: list[JobEvent]) -> None:
        """Queue events for the sender, in order: no decode waits for their encoding and writing (0.1 ms)."""
        self._reported = self._load
        n_kv_used = self._scheduler.n_kv_used if self._scheduler else 0
        self._to_send.put((events, WorkerLoad(*self._reported, n_kv_used)))

    def _send(self) -> None:
        while True:
            events, load = self._to_send.get()
            for data in reports.step_frames(events, load):
                self._connection.send_frame(data)


def _n_allowed(n_threads: int) -> int:
    """How many of the `n_threads` that the engine would use the system allows, beside the worker's other threads."""
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
    ignore(signal.SIGINT, signal.SIGTERM)  # terminals send them to every process; the parent decides
    connection = ParentConnection(socket.socket(fileno=socket_fd))
    threading.excepthook = lambda ended: _give_up(connection, ended.exc_value)
    engine.begin()
    try:
        pulse = Pulse(lambda stalled_s: connection.send(reports.alive_frame(stalled_s)))
        pulse.start()
        return Worker(connection, pulse).run()
    except Exception as error:  # noqa: BLE001 - the parent is told of any failure
        _give_up(connection, error)


def _give_up(connection: ParentConnection, error: BaseException | None) -> NoReturn:
    """End the process, after telling the parent why: one thread cannot go on, and the others need it."""
    if not isinstance(error, ShimmyError):
        logger.error("the worker cannot go on", exc_info=error)
    connection.send(reports.dying_frame(last_words.reason(error or SystemExit())))
    log.flush()
    os._exit(1)
