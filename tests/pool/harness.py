"""A pool with a start function of the test's own, and the hand on its loads."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import cast

from shimmy import config
from shimmy.catalog.catalog import CatalogDiff, Model
from shimmy.errors import ModelUnavailable
from shimmy.gpus.devices import FoundDevices
from shimmy.messages.model_info import WorkerLoad
from shimmy.metrics import Metrics
from shimmy.model_events import ModelEvents
from shimmy.pool.memory_budget import MemoryBudget
from shimmy.pool.memory_estimate import SERVER_BYTES
from shimmy.pool.model_runtime import State
from shimmy.pool.pool import Pool
from shimmy.wire.worker_options import CpuShare, WorkerOptions
from shimmy.workers.worker_client import Hooks, WorkerClient
from tests.fakes import FakeWorker, model

TINY = model()


class Client:
    """What the pool needs of a WorkerClient; `die` is what the real one does at the end of its process."""

    facts = FakeWorker.facts

    def __init__(self, name: str, on_death: Callable[[WorkerClient], None]) -> None:
        self.name = name
        self.load, self.n_jobs = WorkerLoad(), 0
        self.is_alive = True
        self.is_closing = False
        self.end_reason = "signal 9"
        self.lacked_device_memory = False
        self.n_finished = 0
        self.pid = -1
        self.idle_since_s = monotonic()
        self.last_share = CpuShare()
        self.has_shared = asyncio.Event()
        self.has_shared.set()
        self._on_death = on_death

    @property
    def n_asked(self) -> int:
        return self.n_jobs

    def share(self, share: CpuShare) -> None:
        self.last_share = share

    async def until_shared(self) -> None:
        await self.has_shared.wait()

    def die(self) -> None:
        self.is_alive = False
        self._on_death(cast("WorkerClient", self))

    @property
    def is_idle(self) -> bool:
        return not self.n_jobs

    async def until_idle(self) -> None:
        while self.n_jobs:  # noqa: ASYNC110 - a test sets it
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        self.is_closing = True
        if self.is_alive:
            self.die()


class Start:
    """Stands in for `start_worker`: each load waits until the test settles it."""

    def __init__(self) -> None:
        self.loads: asyncio.Queue[Load] = asyncio.Queue()
        self.n_loads = 0

    async def __call__(
        self,
        name: str,
        options: WorkerOptions,
        hooks: Hooks,
    ) -> WorkerClient:
        self.n_loads += 1
        self.on_busy = hooks.on_busy
        load = Load(name, options, hooks)
        self.loads.put_nowait(load)
        return await load.outcome


class Load:
    """One load under way."""

    def __init__(self, name: str, options: WorkerOptions, hooks: Hooks) -> None:
        self.options = options
        self.on_progress = hooks.on_progress
        self.on_prompts = hooks.on_prompts
        self.client = Client(name, hooks.on_death)
        self.outcome: asyncio.Future[WorkerClient] = asyncio.get_running_loop().create_future()

    def succeed(self) -> Client:
        self.outcome.set_result(cast("WorkerClient", self.client))
        return self.client

    def fail(self, reason: str) -> None:
        self.outcome.set_exception(ModelUnavailable(reason))


class Harness:
    """A pool, its metrics, and the hand on its loads."""

    def __init__(
        self,
        budget: MemoryBudget | None = None,
        clock: Callable[[], float] = monotonic,
        find_devices: Callable[[], FoundDevices] = FoundDevices,
        /,
        **flags: str | list[str],
    ) -> None:
        self.metrics = Metrics()
        self.start = Start()
        self.events = ModelEvents()
        settings = config.load(flags, {})
        self.pool = Pool(settings, self.metrics, self.events, self.start, budget, clock, find_devices=find_devices)

    def ask(self, name: str = TINY.name) -> "asyncio.Task[WorkerClient]":
        return asyncio.create_task(self.pool.ensure_ready(model(name)))

    async def loading(self) -> Load:
        return await self.start.loads.get()

    async def loaded(self, name: str = TINY.name) -> Client:
        """A client that has gone the whole way."""
        task = self.ask(name)
        client = (await self.loading()).succeed()
        assert await task is cast("WorkerClient", client)
        return client

    def metric(self, line: str) -> float:
        """The value of a line of `/metrics`; 0 while it is not there."""
        samples = (text.rsplit(" ", 1) for text in self.metrics.render().splitlines())
        return next((float(value) for name, value in samples if name == line), 0)


def version(number: int) -> Model:
    return replace(TINY, mtime_ns=number)


def changed(*models: Model) -> CatalogDiff:
    return CatalogDiff(added=(), changed=models, removed=())


def removed(*models: Model) -> CatalogDiff:
    return CatalogDiff(added=(), changed=(), removed=models)


def state(harness: Harness) -> State | None:
    runtime = harness.pool.runtime(TINY.name)
    return runtime.state if runtime else None


MB = 10**6


def crowded(n_models: int, **flags: str) -> Harness:
    """A harness with memory for so many models."""
    n_bytes = Harness(**flags).pool.estimate(TINY).total
    return Harness(MemoryBudget(SERVER_BYTES + n_models * n_bytes, lambda: None), **flags)


async def served(harness: Harness, *names: str) -> list[Client]:
    return [await harness.loaded(name) for name in names]
