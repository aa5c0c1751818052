"""Which models must not be loaded now, because they failed lately: for a while, or until something changes.

Knows when and why models failed; nothing of workers. After a refused load the next request tries again at once, further
ones after ever longer times. A model whose workers ended again and again without finishing a job is not loaded any
more, until its file changes or a person asks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from shimmy.catalog.catalog import Model
from shimmy.errors import ModelUnavailable

MAX_DEATHS = 3
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0


@dataclass(slots=True)
class _Record:
    """The failures of a model since it worked last."""

    model: Model
    n_failures: int = 0  # loads refused and workers that ended
    n_deaths: int = 0  # of them, workers that ended
    reason: str = ""  # of the last failure
    until_s: float = 0.0  # the model is not loaded before this time


class Quarantine:
    """Is told what happens to models, and is asked before one is loaded."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._records: dict[str, _Record] = {}

    def refused(self, model: Model, reason: str) -> None:
        """A load of `model` failed."""
        self._note(model, reason)

    def died(self, model: Model, reason: str, *, has_worked: bool) -> None:
        """A worker of `model` ended unasked, in a load or later; `has_worked`: it had finished a job."""
        if has_worked:
            self.forget(model.name)
        self._note(model, reason).n_deaths += 1

    def loaded(self, model: Model) -> None:
        """A load of `model` succeeded. Deaths still count: whether this worker lives is yet to be seen."""
        record = self._records.get(model.name)
        if record is not None and not record.n_deaths:
            self.forget(model.name)

    def forget(self, name: str) -> None:
        """Forget the failures of the model: its file has changed, or a person wants it loaded."""
        self._records.pop(name, None)

    def check(self, model: Model) -> None:
        """Raises ModelUnavailable with the reason when `model` must not be loaded now."""
        record = self._records.get(model.name)
        if record is None:
            return
        if record.model != model:
            self.forget(model.name)
        elif (held := self.held(model.name)) is not None:
            raise ModelUnavailable(held)
        elif (wait_s := record.until_s - self._clock()) > 0:
            raise ModelUnavailable(f"{record.reason} (`{model.name}` is tried again in {wait_s:.0f} s)")

    def held(self, name: str) -> str | None:
        """Why the model is not loaded any more; None where it is."""
        record = self._records.get(name)
        if record is None or record.n_deaths < MAX_DEATHS:
            return None
        return (
            f"`{name}` is not loaded any more: its worker ended {record.n_deaths} times in a row, the last time: "
            f"{record.reason}. Replace its file, or have it loaded with POST /api/models/{name}/load"
        )

    def last_reason(self, name: str) -> str | None:
        """Why the model failed last; None where it did not fail since it worked."""
        record = self._records.get(name)
        return None if record is None else record.reason

    @property
    def n_held(self) -> int:
        """Models that are not loaded any more."""
        return sum(record.n_deaths >= MAX_DEATHS for record in self._records.values())

    def _note(self, model: Model, reason: str) -> _Record:
        record = self._records.get(model.name)
        if record is None or record.model != model:
            record = self._records[model.name] = _Record(model)
        record.n_failures += 1
        record.reason = reason
        if record.n_failures > 1:
            wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (record.n_failures - 2))
            record.until_s = self._clock() + wait_s
        return record
