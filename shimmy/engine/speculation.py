"""Prompt lookup: guesses what a job will say next from what it has said and read, and knows whether a guess pays.

Knows tokens and measured times; nothing of the engine or of jobs. A draft is decoded in one batch with the token before
it, every row is sampled with the job's own chain, and what follows the first mismatch is dropped: the result is what
one row at a time would give.
"""

from collections.abc import Sequence

# A guess copies what followed the last place where so many tokens stood in the same order; the longest is tried first.
_N_GRAMS = (12, 6, 3)
_MAX_MATCH = 32
# Rows of a batch that may be tried: more sizes would each be measured less often.
_SIZES = (4, 8, 16, 32)
# A batch must promise this many times the tokens per second of single rows: what is promised is only an estimate.
_MIN_GAIN = 1.1
# What a further row costs, in single rows, where nothing was measured yet (2 cores; more cores make it less).
_ROW_COST = 0.5
_COST_WEIGHT = 0.2  # of the latest measurement
_OUTCOME_DECAY = 0.9  # of what earlier drafts of the job say, for each draft


class Costs:
    """What a decode of one job costs with more rows than one, in decodes of one row; learnt while it serves."""

    def __init__(self) -> None:
        self._single_s = 0.0
        self._ratios = {1: 1.0}

    def observe(self, n_rows: int, seconds: float) -> None:
        if n_rows == 1:
            self._single_s += _COST_WEIGHT * (seconds - self._single_s) if self._single_s else seconds
        elif n_rows in _SIZES and self._single_s:
            known = self.of(n_rows)  # what was assumed is not forgotten at the first measurement
            self._ratios[n_rows] = known + _COST_WEIGHT * (seconds / self._single_s - known)

    def of(self, n_rows: int) -> float:
        """The cost of `n_rows`; where they were never measured, in proportion to the next fewer that were."""
        measured = max(size for size in self._ratios if size <= n_rows)
        return self._ratios[measured] * _assumed(n_rows) / _assumed(measured)


def _assumed(n_rows: int) -> float:
    return 1 + _ROW_COST * (n_rows - 1)


class Lookup:
    """The guesses of one job."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}  # of an n-gram: where the token after its last occurrence stands
        self._n_indexed = 0
        self._n_accepted = 0.0
        self._n_tried = 0.0

    def draft(self, tokens: Sequence[int], n_max: int, costs: Costs) -> list[int]:
        """What may follow `tokens`, at most `n_max` of it; empty when no guess promises to pay."""
        place = self._place(tokens)
        if place is None:
            return []
        n_match = _n_matching(tokens, place)
        chance = (self._n_accepted + n_match) / (self._n_tried + n_match + 1)
        sizes = [size for size in _SIZES if size <= n_max + 1]
        gains = {size: _n_expected(chance, size) / costs.of(size) for size in sizes}
        best = max(gains, key=gains.__getitem__, default=0)
        if not best or gains[best] < _MIN_GAIN:
            return []
        period = len(tokens) - place  # past the end of what is known, a copy goes on as a loop would
        return [tokens[place + offset % period] for offset in range(best - 1)]

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """Of a draft, the accepted tokens and the first one that was not have been tried."""
        self._n_accepted = self._n_accepted * _OUTCOME_DECAY + n_accepted
        self._n_tried = self._n_tried * _OUTCOME_DECAY + min(n_accepted + 1, n_drafted)

    def _place(self, tokens: Sequence[int]) -> int | None:
        """Where the token stands that followed the longest n-gram that `tokens` end with, the last time."""
        for end in range(self._n_indexed, len(tokens)):
            for n in _N_GRAMS:
                if n <= end:
                    self._places[tuple(tokens[end - n : end])] = end
        self._n_indexed = len(tokens)
        for n in _N_GRAMS:
            place = self._places.get(tuple(tokens[-n:]))
            if place is not None:
                return place
        return None


def _n_matching(tokens: Sequence[int], place: int) -> int:
    """How many tokens before `place` are also the last ones of all."""
    n_match = min(_N_GRAMS)
    while n_match < min(place, _MAX_MATCH) and tokens[place - n_match - 1] == tokens[-n_match - 1]:
        n_match += 1
    return n_match


def _n_expected(chance: float, n_rows: int) -> float:
    """Tokens that a batch of `n_rows` gives when each guess is right with `chance` after a right one."""
    return n_rows if chance >= 1 else (1 - chance**n_rows) / (1 - chance)
