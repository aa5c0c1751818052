"""A worker's signs of life and of progress, which its parent receives every few seconds.

Knows which threads have work and when each of them last made progress; nothing of what they do. The other end is
`workers.hang_verdict`.

What counts as progress has to be fine enough for the slowest machine, and false for a thread that only burns time. A
decode of 256 rows takes minutes on a Pi with a model of 8 billion weights; processor time grows as well in a loop
without end, and while threads of the engine spin for one that waits for a disk. So it is the nodes of the engine's
graph, some hundreds in a decode, each of which is one product of matrices or less: ggml calls its abort callback after
each of them. That callback is `pthread_spin_unlock` of the C library, which stores a number and returns 0, "go on": a
nanosecond, without Python and its lock. `were_computed` closes the lock: found open, it shows that the engine got on.
"""

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from shimmy.engine import threads

FIRST_BEAT_EVERY_S = 1.0  # until another interval is told


class _Nodes:
    """Whether the engine has computed nodes of its graph since the last call; False where there are no such locks."""

    def __init__(self) -> None:
        self._lock = ctypes.c_int()
        self.address = ctypes.addressof(self._lock)
        self.callback: Any = None  # the address of `bool callback(void *data)`, to be called with `address`
        with suppress(AttributeError, OSError, TypeError):  # macOS has no such locks
            library = ctypes.CDLL(None)
            library.pthread_spin_init(ctypes.byref(self._lock), 0)
            self._try_lock = library.pthread_spin_trylock
            self.callback = ctypes.cast(library.pthread_spin_unlock, ctypes.c_void_p).value

    def were_computed(self) -> bool:
        return self.callback is not None and self._try_lock(ctypes.byref(self._lock)) == 0


nodes = _Nodes()


class Activity:
    """The progress of one thread. Cheap: in the midst of its work the thread only does `n_steps += 1`."""

    __slots__ = ("is_busy", "n_steps")

    def __init__(self) -> None:
        self.is_busy = False
        self.n_steps = 0

    def begin(self) -> None:
        self.n_steps += 1
        self.is_busy = True

    def end(self) -> None:
        self.is_busy = False


# Of the thread that loads the model and decodes, which also the engine's own messages and callbacks move on.
engine = Activity()


class Pulse:
    """Tells `send` on a thread of its own, while the worker lives, for how long its busy threads have not got on."""

    def __init__(self, send: Callable[[float | None], None], clock: Callable[[], float] = monotonic) -> None:
        self.preparing = Activity()
        self._send = send
        self._clock = clock
        self._every_s = FIRST_BEAT_EVERY_S
        self._told_otherwise = threading.Event()
        now_s = clock()
        self._seen: dict[Activity, tuple[int, float]] = dict.fromkeys((engine, self.preparing), (0, now_s))

    def start(self) -> None:
        """Raises ModelUnavailable where the system allows no more threads."""
        threads.start(self._run, name="pulse")

    def set_interval(self, every_s: float) -> None:
        self._every_s = every_s
        self._told_otherwise.set()

    def stalled_s(self) -> float | None:
        """How long the busy thread that got on longest ago has been at the same step; None when none is busy."""
        now_s = self._clock()
        if nodes.were_computed():
            engine.n_steps += 1
        longest_s: float | None = None
        for activity, (n_seen, since_s) in self._seen.items():
            n_steps, is_busy = activity.n_steps, activity.is_busy
            if n_steps != n_seen or not is_busy:
                since_s = now_s  # noqa: PLW2901 - it is told from here on
                self._seen[activity] = n_steps, now_s
            if is_busy:
                longest_s = max(longest_s or 0.0, now_s - since_s)
        return longest_s

    def _run(self) -> None:
        while True:
            self._send(self.stalled_s())
            self._told_otherwise.wait(self._every_s)
            self._told_otherwise.clear()
