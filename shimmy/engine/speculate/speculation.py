"""Drafts of a job's next tokens, and whether they pay: what a draft promises, and when to ask a draft model.

Knows tokens and measured times; nothing of the engine or of jobs. A draft is decoded in one batch with the token before
it, every row is sampled with the job's own chain, and the rows behind the first mismatch are dropped: the result is
what one row at a time would give.
"""

from dataclasses import dataclass
from typing import Protocol

from shimmy.engine.speculate.decode_costs import BATCH_SIZES, DecodeCosts

# A draft model's tokens each cost time, and long drafts are seldom right.
_MAX_DRAFT_ROWS = 16
# A draft must promise this many times the tokens per second of single rows: the promise is only an estimate.
MIN_GAIN = 1.1
# The same for a job whose guide forces tokens: these come many at a time without a draft.
MIN_GUIDED_GAIN = 1.5
_OUTCOME_DECAY = 0.9  # of the weight of earlier drafts of the job, for each draft
# The same for each token without a draft: the text may become easier to draft, and the draft model is tried again.
_FADING = 0.995
# The share of right tokens that a draft model is credited with at first: so many of so many.
_PRIOR = (3, 4)


class _Ratio:
    """A ratio of successes to trials in which the latest count most."""

    def __init__(self) -> None:
        self._n_successes = 0.0
        self._n_trials = 0.0

    def learn(self, n_successes: int, n_trials: int) -> None:
        self.fade(_OUTCOME_DECAY)
        self._n_successes += n_successes
        self._n_trials += n_trials

    def fade(self, factor: float) -> None:
        self._n_successes *= factor
        self._n_trials *= factor

    def with_prior(self, n_successes: int, n_trials: int) -> float:
        """The ratio, with a prior of `n_successes` in `n_trials`."""
        return (self._n_successes + n_successes) / (self._n_trials + n_trials)


class AcceptanceStats:
    """How many drafted tokens of one kind were accepted in one job."""

    def __init__(self) -> None:
        self.n_drafted = 0
        self.n_accepted = 0
        self.right = _Ratio()

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """Note a verified draft: its accepted tokens and the first rejected one were tried, the others were not."""
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
        """Call this when the draft has been decoded, before `meet`."""
        self.outcomes.n_drafted += len(self.tokens)

    def meet(self, token: int) -> None:
        """Compare with the next token of the job, also with one that ends the reply; a mismatch ends the draft."""
        self._is_right = self._is_right and self.tokens[self.n_accepted : self.n_accepted + 1] == [token]
        self.n_accepted += self._is_right
        self.outcomes.n_accepted += self._is_right

    def end(self) -> None:
        self.outcomes.learn(len(self.tokens), self.n_accepted)


class Drafter(Protocol):
    """What computes drafts: `draft_model.DraftModel`."""

    def draft(
        self, tokens: list[int], n_max: int, costs: DecodeCosts, planner: "DraftPlanner", rival: Draft | None
    ) -> Draft | None:
        """A draft of at most `n_max` tokens to follow `tokens`; None where none promises more than `rival`."""


class DraftPlanner:
    """Whether the drafts of a draft model pay for one job, and how long they should be."""

    def __init__(self) -> None:
        self.outcomes = AcceptanceStats()
        self._sure = _Ratio()  # of the tokens it has computed, those with enough probability to go on
        self._n_steps = 0

    def learn(self, n_sure: int, n_computed: int) -> None:
        """Note a draft: the model computed `n_computed` tokens and was sure of `n_sure`."""
        self._sure.learn(n_sure, n_computed)

    def plan(self, n_max: int, costs: DecodeCosts, token_cost: float, rival: Draft | None = None) -> tuple[int, float]:
        """How many tokens to draft for the most tokens per second, and the gain: how many times those of single rows.

        A token of the draft model costs `token_cost` single rows. Returns 0 tokens where that promises no gain, or less
        than `rival`, which has cost nothing.
        """
        self._n_steps += 1
        sure = self._sure.with_prior(*_PRIOR)
        # Expected tokens and costs of drafts that end earlier, because the model is not sure, each by its probability.
        n_tokens = cost = drafting = 0.0
        reach, best = 1.0, (0, MIN_GAIN if rival is None else rival.gain)
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
        """Whether drafts with `gain` save more than `cost`, in single rows, before the job ends.

        The length of a reply is unknown: it is expected to go on for as long as it has gone.
        """
        return cost <= self._n_steps * (1 - 1 / gain)

    def worth(self, n_drafted: int, costs: DecodeCosts) -> tuple[int, float]:
        """How many of the first tokens of a draft to decode, now that they are computed, and the gain of that."""
        n_worth, n_given, cost = self._values(n_drafted, costs)[-1]
        return n_worth, n_given / cost

    def _values(self, n_max: int, costs: DecodeCosts) -> list[tuple[int, float, float]]:
        """Of drafts of 0 to `n_max` tokens: how many of these are worth their rows, what they give, what they cost."""
        right = self.outcomes.right.with_prior(*_PRIOR)
        values = [(0, 1.0, 1.0)]
        for n in range(1, n_max + 1):
            best = values[-1]
            if n + 1 in BATCH_SIZES:
                value = n, n_expected(right, n + 1), costs.optimistic(n + 1)
                best = max(best, value, key=lambda each: each[1] / each[2])
            values.append(best)
        return values


def n_expected(chance: float, n_rows: int) -> float:
    """Tokens that a batch of `n_rows` gives when each drafted token is right with `chance` after a right one."""
    return n_rows if chance >= 1 else (1 - chance**n_rows) / (1 - chance)
