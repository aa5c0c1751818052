"""Which worker ends when another model needs its memory: idle workers first, the least recently used before others.

Knows what runs, how much memory each worker has and when it worked last; nothing of requests or loads.
"""

from collections.abc import Callable, Iterable, Mapping

from shimmy.pool.memory_budget import MemoryBudget
from shimmy.pool.model_runtime import ModelRuntime
from shimmy.pool.supervisor import Supervisor


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
