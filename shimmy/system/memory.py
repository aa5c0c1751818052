"""How much memory there is for new processes, and how much one has: the system's figures, in bytes. Knows no model."""

import contextlib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from shimmy.system import cgroups
from shimmy.system.cgroups import Group

_MEMINFO = Path("/proc/meminfo")
# The files of a control group with its limit and its usage, in both versions.
_CGROUP_FILES = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}


def size_of(files: Iterable[str]) -> int:
    """Bytes of `files`; one that is not there has none."""
    n_bytes = 0
    for file in files:
        with contextlib.suppress(OSError):
            n_bytes += Path(file).stat().st_size
    return n_bytes


def free_bytes() -> int | None:
    """What new processes can have before the system swaps or the control group's limit ends them; None: unknown.

    Pages of mapped files count as free, those of loaded models among them.
    """
    known = [figure for figure in (_available(), *_left_in_cgroups()) if figure is not None]
    return min(known, default=None)


def resident_bytes(pid: int) -> int | None:
    """What a process has in memory, its pages of mapped files included; None: unknown."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def shown(n_bytes: float) -> str:
    """`n_bytes` for a person: `1.3 GB`, `98 MB`."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _available() -> int | None:
    """MemAvailable of /proc/meminfo."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _left_in_cgroups() -> list[int]:
    """For each control group we are in that has a limit: what is left of it, its page cache counted as left."""
    left = []
    for group in _limited_groups():
        limit, usage = _CGROUP_FILES[group.version]
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = dict(line.split() for line in group.read("memory.stat").splitlines())
            n_cached = int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))
            left.append(int(group.read(limit)) - int(group.read(usage)) + n_cached)
    return left


@cache
def _limited_groups() -> list[Group]:
    return [group for group in cgroups.groups("memory") if _is_limit(group)]


def _is_limit(group: Group) -> bool:
    try:
        return (
            0 < int(group.read(_CGROUP_FILES[group.version][0])) < 2**60
        )  # version 1 has a number near 2**63 for none
    except (OSError, ValueError):  # there is no such file, or it says `max`
        return False
