"""The worker process: loads one model and serves its jobs over the socket it was given, until the parent goes away.

Four threads. The reader takes frames off the socket; the preparer renders templates, tokenizes and builds samplers; the
main thread owns the engine and decodes; the sender writes what a decode led to while the next one runs. Whatever ends
the reader (the parent closed the socket, or died) ends the process at once, so a worker never outlives its server.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING

from shimmy import log
from shimmy.engine import adapters, machine, pooling, variants, wire
from shimmy.engine.binding import LIBRARY_FOLDER
from shimmy.engine.embedding import Embedder, EmbeddingTask
from shimmy.engine.llama import CpuBackend, LlamaModel
from shimmy.engine.scheduler import JobEvent, Scheduler
from shimmy.engine.task import Task
from shimmy.errors import Internal, ModelUnavailable, ShimmyError, TemplateFailed
from shimmy.formats import gguf
from shimmy.messages import (
    Accepted,
    ChatPrompt,
    Echo,
    Message,
    ModelFacts,
)

if TYPE_CHECKING:
    from shimmy.engine.preparer import Preparer

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 16
# The threads of Python take turns this often; the default of 5 ms would let a template delay a decode by that much.
_SWITCH_INTERVAL_S = 0.0005


class Connection:
    """The worker's end of the socket; any thread may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._reader = wire.FrameReader()

    def send(self, message: wire.Frame) -> None:
        data = wire.frame(message)
        with self._lock, contextlib.suppress(OSError):  # the reader sees the end of the connection and ends us
            self._socket.sendall(data)

    def frames(self) -> Iterator[wire.Frame]:
        """The parent's frames, until it closes its end."""
        while data := self._socket.recv(_READ_BYTES):
            yield from self._reader.feed(data)


