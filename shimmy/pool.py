"""Which workers run: one for each model in use, started on demand, replaced when the model's file changes.

Knows models, workers and their life; nothing of requests, folders or why a file changed. The event loop is the one
thread that writes here. A slot holds what runs for one name, and `active` in it is the atomic reference that every
request reads once; `State` says what a slot is doing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic
from typing import Any

from shimmy.config import Config
from shimmy.engine.client import WorkerClient, start_worker
from shimmy.engine.wire import WorkerOptions
from shimmy.errors import ModelUnavailable, ShimmyError, ShuttingDown
from shimmy.metrics import Metrics
from shimmy.registry import CatalogDiff, Model

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05
_IDLE_LOOK_EVERY_S = 0.5

StartWorker = Callable[
    [str, WorkerOptions, Callable[[WorkerClient], None], Callable[[], None]], Awaitable[WorkerClient]
]


class State(StrEnum):
    """What a slot is doing.

        (no slot) ── asked for ──► LOADING ── opened ──► READY ── its file changed ──► SWAPPING
            ▲                         │                  ▲  │                           │    │
            ├────────── refused ──────┘                  │  │       the old one stays ◄─┘    │
            │                                            │  │       (refused)                │
            │                                            └──│── opened: one assignment ──────┘
            └── idle too long, unloaded, file gone, died ◄──┘

    A worker that is replaced or unloaded drains: it finishes its jobs, then it ends.
    """

    LOADING = "loading"
    READY = "ready"
    SWAPPING = "swapping"


@dataclass(slots=True)
class Slot:
    """What runs for one name; `wanted` is what the name means now."""

    wanted: Model
    keep_alive_s: float  # infinite: until unloaded
    active: WorkerClient | None = None
    loading: "asyncio.Task[WorkerClient] | None" = None  # of the first worker, or of the next one

    @property
    def worker(self) -> WorkerClient | None:
        """The active worker, if it lives."""
        return self.active if self.active is not None and self.active.is_alive else None

    @property
    def state(self) -> State:
        if self.worker is None:
            return State.LOADING
        return State.READY if self.loading is None else State.SWAPPING


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a model could not be loaded the last time."""

    model: Model
    reason: str


