"""Looks after one worker at regular intervals, and has it given up when it is silent, stalled or too loud.

Knows when to look and what was counted since the last look; what a silence means is in `workers.hang_verdict`.
"""

import asyncio
from collections.abc import Callable

from shimmy.workers.hang_verdict import Watch

# A small model decodes a few thousand times a second; reading this many frames takes a quarter of a core.
_MAX_FRAMES_PER_S = 30_000


class WorkerWatch:
    """Calls `give_up` with the reason, once. `state` tells whether the model is loaded, and whether there is work."""

    def __init__(self, state: Callable[[], tuple[bool, bool]], give_up: Callable[[str], None]) -> None:
        self._state = state
        self._give_up = give_up
        self._watch = Watch()
        self._timer: asyncio.TimerHandle | None = None
        self._n_frames = 0  # since the last look
        self._n_about_work = 0  # frames about its work, since the start

    def begin(self, worker_timeout_s: float, load_timeout_s: float) -> None:
        self._watch.limit(worker_timeout_s, load_timeout_s)
        self._look_later()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def heard(self) -> None:
        """Bytes came."""
        self._watch.heard()

    def count_frame(self) -> None:
        self._n_frames += 1

    def count_work(self) -> None:
        """A frame was about its work."""
        self._n_about_work += 1

    def told(self, stalled_s: float | None) -> None:
        """It said that it has been at the same step for so long; None: that it has nothing to do."""
        self._watch.told(stalled_s)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._watch.look_every_s, self._look)

    def _look(self) -> None:
        is_loaded, has_work = self._state()
        verdict = self._watch.verdict(is_loaded=is_loaded, has_work=has_work, n_said=self._n_about_work)
        if self._n_frames > _MAX_FRAMES_PER_S * self._watch.look_every_s:
            verdict = f"it sends more than can be read: {self._n_frames} frames"
        self._n_frames = 0
        if verdict is None:
            self._look_later()
        else:
            self._give_up(verdict)
