"""Prompt lookup: drafts a job's next tokens from what followed its last tokens before. Knows tokens alone."""

from collections.abc import Sequence

from shimmy.engine.speculate.decode_costs import BATCH_SIZES, DecodeCosts
from shimmy.engine.speculate.speculation import MIN_GAIN, MIN_GUIDED_GAIN, AcceptanceStats, Draft, n_expected

# A lookup searches the last n tokens in the job's own context and copies what followed them; the longest n comes first.
_N_GRAMS = (12, 6, 3, 2)
_MAX_MATCH = 32


class PromptLookup:
    """Prompt lookup for one job: drafts are copied from the job's own prompt and reply."""

    def __init__(self) -> None:
        self.outcomes = AcceptanceStats()
        self._places: dict[tuple[int, ...], int] = {}  # of an n-gram: where the token after its last occurrence stands
        self._n_indexed = 0

    def draft(self, tokens: Sequence[int], n_max: int, costs: DecodeCosts, *, is_guided: bool = False) -> Draft | None:
        """A draft of at most `n_max` tokens to follow `tokens`; None where none promises to pay."""
        place = self._place(tokens)
        if place is None:
            return None
        n_match = _n_matching(tokens, place)
        chance = self.outcomes.right.with_prior(n_match, n_match + 1)
        gains = {size: n_expected(chance, size) / costs.of(size) for size in BATCH_SIZES if size <= n_max + 1}
        best = max(gains, key=gains.__getitem__, default=0)
        if not best or gains[best] < (MIN_GUIDED_GAIN if is_guided else MIN_GAIN):
            return None
        period = len(tokens) - place  # past the last token, the copy goes on as a loop would
        copy = [tokens[place + offset % period] for offset in range(best - 1)]
        return Draft(copy, gains[best], self.outcomes)

    def _place(self, tokens: Sequence[int]) -> int | None:
        """The place behind the last earlier occurrence of the longest n-gram that `tokens` end with."""
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
