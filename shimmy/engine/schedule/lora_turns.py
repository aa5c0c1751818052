"""Which jobs decode together: LoRA scales hold for a whole batch, so jobs with different scales take turns.

Knows the scales of tasks; nothing of batches or of the engine.
"""

from collections.abc import Callable, Sequence

from shimmy.engine.schedule.task import Task

# Decodes of jobs with the same scales before the next scales have their turn. Setting other scales costs half a decode
# of a small model (SmolLM2: 3 of 7 ms).
_TURN_STEPS = 4


class LoraTurns:
    """`scales` are the adapters' scales that the engine has now, `n_steps` the decodes since they were set."""

    def __init__(self, set_scales: Callable[[Sequence[float]], None]) -> None:
        self._set_scales = set_scales
        self.scales: tuple[float, ...] = ()
        self.n_steps = 0

    def of(self, running: list[Task]) -> list[Task]:
        """The jobs of the next decode; tells the engine their scales."""
        sets = list(dict.fromkeys(task.scales for task in running))
        if not sets:
            return []
        if self.scales not in sets:
            self._change(sets[0])
        elif len(sets) > 1 and self.n_steps >= _TURN_STEPS:
            self._change(sets[(sets.index(self.scales) + 1) % len(sets)])
        self.n_steps += 1
        return [task for task in running if task.scales == self.scales]

    def end(self) -> None:
        """End the turn of the present scales with this decode."""
        self.n_steps = _TURN_STEPS

    def _change(self, scales: tuple[float, ...]) -> None:
        self._set_scales(scales)
        self.scales = scales
        self.n_steps = 0
