"""Loading a model, for the first time or beside the worker of its old file: the new worker opens, then the switch.

Knows one runtime at a time: which file it wants, its active worker and who waits. Where a load fails, the old worker
stays. Which models run at all is the matter of `pool`, and which worker ends for another one that of `eviction`.
"""

import asyncio
import logging
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic

from shimmy.background import watch
from shimmy.catalog.catalog import Model
from shimmy.errors import (
    Internal,
    ModelUnavailable,
    ModelUnloaded,
    OutOfDeviceMemory,
    OutOfMemory,
    ShimmyError,
)
from shimmy.messages.model_info import LoadProgress
from shimmy.metrics import Metrics
from shimmy.model_events import ModelEvents
from shimmy.pool.device_choice import DeviceChoice, DeviceDecision
from shimmy.pool.eviction import Eviction
from shimmy.pool.launch_plan import LaunchPlanner
from shimmy.pool.memory_budget import MemoryBudget, Reservation
from shimmy.pool.model_runtime import Failure, ModelRuntime
from shimmy.pool.quarantine import Quarantine
from shimmy.pool.supervisor import Supervisor
from shimmy.wire.worker_options import Offload, WorkerOptions
from shimmy.workers.worker_client import WorkerClient

logger = logging.getLogger(__name__)


def _stage(progress: LoadProgress) -> tuple[bool, int]:
    """It only grows: a conversion comes before the reading."""
    return not progress.is_conversion, progress.percent


