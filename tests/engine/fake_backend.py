"""A backend of a few lines for the scheduler's tests: it keeps the cells llama.cpp would keep, refuses what it would.

Its "model" is arithmetic: the token after a sequence is a function of the whole sequence and of the adapters' scales,
so a row decoded with wrong or missing history gives a wrong text. Tokens are bytes; token 0 ends a generation.
"""

from collections.abc import Sequence
from itertools import count

from shimmy.engine.schedule.task import Guide
from shimmy.messages.event import Candidate, TokenLogprob

END = 0


Scales = tuple[float, ...]


def next_token(history: Sequence[int], scales: Scales = ()) -> int:
    """The one continuation of `history`: a letter that depends on every token before it."""
    checksum = 7 + sum(round(1000 * scale) * (place + 1) for place, scale in enumerate(scales))
    for token in history:
        checksum = (checksum * 31 + token) % 100_003
    return ord("a") + checksum % 26


def continuation(prompt: Sequence[int], n_tokens: int, scales: Scales = ()) -> str:
    tokens = list(prompt)
    for _ in range(n_tokens):
        tokens.append(next_token(tokens, scales))
    return bytes(tokens[len(prompt) :]).decode()


class FakeBatch:
    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, bool]] = []  # token, position, sequence, output

    def clear(self) -> None:
        self.rows = []

    def add(self, tokens: Sequence[int], position: int, sequence: int, *, n_outputs: int) -> int:
        first_output = len(tokens) - n_outputs
        self.rows += [(token, position + index, sequence, index >= first_output) for index, token in enumerate(tokens)]
        return len(self.rows) - 1


