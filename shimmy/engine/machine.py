"""What this computer offers a worker: the processor cores it may use. Knows Linux's files, nothing of models."""

import os
from pathlib import Path

_CPU_FOLDER = Path("/sys/devices/system/cpu")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def n_physical_cores() -> int:
    """Physical cores among the processors this process may run on, within its container's CPU limit; at least 1.

    Two hardware threads of one core share its arithmetic units, so a second one only slows a decode down.
    """
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_core_of(processor) for processor in processors}
    return max(1, min(len(cores), _n_allowed()))


def _core_of(processor: int) -> str:
    """Processors with the same answer are threads of one core."""
    try:
        return (_CPU_FOLDER / f"cpu{processor}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(processor)


def _n_allowed() -> int:
    """Whole cores a cgroup v2 limit leaves (format: `quota period`, microseconds, or `max`)."""
    try:
        quota, period = _CPU_MAX.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return os.cpu_count() or 1
