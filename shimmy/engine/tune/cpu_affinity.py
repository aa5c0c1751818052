"""Gives the engine's threads a core each, while no other thread of the worker has work.

A worker that had nothing to do is woken by the thread that prepared a job, and then wakes the engine's threads, which
sleep: all within a fraction of a millisecond, so that the system may find no core idle and put two threads that wait
for each other on one. There they stay for 5 to 15 ms, which is a decode of a small model. Knows threads and cores;
nothing of models or jobs.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from shimmy.system.cpu import cores


class Placement:
    """The placement of the calling thread and of the threads `others`."""

    def __init__(self, others: Iterable[int], processor: Callable[[], int] | None = None) -> None:
        """`processor` returns the processor that the caller runs on."""
        self._threads = (threading.get_native_id(), *others)
        self._cores = cores()
        self._processor = processor or getattr(ctypes.CDLL(None), "sched_getcpu", None)
        self._is_held = False

    def hold(self, n_threads: int) -> None:
        """Let each thread have a core for itself, the caller the one where it is, if all `n_threads` that compute now
        are these and there are as many cores: on fewer the system finds idle ones itself, and others may want some.
        Nothing changes while they have theirs."""
        if self._is_held or self._processor is None:
            return
        if n_threads == len(self._threads) == len(self._cores) > 1:
            here = self._processor()
            self._place(sorted(self._cores, key=lambda core: here not in core))
            self._is_held = True

    def release(self) -> None:
        """Let the system place the threads again."""
        if self._is_held:
            self._is_held = False
            self._place([set().union(*self._cores)] * len(self._threads))

    def _place(self, places: Sequence[set[int]]) -> None:
        for thread_id, processors in zip(self._threads, places, strict=True):
            with contextlib.suppress(OSError):  # it has ended, or the process may not run there any more
                os.sched_setaffinity(thread_id, processors)


def engine_threads() -> list[int]:
    """The ids of this process's threads that are not Python's; none where they could not be placed."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    own = {thread.native_id for thread in threading.enumerate()}
    with contextlib.suppress(OSError):
        return sorted({int(entry.name) for entry in Path("/proc/self/task").iterdir()} - own)
    return []
