"""The workers that have a model loaded, each from its start to its end, with its memory and its CPU share.

Knows processes; nothing of why one is started or ended. Only the event loop's thread writes here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from time import monotonic

from shimmy.background import watch
from shimmy.errors import ModelUnavailable, OutOfMemory
from shimmy.messages.model_info import LoadProgress, PromptCacheStats
from shimmy.metrics import Metrics
from shimmy.model_events import ModelEvents
from shimmy.pool.cpu_shares import CpuShares
from shimmy.pool.memory_budget import MemoryBudget, Reservation
from shimmy.pool.memory_estimate import MemoryEstimate
from shimmy.system import memory
from shimmy.wire.worker_options import WorkerOptions
from shimmy.workers.worker_client import Hooks, WorkerClient

StartWorker = Callable[[str, WorkerOptions, Hooks], Awaitable[WorkerClient]]


class Supervisor:
    """Starts workers with `start` and ends them; calls `on_end` once for each that was started, when it is gone."""

    def __init__(
        self,
        metrics: Metrics,
        events: ModelEvents,
        budget: MemoryBudget,
        start: StartWorker,
        on_end: Callable[[WorkerClient], None],
    ) -> None:
        self._metrics = metrics
        self._events = events
        self._budget = budget
        self._start = start
        self._on_end = on_end
        self._reservations: dict[WorkerClient, Reservation] = {}  # also of those that retire
        self._retiring: dict[WorkerClient, asyncio.Task[None]] = {}
        self.cpu_shares = CpuShares(self._reservations.keys(), self._retiring.keys())

    def __contains__(self, client: object) -> bool:
        return client in self._reservations

    def __iter__(self) -> Iterator[WorkerClient]:
        return iter(tuple(self._reservations))

    def reserved(self, client: WorkerClient) -> MemoryEstimate:
        """The memory reserved for `client`; KeyError when it has ended."""
        return self._reservations[client].estimate

    def is_retiring(self, client: WorkerClient) -> bool:
        return client in self._retiring

    @property
    def retiring_bytes(self) -> int:
        """Memory that will be free when the retiring workers have ended."""
        return sum(
            self._reservations[client].estimate.total for client in self._retiring if client in self._reservations
        )

    async def start(
        self, name: str, options: WorkerOptions, reservation: Reservation, on_progress: Callable[[LoadProgress], None]
    ) -> WorkerClient:
        """A worker with the memory of `reservation`, which is released when the worker ends or never gets ready.

        Raises ModelUnavailable; OutOfMemory when `reservation` was too little.
        """
        try:
            with self.cpu_shares.loading() as share:
                await self.cpu_shares.until_divided()
                hooks = Hooks(self._on_death, self.cpu_shares.divide, on_progress, partial(self._count, name))
                client = await self._start(name, replace(options, share=share), hooks)
            if not client.is_alive:
                raise ModelUnavailable(f"the worker of `{name}` ended as soon as it was ready")
        except OutOfMemory as error:
            self._budget.release(reservation)
            explained = OutOfMemory(f"{error.message}; {self._budget.explain(name, reservation.estimate)}")
            explained.is_death = error.is_death
            raise explained from error
        except BaseException:
            self._budget.release(reservation)
            raise
        self._reservations[client] = reservation
        self._metrics.models_loaded.add(1)
        self._budget.settle(reservation, memory.resident_bytes(client.pid))
        return client

    def retire(self, client: WorkerClient, reason: str) -> None:
        """End `client` when its last job has ended."""
        if client not in self._retiring:
            task = self._retiring[client] = asyncio.create_task(self._finish(client, reason))
            task.add_done_callback(lambda _: self._retiring.pop(client, None))
            watch(task, f"ending the worker of `{client.name}`", lambda _: client.break_off("it could not be ended"))

    async def until_retired(self) -> None:
        """Return when the workers that retire now have ended; there must be at least one."""
        await asyncio.wait(self._retiring.values())

    async def until_ended(self, clients: Iterable[WorkerClient]) -> None:
        """Return when those of `clients` that retire now have ended, or cannot be ended."""
        if tasks := [self._retiring[client] for client in clients if client in self._retiring]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """End every worker at once."""
        tasks = [*self._retiring.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self))

    async def _finish(self, client: WorkerClient, reason: str) -> None:
        started_s = monotonic()
        await client.until_idle()
        if reason == "swapped":
            self._metrics.swap_s.observe(monotonic() - started_s, client.name, "drain")
        await client.close()
        self._events.publish("unloaded", client.name, reason=reason)

    def _count(self, name: str, traffic: PromptCacheStats) -> None:
        metrics = self._metrics
        metrics.stored_prompt_lookups.add(traffic.n_hits, name, "hit")
        metrics.stored_prompt_lookups.add(traffic.n_misses, name, "miss")
        metrics.stored_prompt_tokens.add(traffic.n_tokens, name)
        metrics.stored_prompt_bytes.add(traffic.read_bytes, name, "read")
        metrics.stored_prompt_bytes.add(traffic.written_bytes, name, "written")
        if traffic.stored_bytes is not None:
            metrics.stored_prompts_size.set(traffic.stored_bytes)

    def _on_death(self, client: WorkerClient) -> None:
        """Called once for a worker that has ended, however it ended."""
        reservation = self._reservations.pop(client, None)
        if reservation is None:
            return  # it never got ready: `start` raises the reason
        self._budget.release(reservation)
        self._metrics.models_loaded.add(-1)
        self.cpu_shares.divide()
        self._on_end(client)
        if not client.is_closing:
            self._metrics.worker_deaths.add(1, client.name)
            self._events.publish("died", client.name)
        if not any(other.name == client.name for other in self._reservations):
            self._metrics.jobs_running.set(0, client.name)
            self._metrics.jobs_queued.set(0, client.name)
            self._metrics.kv_used.set(0, client.name)
            self._metrics.kv_size.set(0, client.name)
            self._metrics.device_layers.set(0, client.name, client.facts.device)
