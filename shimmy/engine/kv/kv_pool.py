"""The KV pool: which sequence holds which tokens, how many cells that takes, and how many there are.

Sequences that begin alike share the cells of their beginning, so what is resident is a radix tree whose edges are
`prefix.Run`s. The pool starts small, grows when prompts and replies need it, and shrinks when nobody does. Knows token
lists, a pool that can be resized and prompts on the disk; nothing of jobs, batches or llama_cpp.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from shimmy.engine.kv import prefix_tree
from shimmy.engine.kv.prefix_tree import Sequence
from shimmy.wire.worker_options import MOVING_SHARE

if TYPE_CHECKING:
    from shimmy.engine.kv.prompt_store import Ready  # few workers need it

# Each resident cell costs every later row a look at its mask (2,000 of them slow a decode by 7 %, SmolLM2 on 2 cores),
# so idle sequences, beside the one used last, may hold this share of what is booked,
_IDLE_SHARE = 0.25
# and there may be this many of them before prompts have shown that they come back to more.
_MIN_IDLE_SEQUENCES = 3
# A pool that grows becomes so many times as large, at least: what is resident has to move each time.
_GROWTH = 2
# Where there is no memory for that, less will do, down to this.
_LEAST_GROWTH = 1.1
# One shrinks to this share of it, or less,
_WORTH_SHRINKING = 0.75
# and keeps room for the next turn of the conversations that stay.
_SLACK = 256

Scales = tuple[float, ...]  # of the adapters that cells are computed with


class KvBackend(Protocol):
    """What is needed of an engine: `llama.LlamaModel`."""

    n_ctx: int  # cells that the pool may have at most
    n_booked: int  # those that there is memory for in any case
    n_cells: int  # cells that it has
    n_sequences: int  # and sequences
    n_open: int
    can_rewind: bool

    def resize(self, n_cells: int, n_open: int) -> bool: ...
    def forget(self, sequence: int, start: int) -> bool: ...
    def share(self, source: int, target: int, n_tokens: int) -> bool: ...
    def wipe(self) -> None: ...


class StoredPrompts(Protocol):
    """What is needed of the prompts on the disk: `prompts.Prompts`."""

    @property
    def is_writing(self) -> bool: ...
    def is_coming(self, prompt: list[int], scales: Scales, n_resident: int, *, wait: bool) -> bool: ...
    def take(self, prompt: list[int], scales: Scales, n_resident: int) -> "Ready | None": ...
    def put(self, ready: "Ready", sequence: int) -> bool: ...
    def keep(self, tokens: list[int], scales: Scales, sequence: int, *, is_urgent: bool = False) -> bool: ...
    def rest(self) -> None: ...
    def flush(self, timeout_s: float) -> None: ...


class KvPool:
    """Owns the KV pool of an engine: nobody else adds to its sequences or takes from them."""

    def __init__(self, pool: KvBackend, prompts: StoredPrompts | None = None) -> None:
        self._pool = pool
        self._prompts = prompts
        self.sequences = [Sequence(number) for number in range(pool.n_open)]
        self._allowance = prefix_tree.RetentionPolicy(_MIN_IDLE_SEQUENCES, pool.n_sequences)
        self._least = pool.n_cells, pool.n_open
        self.n_most = pool.n_ctx  # cells that it may have; fewer than that where there was no memory for more
        self._n_used = 0  # cells that hold a token of one sequence or more
        self._n_releases = 0

    @property
    def n_free(self) -> int:
        """KvPool that are there and hold nothing."""
        return self._pool.n_cells - self._n_used

    def n_common(self, tokens: list[int], scales: Scales) -> int:
        """The longest beginning of `tokens` that is resident."""
        alike = [sequence for sequence in self.sequences if sequence.scales == scales]
        return max((prefix_tree.n_common(sequence.tokens, tokens) for sequence in alike), default=0)

    def is_coming(self, tokens: list[int], scales: Scales, *, wait: bool) -> bool:
        """Whether more of a prompt is being read from the disk than is resident; with `wait`, that is awaited."""
        if self._prompts is None:
            return False
        return self._prompts.is_coming(tokens, scales, self.n_common(tokens, scales), wait=wait)

    def choose(self, tokens: list[int], scales: Scales) -> prefix_tree.PrefixMatch | None:
        """Where a prompt should run; None when every sequence is busy."""
        self._open_more()
        return prefix_tree.choose(self.sequences, tokens, scales)

    def n_taken_with(self, choice: prefix_tree.PrefixMatch, n_kept: int) -> int:
        """Cells that can be taken from nobody when a prompt runs where `choice` says and keeps `n_kept` of its tokens:
        these, and those of busy sequences."""
        taken = {run: run.n_tokens for sequence in self.sequences if sequence.busy for run in sequence.runs}
        for run in (choice.source or choice.sequence).runs:
            taken[run] = max(taken.get(run, 0), min(n_kept, run.n_tokens))
            n_kept = max(0, n_kept - run.n_tokens)
        return sum(taken.values())

    def take(self, choice: prefix_tree.PrefixMatch, tokens: list[int], scales: Scales, *, uses_cache: bool) -> int:
        """Make a sequence busy for the prompt `tokens`; returns how many of them it holds already, from the pool or the
        disk, none without `uses_cache`."""
        sequence = choice.sequence
        ready = None
        if uses_cache and self._prompts is not None:
            ready = self._prompts.take(tokens, scales, choice.n_kept)
        if not uses_cache:
            n_kept = self.trim(sequence, 0)
        elif ready is not None:
            n_kept = self._put(ready, sequence)
        elif choice.source is None:
            n_kept = self.trim(sequence, choice.n_kept)
        else:
            self.trim(sequence, 0)
            n_kept = self._share(choice)
        sequence.busy = True
        sequence.scales = scales
        return n_kept

    def asked(self, prompt: list[int]) -> None:
        """Learn from a prompt which idle sequences are worth their cells."""
        self._allowance.asked(prompt)

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
        """See that `n_cells` are free: let the pool grow, and evict idle sequences where it cannot; False when neither
        helps."""
        if self.n_free >= n_cells or self._grow(self._n_used + n_cells):
            return True
        while self.n_free < n_cells:
            if not self.evict():
                return False
        return True

    def expect(self, n_cells: int) -> None:
        """Let the pool grow now rather than later when so many cells more are going to be wanted, evicting nobody."""
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
        """Empty a busy sequence and let others have it."""
        self.trim(sequence, 0)
        self._pool.forget(sequence.id, 0)  # also what a failed decode has left there
        sequence.busy = False

    def release(self, sequence: Sequence) -> None:
        """Keep what a sequence holds for the next prompt like it, at the expense of those that were used longer ago."""
        self._allowance.ended(sequence.tokens)
        self._thin_out()
        self._n_releases += 1
        sequence.busy = False
        sequence.last_used = self._n_releases

    def store_one(self) -> bool:
        """Let the disk have one of the sequences while none is busy; whether to ask again soon."""
        if self._prompts is None:
            return False
        self._prompts.rest()
        return self._prompts.is_writing or any(
            self._prompts.keep(each.tokens, each.scales, each.id) for each in self._by_use()
        )

    def store_all(self, left_s: Callable[[], float]) -> None:
        """Let the disk have all sequences, the latest first, as long as `left_s` gives more than 0 seconds."""
        for sequence in self._by_use():
            if self._prompts is None or left_s() <= 0:
                return
            self._prompts.keep(sequence.tokens, sequence.scales, sequence.id)
            self._prompts.flush(left_s())

    def shrink(self) -> None:
        """Give memory back that nobody uses, as long as no sequence is busy."""
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
        """Have all sequences that there may be when fewer are not enough for jobs and what is worth keeping."""
        n_open, n_all = len(self.sequences), self._pool.n_sequences
        are_too_few = self._allowance.n_sequences >= n_open and all(each.tokens for each in self.sequences)
        is_needed = are_too_few or all(each.busy for each in self.sequences)
        if n_open < n_all and is_needed and self._pool.resize(self._pool.n_cells, n_all):
            self.sequences += [Sequence(number) for number in range(n_open, n_all)]

    def _grow(self, n_cells: int) -> bool:
        """Have at least `n_cells`; False when that is more than was asked for, or than the memory has."""
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
                self.n_most = n_before  # to try again costs time, and who rests may find more memory
                break
        return self._pool.n_cells >= n_cells

    def _share(self, choice: prefix_tree.PrefixMatch) -> int:
        """Give an empty sequence a prefix that another one has computed; 0 where the engine cannot."""
        assert choice.source is not None
        if not self._pool.share(choice.source.id, choice.sequence.id, choice.n_kept):
            return 0
        prefix_tree.share(choice.source, choice.sequence, choice.n_kept)
        return choice.n_kept

    def _put(self, ready: "Ready", sequence: Sequence) -> int:
        """Give `sequence`, instead of what it holds, what has come from the disk; returns how much of it is of use."""
        assert self._prompts is not None
        self.trim(sequence, 0)
        if not self.make_room(len(ready.tokens)) or not self._prompts.put(ready, sequence.id):
            return 0
        self.extend(sequence, ready.tokens)
        return self.trim(sequence, ready.n_tokens)

    def _give_up(self, sequence: Sequence) -> None:
        """Empty an idle sequence, and let the disk have it where that takes no time."""
        if self._prompts is not None:
            self._prompts.keep(sequence.tokens, sequence.scales, sequence.id, is_urgent=True)
        self.trim(sequence, 0)

    def _by_use(self) -> list[Sequence]:
        return sorted(self.sequences, key=lambda sequence: (sequence.busy, sequence.last_used), reverse=True)

    def _thin_out(self) -> None:
        """Let the idle sequences go that are not worth their cells; the one that comes to them now is."""
        idle = [sequence for sequence in self.sequences if sequence.tokens and not sequence.busy]
        idle.sort(key=lambda sequence: sequence.last_used)
        while len(idle) >= self._allowance.n_sequences or self._n_distinct(idle) > _IDLE_SHARE * self._pool.n_booked:
            self._give_up(idle.pop(0))

    @staticmethod
    def _n_distinct(sequences: list[Sequence]) -> int:
        return sum(run.n_tokens for run in {run for sequence in sequences for run in sequence.runs})
