"""What a benchmark says in numbers: figures with a unit, a direction and a goal. Knows nothing of how they are got."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# By their keys; None where a server failed at it. What a server has no part in is left out.
Figures = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Unit:
    """How a value is written: `scale` takes it from what is measured (seconds, MB, tokens per second) to `name`."""

    name: str
    scale: float
    digits: int
    more_is_better: bool

    def write(self, value: float) -> str:
        return f"{value * self.scale:,.{self.digits}f}"


MILLISECONDS = Unit("ms", 1e3, 0, more_is_better=False)
SECONDS = Unit("s", 1, 1, more_is_better=False)
MEGABYTES = Unit("MB", 1, 0, more_is_better=False)
TOKENS_PER_S = Unit("tok/s", 1, 1, more_is_better=True)
REPLIES = Unit("replies", 1, 0, more_is_better=True)
TIMES = Unit("times", 1, 2, more_is_better=True)


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table. A goal is a bound of Shimmy's ratio to the peer that it stands under; under Shimmy's own
    name, of its value in what is measured."""

    key: str
    label: str
    unit: Unit
    goals: Mapping[str, float] = field(default_factory=dict)

    def better(self, ratio: float) -> float:
        """How many times better that ratio is: 2 for twice as fast, and for half the time."""
        return ratio if self.unit.more_is_better else 1 / ratio

    def meets(self, goal: float, value: float) -> bool:
        return value >= goal if self.unit.more_is_better else value <= goal