@dataclass(eq=False, slots=True)
class Swapper:
    """Loads what runtimes want. `runtimes` and `failures` are the pool's own: both write there, on the event loop."""

    runtimes: dict[str, ModelRuntime]
    failures: dict[str, Failure]
    quarantine: Quarantine
    workers: Supervisor
    budget: MemoryBudget
    eviction: Eviction
    planner: LaunchPlanner
    device_choice: DeviceChoice
    metrics: Metrics
    events: ModelEvents
    placing: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by one load at a time

    def load(self, runtime: ModelRuntime) -> None:
        """Begin to load what `runtime` wants; those who wait for its worker are woken at the end."""
        runtime.loading = asyncio.create_task(self._bring_up(runtime))
        watch(runtime.loading, f"loading `{runtime.wanted.name}`", partial(self._give_up, runtime))
        runtime.loading.add_done_callback(lambda _: self.workers.cpu_shares.divide())

    def _give_up(self, runtime: ModelRuntime, error: Exception) -> None:
        """Called when a load ended with an error that it does not handle."""
        runtime.loading = None
        if runtime.worker is None and self.runtimes.get(runtime.wanted.name) is runtime:
            del self.runtimes[runtime.wanted.name]
        runtime.wake(Internal(f"`{runtime.wanted.name}` could not be loaded: {type(error).__name__}"))

    async def _bring_up(self, runtime: ModelRuntime) -> None:
        """Load what the runtime wants. What it wants may change meanwhile: load again until both agree, then wake the
        waiters."""
        error: Exception | None
        while True:
            model = runtime.wanted
            try:
                error = await self._try(runtime, model)
            except Exception as exc:
                logger.exception("could not load `%s`", model.name)
                error = exc
            if runtime.wanted is model:
                break
            if runtime.worker is not None:
                # This worker serves until the newer file is loaded. Wake its waiters now: a worker with waiters is not
                # evicted, and the load at the head of the queue for memory may need its memory.
                runtime.wake(ModelUnavailable(""))
        runtime.loading = None
        if runtime.worker is None and self.runtimes.get(model.name) is runtime:
            del self.runtimes[model.name]
        runtime.wake(error or ModelUnavailable(f"the worker of `{model.name}` ended as soon as it was ready"))
        self.budget.notify()  # this worker is evictable now

    async def _try(self, runtime: ModelRuntime, model: Model) -> ShimmyError | None:
        """Make a worker of `model` the active one; returns the error where that failed."""
        is_swap = runtime.worker is not None
        try:
            client = await self._open(runtime, model)
        except ShimmyError as error:
            self._note_failure(model, error, is_swap=is_swap, stays=runtime.worker is not None)
            return error
        if self.runtimes.get(model.name) is not runtime:  # unloaded at the very moment it was ready
            self.workers.retire(client, "asked")
            return ModelUnloaded(f"`{model.name}` was unloaded while it was loading")
        opened_s = monotonic()
        old, runtime.active, runtime.loaded = runtime.active, client, model  # the switch
        self.failures.pop(model.name, None)
        self.quarantine.loaded(model)
        if old is not None and old in self.workers:
            self.workers.retire(old, "swapped")
        if is_swap:
            self.metrics.swaps.add(1, model.name, "done")
            phases = (client.facts.load_s, client.facts.validation_s, monotonic() - opened_s)
            for phase, duration_s in zip(("load", "validation", "switch"), phases, strict=True):
                self.metrics.swap_s.observe(duration_s, model.name, phase)
            logger.info("swapped `%s` while it was serving", model.name)
        self.events.publish("swapped" if is_swap else "loaded", model.name, load_s=round(client.facts.load_s, 3))
        return None

    async def _open(self, runtime: ModelRuntime, model: Model) -> WorkerClient:
        """A worker with `model` loaded, beside the active one where memory allows both; raises ModelUnavailable."""
        before = self.quarantine.last_reason(model.name)
        why = ", whose file has changed" if runtime.worker else f" again: {before}" if before else ""
        logger.info("loading `%s`%s", model.name, why)
        self.events.publish("loading", model.name, **({"after": before} if before else {}))
        started_s = monotonic()
        client = await self._start_where_possible(runtime, model)
        load_s, facts = monotonic() - started_s, client.facts
        if runtime.worker is not None and facts.template_error and not runtime.worker.facts.template_error:
            self.workers.retire(client, "failed")
            raise ModelUnavailable(f"its chat template does not work: {facts.template_error}")
        self.metrics.model_load_s.observe(load_s, model.name)
        logger.info(
            "loaded `%s` in %.2f s: %s, context %d, CPU variant %s%s",
            model.name, load_s, facts.description, facts.n_ctx, facts.cpu_variant, facts.place and f", {facts.place}",
        )  # fmt: skip
        if self.device_choice.has_machines and facts.device_note:  # a person named them, and they are not used
            logger.warning("`%s` does not use all of `--rpc`: %s", model.name, facts.device_note)
        return client

    async def _start_where_possible(self, runtime: ModelRuntime, model: Model) -> WorkerClient:
        """A worker with `model` on devices: with fewer layers where they have too little memory for more; where it
        fails there, and only there, one on what is left, and on the processor in the end."""
        while True:
            decision = await self._place(runtime, model)
            offload = decision.offload
            try:
                return await self._start_with(runtime, model, decision)
            except ModelUnavailable as error:
                if not offload.devices:
                    raise
                names = ", ".join(offload.devices)
                if isinstance(error, OutOfDeviceMemory):
                    if await self._vacated(runtime, offload):
                        logger.warning("`%s` is loaded again, without the models that are idle: %s", model.name, error)
                        continue
                    if self.device_choice.lacked_memory(model, offload.n_layers, names, error.message):
                        logger.warning("`%s` is loaded again with fewer layers on %s: %s", model.name, names, error)
                        self.metrics.device_failures.add(1, model.name, "fewer_layers")
                        continue
                if self.device_choice.is_required:
                    raise
                note = f"it failed on {names}: {error.message}"
            left = await self.device_choice.left(model, self.planner.whole(model), offload, note)
            client = await self._start_after_failure(runtime, model, left, note)
            self.device_choice.failed(model, note)  # and not the model, which would have failed again
            self.metrics.device_failures.add(1, model.name, "processor")
            return client

    async def _start_after_failure(
        self, runtime: ModelRuntime, model: Model, left: Offload, reason: str
    ) -> WorkerClient:
        """A worker with `model` on what is `left`; where it fails there as well, one on the processor."""
        place = ", ".join(left.devices) or "the processor"
        logger.warning("`%s` is loaded again for %s: %s", model.name, place, reason)
        try:
            return await self._start_with(runtime, model, DeviceDecision(left))
        except ModelUnavailable as error:
            if not left.devices:
                raise
            note = f"it failed on {place}: {error.message}"
        return await self._start_after_failure(runtime, model, Offload(note=note), note)

    async def _place(self, runtime: ModelRuntime, model: Model) -> DeviceDecision:
        """Which devices the next worker of `runtime` gets, once those have ended that are in its way. Where one of them
        is its old worker, callers wait from then on; jobs that run there come to their end before."""
        choose = partial(
            self.device_choice.choose, model, self.planner.whole(model),
            has_adapters=self.planner.has_adapters(model), occupants=partial(self.eviction.occupants, runtime),
        )  # fmt: skip
        while True:
            async with self.placing:  # what has been freed for one load goes to no other
                while (decision := await choose()).in_the_way:
                    clients = [occupant.client for occupant in decision.in_the_way]
                    if runtime.active in clients:
                        logger.info(
                            "no device has room for the old and the new `%s`: the old one ends first", model.name
                        )
                        self._retire_old(runtime)
                    if not all(client.is_idle for client in clients):
                        break
                    await self.eviction.vacate(clients)
                else:
                    return decision
            await self.eviction.vacate(clients)  # the jobs of the old one may be long: others are loaded meanwhile

    async def _vacated(self, runtime: ModelRuntime, offload: Offload) -> bool:
        """Whether idle models had memory of the devices of `offload`, and have ended."""
        clients = [
            occupant.client for occupant in self.eviction.occupants(runtime)
            if occupant.client is not runtime.active and any(name in offload.devices for name, _ in occupant.on_devices)
        ]  # fmt: skip
        await self.eviction.vacate(clients)
        return bool(clients)

    async def _start_with(self, runtime: ModelRuntime, model: Model, decision: DeviceDecision) -> WorkerClient:
        try:
            options = self.planner.fitting(model, self.budget.max_bytes(), decision.offload)
            options = replace(options, rival=decision.rival, rival_key=decision.rival_key)
            reservation = await self._reserve(runtime, model, options)
        finally:
            self.device_choice.is_reserved(model)
        return await self._start_or_make_room(runtime, reservation, model, options)

    def _retire_old(self, runtime: ModelRuntime) -> None:
        """Let the worker that is to be replaced end before its successor begins."""
        assert runtime.active is not None
        old, runtime.active = runtime.active, None
        self.workers.retire(old, "swapped")

    async def _start_or_make_room(
        self, runtime: ModelRuntime, reservation: Reservation, model: Model, options: WorkerOptions
    ) -> WorkerClient:
        """Start a worker with the memory of `reservation`, or with that of idle models where it was too little."""
        try:
            return await self._start_in(runtime, reservation, model, options)
        except OutOfMemory as error:
            if not (idle := self.eviction.idle_candidates(runtime)):
                raise
            logger.warning("%s; trying again without the models that are idle", error.message)
            await self.eviction.end(idle)
            return await self._start_in(runtime, await self._reserve(runtime, model, options), model, options)

    async def _reserve(self, runtime: ModelRuntime, model: Model, options: WorkerOptions) -> Reservation:
        """Memory for the next worker of `runtime`. Where two workers do not fit, the old one ends first."""
        estimate = self.planner.estimate(model, options)
        make_room = partial(self.eviction.make_room, runtime)
        try:
            return await self.budget.reserve(model.name, estimate, make_room)
        except OutOfMemory:
            old = runtime.active
            if old is None or old not in self.workers:
                raise
            logger.info("there is no memory for the old and the new `%s` at once: the old one ends first", model.name)
            self._retire_old(runtime)
            return await self.budget.reserve(model.name, estimate, make_room)

    async def _start_in(
        self, runtime: ModelRuntime, reservation: Reservation, model: Model, options: WorkerOptions
    ) -> WorkerClient:
        """Start a worker with the memory of `reservation`; raises OutOfMemory when that was too little."""

        def on_progress(progress: LoadProgress) -> None:
            if runtime.progress is not None and _stage(progress) <= _stage(runtime.progress):
                return  # so that a worker causes two hundred events at most
            runtime.progress = progress
            percent, total = progress.percent, progress.total_bytes
            if total is None:
                self.events.publish("converting", model.name, percent=percent)
            else:
                n_read = int(progress.share * total)
                self.events.publish("reading", model.name, percent=percent, completed_bytes=n_read, total_bytes=total)

        try:
            return await self.workers.start(model.name, options, reservation, on_progress)
        finally:
            runtime.progress = None

    def _note_failure(self, model: Model, error: ShimmyError, *, is_swap: bool, stays: bool) -> None:
        self.failures[model.name] = Failure(model, error.message)
        if isinstance(error, ModelUnavailable) and error.is_death:
            self.quarantine.died(model, error.message, has_worked=False)
        elif not isinstance(error, OutOfMemory):  # other models may have been unloaded before the next try
            self.quarantine.refused(model, error.message)
        self.events.publish("failed", model.name, reason=error.message)
        if is_swap:
            self.metrics.swaps.add(1, model.name, "failed")
        outcome = "the old one stays" if stays else "it is not served"
        logger.error("`%s` could not be loaded, %s: %s", model.name, outcome, error.message)
