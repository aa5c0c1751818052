"""What runs for one name of a model: its worker, the load of the next one, and the callers that wait for it.

Knows one name; nothing of other models. Only `pool` and `swap` write here.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from shimmy.catalog.catalog import Model
from shimmy.messages.model_info import LoadProgress
from shimmy.workers.worker_client import WorkerClient

if TYPE_CHECKING:
    import asyncio


class State(StrEnum):
    """What a runtime is doing.

        (no runtime) ── asked for ──► LOADING ── opened ──► READY ── its file changed ──► SWAPPING
            ▲                         │ ▲                │  │                           │  │ │
            ├────────── refused ──────┘ │                │  │       the old one stays ◄─┘  │ │
            │                           │                │  │       (refused)              │ │
            │                           │                │  └── opened: one assignment ────┘ │
            │                           └────────────────│────── no room for both ───────────┘
            └── idle too long, unloaded, evicted, file ◄─┘
                gone, died

    A runtime is LOADING also while it waits for memory. A worker that is replaced, unloaded or evicted drains: it
    finishes its jobs, then it ends.
    """

    LOADING = "loading"
    READY = "ready"
    SWAPPING = "swapping"


@dataclass(slots=True)
class ModelRuntime:
    """What runs for one name; `wanted` is what the name means now."""

    wanted: Model
    keep_alive_s: float  # infinite: until unloaded
    is_pinned: bool = False  # a request asked to keep it without end: it is never evicted
    active: WorkerClient | None = None
    loaded: Model | None = None  # what `active` has loaded
    loading: "asyncio.Task[None] | None" = None  # of the first worker, or of the next one
    progress: LoadProgress | None = None  # of its load, where that takes a while
    # The callers that wait for a worker, and for how many jobs or calls each.
    waiters: "dict[asyncio.Future[WorkerClient], int]" = field(default_factory=dict)

    @property
    def worker(self) -> WorkerClient | None:
        """The active worker, if it lives."""
        return self.active if self.active is not None and self.active.is_alive else None

    @property
    def state(self) -> State:
        if self.worker is None:
            return State.LOADING
        return State.READY if self.loading is None else State.SWAPPING

    @property
    def n_jobs(self) -> int:
        """Jobs and calls of its worker, and those that wait for one."""
        return sum(self.waiters.values()) + (self.worker.n_asked if self.worker else 0)

    def call_off_load(self) -> None:
        """Have the load end its worker, and then itself. A second call would not let it wait for the worker's end."""
        if self.loading is not None and not self.loading.cancelling():
            self.loading.cancel()

    def wake(self, error: Exception) -> None:
        """Give the waiters the worker, or `error` where there is none."""
        for waiter in self.waiters:
            if waiter.done():
                continue
            if self.worker is not None:
                waiter.set_result(self.worker)
            else:
                waiter.set_exception(error)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a model could not be loaded the last time."""

    model: Model
    reason: str
