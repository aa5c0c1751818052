"""Guesses at what a job will say next, and whether they pay: prompt lookup, and when to ask a draft model.

Knows tokens and measured times; nothing of the engine or of jobs. A guess is decoded in one batch with the token before
it, every row is sampled with the job's own chain, and what follows the first mismatch is dropped: the result is what
one row at a time would give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# A lookup copies what followed the last place where so many tokens stood in the same order; the longest is tried first.
_N_GRAMS = (12, 6, 3, 2)
_MAX_MATCH = 32
# Rows of a batch that may be tried: more sizes would each be measured less often.
_SIZES = (2, 3, 4, 6, 8, 12, 16, 32)
# What a draft model says costs something for each token, and is seldom right for long.
_MAX_DRAFT_ROWS = 16
# A batch must promise this many times the tokens per second of single rows: what is promised is only an estimate.
_MIN_GAIN = 1.1
# The same for a job whose guide forces tokens: those come many at a time without a guess.
_MIN_GUIDED_GAIN = 1.5
# What so few rows cost does not rule more of them out: the second row may cost more than the eighth (gemma-3-270m on 2
# cores, in one measurement: 2 rows cost 2.2, 8 rows 4.1).
_FEW = 3
# What a further row costs, in single rows, where nothing was measured yet (2 cores; more cores make it less).
_ROW_COST = 0.5
# The same with a draft model, which pays where rows are cheap: a size that nobody tries is never measured.
_HOPED_ROW_COST = 0.15
_COST_WEIGHT = 0.2  # of the latest measurement
_OUTCOME_DECAY = 0.9  # of what earlier guesses of the job say, for each guess
# The same for each token for which a draft model is not asked: a text may become easier, and it is tried again.
_FADING = 0.995
# What a draft model is good for, until a job has shown it: so many of so many tokens.
_PRIOR = (3, 4)


class DecodeCosts:
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
        """The cost of `n_rows`; where they were never measured, each row costs as much as one of the next fewer that
        were, and all of them no more than more rows."""
        if n_rows in self._ratios:
            return self._ratios[n_rows]
        measured = max(size for size in self._ratios if size < n_rows)
        each = (self._ratios[measured] - 1) / (measured - 1) if measured > 1 else _ROW_COST
        if measured <= _FEW < n_rows:
            each = min(each, _ROW_COST)
        more = [ratio for size, ratio in self._ratios.items() if size > n_rows]
        return min([1 + each * (n_rows - 1), *more])

    def hoped(self, n_rows: int) -> float:
        """The same, but where `n_rows` were never measured what they would have to cost to be worth a try."""
        return self._ratios[n_rows] if n_rows in self._ratios else 1 + _HOPED_ROW_COST * (n_rows - 1)

    def in_rows(self, seconds: float) -> float | None:
        """How many decodes of one row take so long; None while none was measured."""
        return seconds / self._single_s if self._single_s else None


class _Share:
    """How often something was so, the latest counting most."""

    def __init__(self) -> None:
        self._n_so = 0.0
        self._n_in_all = 0.0

    def learn(self, n_so: int, n_in_all: int) -> None:
        self.fade(_OUTCOME_DECAY)
        self._n_so += n_so
        self._n_in_all += n_in_all

    def fade(self, factor: float) -> None:
        self._n_so *= factor
        self._n_in_all *= factor

    def after(self, n_so: int, n_in_all: int) -> float:
        """It, where it was so many times so before anything was learnt."""
        return (self._n_so + n_so) / (self._n_in_all + n_in_all)


class AcceptanceStats:
    """What became of the guesses of one kind for one job."""

    def __init__(self) -> None:
        self.n_drafted = 0
        self.n_accepted = 0
        self.right = _Share()

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """Of a guess, the accepted tokens and the first one that was not have been tried."""
        self.right.learn(n_accepted, min(n_accepted + 1, n_drafted))


@dataclass(slots=True)
class Draft:
    """Tokens that may come next; `gain` is how many times the tokens per second of single rows they promise."""

    tokens: list[int]
    gain: float
    outcomes: AcceptanceStats
    n_accepted: int = 0
    _is_right: bool = True

    def begin(self) -> None:
        """It has been decoded; the tokens that come are going to be told."""
        self.outcomes.n_drafted += len(self.tokens)

    def meet(self, token: int) -> None:
        """The next token that has come, be it the one that ends the reply: as guessed, or the guess is over."""
        self._is_right = self._is_right and self.tokens[self.n_accepted : self.n_accepted + 1] == [token]
        self.n_accepted += self._is_right
        self.outcomes.n_accepted += self._is_right

    def end(self) -> None:
        self.outcomes.learn(len(self.tokens), self.n_accepted)


class Drafter(Protocol):
    """What computes guesses: `draft.DraftModel`."""

    def draft(
        self, tokens: list[int], n_max: int, costs: DecodeCosts, outlook: "DraftPlanner", rival: Draft | None
    ) -> Draft | None:
        """What may follow `tokens`, at most `n_max` of it; None where that does not promise more than `rival`."""


class PromptLookup:
    """The guesses of one job that are looked up in what it has read and said."""

    def __init__(self) -> None:
        self.outcomes = AcceptanceStats()
        self._places: dict[tuple[int, ...], int] = {}  # of an n-gram: where the token after its last occurrence stands
        self._n_indexed = 0

    def draft(self, tokens: Sequence[int], n_max: int, costs: DecodeCosts, *, is_guided: bool = False) -> Draft | None:
        """What may follow `tokens`, at most `n_max` of it; None when no guess promises to pay."""
        place = self._place(tokens)
        if place is None:
            return None
        n_match = _n_matching(tokens, place)
        chance = self.outcomes.right.after(n_match, n_match + 1)
        gains = {size: _n_expected(chance, size) / costs.of(size) for size in _SIZES if size <= n_max + 1}
        best = max(gains, key=gains.__getitem__, default=0)
        if not best or gains[best] < (_MIN_GUIDED_GAIN if is_guided else _MIN_GAIN):
            return None
        period = len(tokens) - place  # past the end of what is known, a copy goes on as a loop would
        copy = [tokens[place + offset % period] for offset in range(best - 1)]
        return Draft(copy, gains[best], self.outcomes)

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


class DraftPlanner:
    """Whether the guesses of a draft model pay for one job, and how many at a time."""

    def __init__(self) -> None:
        self.outcomes = AcceptanceStats()
        self._sure = _Share()  # of the tokens it has computed, those it was sure enough of to go on
        self._n_steps = 0

    def learn(self, n_sure: int, n_computed: int) -> None:
        """It was asked, computed so many tokens and was sure of so many."""
        self._sure.learn(n_sure, n_computed)

    def plan(self, n_max: int, costs: DecodeCosts, token_cost: float, rival: Draft | None = None) -> tuple[int, float]:
        """How many tokens to draft for the most tokens per second, and how many times those of single rows that is.

        A token of the draft model costs `token_cost` single rows. 0 tokens where that promises no gain, or less than
        `rival`, which costs nothing to ask.
        """
        self._n_steps += 1
        sure = self._sure.after(*_PRIOR)
        # Of drafts that ended where the draft model was not sure: what they give and cost, each as often as it comes.
        n_tokens = cost = drafting = 0.0
        reach, best = 1.0, (0, _MIN_GAIN if rival is None else rival.gain)
        for n, (_, n_given, n_paid) in enumerate(self._values(min(n_max, _MAX_DRAFT_ROWS - 1), costs)):
            gain = (n_tokens + reach * n_given) / (cost + reach * n_paid + drafting)
            if n and gain > best[1]:
                best = n, gain
            n_tokens += reach * (1 - sure) * n_given
            cost += reach * (1 - sure) * n_paid
            drafting += reach * token_cost
            reach *= sure
        if not best[0]:
            self._sure.fade(_FADING)
            self.outcomes.right.fade(_FADING)
        return best

    def pays_back(self, cost: float, gain: float) -> bool:
        """Whether `cost`, in single rows, is saved again by guessing with `gain` before the job ends.

        Nobody knows when that is: a reply is expected to go on for as long as it has gone.
        """
        return cost <= self._n_steps * (1 - 1 / gain)

    def worth(self, n_drafted: int, costs: DecodeCosts) -> tuple[int, float]:
        """How many of the first tokens of a draft to decode, now that they are computed, and the gain of that."""
        n_worth, n_given, cost = self._values(n_drafted, costs)[-1]
        return n_worth, n_given / cost

    def _values(self, n_max: int, costs: DecodeCosts) -> list[tuple[int, float, float]]:
        """Of drafts of 0 to `n_max` tokens: how many of these are worth their rows, what they give, what they cost."""
        right = self.outcomes.right.after(*_PRIOR)
        values = [(0, 1.0, 1.0)]
        for n in range(1, n_max + 1):
            best = values[-1]
            if n + 1 in _SIZES:
                value = n, _n_expected(right, n + 1), costs.hoped(n + 1)
                best = max(best, value, key=lambda each: each[1] / each[2])
            values.append(best)
        return values


def _n_matching(tokens: Sequence[int], place: int) -> int:
    """How many tokens before `place` are also the last ones of all."""
    n_match = min(_N_GRAMS)
    while n_match < min(place, _MAX_MATCH) and tokens[place - n_match - 1] == tokens[-n_match - 1]:
        n_match += 1
    return n_match


def _n_expected(chance: float, n_rows: int) -> float:
    """Tokens that a batch of `n_rows` gives when each guess is right with `chance` after a right one."""
    return n_rows if chance >= 1 else (1 - chance**n_rows) / (1 - chance)