class FakeSampler:
    """Picks the arithmetic's token, or the next of `script` where a test wants a certain text."""

    def __init__(self, backend: "FakeBackend", script: bytes | None = None) -> None:
        self._backend = backend
        self._script = list(script) if script is not None else None
        self.is_closed = False
        self.shown: list[int] = []

    def sample(self, row: int) -> int:
        assert not self.is_closed
        if self._script is not None:
            return self._script.pop(0) if self._script else END
        return next_token(self._backend.logits[row], self._backend.scales)

    def sample_within(self, row: int, guide: Guide) -> int:
        token = self.sample(row)
        if guide.allows(token):
            return token
        mask = guide.allowed()
        return next(token for token in range(8 * len(mask)) if mask[token // 8] >> token % 8 & 1)

    def accept(self, tokens: Sequence[int]) -> None:
        self.shown += tokens

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


class FakeGuide:
    """Allows a text that matches `pattern`, in which `.` is any letter. All before the next `.` is forced."""

    def __init__(self, pattern: str) -> None:
        self._rest = pattern.encode()

    @property
    def is_over(self) -> bool:
        return not self._rest

    def allows(self, token: int) -> bool:
        return token in self._next()

    def allowed(self) -> bytes:
        return sum(1 << token for token in self._next()).to_bytes(32, "little")

    def _next(self) -> bytes:
        return bytes(range(ord("a"), ord("z") + 1)) if self._rest[:1] == b"." else self._rest[:1]

    def accept(self, token: int) -> None:
        assert self.allows(token)
        self._rest = self._rest[1:]

    def forced(self) -> list[int]:
        return list(self._rest.partition(b".")[0])


class FakeBackend:
    """`cells[sequence]` are the tokens resident under a sequence id, and `places` where they are."""

    def __init__(
        self,
        *,
        n_ctx: int = 64,
        n_batch: int = 32,
        n_sequences: int = 4,
        n_cells: int | None = None,
        n_open: int | None = None,
    ) -> None:
        self.n_ctx = self.n_booked = n_ctx
        self.n_cells = n_cells or n_ctx
        self.n_cells_max = n_ctx  # there is no memory for more
        self.sizes = [self.n_cells]  # that the pool has had
        self.n_batch = n_batch
        self.n_sequences = n_sequences
        self.n_open = n_open or n_sequences
        self.n_outputs = max(n_sequences, 32)
        self.can_rewind = True
        self.can_load = True
        self.scales_of_stored: Scales = ()
        self.batch = FakeBatch()
        self.cells: list[list[int]] = [[] for _ in range(n_sequences)]
        self.places: list[list[int]] = [[] for _ in range(n_sequences)]
        self._new_places = count()
        self.logits: dict[int, list[int]] = {}  # batch row -> the history its logits were computed from
        self.batches: list[list[tuple[int, int, int, bool]]] = []
        self.status = 0
        self.scales: Scales = ()
        self.scales_of_cells: list[Scales] = [()] * n_sequences
        self.scales_of_batches: list[Scales] = []
        self.spoils: Scales | None = None  # with these the model computes no numbers, and neither do those beside it
        self.spoilt: set[int] = set()  # sequences with such cells

    def decode(self) -> int:
        rows = self.batch.rows
        assert 0 < len(rows) <= self.n_batch
        assert sum(output for *_, output in rows) <= self.n_outputs
        if self.status:
            return self.status
        if self.n_used + len(rows) > self.n_cells:
            return 1
        self.batches.append(rows)
        self.scales_of_batches.append(self.scales)
        self.logits = {}
        for index, (token, position, sequence, output) in enumerate(rows):
            assert sequence < self.n_open
            assert position == len(self.cells[sequence]), "a hole in the sequence"
            if position == 0:
                self.scales_of_cells[sequence] = self.scales
            assert self.scales_of_cells[sequence] == self.scales, "cells of other scales"
            if self.scales == self.spoils or self.spoilt:
                self.spoilt.add(sequence)
            self.cells[sequence].append(token)
            self.places[sequence].append(next(self._new_places))
            if output:
                self.logits[index] = list(self.cells[sequence])
        return 0

    @property
    def n_used(self) -> int:
        return len({place for places in self.places for place in places})

    def resize(self, n_cells: int, n_open: int) -> bool:
        assert (n_cells, n_open) != (self.n_cells, self.n_open)
        assert self.n_used <= n_cells <= self.n_ctx
        assert not any(self.cells[n_open:])
        if n_cells > self.n_cells_max:
            return False
        self.n_open = n_open
        if n_cells != self.n_cells:
            self.sizes.append(n_cells)
        self.n_cells = n_cells
        self.logits = {}
        return True

    def forget(self, sequence: int, start: int) -> bool:
        if start and not self.can_rewind:
            return False
        del self.cells[sequence][start:]
        del self.places[sequence][start:]
        return True

    def share(self, source: int, target: int, n_tokens: int) -> bool:
        assert not self.cells[target]
        if not self.can_rewind:
            return False
        self.scales_of_cells[target] = self.scales_of_cells[source]
        self.cells[target] = self.cells[source][:n_tokens]
        self.places[target] = self.places[source][:n_tokens]
        assert len(self.cells[target]) == n_tokens
        return True

    def save_sequence(self, sequence: int, n_tokens: int) -> list[bytes | memoryview] | None:
        tokens = self.cells[sequence]
        return [bytes(tokens)] if len(tokens) == n_tokens else None

    def load_sequence(self, sequence: int, n_tokens: int, data: memoryview) -> bool:
        assert not self.cells[sequence]
        assert self.n_used + n_tokens <= self.n_cells
        if not self.can_load:
            return False
        self.cells[sequence] = list(data)
        self.places[sequence] = [next(self._new_places) for _ in data]
        self.scales_of_cells[sequence] = self.scales_of_stored
        return True

    def sequence_bytes(self, sequence: int) -> int:
        return len(self.cells[sequence])

    def set_scales(self, scales: Sequence[float]) -> None:
        assert tuple(scales) != self.scales, "setting the same scales again costs time"
        self.scales = tuple(scales)

    def has_numbers(self, row: int) -> bool:
        *_, sequence, output = self.batch.rows[row]
        assert output
        return sequence not in self.spoilt

    def logprob(self, row: int, token: int, n_top: int) -> TokenLogprob:
        """The logarithm says where the token stands, and the best candidate is the one of the arithmetic."""
        best = next_token(self.logits[row], self.scales)
        place = -float(len(self.logits[row]))
        top = [Candidate(best, bytes([best]), place)] * n_top
        return TokenLogprob(Candidate(token, bytes([token]), place), tuple(top))

    def first_logprob(self, token: int) -> TokenLogprob:
        return TokenLogprob(Candidate(token, bytes([token]), 0.0))

    def wipe(self) -> None:
        assert not any(self.cells), "the scheduler thinks that these are there"
        self.spoilt.clear()

    def is_end(self, token: int) -> bool:
        return token == END

    def piece(self, token: int) -> bytes:
        return bytes([token])
