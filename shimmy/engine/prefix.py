"""Which resident sequence a new prompt should continue, and which one to give up for room.

Knows token lists and times of use; nothing of jobs or the engine. One `Sequence` stands for one llama.cpp sequence id,
and its `tokens` are exactly the tokens whose cells lie in the KV pool under that id.
"""

from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

# A resident sequence is continued by another prompt only when the prompt keeps at least this share of it; otherwise
# its conversation is worth more than the tokens they share, and those are shared with an empty sequence instead.
_MIN_KEPT_SHARE = 0.5
# An allowance that no prompt makes use of shrinks by one sequence in this many prompts.
_PROMPTS_PER_SEQUENCE = 8


@dataclass(slots=True)
class Sequence:
    """One sequence id of the context and what is resident under it."""

    id: int
    tokens: list[int] = field(default_factory=list)
    scales: tuple[float, ...] = ()  # of the adapters its cells were computed with
    last_used: int = 0  # the scheduler's step count
    busy: bool = False


def n_common(left: "list[int] | array[int]", right: "list[int] | array[int]") -> int:
    """How many leading tokens two lists share."""
    n_max = min(len(left), len(right))
    if left[:n_max] == right[:n_max]:
        return n_max
    low, high = 0, n_max  # left[:low] always matches and left[:high] never does: slices compare at C speed
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class Choice:
    """The sequence for a prompt and how many of its first tokens it need not compute.

    They are resident in the sequence itself, or in `source`, from which they are to be shared.
    """

    sequence: Sequence
    n_kept: int
    source: Sequence | None = None


def choose(sequences: Iterable[Sequence], prompt: list[int], scales: tuple[float, ...] = ()) -> Choice | None:
    """Where `prompt` should run; None when every sequence is busy. Adapters of other scales make other cells.

    The sequence with the longest shared prefix is continued where it is idle and the prompt keeps most of it; where
    not, its prefix is shared with an empty sequence, or with the least recently used one. The last token of the prompt
    is never reused: its logits are needed.
    """
    shared = [
        (min(n_common(sequence.tokens, prompt), len(prompt) - 1) if sequence.scales == scales else 0, sequence)
        for sequence in sequences
    ]
    idle = [sequence for _, sequence in shared if not sequence.busy]
    if not idle:
        return None
    n_best, best = max(shared, key=lambda pair: (pair[0], not pair[1].busy))
    if n_best and not best.busy and n_best >= _MIN_KEPT_SHARE * len(best.tokens):
        return Choice(best, n_best)
    free = min(idle, key=lambda sequence: (bool(sequence.tokens), sequence.last_used))
    if not n_best:
        return Choice(free, 0)
    return Choice(best, n_best) if free is best else Choice(free, n_best, best)


def evictable(sequences: Iterable[Sequence]) -> Sequence | None:
    """The least recently used idle sequence that holds cells."""
    idle = [sequence for sequence in sequences if sequence.tokens and not sequence.busy]
    return min(idle, key=lambda sequence: sequence.last_used, default=None)


class Allowance:
    """How many idle sequences are worth their cells: as many as prompts have lately come back to.

    It remembers the tokens of the last `n_most` jobs that ended, whether their cells are still resident or not. A
    prompt that continues the third latest of them says that three are worth keeping.
    """

    def __init__(self, n_least: int, n_most: int) -> None:
        self._n_least = n_least
        self._n_shares = n_least * _PROMPTS_PER_SEQUENCE
        self._ended: deque[array[int]] = deque(maxlen=max(n_least, n_most))  # the latest first

    @property
    def n_sequences(self) -> int:
        return self._n_shares // _PROMPTS_PER_SEQUENCE

    def asked(self, prompt: list[int]) -> None:
        """Learn from a prompt that is about to run."""
        sought = array("i", prompt)
        for place, tokens in enumerate(self._ended):
            if n_common(tokens, sought) >= _MIN_KEPT_SHARE * len(tokens):
                del self._ended[place]
                self._n_shares = max(self._n_shares, (place + 1) * _PROMPTS_PER_SEQUENCE)
                return
        self._n_shares = max(self._n_shares - 1, self._n_least * _PROMPTS_PER_SEQUENCE)

    def ended(self, tokens: list[int]) -> None:
        """Remember a job's prompt and reply."""
        self._ended.appendleft(array("i", tokens))
