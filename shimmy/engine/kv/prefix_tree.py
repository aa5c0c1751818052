"""Which resident sequence a new prompt should continue, which one to give up for room, and which share their cells.

Knows token lists and times of use; nothing of jobs or the engine. One `Sequence` stands for one llama.cpp sequence id,
and its `tokens` are exactly the tokens whose cells lie in the KV pool under that id. Together all sequences are a radix
tree: an `Edge` is some consecutive cells, and a sequence is the path of edges from the root to where its tokens end.
"""

from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

# A resident sequence is continued by another prompt only when the prompt keeps at least this share of it; otherwise
# its conversation is worth more than the tokens they share, and those are shared with an empty sequence instead.
_MIN_KEPT_SHARE = 0.5
# The number of sequences to retain shrinks by one in this many prompts that do not need it.
_PROMPTS_PER_SEQUENCE = 8


@dataclass(eq=False, slots=True)
class Edge:
    """Consecutive cells that belong to the same sequences."""

    n_tokens: int
    holders: "list[Sequence]"


@dataclass(eq=False, slots=True)
class Sequence:
    """One sequence id of the context and what is resident under it."""

    id: int
    tokens: list[int] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)  # whose cells hold them, in their order
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
class PrefixMatch:
    """The sequence for a prompt, and how many of the prompt's first tokens need not be computed.

    These are resident in the sequence itself, or in `source`, which shares them with the sequence.
    """

    sequence: Sequence
    n_kept: int
    source: Sequence | None = None


def choose(sequences: Iterable[Sequence], prompt: list[int], scales: tuple[float, ...] = ()) -> PrefixMatch | None:
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
        return PrefixMatch(best, n_best)
    free = min(idle, key=lambda sequence: (bool(sequence.tokens), sequence.last_used))
    if not n_best:
        return PrefixMatch(free, 0)
    return PrefixMatch(best, n_best) if free is best else PrefixMatch(free, n_best, best)


def evictable(sequences: Iterable[Sequence]) -> Sequence | None:
    """The idle sequence to give up: the one used longest ago, of those that share not all their cells with others.

    A sequence costs the more to compute again the more cells it frees, so only the time of its last use decides.
    """
    idle = [sequence for sequence in sequences if sequence.tokens and not sequence.busy]
    return min(idle, key=lambda sequence: (not _has_own_cells(sequence), sequence.last_used), default=None)


def _has_own_cells(sequence: Sequence) -> bool:
    return any(len(edge.holders) == 1 for edge in sequence.edges)


def extend(sequence: Sequence, tokens: list[int]) -> None:
    """Put `tokens` behind those of `sequence`, in new cells."""
    last = sequence.edges[-1] if sequence.edges else None
    if last is None or len(last.holders) > 1:
        last = Edge(0, [sequence])
        sequence.edges.append(last)
    last.n_tokens += len(tokens)
    sequence.tokens += tokens


def cut(sequence: Sequence, n_keep: int) -> int:
    """Remove all but the first `n_keep` tokens of `sequence`; returns how many cells no sequence holds any more."""
    n_freed = 0
    n_runs = _split(sequence, n_keep)
    for edge in sequence.edges[n_runs:]:
        edge.holders.remove(sequence)
        if not edge.holders:
            n_freed += edge.n_tokens
    del sequence.edges[n_runs:]
    del sequence.tokens[n_keep:]
    return n_freed


def share(source: Sequence, target: Sequence, n_tokens: int) -> None:
    """Let `target`, which is empty, hold the first cells of `source` too."""
    target.tokens += source.tokens[:n_tokens]
    target.edges += source.edges[: _split(source, n_tokens)]
    for edge in target.edges:
        edge.holders.append(target)


def _split(sequence: Sequence, n_tokens: int) -> int:
    """Make an edge of `sequence` end after `n_tokens`; returns how many edges come before that point."""
    for place, edge in enumerate(sequence.edges):
        if n_tokens <= 0:
            return place
        if n_tokens < edge.n_tokens:
            rest = Edge(edge.n_tokens - n_tokens, edge.holders.copy())
            edge.n_tokens = n_tokens
            for holder in edge.holders:
                holder.edges.insert(holder.edges.index(edge) + 1, rest)
        n_tokens -= edge.n_tokens
    return len(sequence.edges)


class RetentionPolicy:
    """How many idle sequences are worth their cells: as many as prompts have lately come back to.

    The policy remembers the tokens of the last `n_most` jobs that ended, whether their cells are still resident or not.
    A prompt that continues the third latest of these jobs shows that three sequences are worth keeping.
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
                # And one share for each of the prompts that may come before it comes back again.
                self._n_shares = max(self._n_shares, (place + 1) * (_PROMPTS_PER_SEQUENCE + 1))
                return
        self._n_shares = max(self._n_shares - 1, self._n_least * _PROMPTS_PER_SEQUENCE)

    def ended(self, tokens: list[int]) -> None:
        """Remember a job's prompt and reply."""
        self._ended.appendleft(array("i", tokens))
