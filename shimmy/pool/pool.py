"""Which workers run: one for each model in use, started on demand, replaced when the model's file changes, ended when
idle for long, unloaded or evicted.

Knows models and the life of their workers; nothing of requests, folders or why a file changed. Only the event loop's
thread writes here. A ModelRuntime holds what runs for one name, and its `active` is the atomic reference that every
request reads once. `swap` loads, `eviction` decides who ends for another, `supervisor` has the processes.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING

from shimmy.catalog.catalog import CatalogDiff, Model
from shimmy.config import Config
from shimmy.errors import ModelUnavailable, ModelUnloaded, Overloaded, ShuttingDown
from shimmy.metrics import Metrics
from shimmy.model_events import ModelEvents
from shimmy.pool.device_choice import DeviceChoice
from shimmy.pool.eviction import Eviction
from shimmy.pool.launch_plan import LaunchPlanner
from shimmy.pool.memory_budget import MemoryBudget
from shimmy.pool.memory_estimate import MemoryEstimate
from shimmy.pool.model_runtime import Failure, ModelRuntime
from shimmy.pool.quarantine import Quarantine
from shimmy.pool.supervisor import StartWorker, Supervisor
from shimmy.pool.swap import Swapper
from shimmy.workers.start_worker import start_worker
from shimmy.workers.worker_client import WorkerClient

if TYPE_CHECKING:
    from shimmy.gpus.devices import FoundDevices

logger = logging.getLogger(__name__)

_IDLE_LOOK_EVERY_S = 0.5


class Pool:
    """Hands out workers. `start` makes one, `budget` has its memory; tests pass their own."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        events: ModelEvents,
        start: StartWorker = start_worker,
        budget: MemoryBudget | None = None,
        clock: Callable[[], float] = monotonic,
        *,
        find_devices: "Callable[[], FoundDevices] | None" = None,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._events = events
        self._planner = LaunchPlanner(config)
        self._budget = MemoryBudget(config.max_memory_bytes) if budget is None else budget
        self._workers = Supervisor(metrics, events, self._budget, start, self._on_end)
        self._runtimes: dict[str, ModelRuntime] = {}
        self._failures: dict[str, Failure] = {}
        self._quarantine = Quarantine(clock)
        self._device_choice = DeviceChoice(config, self._budget, clock, find_devices)
        self._last_used_s: dict[str, float] = {}
        self._is_draining = False
        eviction = Eviction(self._runtimes, self._workers, self._budget, self.unload)
        self._swapper = Swapper(
            runtimes=self._runtimes,
            failures=self._failures,
            quarantine=self._quarantine,
            workers=self._workers,
            budget=self._budget,
            eviction=eviction,
            planner=self._planner,
            device_choice=self._device_choice,
            metrics=metrics,
            events=events,
        )

    # -- for requests --------------------------------------------------------------------------------------------

    async def ensure_ready(self, model: Model, keep_alive_s: float | None = None, n_jobs: int = 1) -> WorkerClient:
        """The worker of `model` for `n_jobs` jobs or calls, started if there is none; many callers cause one load.

        Submit your job before the next `await`: an idle worker may be unloaded at any suspension point. While a changed
        file is being loaded, the worker of the old file is returned. `keep_alive_s` holds from now on.

        Raises ModelUnavailable with the reason when the model cannot be loaded, or must not be loaded again so soon;
        ModelUnloaded when a person unloads it meanwhile; Overloaded when too many jobs wait already; ShuttingDown when
        the server ends.
        """
        while True:
            if self._is_draining:
                raise ShuttingDown("the server is shutting down")
            runtime = self._runtimes.get(model.name)
            if runtime is None:
                runtime = self._runtimes[model.name] = ModelRuntime(model, self._config.keep_alive_s)
            if runtime.n_jobs + n_jobs > self._config.n_sequences + self._config.max_queue:
                raise Overloaded(
                    f"{runtime.n_jobs} jobs of `{model.name}` run or wait already; try again later (the server's "
                    "`--max-queue` says how many may wait)"
                )
            self._last_used_s[model.name] = time()
            if keep_alive_s is not None:
                runtime.keep_alive_s, runtime.is_pinned = keep_alive_s, math.isinf(keep_alive_s)
            if runtime.worker is not None:
                return runtime.worker
            if runtime.loading is None:
                self._load_unless_held(runtime)
            waiter: asyncio.Future[WorkerClient] = asyncio.get_running_loop().create_future()
            runtime.waiters[waiter] = n_jobs
            try:
                worker = await waiter
            finally:
                del runtime.waiters[waiter]
                if not runtime.waiters:
                    self._budget.notify()  # the worker has its jobs, and is evictable when they have ended
            if worker.is_alive and not self._workers.is_retiring(worker):  # it may have been unloaded meanwhile
                return worker

    # -- for operators and the catalog ---------------------------------------------------------------------------

    def follow(self, diff: CatalogDiff) -> None:
        """Act on a new catalog: replace the workers of changed models, retire those of removed models."""
        for model in diff.changed:
            runtime = self._runtimes.get(model.name)
            if runtime is not None and not self._is_draining:
                runtime.wanted = model
                if runtime.worker is not None and runtime.loading is None:
                    self._swapper.load(runtime)
            self._forget_failures(model.name)
        for model in diff.removed:
            self.unload(model.name, "removed")
            self._forget_failures(model.name)
            self._last_used_s.pop(model.name, None)
        for rejected in diff.rejected:
            runtime = self._runtimes.get(rejected.name)
            if runtime is not None and runtime.worker is not None:
                self._metrics.swaps.add(1, rejected.name, "failed")
                self._events.publish("failed", rejected.name, reason=rejected.reason)
                logger.error("`%s` has a new file, the old one stays: %s", rejected.name, rejected.reason)

    def unload(self, name: str, reason: str = "asked") -> bool:
        """Let the worker of `name` finish its jobs and end; False when there is none."""
        runtime = self._runtimes.pop(name, None)
        if runtime is None:
            return False
        runtime.call_off_load()
        if runtime.worker is None:
            was_asked = reason == "asked"
            kind = ModelUnloaded if was_asked else ModelUnavailable
            runtime.wake(kind(f"`{name}` was {'unloaded' if was_asked else 'removed'} while it was loading"))
            self._events.publish("unloaded", name, reason=reason)
        if runtime.active is not None and runtime.active in self._workers:
            if runtime.active.n_finished:
                self._quarantine.forget(name)
            logger.info("unloading `%s` (%s)", name, reason)
            self._metrics.unloads.add(1, reason)
            self._workers.retire(runtime.active, reason)
        return True

    def forgive(self, name: str) -> None:
        """A person wants `name` loaded, however often it failed before."""
        self._quarantine.forget(name)
        self._device_choice.forget(name)

    def _forget_failures(self, name: str) -> None:
        """The file of `name` is another one, or none."""
        self._failures.pop(name, None)
        self.forgive(name)

    def runtime(self, name: str) -> ModelRuntime | None:
        return self._runtimes.get(name)

    def failure(self, name: str) -> Failure | None:
        return self._failures.get(name)

    def last_used_s(self, name: str) -> float | None:
        """When a worker of `name` was asked for, in seconds since the epoch; None: not since the start."""
        return self._last_used_s.get(name)

    def n_ctx(self, model: Model) -> int:
        """Tokens of KV cache that its worker has, or that a new one would have."""
        runtime = self._runtimes.get(model.name)
        if runtime is not None and runtime.worker is not None:
            return runtime.worker.facts.n_ctx
        return self._planner.options(model).n_cells

    def estimate(self, model: Model) -> MemoryEstimate:
        """The memory reserved for its worker, or what a new one would take."""
        runtime = self._runtimes.get(model.name)
        if runtime is not None and runtime.active is not None and runtime.active in self._workers:
            return self._workers.reserved(runtime.active)
        return self._planner.estimate(model, self._planner.options(model))

    def load_position(self, name: str) -> int:
        """The place of `name` among the loads that wait for memory, 1 for the next; 0 where it does not wait."""
        return self._budget.position(name)

    def ready(self) -> tuple[WorkerClient, ...]:
        """The workers that have loaded their model, now."""
        return tuple(self._workers)

    @property
    def n_jobs(self) -> int:
        """Jobs of all workers that have not ended."""
        return sum(client.n_jobs for client in self.ready())

    def update_gauges(self) -> None:
        """Set the gauges of what runs right now; called before the metrics are read."""
        queued = {name: sum(runtime.waiters.values()) for name, runtime in self._runtimes.items()}
        for client in self.ready():
            self._metrics.jobs_running.set(client.load.n_running, client.name)
            self._metrics.kv_used.set(client.load.n_kv_used, client.name)
            self._metrics.kv_size.set(client.facts.n_ctx, client.name)
            self._metrics.device_layers.set(client.facts.n_device_layers, client.name, client.facts.device)
            queued[client.name] = queued.get(client.name, 0) + client.load.n_waiting
        for name, n_waiting in queued.items():
            self._metrics.jobs_queued.set(n_waiting, name)
        self._metrics.memory_given.set(self._budget.reserved_bytes)
        self._metrics.models_quarantined.set(self._quarantine.n_held)

    async def unload_idle(self) -> None:
        """For ever: end the workers that were idle for as long as their `keep_alive_s`."""
        while True:
            await asyncio.sleep(_IDLE_LOOK_EVERY_S)
            for name, runtime in list(self._runtimes.items()):
                worker = runtime.worker
                if worker is None or runtime.loading or runtime.waiters or not worker.is_idle:
                    continue
                if monotonic() - worker.idle_since_s >= runtime.keep_alive_s:
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
        for runtime in self._runtimes.values():
            runtime.call_off_load()
        loads = [runtime.loading for runtime in self._runtimes.values() if runtime.loading is not None]
        await asyncio.gather(*loads, return_exceptions=True)
        runtimes = tuple(self._runtimes.values())
        self._runtimes.clear()
        for runtime in runtimes:
            runtime.active = None
            runtime.wake(ShuttingDown("the server is shutting down"))
        await self._workers.close()

    # -- the start and the end of a worker -----------------------------------------------------------------------

    def _load_unless_held(self, runtime: ModelRuntime) -> None:
        try:
            self._quarantine.check(runtime.wanted)
        except ModelUnavailable:
            if runtime.active is None and not runtime.waiters:
                del self._runtimes[runtime.wanted.name]
            raise
        self._swapper.load(runtime)

    def _on_end(self, client: WorkerClient) -> None:
        """Called when a worker is gone: its runtime goes too, unless another worker is loading."""
        runtime = self._runtimes.get(client.name)
        if runtime is None or runtime.active is not client:
            return
        if runtime.loaded is not None and not client.is_closing:
            if not self._has_less(runtime.loaded, client):
                self._quarantine.died(runtime.loaded, client.end_reason, has_worked=client.n_finished > 0)
            held = self._quarantine.held(client.name)
            self._failures[client.name] = Failure(runtime.loaded, held or f"its worker ended: {client.end_reason}")
            if held:
                logger.error("%s", held)
        if runtime.loading is None:
            del self._runtimes[client.name]

    def _has_less(self, model: Model, client: WorkerClient) -> bool:
        """Whether `client` ended for want of a device's memory, and the next worker takes less of that. The next one
        after any other end on a device has the processor."""
        device, n_layers, reason = client.facts.device, client.facts.n_device_layers, client.end_reason
        if not device:
            return False
        if client.lacked_device_memory and self._device_choice.lacked_memory(model, n_layers, device, reason):
            self._metrics.device_failures.add(1, model.name, "fewer_layers")
            return True
        self._device_choice.failed(model, f"it failed on {device}: {reason}")
        self._metrics.device_failures.add(1, model.name, "processor")
        return False
