"""The KV pool: which sequence holds which tokens, how many cells that takes, and how many there are.

Sequences that begin alike share the cells of their beginning, so what is resident is a radix tree (`prefix_tree`). The
pool starts small, grows when prompts and replies need cells, and shrinks when no job runs. Knows token lists, a pool
that can be resized and prompts on the disk; nothing of jobs, batches or llama_cpp.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from shimmy.engine.kv import prefix_tree
from shimmy.engine.kv.prefix_tree import Sequence
from shimmy.wire.worker_options import MOVING_SHARE

if TYPE_CHECKING:
    from shimmy.engine.kv.prompt_store import Ready  # few workers need it

# Each resident cell costs every later row a look at its mask (2,000 of them slow a decode by 7 %, SmolLM2 on 2 cores),
# so idle sequences, beside the one used last, may hold this share of the booked cells,
_IDLE_SHARE = 0.25
# and there may be so many idle sequences before prompts have shown that they come back to more of them.
_MIN_IDLE_SEQUENCES = 3
# A pool that grows becomes at least so many times as large: all resident cells have to move each time.
_GROWTH = 2
# Where there is no memory for that, the pool grows by less, down to this factor.
_LEAST_GROWTH = 1.1
# A pool shrinks only where that leaves this share of its cells, or fewer,
_WORTH_SHRINKING = 0.75
# and it keeps so many free cells for the next turn of the conversations that stay.
_SLACK = 256

Scales = tuple[float, ...]  # of the adapters that cells are computed with


class KvBackend(Protocol):
    """What the pool needs of an engine: `llama.LlamaBackend`."""

    n_ctx: int  # cells that the pool may have at most
    n_booked: int  # cells that memory is set aside for
    n_cells: int  # cells that it has now
    n_sequences: int  # sequences that it may have at most
    n_open: int  # sequences that it has now
    can_rewind: bool

    def resize(self, n_cells: int, n_open: int) -> bool: ...
    def forget(self, sequence: int, start: int) -> bool: ...
    def share(self, source: int, target: int, n_tokens: int) -> bool: ...
    def wipe(self) -> None: ...


class StoredPrompts(Protocol):
    """What the pool needs of the prompts on the disk: `prompt_store.PromptStore`."""

    @property
    def is_writing(self) -> bool: ...
    def is_coming(self, prompt: list[int], scales: Scales, n_resident: int, *, wait: bool) -> bool: ...
    def take(self, prompt: list[int], scales: Scales, n_resident: int) -> "Ready | None": ...
    def put(self, ready: "Ready", sequence: int) -> bool: ...
    def keep(self, tokens: list[int], scales: Scales, sequence: int, *, is_urgent: bool = False) -> bool: ...
    def rest(self) -> None: ...
    def flush(self, timeout_s: float) -> None: ...


class KvPool:
    """Owns the KV pool of an engine: no other object adds tokens to its sequences or removes any."""

    def __init__(self, pool: KvBackend, prompts: StoredPrompts | None = None) -> None:
        self._pool = pool
        self._prompts = prompts
        self.sequences = [Sequence(number) for number in range(pool.n_open)]
        self._retention = prefix_tree.RetentionPolicy(_MIN_IDLE_SEQUENCES, pool.n_sequences)
        self._least = pool.n_cells, pool.n_open
        self.n_most = pool.n_ctx  # cells that it may have; fewer than `n_ctx` where memory ran out
        self._n_used = 0
        self._n_releases = 0

    @property
    def n_used(self) -> int:
        """Cells that hold a token of one sequence or more."""
        return self._n_used

    @property
    def n_free(self) -> int:
        """Cells that the pool has and that hold no token."""
        return self._pool.n_cells - self._n_used

    def n_common(self, tokens: list[int], scales: Scales) -> int:
        """How many of the first `tokens` are resident in one sequence."""
        alike = [sequence for sequence in self.sequences if sequence.scales == scales]
        return max((prefix_tree.n_common(sequence.tokens, tokens) for sequence in alike), default=0)

    def is_coming(self, tokens: list[int], scales: Scales, *, wait: bool) -> bool:
        """Whether more of a prompt is being read from the disk than is resident; `wait` waits for the read."""
        if self._prompts is None:
            return False
        return self._prompts.is_coming(tokens, scales, self.n_common(tokens, scales), wait=wait)

    def choose(self, tokens: list[int], scales: Scales) -> prefix_tree.PrefixMatch | None:
        """Where a prompt should run; None when every sequence is busy."""
        self._open_more()
        return prefix_tree.choose(self.sequences, tokens, scales)

    def n_taken_with(self, match: prefix_tree.PrefixMatch, n_kept: int) -> int:
        """Cells that eviction cannot free if a prompt reuses the first `n_kept` tokens of `match`: those tokens' and
        every busy sequence's."""
        taken = {edge: edge.n_tokens for sequence in self.sequences if sequence.busy for edge in sequence.edges}
        for edge in (match.source or match.sequence).edges:
            taken[edge] = max(taken.get(edge, 0), min(n_kept, edge.n_tokens))
            n_kept = max(0, n_kept - edge.n_tokens)
        return sum(taken.values())

    def take(self, match: prefix_tree.PrefixMatch, tokens: list[int], scales: Scales, *, uses_cache: bool) -> int:
        """Make a sequence busy for the prompt `tokens`; returns how many of them it holds already, from the pool or the
        disk, none without `uses_cache`."""
        sequence = match.sequence
        ready = None
        if uses_cache and self._prompts is not None:
            ready = self._prompts.take(tokens, scales, match.n_kept)
        if not uses_cache:
            n_kept = self.trim(sequence, 0)
        elif ready is not None:
            n_kept = self._put(ready, sequence)
        elif match.source is None:
            n_kept = self.trim(sequence, match.n_kept)
        else:
            self.trim(sequence, 0)
            n_kept = self._share(match)
        sequence.busy = True
        sequence.scales = scales
        return n_kept

    def asked(self, prompt: list[int]) -> None:
        """Note that a prompt arrived: the retention policy learns which idle sequences are worth their cells."""
        self._retention.asked(prompt)

    def extend(self, sequence: Sequence, tokens: list[int]) -> None:
        """Note that a decode has put `tokens` behind those of `sequence`."""
        prefix_tree.extend(sequence, tokens)
        self._n_used += len(tokens)

    def trim(self, sequence: Sequence, n_keep: int) -> int:
        """Drop what follows the first `n_keep` tokens; recurrent models can only drop all. Returns what was kept."""
        n_keep = min(n_keep, len(sequence.tokens))
        if n_keep < len(sequence.tokens) and not self._pool.forget(sequence.id, n_keep):
            n_keep = 0
            self._pool.forget(sequence.id, 0)
        self._n_used -= prefix_tree.cut(sequence, n_keep)
        return n_keep

    def make_room(self, n_cells: int) -> bool:
        """Free `n_cells`: grow the pool, and evict idle sequences where it cannot grow. False where that fails."""
        if self.n_free >= n_cells or self._grow(self._n_used + n_cells):
            return True
        while self.n_free < n_cells:
            if not self.evict():
                return False
        return True

    def expect(self, n_cells: int) -> None:
        """Grow the pool now for `n_cells` that will be needed soon; evicts no sequence for them."""
        n_cells = min(self._n_used + n_cells, self.n_most)
        if n_cells > self._pool.n_cells:
            self._grow(n_cells)

    def evict(self) -> bool:
        """Give up the idle sequence that was used longest ago; False when there is none."""
        victim = prefix_tree.evictable(self.sequences)
        if victim is not None:
            self._give_up(victim)
        return victim is not None

    def free(self, sequence: Sequence) -> None:
        """Empty a busy sequence and make it idle."""
        self.trim(sequence, 0)
        self._pool.forget(sequence.id, 0)  # also what a failed decode has left there
        sequence.busy = False

    def release(self, sequence: Sequence) -> None:
        """Make a busy sequence idle and keep its tokens; idle sequences used longer ago may be emptied for it."""
        self._retention.ended(sequence.tokens)
        self._thin_out()
        self._n_releases += 1
        sequence.busy = False
        sequence.last_used = self._n_releases

    def store_one(self) -> bool:
        """Store one sequence on the disk while none is busy; returns whether to call again soon."""
        if self._prompts is None:
            return False
        self._prompts.rest()
        return self._prompts.is_writing or any(
            self._prompts.keep(each.tokens, each.scales, each.id) for each in self._by_use()
        )

    def store_all(self, left_s: Callable[[], float]) -> None:
        """Store all sequences on the disk, the latest first, while `left_s` returns more than 0 seconds."""
        for sequence in self._by_use():
            if self._prompts is None or left_s() <= 0:
                return
            self._prompts.keep(sequence.tokens, sequence.scales, sequence.id)
            self._prompts.flush(left_s())

    def shrink(self) -> None:
        """Free the memory of unused cells and sequences; call it while no sequence is busy."""
        self.n_most = self._pool.n_ctx
        n_least, n_open = self._least
        if any(sequence.tokens for sequence in self.sequences[n_open:]):
            n_open = self._pool.n_open
        n_wanted = max(n_least, self._n_used + _SLACK)
        if (n_wanted <= _WORTH_SHRINKING * self._pool.n_cells or n_open < self._pool.n_open) and self._pool.resize(
            min(n_wanted, self._pool.n_cells), n_open
        ):
            del self.sequences[n_open:]

    def wipe(self) -> None:
        """Empty the pool and clear its memory."""
        for sequence in self.sequences:
            self.trim(sequence, 0)
        self._pool.wipe()

    def _open_more(self) -> None:
        """Open all sequences where those open are too few for the jobs and the prompts worth keeping."""
        n_open, n_all = len(self.sequences), self._pool.n_sequences
        are_too_few = self._retention.n_sequences >= n_open and all(each.tokens for each in self.sequences)
        is_needed = are_too_few or all(each.busy for each in self.sequences)
        if n_open < n_all and is_needed and self._pool.resize(self._pool.n_cells, n_all):
            self.sequences += [Sequence(number) for number in range(n_open, n_all)]

    def _grow(self, n_cells: int) -> bool:
        """Grow to at least `n_cells`; False where that exceeds `n_most` or the memory."""
        if n_cells > self.n_most:
            return False
        n_before = self._pool.n_cells
        n_wanted = max(n_cells, _GROWTH * n_before)
        if MOVING_SHARE * self._pool.n_booked < n_wanted <= self._pool.n_booked:
            n_wanted = self._pool.n_booked
        n_wanted = min(n_wanted, self.n_most)
        while not self._pool.resize(n_wanted, self._pool.n_open):
            self.n_most = n_wanted - 1
            n_wanted = (n_before + n_wanted) // 2
            if n_wanted < _LEAST_GROWTH * n_before:
                self.n_most = n_before  # a further try costs time; `shrink` allows one after an idle time
                break
        return self._pool.n_cells >= n_cells

    def _share(self, match: prefix_tree.PrefixMatch) -> int:
        """Let an empty sequence use the prefix of another; returns its tokens, 0 where the engine cannot share."""
        assert match.source is not None
        if not self._pool.share(match.source.id, match.sequence.id, match.n_kept):
            return 0
        prefix_tree.share(match.source, match.sequence, match.n_kept)
        return match.n_kept

    def _put(self, ready: "Ready", sequence: Sequence) -> int:
        """Replace the content of `sequence` by cells from the disk; returns how many tokens the prompt can use."""
        assert self._prompts is not None
        self.trim(sequence, 0)
        if not self.make_room(len(ready.tokens)) or not self._prompts.put(ready, sequence.id):
            return 0
        self.extend(sequence, ready.tokens)
        return self.trim(sequence, ready.n_tokens)

    def _give_up(self, sequence: Sequence) -> None:
        """Empty an idle sequence, and store it on the disk where the copy is short."""
        if self._prompts is not None:
            self._prompts.keep(sequence.tokens, sequence.scales, sequence.id, is_urgent=True)
        self.trim(sequence, 0)

    def _by_use(self) -> list[Sequence]:
        return sorted(self.sequences, key=lambda sequence: (sequence.busy, sequence.last_used), reverse=True)

    def _thin_out(self) -> None:
        """Empty idle sequences that are not worth their cells, the one used longest ago first."""
        idle = [sequence for sequence in self.sequences if sequence.tokens and not sequence.busy]
        idle.sort(key=lambda sequence: sequence.last_used)
        while len(idle) >= self._retention.n_sequences or self._n_distinct(idle) > _IDLE_SHARE * self._pool.n_booked:
            self._give_up(idle.pop(0))

    @staticmethod
    def _n_distinct(sequences: list[Sequence]) -> int:
        return sum(edge.n_tokens for edge in {edge for sequence in sequences for edge in sequence.edges})
