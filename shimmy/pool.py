"""Which workers run: one for each model in use, started on demand, replaced when the model's file changes, ended when
it is not needed or another one needs its memory.

Knows models, workers and their life; nothing of requests, folders or why a file changed. The event loop is the one
thread that writes here. A slot holds what runs for one name, and `active` in it is the atomic reference that every
request reads once; `State` says what a slot is doing. Memory is given out by `room.Room`.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from time import monotonic, time
from typing import Any

from shimmy import memory
from shimmy.config import Config
from shimmy.engine.client import Hooks, WorkerClient, start_worker
from shimmy.engine.wire import Share, WorkerOptions
from shimmy.errors import ModelUnavailable, ModelUnloaded, OutOfMemory, Overloaded, ShimmyError, ShuttingDown
from shimmy.events import Events
from shimmy.launch import Launch
from shimmy.memory import Need
from shimmy.metrics import Metrics
from shimmy.registry import CatalogDiff, Model
from shimmy.room import Lot, Room

logger = logging.getLogger(__name__)

_IDLE_LOOK_EVERY_S = 0.5
_SHARE_TIMEOUT_S = 1.0

StartWorker = Callable[[str, WorkerOptions, Hooks], Awaitable[WorkerClient]]


class State(StrEnum):
    """What a slot is doing.

        (no slot) ── asked for ──► LOADING ── opened ──► READY ── its file changed ──► SWAPPING
            ▲                         │ ▲                │  │                           │  │ │
            ├────────── refused ──────┘ │                │  │       the old one stays ◄─┘  │ │
            │                           │                │  │       (refused)              │ │
            │                           │                │  └── opened: one assignment ────┘ │
            │                           └────────────────│────── no room for both ───────────┘
            └── idle too long, unloaded, evicted, file ◄─┘
                gone, died

    A slot is LOADING also while it waits for memory. A worker that is replaced, unloaded or evicted drains: it finishes
    its jobs, then it ends.
    """

    LOADING = "loading"
    READY = "ready"
    SWAPPING = "swapping"


@dataclass(slots=True)
class Slot:
    """What runs for one name; `wanted` is what the name means now."""

    wanted: Model
    keep_alive_s: float  # infinite: until unloaded
    is_pinned: bool = False  # somebody asked for it to be kept without end: it is never evicted
    active: WorkerClient | None = None
    loading: "asyncio.Task[None] | None" = None  # of the first worker, or of the next one
    progress: float | None = None  # of a conversion that its load begins with
    waiters: "list[asyncio.Future[WorkerClient]]" = field(default_factory=list)  # for a worker

    @property
    def worker(self) -> WorkerClient | None:
        """The active worker, if it lives."""
        return self.active if self.active is not None and self.active.is_alive else None

    @property
    def state(self) -> State:
        if self.worker is None:
            return State.LOADING
        return State.READY if self.loading is None else State.SWAPPING

    @property
    def n_jobs(self) -> int:
        """Jobs of its worker, and those that wait for one."""
        return len(self.waiters) + (self.worker.n_jobs if self.worker else 0)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a model could not be loaded the last time."""

    model: Model
    reason: str


