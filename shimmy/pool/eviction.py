"""Which worker ends when another model needs its memory: idle workers first, the least recently used before others.

Knows what runs, how much memory each worker has and when it worked last; nothing of requests or loads.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from shimmy.pool.memory_budget import MemoryBudget
from shimmy.pool.model_runtime import ModelRuntime
from shimmy.pool.supervisor import Supervisor
from shimmy.workers.worker_client import WorkerClient


@dataclass(frozen=True, slots=True)
class Occupant:
    """A worker that may end for another one, and what it has of the memory of devices."""

    client: WorkerClient
    on_devices: tuple[tuple[str, int], ...]  # names of devices, and bytes
    is_leaving: bool  # it ends anyway, within moments


class Eviction:
    """Ends workers through `unload`, which takes a name and a reason. `runtimes` is live: the pool writes there."""

    def __init__(
        self,
        runtimes: Mapping[str, ModelRuntime],
        workers: Supervisor,
        budget: MemoryBudget,
        unload: Callable[[str, str], object],
    ) -> None:
        self._runtimes = runtimes
        self._workers = workers
        self._budget = budget
        self._unload = unload

    def make_room(self, runtime: ModelRuntime, missing_bytes: int) -> bool:
        """Evict workers for one of `runtime` until `missing_bytes` are on their way; False when that is impossible."""
        coming_bytes = self._workers.retiring_bytes
        victims = [
            (other, self._workers.reserved(other.active).total) for other in self._candidates(runtime) if other.active
        ]
        if coming_bytes + sum(n_bytes for _, n_bytes in victims) < missing_bytes:
            # A worker that loads, or that still has waiters, will be evictable once those have had their turn.
            loads = self._budget.n_loading > 0
            return loads or any(other.waiters and other.worker for other in self._runtimes.values())
        for victim, n_bytes in victims:
            if coming_bytes >= missing_bytes:
                break
            coming_bytes += n_bytes
            self._unload(victim.wanted.name, "memory")
        return True

    def idle_candidates(self, runtime: ModelRuntime) -> list[ModelRuntime]:
        """Runtimes with an idle worker that may end for one of `runtime`."""
        return [other for other in self._candidates(runtime) if other.active and other.active.is_idle]

    def occupants(self, runtime: ModelRuntime) -> list[Occupant]:
        """Who has memory of devices and may end for a worker of `runtime`, in that order: those that end anyway, idle
        ones, and at last the one that it replaces."""
        leaving = [client for client in self._workers if self._workers.is_retiring(client) and client.is_idle]
        idle = [other.active for other in self.idle_candidates(runtime)]
        old = runtime.active
        is_replaceable = old is not None and old in self._workers and not self._workers.is_retiring(old)
        clients = [*leaving, *idle, old if is_replaceable else None]
        return [
            Occupant(client, n_bytes, client in leaving) for client in clients
            if client is not None and (n_bytes := self._workers.reserved(client).on_devices)
        ]  # fmt: skip

    async def vacate(self, clients: Iterable[WorkerClient]) -> None:
        """End the workers `clients`, which are idle or retire already, and return when the devices have their memory
        back."""
        clients = tuple(clients)
        for client in clients:
            if not self._workers.is_retiring(client):
                self._unload(client.name, "device_memory")
        await self._workers.until_ended(clients)

    async def end(self, runtimes: Iterable[ModelRuntime]) -> None:
        """End the workers of `runtimes`, one at least, and return when their memory is back."""
        for runtime in runtimes:
            self._unload(runtime.wanted.name, "memory")
        await self._workers.until_retired()

    def _candidates(self, runtime: ModelRuntime) -> list[ModelRuntime]:
        """Runtimes whose worker may end for one of `runtime`, in the order of eviction.

        Not those with waiters: their worker was just loaded, and its callers have not submitted their jobs yet.
        """
        others = (other for other in self._runtimes.values() if other is not runtime)
        workers = [
            (other, other.worker) for other in others
            if not (other.is_pinned or other.waiters) and other.worker is not None and other.worker in self._workers
        ]  # fmt: skip
        by_use = sorted(workers, key=lambda pair: (not pair[1].is_idle, pair[1].idle_since_s))
        return [other for other, _ in by_use]
