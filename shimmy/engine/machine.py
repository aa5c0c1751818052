"""What this computer offers a worker: the processor cores it may use. Knows Linux's files, nothing of models."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from shimmy import cgroups
from shimmy.cgroups import Group

_CPU_FOLDER = Path("/sys/devices/system/cpu")


def n_physical_cores() -> int:
    """Physical cores among the processors this process may run on (its affinity, and with it the cpusets of control
    groups), within the processor time that its container may use; at least 1.

    Two hardware threads of one core share its arithmetic units, so a second one only slows a decode down. Of a limit's
    fraction nobody gets a thread: it would be stopped in the middle of decodes, and while the others spin and wait for
    it they use up what is left of the period. (SmolLM2 within 1.5 processors: one token in 20 takes 34 ms with two
    threads and 14 with one, and on a busy machine some take seconds.) What remains is for the server and for the
    worker's other threads.
    """
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_core_of(processor) for processor in processors}
    return max(1, int(min(len(cores), *_limits())))


def _core_of(processor: int) -> str:
    """Processors with the same answer are threads of one core."""
    try:
        return (_CPU_FOLDER / f"cpu{processor}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(processor)


def _limits() -> Iterator[float]:
    """Processors' worth of time that each of our control groups leaves, infinite where none of them has a limit."""
    yield float("inf")
    for group in cgroups.groups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = _bandwidth(group)
            if quota >= 0:
                yield quota / period


def _bandwidth(group: Group) -> tuple[int, int]:
    """Microseconds of processor time in each period, and the period; version 1 writes -1 where there is no limit, and 2
    writes `max`, which is a ValueError. Source: sched-bwc and cgroup-v2 of the kernel's documentation."""
    if group.version == 1:
        return int(group.read("cpu.cfs_quota_us")), int(group.read("cpu.cfs_period_us"))
    quota, period = group.read("cpu.max").split()
    return int(quota), int(period)
