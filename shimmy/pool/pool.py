"""Which workers run: one for each model in use, started on demand, replaced when the model's file changes, ended when
it is not needed or another one needs its memory.

Knows models, workers and their life; nothing of requests, folders or why a file changed. The event loop is the one
thread that writes here. A `slot.Slot` holds what runs for one name, and `active` in it is the atomic reference that
every request reads once. Processes are the matter of `workers.Workers`, and memory is given out by `room.Room`.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from functools import partial
from time import monotonic, time

from shimmy.background import watch
from shimmy.catalog.catalog import CatalogDiff, Model
from shimmy.config import Config
from shimmy.errors import Internal, ModelUnavailable, ModelUnloaded, OutOfMemory, Overloaded, ShimmyError, ShuttingDown
from shimmy.metrics import Metrics
from shimmy.model_events import ModelEvents
from shimmy.pool.launch_plan import LaunchPlanner
from shimmy.pool.memory_budget import MemoryBudget, Reservation
from shimmy.pool.memory_estimate import MemoryEstimate
from shimmy.pool.model_runtime import Failure, ModelRuntime
from shimmy.pool.quarantine import Quarantine
from shimmy.pool.supervisor import StartWorker, Supervisor
from shimmy.wire.worker_options import WorkerOptions
from shimmy.workers.worker_client import WorkerClient, start_worker

logger = logging.getLogger(__name__)

_IDLE_LOOK_EVERY_S = 0.5


class Pool:
    """Hands out workers. `start` makes one, `room` gives it memory; tests give others."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        events: ModelEvents,
        start: StartWorker = start_worker,
        room: MemoryBudget | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._events = events
        self._launch = LaunchPlanner(config)
        self._room = MemoryBudget(config.max_memory_bytes) if room is None else room
        self._workers = Supervisor(metrics, events, self._room, start, self._on_end)
        self._slots: dict[str, ModelRuntime] = {}
        self._failures: dict[str, Failure] = {}
        self._quarantine = Quarantine(clock)
        self._last_used_s: dict[str, float] = {}
        self._is_draining = False

    # -- for requests --------------------------------------------------------------------------------------------

    async def ensure_ready(self, model: Model, keep_alive_s: float | None = None, n_jobs: int = 1) -> WorkerClient:
        """The worker of `model`, started if there is none, for `n_jobs` jobs or calls; many callers cause one load.

        What the caller wants of the worker it has to ask before it awaits anything else: from then on the worker has
        something to do, and will not be ended. While a changed file is being loaded, the worker of the old one answers.
        `keep_alive_s` holds from now on. Raises ModelUnavailable with the reason when the model cannot be loaded, or is
        not to be loaded again so soon,
        ModelUnloaded when somebody unloads it meanwhile, Overloaded when too many wait for it already, ShuttingDown
        when the server ends.
        """
        while True:
            if self._is_draining:
                raise ShuttingDown("the server is shutting down")
            slot = self._slots.get(model.name)
            if slot is None:
                slot = self._slots[model.name] = ModelRuntime(model, self._config.keep_alive_s)
            if slot.n_jobs + n_jobs > self._config.n_sequences + self._config.max_queue:
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
                self._load_unless_held(slot)
            waiter: asyncio.Future[WorkerClient] = asyncio.get_running_loop().create_future()
            slot.waiters[waiter] = n_jobs
            try:
                worker = await waiter
            finally:
                del slot.waiters[waiter]
                if not slot.waiters:
                    self._room.look_again()  # the worker has its jobs, and may be evicted when they have ended
            if worker.is_alive and not self._workers.is_retiring(worker):  # it may have been unloaded meanwhile
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
            self._quarantine.forget(model.name)
        for model in diff.removed:
            self.unload(model.name, "removed")
            self._failures.pop(model.name, None)
            self._quarantine.forget(model.name)
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
            was_asked = reason == "asked"
            kind = ModelUnloaded if was_asked else ModelUnavailable
            slot.wake(kind(f"`{name}` was {'unloaded' if was_asked else 'removed'} while it was loading"))
        if slot.active is not None and slot.active in self._workers:
            if slot.active.n_finished:
                self._quarantine.forget(name)
            logger.info("unloading `%s` (%s)", name, reason)
            self._metrics.unloads.add(1, reason)
            self._workers.retire(slot.active, reason)
        return True

    def forgive(self, name: str) -> None:
        """A person wants `name` loaded, whatever became of it before."""
        self._quarantine.forget(name)

    def slot(self, name: str) -> ModelRuntime | None:
        return self._slots.get(name)

    def failure(self, name: str) -> Failure | None:
        return self._failures.get(name)

    def last_used_s(self, name: str) -> float | None:
        """When a worker of `name` was asked for, in seconds since the epoch; None: not since the start."""
        return self._last_used_s.get(name)

    def n_ctx(self, model: Model) -> int:
        """Tokens that its worker has room for, or one would have."""
        slot = self._slots.get(model.name)
        if slot is not None and slot.worker is not None:
            return slot.worker.facts.n_ctx
        return self._launch.options(model).n_cells

    def need(self, model: Model) -> MemoryEstimate:
        """The memory of its worker, or what one would take."""
        slot = self._slots.get(model.name)
        if slot is not None and slot.active is not None and slot.active in self._workers:
            return self._workers.need(slot.active)
        return self._launch.need(model, self._launch.options(model))

    def ready(self) -> tuple[WorkerClient, ...]:
        """The workers that have loaded their model, now."""
        return tuple(self._workers)

    @property
    def n_jobs(self) -> int:
        """Jobs of all workers that have not ended."""
        return sum(client.n_jobs for client in self.ready())

    def update_gauges(self) -> None:
        """Bring the metrics of what runs right now up to date, for somebody who is about to read them."""
        queued = {name: sum(slot.waiters.values()) for name, slot in self._slots.items()}
        for client in self.ready():
            self._metrics.jobs_running.set(client.n_running, client.name)
            queued[client.name] = queued.get(client.name, 0) + client.n_waiting
        for name, n_waiting in queued.items():
            self._metrics.jobs_queued.set(n_waiting, name)
        self._metrics.memory_given.set(self._room.n_given)
        self._metrics.models_quarantined.set(self._quarantine.n_held)

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
        self._is_draining = True
        loads = [slot.loading for slot in self._slots.values() if slot.loading is not None]
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            slot.active = None
            slot.wake(ShuttingDown("the server is shutting down"))
        await self._workers.close()

    # -- loading and swapping ------------------------------------------------------------------------------------

    def _load_unless_held(self, slot: ModelRuntime) -> None:
        try:
            self._quarantine.check(slot.wanted)
        except ModelUnavailable:
            if slot.active is None and not slot.waiters:
                del self._slots[slot.wanted.name]
            raise
        self._load(slot)

    def _load(self, slot: ModelRuntime) -> None:
        slot.loading = asyncio.create_task(self._bring_up(slot))
        watch(slot.loading, f"loading `{slot.wanted.name}`", partial(self._give_up, slot))
        slot.loading.add_done_callback(lambda _: self._workers.processor.divide())

    def _give_up(self, slot: ModelRuntime, error: Exception) -> None:
        """Called when a load came to an end that nothing in it expects."""
        slot.loading = None
        if slot.worker is None and self._slots.get(slot.wanted.name) is slot:
            del self._slots[slot.wanted.name]
        slot.wake(Internal(f"`{slot.wanted.name}` could not be loaded: {type(error).__name__}"))

    async def _bring_up(self, slot: ModelRuntime) -> None:
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
            if slot.worker is not None:
                # It answers until the newer file is loaded. A worker that somebody waits for is not evicted, and who is
                # before this slot in the line for memory may need that.
                slot.wake(ModelUnavailable(""))
        slot.loading = None
        if slot.worker is None and self._slots.get(model.name) is slot:
            del self._slots[model.name]
        slot.wake(error or ModelUnavailable(f"the worker of `{model.name}` ended as soon as it was ready"))
        self._room.look_again()  # what is loaded now may be evicted

    async def _try(self, slot: ModelRuntime, model: Model) -> ShimmyError | None:
        """Make a worker of `model` the active one; returns why it could not be."""
        is_swap = slot.worker is not None
        try:
            client = await self._open(slot, model)
        except ShimmyError as error:
            self._note_failure(model, error, is_swap=is_swap, stays=slot.worker is not None)
            return error
        if self._slots.get(model.name) is not slot:  # unloaded at the very moment it was ready
            self._workers.retire(client, "asked")
            return ModelUnloaded(f"`{model.name}` was unloaded while it was loading")
        opened_s = monotonic()
        old, slot.active, slot.loaded = slot.active, client, model  # the switch
        self._failures.pop(model.name, None)
        self._quarantine.loaded(model)
        if old is not None and old in self._workers:
            self._workers.retire(old, "swapped")
        if is_swap:
            self._metrics.swaps.add(1, model.name, "done")
            phases = (client.facts.load_s, client.facts.validation_s, monotonic() - opened_s)
            for phase, duration_s in zip(("load", "validation", "switch"), phases, strict=True):
                self._metrics.swap_s.observe(duration_s, model.name, phase)
            logger.info("swapped `%s` while it was serving", model.name)
        self._events.tell("swapped" if is_swap else "loaded", model.name, load_s=round(client.facts.load_s, 3))
        return None

    async def _open(self, slot: ModelRuntime, model: Model) -> WorkerClient:
        """A worker with `model` loaded, beside the active one where there is room for both; raises ModelUnavailable."""
        before = self._quarantine.last_reason(model.name)
        why = ", whose file has changed" if slot.worker else f" again: {before}" if before else ""
        logger.info("loading `%s`%s", model.name, why)
        self._events.tell("loading", model.name, **({"after": before} if before else {}))
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
            await self._workers.until_retired()
            client = await self._start_in(slot, await self._take(slot, model, options), model, options)
        load_s, facts = monotonic() - started_s, client.facts
        if slot.worker is not None and facts.template_error and not slot.worker.facts.template_error:
            self._workers.retire(client, "failed")
            raise ModelUnavailable(f"its chat template does not work: {facts.template_error}")
        self._metrics.model_load_s.observe(load_s, model.name)
        logger.info(
            "loaded `%s` in %.2f s: %s, context %d, CPU variant %s",
            model.name, load_s, facts.description, facts.n_ctx, facts.cpu_variant,
        )  # fmt: skip
        return client

    async def _take(self, slot: ModelRuntime, model: Model, options: WorkerOptions) -> Reservation:
        """Memory for the next worker of `slot`; where there is none for two, the old one ends first."""
        need = self._launch.need(model, options)

        def make_room(n_missing: int) -> bool:
            return self._make_room(slot, n_missing)

        try:
            return await self._room.take(model.name, need, make_room)
        except OutOfMemory:
            old = slot.active
            if old is None or old not in self._workers:
                raise
            logger.info("there is no memory for the old and the new `%s` at once: the old one ends first", model.name)
            slot.active = None
            self._workers.retire(old, "swapped")
            return await self._room.take(model.name, need, make_room)

    async def _start_in(
        self, slot: ModelRuntime, lot: Reservation, model: Model, options: WorkerOptions
    ) -> WorkerClient:
        """Start a worker that may take `lot`; raises OutOfMemory when that was too little."""

        def on_progress(fraction: float) -> None:
            if slot.progress is None or int(100 * fraction) > int(100 * slot.progress):
                slot.progress = fraction
                self._events.tell("converting", model.name, percent=int(100 * fraction))

        try:
            return await self._workers.start(model.name, options, lot, on_progress)
        finally:
            slot.progress = None

    def _make_room(self, slot: ModelRuntime, n_missing: int) -> bool:
        """Evict what `n_missing` bytes need, for a worker of `slot`; False when that is not to be had."""
        n_coming = self._workers.n_retiring_bytes
        victims = [(other, self._workers.need(other.active).total) for other in self._victims(slot) if other.active]
        if n_coming + sum(n_bytes for _, n_bytes in victims) < n_missing:
            # Those that load can be evicted once those who wait for them have had their turn.
            return self._room.n_loading > 0 or any(other.waiters and other.worker for other in self._slots.values())
        for victim, n_bytes in victims:
            if n_coming >= n_missing:
                break
            n_coming += n_bytes
            self.unload(victim.wanted.name, "memory")
        return True

    def _victims(self, slot: ModelRuntime) -> list[ModelRuntime]:
        """Slots whose worker may be ended for one of `slot`: idle ones first, and the least recently used before.

        Not those that have just been loaded for somebody who has not said yet what for.
        """
        others = (other for other in self._slots.values() if other is not slot)
        slots = [other for other in others if not (other.is_pinned or other.waiters)]
        workers = [
            (other, other.worker) for other in slots if other.worker is not None and other.worker in self._workers
        ]
        by_use = sorted(workers, key=lambda pair: (not pair[1].is_idle, pair[1].idle_since_s))
        return [other for other, _ in by_use]

    def _note_failure(self, model: Model, error: ShimmyError, *, is_swap: bool, stays: bool) -> None:
        self._failures[model.name] = Failure(model, error.message)
        if isinstance(error, ModelUnavailable) and error.is_death:
            self._quarantine.died(model, error.message, has_worked=False)
        elif not isinstance(error, OutOfMemory):  # others may have left when it is tried again
            self._quarantine.refused(model, error.message)
        self._events.tell("failed", model.name, reason=error.message)
        if is_swap:
            self._metrics.swaps.add(1, model.name, "failed")
        outcome = "the old one stays" if stays else "it is not served"
        logger.error("`%s` could not be loaded, %s: %s", model.name, outcome, error.message)

    def _on_end(self, client: WorkerClient) -> None:
        """A worker is gone, and its slot with it unless another one is on its way."""
        slot = self._slots.get(client.name)
        if slot is None or slot.active is not client:
            return
        if slot.loaded is not None and not client.is_closing:
            self._quarantine.died(slot.loaded, client.end_reason, has_worked=client.n_finished > 0)
            held = self._quarantine.held(client.name)
            self._failures[client.name] = Failure(slot.loaded, held or f"its worker ended: {client.end_reason}")
            if held:
                logger.error("%s", held)
        if slot.loading is None:
            del self._slots[client.name]