class Pool:
    """Hands out workers. `start` makes one; tests give another."""

    def __init__(self, config: Config, metrics: Metrics, start: StartWorker = start_worker) -> None:
        self._config = config
        self._metrics = metrics
        self._start = start
        self._slots: dict[str, Slot] = {}
        self._failures: dict[str, Failure] = {}
        self._ready: set[WorkerClient] = set()  # active and draining ones
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_draining = False
        self._is_closed = False

    # -- for requests --------------------------------------------------------------------------------------------

    async def ensure_ready(self, model: Model, keep_alive_s: float | None = None) -> WorkerClient:
        """The worker of `model`, started if there is none; many callers cause one load.

        While a changed file is being loaded, the worker of the old one answers. `keep_alive_s` holds from now on.
        Raises ModelUnavailable with the reason when the model cannot be loaded, ShuttingDown when the server ends.
        """
        if self._is_draining:
            raise ShuttingDown("the server is shutting down")
        slot = self._slots.get(model.name)
        if slot is None:
            slot = self._slots[model.name] = Slot(model, self._config.keep_alive_s)
        if keep_alive_s is not None:
            slot.keep_alive_s = keep_alive_s
        if slot.worker is not None:
            return slot.worker
        if slot.loading is None:
            self._load(slot, model)
        loading = slot.loading
        assert loading is not None
        try:
            # One waiter that leaves must not end the load for the others.
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            if loading.cancelled() and self._is_closed:
                raise ShuttingDown("the server is shutting down") from None
            if loading.cancelled():
                raise ModelUnavailable(f"`{model.name}` was unloaded while it was loading") from None
            raise

    # -- for operators and the catalog ---------------------------------------------------------------------------

    def follow(self, diff: CatalogDiff) -> None:
        """Act on a new catalog: replace the workers of changed models, let those of removed ones finish and end."""
        for model in diff.changed:
            slot = self._slots.get(model.name)
            if slot is not None and not self._is_draining:
                slot.wanted = model
                if slot.worker is not None and slot.loading is None:
                    self._load(slot, model)
            self._failures.pop(model.name, None)
        for model in diff.removed:
            self.unload(model.name)
            self._failures.pop(model.name, None)
        for rejected in diff.rejected:
            slot = self._slots.get(rejected.name)
            if slot is not None and slot.worker is not None:
                self._metrics.swaps.add(1, rejected.name, "failed")
                logger.error("`%s` has a new file, the old one stays: %s", rejected.name, rejected.reason)

    def unload(self, name: str) -> bool:
        """Let the worker of `name` finish its jobs and end; False when there is none."""
        slot = self._slots.pop(name, None)
        if slot is None:
            return False
        if slot.loading is not None:
            slot.loading.cancel()
        if slot.active is not None:
            self._retire(slot.active)
        return True

    def slot(self, name: str) -> Slot | None:
        return self._slots.get(name)

    def failure(self, name: str) -> Failure | None:
        return self._failures.get(name)

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

    async def unload_idle(self) -> None:
        """For ever: end the workers that had nothing to do for as long as they are kept."""
        while True:
            await asyncio.sleep(_IDLE_LOOK_EVERY_S)
            for name, slot in list(self._slots.items()):
                worker = slot.worker
                if worker is None or slot.loading is not None or worker.n_jobs:
                    continue
                if monotonic() - worker.idle_since_s >= slot.keep_alive_s:
                    logger.info("unloading `%s`: it had nothing to do for %g s", name, slot.keep_alive_s)
                    self._metrics.unloads.add(1, "idle")
                    self.unload(name)

    # -- the end -------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Take no more jobs, and return when those that run have ended."""
        self._is_draining = True
        while self.n_jobs:  # noqa: ASYNC110 - workers come and go; asking all of them is simpler than being told
            await asyncio.sleep(_LOOK_EVERY_S)

    async def close(self) -> None:
        """End every worker, also one that is still loading."""
        self._is_draining = self._is_closed = True
        tasks: list[asyncio.Task[Any]] = [slot.loading for slot in self._slots.values() if slot.loading is not None]
        tasks += self._retiring
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._slots.clear()
        await asyncio.gather(*(client.close() for client in self.ready()))

    # -- loading and swapping ------------------------------------------------------------------------------------

    def _load(self, slot: Slot, model: Model) -> None:
        slot.loading = asyncio.create_task(self._bring_up(slot, model))
        slot.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # taken note of

    async def _bring_up(self, slot: Slot, model: Model) -> WorkerClient:
        """Load `model`, and whatever its name means by then, until the slot serves what is wanted."""
        try:
            while True:
                is_swap = slot.worker is not None
                try:
                    client = await self._open(model, is_swap=is_swap)
                except ShimmyError as error:
                    self._note_failure(model, error, is_swap=is_swap)
                    if slot.wanted == model:
                        if slot.worker is None:
                            raise
                        return slot.worker
                else:
                    if self._slots.get(model.name) is not slot:  # unloaded at the very moment it was ready
                        self._retire(client)
                        raise ModelUnavailable(f"`{model.name}` was unloaded while it was loading")
                    old, slot.active = slot.active, client  # the switch
                    self._failures.pop(model.name, None)
                    if is_swap:
                        self._metrics.swaps.add(1, model.name, "done")
                        logger.info("swapped `%s` while it was serving", model.name)
                    if old in self._ready:
                        self._retire(old)
                    if slot.wanted == model:
                        return client
                model = slot.wanted
        finally:
            slot.loading = None
            if slot.worker is None and self._slots.get(model.name) is slot:
                del self._slots[model.name]

    async def _open(self, model: Model, *, is_swap: bool) -> WorkerClient:
        started_s = monotonic()
        logger.info("loading `%s`%s", model.name, ", whose file has changed" if is_swap else "")
        client = await self._start(model.name, self._options(model), self._on_death, self._share_processor)
        if not client.is_alive:
            raise ModelUnavailable(f"the worker of `{model.name}` ended as soon as it was ready")
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

    def _note_failure(self, model: Model, error: ShimmyError, *, is_swap: bool) -> None:
        self._failures[model.name] = Failure(model, error.message)
        if is_swap:
            self._metrics.swaps.add(1, model.name, "failed")
            logger.error("`%s` has a new file that cannot be loaded, the old one stays: %s", model.name, error.message)
        else:
            logger.error("could not load `%s`: %s", model.name, error.message)

    def _retire(self, client: WorkerClient) -> None:
        """End `client` when its last job has ended."""
        task = asyncio.create_task(self._finish(client))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _finish(self, client: WorkerClient) -> None:
        while client.n_jobs:  # noqa: ASYNC110 - see `drain`
            await asyncio.sleep(_LOOK_EVERY_S)
        if client in self._ready:
            self._let_go(client)
        await client.close()

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

    def _share_processor(self) -> None:
        """Called when a worker gets its first job or has ended its last: the busy ones divide the cores."""
        busy = [client for client in self._ready if client.n_jobs]
        for client in busy:
            client.share(len(busy))

    def _on_death(self, client: WorkerClient) -> None:
        """Called once for a worker that has ended, however it ended."""
        if client not in self._ready:
            return  # it never got ready, and `_bring_up` has the reason; or it was let go
        self._let_go(client)
        slot = self._slots.get(client.name)
        if slot is not None and slot.active is client and slot.loading is None:
            del self._slots[client.name]
        if not self._is_closed:
            self._metrics.worker_deaths.add(1, client.name)

    def _let_go(self, client: WorkerClient) -> None:
        """Forget a worker that has no jobs any more."""
        self._ready.discard(client)
        self._metrics.models_loaded.add(-1)
        self._share_processor()
        if not any(other.name == client.name for other in self._ready):
            self._metrics.jobs_running.set(0, client.name)
            self._metrics.jobs_queued.set(0, client.name)
