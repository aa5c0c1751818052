"""Who may have how much memory: loads stand in one line, and each gets its bytes when they are free.

Knows limits, what was given out and what the system says is left; nothing of models or workers. Who has to make room
for another one, whoever asks decides.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from shimmy.errors import OutOfMemory
from shimmy.pool import memory_estimate
from shimmy.pool.memory_estimate import MemoryEstimate
from shimmy.system import memory
from shimmy.system.memory import shown


@dataclass(eq=False, slots=True)
class Reservation:
    """Memory that one worker may take, from before its start until it has ended."""

    need: MemoryEstimate
    is_taken: bool = False  # it shows in what the system says is left


class MemoryBudget:
    """Memory for workers, given out in the order it was asked for. Runs on the event loop's thread."""

    def __init__(self, limit_bytes: int | None, free_bytes: Callable[[], int | None] = memory.free_bytes) -> None:
        """`limit_bytes` is for the server with all its workers; None: only the system sets limits."""
        self._limit = None if limit_bytes is None else limit_bytes - memory_estimate.SERVER_BYTES
        self._free_bytes = free_bytes
        self._lots: set[Reservation] = set()
        self._line = asyncio.Lock()  # wakes those who wait in the order they came
        self._changed = asyncio.Event()

    @property
    def n_given(self) -> int:
        """Bytes of all lots."""
        return sum(lot.need.total for lot in self._lots)

    @property
    def n_loading(self) -> int:
        """Lots of workers that have not loaded their model yet."""
        return sum(not lot.is_taken for lot in self._lots)

    def n_free(self) -> float:
        """Bytes that can be given out now; infinite when nothing is known to set a limit."""
        system, own = self._system_bytes(), self._own_bytes()
        return min(system, own) - self.n_given

    def n_most(self) -> float:
        """Bytes that one load could have if no other were there."""
        return min(self._system_bytes(), self._own_bytes())

    def _own_bytes(self) -> float:
        return float("inf") if self._limit is None else self._limit

    def _system_bytes(self) -> float:
        """What the system would have left without any worker of ours; weights are pages of files and count as left."""
        left = self._free_bytes()
        if left is None:
            return float("inf")
        return left + sum(lot.need.kv + lot.need.compute for lot in self._lots if lot.is_taken)

    async def take(self, name: str, need: MemoryEstimate, make_room: Callable[[int], bool]) -> Reservation:
        """Wait in line until there is room for `need`, and take it.

        `make_room` is called with how many bytes are missing, and says whether it makes sense to wait for them; where
        it does not, OutOfMemory is raised.
        """
        async with self._line:
            while (n_missing := need.total - self.n_free()) > 0:
                self._changed.clear()
                if not make_room(int(n_missing)):
                    raise OutOfMemory(f"there is no memory for it: {self.explain(name, need)}")
                await self._changed.wait()
            lot = Reservation(need)
            self._lots.add(lot)
            return lot

    def settle(self, lot: Reservation, resident_bytes: int | None) -> None:
        """The worker of `lot` has loaded its model, and takes `resident_bytes`; more than predicted is booked."""
        lot.is_taken = True
        n_more = (resident_bytes or 0) - lot.need.total
        if n_more > 0:
            lot.need = MemoryEstimate(lot.need.weights, lot.need.kv, lot.need.compute + n_more)

    def give_back(self, lot: Reservation) -> None:
        self._lots.discard(lot)
        self.look_again()

    def look_again(self) -> None:
        """Something may be free now, or could be made so."""
        self._changed.set()

    def explain(self, name: str, need: MemoryEstimate) -> str:
        """What `name` takes and what there is, in numbers."""
        parts = f"{shown(need.weights)} of weights, {shown(need.kv)} of KV cache, {shown(need.compute)} to compute"
        limits = []
        if self._limit is not None:
            limits.append(f"{shown(max(0, self._limit - self.n_given))} of `--max-memory` are left for it")
        if (left := self._free_bytes()) is not None:
            limits.append(f"the system has {shown(max(0, left))}")
        return (
            f"`{name}` takes {shown(need.total)} ({parts}); {', and '.join(limits) or 'no limit is known'}. Use a "
            "smaller model or a smaller `--ctx-size`, or unload another model"
        )
