"""Which workers run: one for each model in use, started on demand.

Knows models, workers and their life; nothing of requests. The event loop is the one thread that writes here. What is
in `_slots` for a model decides what a caller gets:

    nothing   ── ensure_ready ──►  LOADING  ── opened ──►  READY  ── worker ends ──►  nothing
                                      └── refused, or the worker ends ──►  nothing, and every waiter gets the reason
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic

from shimmy.config import Config
from shimmy.engine.client import WorkerClient, start_worker
from shimmy.engine.wire import WorkerOptions
from shimmy.errors import ModelUnavailable, ShimmyError, ShuttingDown
from shimmy.metrics import Metrics
from shimmy.registry import Model

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05

StartWorker = Callable[[str, WorkerOptions, Callable[[WorkerClient], None]], Awaitable[WorkerClient]]


@dataclass(slots=True)
class _Slot:
    """A model's worker, or the task that is loading it. The task's result is the worker."""

    model: Model
    loading: "asyncio.Task[WorkerClient]"

    @property
    def client(self) -> WorkerClient | None:
        """The worker, once it is loaded."""
        task = self.loading
        return task.result() if task.done() and not task.cancelled() and not task.exception() else None

    @property
    def is_dead(self) -> bool:
        return self.client is not None and not self.client.is_alive


class Pool:
    """Hands out workers. `start` makes one; tests give another."""

    def __init__(self, config: Config, metrics: Metrics, start: StartWorker = start_worker) -> None:
        self._config = config
        self._metrics = metrics
        self._start = start
        self._slots: dict[str, _Slot] = {}
        self._ready: set[WorkerClient] = set()
        self._is_draining = False
        self._is_closed = False

    async def ensure_ready(self, model: Model) -> WorkerClient:
        """The worker of `model`, started if there is none; many callers cause one load.

        Raises ModelUnavailable with the reason when it cannot be loaded, ShuttingDown when the server ends.
        """
        if self._is_draining:
            raise ShuttingDown("the server is shutting down")
        slot = self._slots.get(model.name)
        if slot is None or slot.is_dead:
            slot = _Slot(model, asyncio.create_task(self._load(model)))
            slot.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # taken note of
            self._slots[model.name] = slot
        try:
            # One waiter that leaves must not end the load for the others.
            return await asyncio.shield(slot.loading)
        except asyncio.CancelledError:
            if self._is_closed and slot.loading.cancelled():
                raise ShuttingDown("the server is shutting down") from None
            raise

    def ready(self) -> tuple[WorkerClient, ...]:
        """The workers that have loaded their model, now."""
        return tuple(self._ready)

    @property
    def n_jobs(self) -> int:
        """Jobs of all workers that have not ended."""
        return sum(client.n_jobs for client in self.ready())

    def update_gauges(self) -> None:
        """Bring the metrics of what runs right now up to date, for somebody who is about to read them."""
        for client in self.ready():
            self._metrics.jobs_running.set(client.n_running, client.name)
            self._metrics.jobs_queued.set(client.n_waiting, client.name)

    async def drain(self) -> None:
        """Take no more jobs, and return when those that run have ended."""
        self._is_draining = True
        while self.n_jobs:  # noqa: ASYNC110 - workers come and go; asking all of them is simpler than being told
            await asyncio.sleep(_LOOK_EVERY_S)

    async def close(self) -> None:
        """End every worker, also one that is still loading."""
        self._is_draining = self._is_closed = True
        slots = list(self._slots.values())
        for slot in slots:
            slot.loading.cancel()
        for slot in slots:
            with contextlib.suppress(ShimmyError, asyncio.CancelledError):
                await (await slot.loading).close()

    async def _load(self, model: Model) -> WorkerClient:
        started_s = monotonic()
        logger.info("loading `%s`", model.name)
        try:
            client = await self._start(model.name, self._options(model), self._on_death)
            if not client.is_alive:
                raise ModelUnavailable(f"the worker of `{model.name}` ended as soon as it was ready")
        except ShimmyError as error:
            logger.error("could not load `%s`: %s", model.name, error.message)
            self._drop(model.name)
            raise
        except BaseException:
            self._drop(model.name)
            raise
        self._ready.add(client)
        load_s = monotonic() - started_s
        self._metrics.model_load_s.observe(load_s, model.name)
        self._metrics.models_loaded.add(1)
        facts = client.facts
        logger.info(
            "loaded `%s` in %.2f s: %s, context %d, CPU variant %s",
            model.name, load_s, facts.description, facts.n_ctx, facts.cpu_variant,
        )  # fmt: skip
        return client

    def _options(self, model: Model) -> WorkerOptions:
        return WorkerOptions(
            model_path=str(model.path),
            n_ctx=self._config.n_ctx,
            n_sequences=self._config.n_sequences,
            n_batch=self._config.n_batch,
            n_threads=self._config.n_threads,
            cpu_variant=self._config.cpu_variant,
            chat_template=self._config.chat_template,
            speculate=self._config.speculate,
            log_level=self._config.log_level,
            log_format=self._config.log_format,
        )

    def _on_death(self, client: WorkerClient) -> None:
        """Called once for a worker that has ended, however it ended."""
        if client not in self._ready:
            return  # it never got ready; `_load` has the reason
        self._ready.remove(client)
        slot = self._slots.get(client.name)
        if slot is not None and slot.client is client:
            self._drop(client.name)
        self._metrics.models_loaded.add(-1)
        self._metrics.jobs_running.set(0, client.name)
        self._metrics.jobs_queued.set(0, client.name)
        if not self._is_closed:
            self._metrics.worker_deaths.add(1, client.name)

    def _drop(self, name: str) -> None:
        self._slots.pop(name, None)
