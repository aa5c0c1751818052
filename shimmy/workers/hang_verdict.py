"""When a worker is given up: it gives no sign of life, or none of progress although there is work for it.

Knows what the worker said of itself (`pulse`) and when; nothing of processes. The worker is not trusted: what it says
of its progress can only cost its own jobs their time, and its silence is measured here.
"""

import math
from collections.abc import Callable
from time import monotonic

from shimmy.wire.worker_options import look_every_s


class Watch:
    """Feed it what is heard, ask it for a verdict every `look_every_s`."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.limit(math.inf, math.inf)
        self._clock = clock
        self._looked_s = self._heard_s = clock()
        self._has_begun = False  # whether it has said anything at all
        self._stalled_s: float | None = None  # as it said last
        self._n_said = -1  # at the last look at which it had work or said something
        self._idle_since_s = 0.0

    def limit(self, worker_timeout_s: float, load_timeout_s: float) -> None:
        """Infinite: for ever. The first one is for jobs, the other for loading a model, in which steps take longer."""
        self._worker_timeout_s = worker_timeout_s
        self._load_timeout_s = load_timeout_s
        self.look_every_s = look_every_s(worker_timeout_s, load_timeout_s)

    def heard(self) -> None:
        """It said something."""
        self._heard_s = self._clock()
        self._has_begun = True

    def told(self, stalled_s: float | None) -> None:
        """It said that it has been at the same step for so long; None: that it has nothing to do."""
        self.heard()
        self._stalled_s = stalled_s

    def verdict(self, *, is_loaded: bool, has_work: bool, n_said: int) -> str | None:
        """Why it is given up; None while it is not. `n_said` counts what it said of its work."""
        now_s, last_s = self._clock(), self._looked_s
        self._looked_s = now_s
        if now_s - last_s > 2 * self.look_every_s + 1:
            # We were stopped or held up ourselves: what it said meanwhile has not been read yet.
            self._heard_s = self._idle_since_s = now_s
            return None
        limit_s, option = self._limit(is_loaded=is_loaded)
        silent_s = now_s - self._heard_s
        silence_limit_s = self._worker_timeout_s if self._has_begun else self._load_timeout_s
        if silent_s >= silence_limit_s:
            name = "--worker-timeout" if self._has_begun else "--load-timeout"
            return f"it gave no sign of life for {silent_s:.0f} s (`{name}`)"
        if self._stalled_s is not None and self._stalled_s >= limit_s:
            return f"it got no further for {self._stalled_s:.0f} s (`{option}`)"
        if not has_work or self._stalled_s is not None or n_said != self._n_said:
            self._n_said, self._idle_since_s = n_said, now_s
        if is_loaded and now_s - self._idle_since_s >= self._worker_timeout_s:
            return "it has nothing to do although it was given work"
        return None

    def _limit(self, *, is_loaded: bool) -> tuple[float, str]:
        if is_loaded:
            return self._worker_timeout_s, "--worker-timeout"
        return self._load_timeout_s, "--load-timeout"
