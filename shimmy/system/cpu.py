"""What this computer offers a worker: the processor cores it may use. Knows Linux's files, nothing of models."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from shimmy.system import cgroups
from shimmy.system.cgroups import Group

_CPU_FOLDER = Path("/sys/devices/system/cpu")
_FAST_PROCESSORS = Path("/sys/devices/cpu_core/cpus")


def n_physical_cores() -> int:
    """Physical cores among the processors this process may run on (its affinity, and with it the cpusets of control
    groups), within the processor time that its container may use; at least 1.

    Two hardware threads of one core share its arithmetic units, so a second one only slows a decode down. Of a limit's
    fraction nobody gets a thread: it would be stopped in the middle of decodes, and while the others spin and wait for
    it they use up what is left of the period. (SmolLM2 within 1.5 processors: one token in 20 takes 34 ms with two
    threads and 14 with one, and on a busy machine some take seconds.) What remains is for the server and for the
    worker's other threads.
    """
    cores = {_core_of(processor) for processor in _processors()}
    return max(1, int(min(len(cores), *_limits())))


def thread_counts() -> list[int]:
    """How many threads may be good for a decode, the usual number first: all physical cores, those of the fastest kind
    alone, or all hardware threads. Under a limit of processor time only the first: short trials would not feel it.
    """
    processors = _processors()
    n_cores = n_physical_cores()
    if min(_limits()) < len(processors):
        return [n_cores]
    fast = {_core_of(processor) for processor in processors & _fast_processors()}
    return list(dict.fromkeys(n for n in (n_cores, len(fast), len(processors)) if n))


def cores() -> list[set[int]]:
    """The processors that this thread may run on, those of a core together."""
    found: dict[object, set[int]] = {}
    for processor in sorted(_processors()):
        found.setdefault(_core_of(processor), set()).add(processor)
    return list(found.values())


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The model of the first processor; empty where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="ascii", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "CPU part"}:
                return value.strip()
    return ""


def _processors() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _fast_processors() -> set[int]:
    """Those of the performance cores of a hybrid Intel processor; none on others. The form is `0-7,16`."""
    found: set[int] = set()
    with contextlib.suppress(OSError, ValueError):
        for part in _FAST_PROCESSORS.read_text().strip().split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found


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
