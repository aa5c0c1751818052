"""What a server holds when nobody asks it anything, and whether that has grown. Knows no requests."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.memory import tree_memory_mb
from tests.e2e.processes import anonymous_kib

# How much the median of the second half may lie above that of the first: a share, and an amount in the same unit.
ALLOWED = {
    "tree_mb": (0.1, 5.0),  # parts of what is shared change with whoever else on the machine has the same files open
    "server_mb": (0.03, 2.0),
    "worker_mb": (0.03, 2.0),
}
COUNT_ALLOWED = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Quiet:
    """What there is in a moment without any job: of the server with its one worker, and of each of the two."""

    tree_mb: float  # proportional set size
    server_mb: float  # memory of its own, that no file stands behind
    worker_mb: float
    server_files: float
    worker_files: float
    server_threads: float
    worker_threads: float


def quiet(root: int, server: int, worker: int) -> Quiet:
    """Of process ids: of the tree's root, of the process that serves, and of the worker."""
    return Quiet(
        tree_memory_mb(root),
        *(anonymous_kib(pid) * 1024 / 1e6 for pid in (server, worker)),
        *(_n_entries(pid, "fd") for pid in (server, worker)),
        *(_n_entries(pid, "task") for pid in (server, worker)),
    )


@dataclass(frozen=True, slots=True)
class Trend:
    """One of the figures over the whole run: medians of its two halves."""

    name: str
    first: float
    second: float
    allowed: float  # growth

    @property
    def is_flat(self) -> bool:
        return self.second - self.first <= self.allowed


def trends(moments: Sequence[Quiet]) -> list[Trend]:
    """Of at least three moments, of which the first is passed over: what is filled once is full then."""
    moments = moments[1:]
    half = len(moments) // 2
    found = []
    for name in Quiet.__slots__:
        values: list[float] = [getattr(moment, name) for moment in moments]
        first, second = statistics.median(values[:half]), statistics.median(values[half:])
        share, amount = ALLOWED.get(name, COUNT_ALLOWED)
        found.append(Trend(name, first, second, max(share * first, amount)))
    return found


def _n_entries(pid: int, folder: str) -> int:
    return len(list(Path(f"/proc/{pid}/{folder}").iterdir()))
