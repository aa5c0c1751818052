"""The memory that workers may take: loads wait in one queue, and each reserves its bytes when they are free.

Knows the limits, the reservations and what the system says is left; nothing of models or workers. The caller decides
which worker has to end to make room.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from shimmy.errors import OutOfMemory
from shimmy.pool import memory_estimate
from shimmy.pool.memory_estimate import MemoryEstimate
from shimmy.system import memory
from shimmy.system.memory import shown


@dataclass(eq=False, slots=True)
class Reservation:
    """Memory that one worker may take, from before its start until it has ended."""

    estimate: MemoryEstimate
    is_taken: bool = False  # the worker has loaded its model: its memory shows in what the system says is left


class MemoryBudget:
    """Memory for workers, reserved in the order of the requests. Runs on the event loop's thread."""

    def __init__(self, limit_bytes: int | None, free_bytes: Callable[[], int | None] = memory.free_bytes) -> None:
        """`limit_bytes` is for the server with all its workers; None: only the system sets limits."""
        self._limit = None if limit_bytes is None else limit_bytes - memory_estimate.SERVER_BYTES
        self._free_bytes = free_bytes
        self._reservations: set[Reservation] = set()
        self._queue = asyncio.Lock()  # wakes its waiters in the order they came
        self._waiting: list[str] = []  # the names of these, in that order
        self._changed = asyncio.Event()

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all reservations."""
        return sum(reservation.estimate.total for reservation in self._reservations)

    @property
    def n_loading(self) -> int:
        """Reservations of workers that have not loaded their model yet."""
        return sum(not reservation.is_taken for reservation in self._reservations)

    def position(self, name: str) -> int:
        """The place of a load in the queue, 1 for the next; 0 where it does not wait."""
        return self._waiting.index(name) + 1 if name in self._waiting else 0

    def available_bytes(self) -> float:
        """Bytes that can be reserved now; infinite when no limit is known."""
        return self.max_bytes() - self.reserved_bytes

    def max_bytes(self) -> float:
        """Bytes that one load could reserve if there were no other reservation; infinite when no limit is known."""
        return min(self._system_bytes(), self._own_bytes())

    def _own_bytes(self) -> float:
        return float("inf") if self._limit is None else self._limit

    def _system_bytes(self) -> float:
        """What the system would have left without any worker of ours; weights are pages of files and count as left."""
        left = self._free_bytes()
        if left is None:
            return float("inf")
        taken = [reservation.estimate for reservation in self._reservations if reservation.is_taken]
        return left + sum(estimate.kv + estimate.compute for estimate in taken)

    def on_device(self, name: str, *, is_taken: bool | None = None) -> int:
        """Bytes of the memory of device `name` that are reserved: all of them, or those of workers that have loaded
        their model, or of the others."""
        return sum(
            n_bytes for reservation in self._reservations if is_taken in (None, reservation.is_taken)
            for device, n_bytes in reservation.estimate.on_devices if device == name
        )  # fmt: skip

    async def reserve(self, name: str, estimate: MemoryEstimate, make_room: Callable[[int], bool]) -> Reservation:
        """Wait in the queue until `estimate` is available, and reserve it.

        `make_room` gets the number of missing bytes and returns whether they will become available. Where they will
        not, this raises OutOfMemory.
        """
        self._waiting.append(name)
        try:
            async with self._queue:
                while (missing_bytes := estimate.total - self.available_bytes()) > 0:
                    self._changed.clear()
                    if not make_room(int(missing_bytes)):
                        raise OutOfMemory(f"there is no memory for it: {self.explain(name, estimate)}")
                    await self._changed.wait()
                reservation = Reservation(estimate)
                self._reservations.add(reservation)
                return reservation
        finally:
            self._waiting.remove(name)

    def settle(self, reservation: Reservation, resident_bytes: int | None) -> None:
        """The worker of `reservation` has loaded its model and takes `resident_bytes`: reserve what exceeds the
        estimate too."""
        reservation.is_taken = True
        estimate = reservation.estimate
        excess_bytes = (resident_bytes or 0) - estimate.total
        if excess_bytes > 0:
            reservation.estimate = replace(estimate, compute=estimate.compute + excess_bytes)

    def release(self, reservation: Reservation) -> None:
        self._reservations.discard(reservation)
        self.notify()

    def notify(self) -> None:
        """Memory may be available now, or a worker may have become evictable: let the head of the queue look again."""
        self._changed.set()

    def explain(self, name: str, estimate: MemoryEstimate) -> str:
        """What `name` takes and what there is, in numbers."""
        parts = (
            f"{shown(estimate.weights)} of weights, {shown(estimate.kv)} of KV cache, {shown(estimate.compute)} to "
            "compute"
        )
        limits = []
        if self._limit is not None:
            left_bytes = max(0, self._limit - self.reserved_bytes)
            limits.append(f"{shown(left_bytes)} of `--max-memory` are left for it")
        if (left := self._free_bytes()) is not None:
            limits.append(f"the system has {shown(max(0, left))}")
        return (
            f"`{name}` takes {shown(estimate.total)} ({parts}); {', and '.join(limits) or 'no limit is known'}. Use a "
            "smaller model or a smaller `--ctx-size`, or unload another model"
        )