class Worker:
    """The threads around one loaded model."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._to_prepare: SimpleQueue[wire.Frame] = SimpleQueue()
        # An int is the id of a job to cancel.
        self._to_schedule: SimpleQueue[Task | EmbeddingTask | int | wire.Share] = SimpleQueue()
        self._to_send: SimpleQueue[tuple[list[JobEvent], tuple[int, int]]] = SimpleQueue()
        self._cancelled: set[int] = set()  # jobs cancelled before they were prepared; both threads only add or discard
        self._reported = (0, 0)  # jobs running and waiting, as the parent was told last
        self._scheduler: Scheduler | None = None  # of a model that writes text
        self._embedder: Embedder | None = None  # of one that makes embeddings; it may do both
        self._preparer: Preparer
        self._model: LlamaModel
        self._n_threads: int

    def run(self) -> int:
        """Load the model the parent names and serve it; returns an exit code only when it cannot be loaded."""
        frames = self._connection.frames()
        first = next(frames, None)
        if first is None:
            return 1  # the server ended before it said what to load
        options = wire.read_options(first)
        log.set_up(options.log_level, options.log_format)
        # From here on the end of the connection ends the process, in the middle of a load too.
        threading.Thread(target=self._read, args=(frames,), daemon=True).start()
        self._n_threads = options.n_threads or machine.n_physical_cores()
        started_s = perf_counter()
        # It brings jinja2, which takes as long as a small model; `validate` needs it, behind the model.
        threading.Thread(target=import_module, args=("shimmy.engine.preparer",), daemon=True).start()
        try:
            options = self._with_gguf(options)
            self._model, offers = load(options, options.share.n_threads(self._n_threads))
            loaded_s = perf_counter()
            self._preparer, facts = validate(self._model, offers, options)
        except ShimmyError as error:
            self._connection.send({"op": "refused", "error": wire.error_to_wire(error)})
            return 1
        facts = replace(facts, load_s=loaded_s - started_s, validation_s=perf_counter() - loaded_s)
        if self._model.writes:
            self._scheduler = Scheduler(self._model, self._emit, speculate=options.speculate)
        if self._model.embeddings:
            self._embedder = Embedder(self._model.embeddings, self._emit)
        self._connection.send({"op": "opened", "facts": wire.facts_to_wire(facts)})
        threading.Thread(target=self._prepare, daemon=True).start()
        threading.Thread(target=self._send, daemon=True).start()
        while True:
            self._take_orders(block=not any(self._load))
            if self._scheduler and (self._scheduler.n_running or self._scheduler.n_waiting):
                self._scheduler.step()
            if self._embedder and self._embedder.n_tasks:
                self._embedder.step()
            if self._reported != self._load:
                self._emit([])  # a cancelled job says nothing itself

    @property
    def _load(self) -> tuple[int, int]:
        """Jobs that run, and those that wait; all embeddings run, in turn."""
        n_running, n_waiting = (self._scheduler.n_running, self._scheduler.n_waiting) if self._scheduler else (0, 0)
        return n_running + (self._embedder.n_tasks if self._embedder else 0), n_waiting

    def _with_gguf(self, options: wire.WorkerOptions) -> wire.WorkerOptions:
        """`options` with the path of a GGUF, made of the SafeTensors folder that they name; raises ModelUnavailable."""
        folder = Path(options.model_path)
        if not folder.is_dir():
            return options
        from shimmy.engine import checkpoint  # few workers need it

        told_percent = -1

        def tell(share: float) -> None:
            nonlocal told_percent
            if int(100 * share) != told_percent:
                told_percent = int(100 * share)
                self._connection.send({"op": "progress", "fraction": share})

        cache_dir = None if options.cache_dir is None else Path(options.cache_dir)
        path = checkpoint.gguf_of(folder, cache_dir, options.safetensors_type, self._n_threads, tell)
        return replace(options, model_path=str(path))

    def _take_orders(self, *, block: bool) -> None:
        while block or not self._to_schedule.empty():
            order = self._to_schedule.get()
            block = False
            match order:
                case wire.Share():
                    self._model.set_threads(order.n_threads(self._n_threads))
                    self._connection.send({"op": "shared"})
                case Task() if self._scheduler:
                    self._scheduler.submit(order)
                case EmbeddingTask() if self._embedder:
                    self._embedder.submit(order)
                case int():
                    if self._scheduler:
                        self._scheduler.cancel(order)
                    if self._embedder:
                        self._embedder.cancel(order)

    def _read(self, frames: Iterator[wire.Frame]) -> None:
        try:
            for message in frames:
                if message["op"] == "cancel":
                    self._cancelled.add(message["id"])
                    self._to_schedule.put(message["id"])
                elif message["op"] == "share":
                    self._to_schedule.put(wire.Share(message["n_workers"], message["n_loading"]))
                self._to_prepare.put(message)
        except ConnectionResetError:
            pass  # the server has ended, or wants us to, and left something unread
        except (OSError, wire.ProtocolError) as exc:
            logger.error("lost the server: %s", exc)
        finally:
            os._exit(0)  # the main thread may be deep in a decode; nothing here needs cleaning up

    def _prepare(self) -> None:
        while True:
            message = self._to_prepare.get()
            match message["op"]:
                case "job" | "embed":
                    self._prepare_job(message)
                case "call":
                    self._answer(message)
                case "cancel":
                    # Everything before this frame has been prepared, and the scheduler got the same order again.
                    self._cancelled.discard(message["id"])
                    self._to_schedule.put(message["id"])

    def _prepare_job(self, message: wire.Frame) -> None:
        job_id = message["id"]
        if job_id in self._cancelled:
            return
        try:
            task = self._prepared(message)
        except ShimmyError as error:
            self._emit([(job_id, error)])
        except Exception:
            logger.exception("could not prepare a job")
            self._emit([(job_id, Internal("the worker could not prepare the job"))])
        else:
            if isinstance(task, Task):
                events: list[JobEvent] = [(job_id, Accepted(task.n_prompt, task.format))]
                if task.job.echo:
                    events.append((job_id, Echo(self._preparer.echo(task))))
                self._emit(events)
            if task is not None:
                self._to_schedule.put(task)

    def _prepared(self, message: wire.Frame) -> Task | EmbeddingTask | None:
        if message["op"] == "job":
            return self._preparer.task(wire.read_job(message))
        return self._preparer.embedding_task(wire.read_embed(message), lambda: message["id"] in self._cancelled)

    def _answer(self, message: wire.Frame) -> None:
        reply: wire.Frame = {"op": "result", "id": message["id"]}
        try:
            reply["value"] = self._preparer.call(message["name"], message["arguments"])
        except ShimmyError as error:
            reply["error"] = wire.error_to_wire(error)
        except Exception:
            logger.exception("could not answer a call")
            reply["error"] = wire.error_to_wire(Internal("the worker could not answer"))
        self._connection.send(reply)

    def _emit(self, events: list[JobEvent]) -> None:
        """Say what happened, in order; encoding and writing it takes a tenth of a millisecond that no job waits for."""
        self._reported = self._load
        self._to_send.put((events, self._reported))

    def _send(self) -> None:
        while True:
            events, load = self._to_send.get()
            wire_events = [wire.event_to_wire(job_id, event) for job_id, event in events]
            self._connection.send({"op": "step", "events": wire_events, "load": load})


def load(options: wire.WorkerOptions, n_threads: int) -> tuple[LlamaModel, list[adapters.Offer]]:
    """The model and the adapters it was loaded with, all untried; raises ModelUnavailable."""
    path = Path(options.model_path)
    try:
        header = gguf.validate(path)  # what the engine would abort on has to be found before it looks
    except gguf.InvalidGguf as exc:
        raise ModelUnavailable(f"`{path.name}` cannot be loaded: {exc}") from exc
    except OSError as exc:
        raise ModelUnavailable(f"`{path.name}` cannot be loaded: {exc.strerror}") from exc
    reason = pooling.refusal(header, pooling=options.pooling, embeddings=options.embeddings)
    if header.is_embedding and reason:
        raise ModelUnavailable(f"`{path.name}` {reason}")
    cpu = CpuBackend(variants.libraries(LIBRARY_FOLDER, options.cpu_variant))
    model = LlamaModel(path, cpu)
    offers = adapters.load(model, path, header, options)
    if not header.is_embedding:
        model.open_context(
            n_ctx=options.n_ctx,
            n_batch=max(options.n_batch, options.n_sequences),
            n_sequences=options.n_sequences,
            n_outputs=options.n_outputs,
            n_threads=n_threads,
        )
    plan = pooling.plan(
        header,
        n_ctx=options.n_ctx,
        n_batch=options.n_batch,
        pooling=options.pooling,
        embeddings=options.embeddings,
    )
    if plan is not None:
        model.open_embeddings(plan, n_threads)
    return model, offers


def validate(
    model: LlamaModel, offers: Sequence[adapters.Offer], options: wire.WorkerOptions
) -> "tuple[Preparer, ModelFacts]":
    """What prepares the jobs of `model`, and what it is, once it has shown that it works.

    Raises ModelUnavailable when it computes no tokens, or no embeddings where it makes nothing else. A chat template
    that does not render is only a fact: plain text can be completed without it.
    """
    from shimmy.engine.preparer import Preparer

    model.warm_up()
    preparer = Preparer(model, options.chat_template, adapters.try_out(model, offers))
    if model.embeddings is not None:
        model.set_embedding_scales([adapter.scale for adapter in preparer.adapters])
    template_error = None
    if model.writes:
        try:
            preparer.render(ChatPrompt((Message("user", "Hello"),)))
        except TemplateFailed as error:
            template_error = error.message
    facts = model.facts(has_chat_template=preparer.has_chat_template, adapters=preparer.adapters)
    return preparer, replace(facts, template_error=template_error)


def main(socket_fd: int) -> int:
    """Serve on the inherited socket `socket_fd`."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.SIG_IGN
        )  # terminals and supervisors send them to all processes; the server decides
    return Worker(Connection(socket.socket(fileno=socket_fd))).run()
