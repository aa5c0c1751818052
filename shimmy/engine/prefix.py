"""Which resident sequence a new prompt should continue, and which one to give up for room.

Knows token lists and times of use; nothing of jobs or the engine. One `Sequence` stands for one llama.cpp sequence id,
and its `tokens` are exactly the tokens whose cells lie in the KV pool under that id.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

# A resident sequence is continued by another prompt only when the prompt keeps at least this share of it; otherwise
# its conversation is worth more than the few tokens they share (a common system line, the template's first tokens).
_MIN_KEPT_SHARE = 0.5


@dataclass(slots=True)
class Sequence:
    """One sequence id of the context and what is resident under it."""

    id: int
    tokens: list[int] = field(default_factory=list)
    last_used: int = 0  # the scheduler's step count
    busy: bool = False


def n_common(left: list[int], right: list[int]) -> int:
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


def choose(sequences: Iterable[Sequence], prompt: list[int]) -> tuple[Sequence, int] | None:
    """The idle sequence for `prompt` and how many of its tokens to keep; None when every sequence is busy.

    The longest shared prefix wins where the prompt keeps most of that sequence; else an empty sequence; else the least
    recently used one. The last token of the prompt is never reused: its logits are needed.
    """
    idle = [sequence for sequence in sequences if not sequence.busy]
    if not idle:
        return None
    best, n_best = None, 0
    for sequence in idle:
        n_shared = min(n_common(sequence.tokens, prompt), len(prompt) - 1)
        if n_shared > n_best and n_shared >= _MIN_KEPT_SHARE * len(sequence.tokens):
            best, n_best = sequence, n_shared
    if best is not None:
        return best, n_best
    oldest = min(idle, key=lambda sequence: (bool(sequence.tokens), sequence.last_used))
    return oldest, min(n_common(oldest.tokens, prompt), len(prompt) - 1)


def evictable(sequences: Iterable[Sequence]) -> Sequence | None:
    """The least recently used idle sequence that holds cells."""
    idle = [sequence for sequence in sequences if sequence.tokens and not sequence.busy]
    return min(idle, key=lambda sequence: sequence.last_used, default=None)