class Pool:
    """Hands out workers. `start` makes one, `room` gives it memory; tests give others."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        events: Events,
        start: StartWorker = start_worker,
        room: Room | None = None,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._events = events
        self._start = start
        self._launch = Launch(config)
        self._room = Room(config.max_memory_bytes) if room is None else room
        self._slots: dict[str, Slot] = {}
        self._failures: dict[str, Failure] = {}
        self._last_used_s: dict[str, float] = {}
        self._lots: dict[WorkerClient, Lot] = {}  # of active and draining workers
        self._retiring: dict[WorkerClient, asyncio.Task[None]] = {}
        self._n_starting = 0  # workers that load
        self._is_draining = False
        self._is_closed = False

    # -- for requests --------------------------------------------------------------------------------------------

    async def ensure_ready(self, model: Model, keep_alive_s: float | None = None) -> WorkerClient:
        """The worker of `model`, started if there is none; many callers cause one load.

        What the caller wants of the worker it has to ask before it awaits anything else: from then on the worker has
        something to do, and will not be ended. While a changed file is being loaded, the worker of the old one answers.
        `keep_alive_s` holds from now on. Raises ModelUnavailable with the reason when the model cannot be loaded,
        ModelUnloaded when somebody unloads it meanwhile, Overloaded when too many wait for it already, ShuttingDown
        when the server ends.
        """
        while True:
            if self._is_draining:
                raise ShuttingDown("the server is shutting down")
            slot = self._slots.get(model.name)
            if slot is None:
                slot = self._slots[model.name] = Slot(model, self._config.keep_alive_s)
            if slot.n_jobs >= self._config.n_sequences + self._config.max_queue:
                raise Overloaded(
                    f"{slot.n_jobs} jobs of `{model.name}` run or wait already; try again later (the server's "
                    "`--max-queue` says how many may wait)"
                )
            self._last_used_s[model.name] = time()
            if keep_alive_s is not None:
                slot.keep_alive_s, slot.is_pinned = keep_alive_s, math.isinf(keep_alive_s)
            if slot.worker is not None:
                return slot.worker
            if slot.loading is None:
                self._load(slot)
            waiter: asyncio.Future[WorkerClient] = asyncio.get_running_loop().create_future()
            slot.waiters.append(waiter)
            try:
                worker = await waiter
            finally:
                slot.waiters.remove(waiter)
                if not slot.waiters:
                    self._room.look_again()  # the worker has its jobs, and may be evicted when they have ended
            if worker.is_alive and worker not in self._retiring:  # it may have been unloaded meanwhile
                return worker

    # -- for operators and the catalog ---------------------------------------------------------------------------

    def follow(self, diff: CatalogDiff) -> None:
        """Act on a new catalog: replace the workers of changed models, let those of removed ones finish and end."""
        for model in diff.changed:
            slot = self._slots.get(model.name)
            if slot is not None and not self._is_draining:
                slot.wanted = model
                if slot.worker is not None and slot.loading is None:
                    self._load(slot)
            self._failures.pop(model.name, None)
        for model in diff.removed:
            self.unload(model.name, "removed")
            self._failures.pop(model.name, None)
            self._last_used_s.pop(model.name, None)
        for rejected in diff.rejected:
            slot = self._slots.get(rejected.name)
            if slot is not None and slot.worker is not None:
                self._metrics.swaps.add(1, rejected.name, "failed")
                self._events.tell("failed", rejected.name, reason=rejected.reason)
                logger.error("`%s` has a new file, the old one stays: %s", rejected.name, rejected.reason)

    def unload(self, name: str, reason: str = "asked") -> bool:
        """Let the worker of `name` finish its jobs and end; False when there is none."""
        slot = self._slots.pop(name, None)
        if slot is None:
            return False
        if slot.loading is not None:
            slot.loading.cancel()
        if slot.worker is None:
            self._wake(slot, ModelUnloaded(f"`{name}` was unloaded while it was loading"))
        if slot.active in self._lots:
            logger.info("unloading `%s` (%s)", name, reason)
            self._metrics.unloads.add(1, reason)
            self._retire(slot.active, reason)
        return True

    def slot(self, name: str) -> Slot | None:
        return self._slots.get(name)

    def failure(self, name: str) -> Failure | None:
        return self._failures.get(name)

    def last_used_s(self, name: str) -> float | None:
        """When a worker of `name` was asked for, in seconds since the epoch; None: not since the start."""
        return self._last_used_s.get(name)

    def need(self, model: Model) -> Need:
        """The memory of its worker, or what one would take."""
        slot = self._slots.get(model.name)
        lot = self._lots.get(slot.active) if slot and slot.active else None
        return lot.need if lot else self._launch.need(model, self._launch.options(model))

    def ready(self) -> tuple[WorkerClient, ...]:
        """The workers that have loaded their model, now."""
        return tuple(self._lots)

    @property
    def n_jobs(self) -> int:
        """Jobs of all workers that have not ended."""
        return sum(client.n_jobs for client in self.ready())

    def update_gauges(self) -> None:
        """Bring the metrics of what runs right now up to date, for somebody who is about to read them."""
        queued = {name: len(slot.waiters) for name, slot in self._slots.items()}
        for client in self.ready():
            self._metrics.jobs_running.set(client.n_running, client.name)
            queued[client.name] = queued.get(client.name, 0) + client.n_waiting
        for name, n_waiting in queued.items():
            self._metrics.jobs_queued.set(n_waiting, name)
        self._metrics.memory_given.set(self._room.n_given)

    async def unload_idle(self) -> None:
        """For ever: end the workers that had nothing to do for as long as they are kept."""
        while True:
            await asyncio.sleep(_IDLE_LOOK_EVERY_S)
            for name, slot in list(self._slots.items()):
                worker = slot.worker
                if worker is None or slot.loading or slot.waiters or not worker.is_idle:
                    continue
                if monotonic() - worker.idle_since_s >= slot.keep_alive_s:
                    self.unload(name, "idle")

    # -- the end -------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Take no more jobs, and return when those that run have ended."""
        self._is_draining = True
        for client in self.ready():
            await client.until_idle()

    async def close(self) -> None:
        """End every worker, also one that is still loading."""
        self._is_draining = self._is_closed = True
        tasks: list[asyncio.Task[Any]] = [slot.loading for slot in self._slots.values() if slot.loading is not None]
        tasks += self._retiring.values()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            slot.active = None
            self._wake(slot, ShuttingDown("the server is shutting down"))
        await asyncio.gather(*(client.close() for client in self.ready()))

    # -- loading and swapping ------------------------------------------------------------------------------------

    def _load(self, slot: Slot) -> None:
        slot.loading = asyncio.create_task(self._bring_up(slot))
        slot.loading.add_done_callback(lambda _: self._share_processor())

    async def _bring_up(self, slot: Slot) -> None:
        """Load what the slot wants, and what it wants by then, until it has that; then wake those who wait."""
        error: Exception | None
        while True:
            model = slot.wanted
            try:
                error = await self._try(slot, model)
            except Exception as exc:
                logger.exception("could not load `%s`", model.name)
                error = exc
            if slot.wanted is model:
                break
        slot.loading = None
        if slot.worker is None and self._slots.get(model.name) is slot:
            del self._slots[model.name]
        self._wake(slot, error or ModelUnavailable(f"the worker of `{model.name}` ended as soon as it was ready"))
        self._room.look_again()  # what is loaded now may be evicted

    @staticmethod
    def _wake(slot: Slot, error: Exception) -> None:
        """Give those who wait the worker of `slot`, or `error` where it has none."""
        for waiter in slot.waiters:
            if waiter.done():
                continue
            if slot.worker is not None:
                waiter.set_result(slot.worker)
            else:
                waiter.set_exception(error)

    async def _try(self, slot: Slot, model: Model) -> ShimmyError | None:
        """Make a worker of `model` the active one; returns why it could not be."""
        is_swap = slot.worker is not None
        try:
            client = await self._open(slot, model)
        except ShimmyError as error:
            self._note_failure(model, error, is_swap=is_swap, stays=slot.worker is not None)
            return error
        if self._slots.get(model.name) is not slot:  # unloaded at the very moment it was ready
            self._retire(client, "asked")
            return ModelUnloaded(f"`{model.name}` was unloaded while it was loading")
        opened_s = monotonic()
        old, slot.active = slot.active, client  # the switch
        self._failures.pop(model.name, None)
        if old in self._lots:
            self._retire(old, "swapped")
        if is_swap:
            self._metrics.swaps.add(1, model.name, "done")
            phases = (client.facts.load_s, client.facts.validation_s, monotonic() - opened_s)
            for phase, duration_s in zip(("load", "validation", "switch"), phases, strict=True):
                self._metrics.swap_s.observe(duration_s, model.name, phase)
            logger.info("swapped `%s` while it was serving", model.name)
        self._events.tell("swapped" if is_swap else "loaded", model.name, load_s=round(client.facts.load_s, 3))
        return None

    async def _open(self, slot: Slot, model: Model) -> WorkerClient:
        """A worker with `model` loaded, beside the active one where there is room for both; raises ModelUnavailable."""
        logger.info("loading `%s`%s", model.name, ", whose file has changed" if slot.worker else "")
        self._events.tell("loading", model.name)
        started_s = monotonic()
        options = self._launch.fitting(model, self._room.n_most())
        lot = await self._take(slot, model, options)
        try:
            client = await self._start_in(slot, lot, model, options)
        except OutOfMemory as error:
            if not (idle := [other for other in self._victims(slot) if other.active and other.active.is_idle]):
                raise
            logger.warning("%s; trying again without the models that are idle", error.message)
            for other in idle:
                self.unload(other.wanted.name, "memory")
            await asyncio.wait(self._retiring.values())
            client = await self._start_in(slot, await self._take(slot, model, options), model, options)
        load_s, facts = monotonic() - started_s, client.facts
        if slot.worker is not None and facts.template_error and not slot.worker.facts.template_error:
            self._retire(client, "failed")
            raise ModelUnavailable(f"its chat template does not work: {facts.template_error}")
        self._metrics.model_load_s.observe(load_s, model.name)
        logger.info(
            "loaded `%s` in %.2f s: %s, context %d, CPU variant %s",
            model.name, load_s, facts.description, facts.n_ctx, facts.cpu_variant,
        )  # fmt: skip
        return client

    async def _take(self, slot: Slot, model: Model, options: WorkerOptions) -> Lot:
        """Memory for the next worker of `slot`; where there is none for two, the old one ends first."""
        need = self._launch.need(model, options)

        def make_room(n_missing: int) -> bool:
            return self._make_room(slot, n_missing)

        try:
            return await self._room.take(model.name, need, make_room)
        except OutOfMemory:
            old = slot.active
            if old not in self._lots:
                raise
            logger.info("there is no memory for the old and the new `%s` at once: the old one ends first", model.name)
            slot.active = None
            self._retire(old, "swapped")
            return await self._room.take(model.name, need, make_room)

    async def _start_in(self, slot: Slot, lot: Lot, model: Model, options: WorkerOptions) -> WorkerClient:
        """Start a worker that may take `lot`; raises OutOfMemory when that was too little."""

        def on_progress(fraction: float) -> None:
            if slot.progress is None or int(100 * fraction) > int(100 * slot.progress):
                slot.progress = fraction
                self._events.tell("converting", model.name, percent=int(100 * fraction))

        n_busy = sum(client.n_jobs > 0 for client in self._lots)
        options = replace(options, share=Share(n_busy + 1))
        self._n_starting += 1
        self._share_processor()
        try:
            await self._until_shared()
            client = await self._start(model.name, options, Hooks(self._on_death, self._share_processor, on_progress))
            if not client.is_alive:
                raise ModelUnavailable(f"the worker of `{model.name}` ended as soon as it was ready")
        except OutOfMemory as error:
            self._room.give_back(lot)
            raise OutOfMemory(f"{error.message}; {self._room.explain(model.name, lot.need)}") from error
        except BaseException:
            self._room.give_back(lot)
            raise
        finally:
            slot.progress = None
            self._n_starting -= 1
        self._lots[client] = lot
        self._metrics.models_loaded.add(1)
        self._room.settle(lot, memory.resident_bytes(client.pid))
        return client

    def _make_room(self, slot: Slot, n_missing: int) -> bool:
        """Evict what `n_missing` bytes need, for a worker of `slot`; False when that is not to be had."""
        n_coming = sum(self._lots[client].need.total for client in self._retiring if client in self._lots)
        victims = [(other, self._lots[other.active].need.total) for other in self._victims(slot) if other.active]
        if n_coming + sum(n_bytes for _, n_bytes in victims) < n_missing:
            # Those that load can be evicted once those who wait for them have had their turn.
            return self._room.n_loading > 0 or any(other.waiters and other.worker for other in self._slots.values())
        for victim, n_bytes in victims:
            if n_coming >= n_missing:
                break
            n_coming += n_bytes
            self.unload(victim.wanted.name, "memory")
        return True

    def _victims(self, slot: Slot) -> list[Slot]:
        """Slots whose worker may be ended for one of `slot`: idle ones first, and the least recently used before.

        Not those that have just been loaded for somebody who has not said yet what for.
        """
        others = (other for other in self._slots.values() if other is not slot)
        slots = [other for other in others if not (other.is_pinned or other.waiters)]
        workers = [(other, other.active) for other in slots if other.active in self._lots and other.worker]
        by_use = sorted(workers, key=lambda pair: (not pair[1].is_idle, pair[1].idle_since_s))
        return [other for other, _ in by_use]

    def _note_failure(self, model: Model, error: ShimmyError, *, is_swap: bool, stays: bool) -> None:
        self._failures[model.name] = Failure(model, error.message)
        self._events.tell("failed", model.name, reason=error.message)
        if is_swap:
            self._metrics.swaps.add(1, model.name, "failed")
        outcome = "the old one stays" if stays else "it is not served"
        logger.error("`%s` could not be loaded, %s: %s", model.name, outcome, error.message)

    # -- workers that end ----------------------------------------------------------------------------------------

    def _retire(self, client: WorkerClient, reason: str) -> None:
        """End `client` when its last job has ended."""
        if client not in self._retiring:
            task = self._retiring[client] = asyncio.create_task(self._finish(client, reason))
            task.add_done_callback(lambda _: self._retiring.pop(client, None))

    async def _finish(self, client: WorkerClient, reason: str) -> None:
        started_s = monotonic()
        await client.until_idle()
        if reason == "swapped":
            self._metrics.swap_s.observe(monotonic() - started_s, client.name, "drain")
        await client.close()
        self._events.tell("unloaded", client.name, reason=reason)

    def _share_processor(self) -> None:
        """Called when a worker gets its first job or has ended its last, and when a load begins and ends.

        Those that decode divide the cores that those that load leave them: a decode whose threads have to wait for one
        that is not running takes several times as long.
        """
        replaced = {client.name for client in self._retiring}  # whose new workers will have jobs at once
        busy = [client for client in self._lots if client.n_jobs or client.name in replaced]
        for client in busy:
            client.share(Share(len(busy), self._n_starting))

    async def _until_shared(self) -> None:
        """Return when every busy worker has left the core to a load that is about to begin, or takes too long.

        A decode that is under way on all cores while another process takes one of them may take ten times as long.
        """
        waits = [asyncio.create_task(client.until_shared()) for client in self._lots if client.n_jobs]
        if waits:
            await asyncio.wait(waits, timeout=_SHARE_TIMEOUT_S)
        for wait in waits:
            wait.cancel()

    def _on_death(self, client: WorkerClient) -> None:
        """Called once for a worker that has ended, however it ended."""
        lot = self._lots.pop(client, None)
        if lot is None:
            return  # it never got ready, and `_open` has the reason
        self._room.give_back(lot)
        self._metrics.models_loaded.add(-1)
        self._share_processor()
        slot = self._slots.get(client.name)
        if slot is not None and slot.active is client and slot.loading is None:
            del self._slots[client.name]
        if not client.is_closing:
            self._metrics.worker_deaths.add(1, client.name)
            self._events.tell("died", client.name)
        if not any(other.name == client.name for other in self._lots):
            self._metrics.jobs_running.set(0, client.name)
            self._metrics.jobs_queued.set(0, client.name)
