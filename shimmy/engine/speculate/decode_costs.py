"""What a decode with several rows of one job costs, learnt from the decodes. Knows row counts and measured times."""

# Numbers of rows that are tried: with more of these, each would be measured less often.
BATCH_SIZES = (2, 3, 4, 6, 8, 12, 16, 32)

# The cost of so few rows is not extrapolated to more: the second row may cost more than the eighth (gemma-3-270m on 2
# cores, in one measurement: 2 rows cost 2.2, 8 rows 4.1).
_FEW = 3
# The cost of a further row, in single rows, where nothing was measured yet (2 cores; less with more cores).
_ROW_COST = 0.5
# The same, optimistic, for a draft model, which pays where rows are cheap: a size is only measured once it is tried.
_OPTIMISTIC_ROW_COST = 0.15
_COST_WEIGHT = 0.2  # of the latest measurement


class DecodeCosts:
    """The cost of a decode with several rows of one job, in decodes of one row; learnt from the decodes."""

    def __init__(self) -> None:
        self._single_s = 0.0
        self._ratios = {1: 1.0}

    def observe(self, n_rows: int, seconds: float) -> None:
        if n_rows == 1:
            self._single_s += _COST_WEIGHT * (seconds - self._single_s) if self._single_s else seconds
        elif n_rows in BATCH_SIZES and self._single_s:
            known = self.of(n_rows)  # the assumption keeps its weight at the first measurement
            self._ratios[n_rows] = known + _COST_WEIGHT * (seconds / self._single_s - known)

    def of(self, n_rows: int) -> float:
        """The cost of `n_rows`. Where these were never measured, each row costs as much as in the next smaller measured
        size, and all together no more than a larger measured size."""
        if n_rows in self._ratios:
            return self._ratios[n_rows]
        measured = max(size for size in self._ratios if size < n_rows)
        each = (self._ratios[measured] - 1) / (measured - 1) if measured > 1 else _ROW_COST
        if measured <= _FEW < n_rows:
            each = min(each, _ROW_COST)
        more = [ratio for size, ratio in self._ratios.items() if size > n_rows]
        return min([1 + each * (n_rows - 1), *more])

    def optimistic(self, n_rows: int) -> float:
        """The same, but with a low cost where `n_rows` were never measured, so that they are tried."""
        return self._ratios[n_rows] if n_rows in self._ratios else 1 + _OPTIMISTIC_ROW_COST * (n_rows - 1)

    def in_rows(self, seconds: float) -> float | None:
        """How many decodes of one row take so long; None while none was measured."""
        return seconds / self._single_s if self._single_s else None
