"""What a pull says while it runs, and how fast it goes. Knows no protocol and no terminal."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic

WINDOW_S = 8.0  # over which the speed is measured
EVERY_S = 0.3  # how often `progress` is said, at most


@dataclass(frozen=True, slots=True)
class PullEvent:
    """Something that a pull says: `kind`, and what belongs to it, for JSON.

    `resolving` (reference), `files` (files: name and size_bytes each, total_bytes), `progress` (file, completed_bytes,
    total_bytes, bytes_per_s, eta_s), `waiting` (reason, seconds), `done` (path, total_bytes). Sizes are None where a
    server does not tell them, and so is a time left that is not known.
    """

    kind: str
    details: Mapping[str, object] = field(default_factory=dict)


Report = Callable[[PullEvent], None]


class Meter:
    """Counts the bytes of all files of a pull. `tick` is the main thread's, the rest may be called from any."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._lock = Lock()
        self._saying = Lock()
        self._completed = 0  # in files, not only over the network
        self._received = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._said_s = 0.0
        self.file = ""
        self.total: int | None = 0

    def received(self, n_bytes: int) -> None:
        with self._lock:
            self._received += n_bytes
            self._completed += n_bytes

    def skipped(self, n_bytes: int) -> None:
        """These are there already; negative: they have to be fetched once more."""
        with self._lock:
            self._completed += n_bytes

    @property
    def n_completed(self) -> int:
        return self._completed

    @property
    def n_received(self) -> int:
        return self._received

    def say(self, kind: str, **details: object) -> None:
        """From any thread; those who hear it hear one thing at a time."""
        with self._saying:
            self._report(PullEvent(kind, details))

    def tick(self, *, is_last: bool = False) -> None:
        """Say how far it is, if that was not said just before."""
        now_s = monotonic()
        if not is_last and now_s - self._said_s < EVERY_S:
            return
        self._said_s = now_s
        self._samples.append((now_s, self._received))
        while len(self._samples) > 2 and now_s - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        began_s, n_before = self._samples[0]
        speed = (self._received - n_before) / (now_s - began_s) if now_s > began_s else 0.0
        left = None if self.total is None else max(self.total - self._completed, 0)
        self.say(
            "progress",
            file=self.file,
            completed_bytes=self._completed,
            total_bytes=self.total,
            bytes_per_s=round(speed),
            eta_s=round(left / speed, 1) if left is not None and speed else None,
        )
