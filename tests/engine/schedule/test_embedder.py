"""The embedder over a backend of a few lines: a vector says exactly which tokens it was computed from."""

import math
import struct
from collections.abc import Sequence

import pytest

from shimmy.engine.schedule.embedder import Embedder, EmbeddingTask, unit
from shimmy.engine.schedule.interfaces import JobEvent
from shimmy.errors import Internal, ShimmyError
from shimmy.messages.event import Finished, Usage, Vectors

N_EMBD = 4
POISON = 13  # a token with which nothing can be computed


def embedding_of(tokens: Sequence[int]) -> list[float]:
    """Depends on every token and its place."""
    checksum = 1
    for token in tokens:
        checksum = (checksum * 31 + token) % 9973
    return [math.nan if POISON in tokens else float(checksum >> shift & 15) + 1 for shift in (0, 4, 8, 12)]


class FakeBackend:
    """Keeps what each sequence has read, as a KV cache would, and refuses what llama.cpp would."""

    def __init__(
        self, *, n_ctx: int = 32, n_batch: int = 8, n_packed: int = 8, n_sequences: int = 4, in_parts: bool = False
    ) -> None:
        self.n_ctx, self.n_batch, self.n_packed, self.n_sequences = n_ctx, n_batch, n_packed, n_sequences
        self.in_parts = in_parts
        self.batch = self
        self.status = 0
        self.rows: list[tuple[int, int, int]] = []  # token, position, sequence
        self.cells: dict[int, list[int]] = {}
        self.batches: list[list[tuple[int, int, int]]] = []
        self.n_wipes = 0

    def clear(self) -> None:
        self.rows = []

    def add(self, tokens: Sequence[int], position: int, sequence: int, *, n_outputs: int) -> int:
        assert n_outputs == len(tokens) > 0
        self.rows += [(token, position + index, sequence) for index, token in enumerate(tokens)]
        return len(self.rows) - 1

    def compute(self) -> int:
        assert 0 < len(self.rows) <= self.n_batch
        self.batches.append(self.rows)
        if self.status:
            return self.status
        for token, position, sequence in self.rows:
            assert 0 <= sequence < self.n_sequences
            cells = self.cells.setdefault(sequence, [])
            assert position == len(cells), "the positions of a sequence are consecutive"
            cells.append(token)
        assert sum(map(len, self.cells.values())) <= self.n_ctx
        return 0

    def vector(self, sequence: int) -> list[float]:
        return embedding_of(self.cells[sequence])

    def forget(self, sequence: int) -> None:
        self.cells.pop(sequence, None)

    def wipe(self) -> None:
        self.n_wipes += 1
        self.cells.clear()


class Ears:
    """What an embedder emitted, by job."""

    def __init__(self) -> None:
        self.vectors: dict[int, list[bytes]] = {}
        self.ends: dict[int, Finished | ShimmyError] = {}

    def __call__(self, events: list[JobEvent]) -> None:
        for job_id, event in events:
            assert job_id not in self.ends
            if isinstance(event, Vectors):
                self.vectors.setdefault(job_id, []).extend(event.vectors)
            else:
                assert isinstance(event, Finished | ShimmyError)
                self.ends[job_id] = event


def task(job_id: int, *inputs: Sequence[int], n_dimensions: int = N_EMBD) -> EmbeddingTask:
    return EmbeddingTask(job_id, [list(tokens) for tokens in inputs], n_dimensions, 0.0)


def run(embedder: Embedder) -> None:
    for _ in range(1000):
        if not embedder.n_tasks:
            return
        embedder.step()
    raise AssertionError("it never ends")


def expected(*inputs: Sequence[int]) -> list[bytes | None]:
    return [unit(embedding_of(tokens), N_EMBD) for tokens in inputs]


INPUTS = [[number, *range(number % 7)] for number in range(1, 12)]


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("n_sequences", [1, 2, 4])
def test_many_inputs_of_many_jobs_each_get_their_own_vector_in_order(n_sequences: int, in_parts: bool) -> None:
    backend, ears = FakeBackend(n_sequences=n_sequences, in_parts=in_parts), Ears()
    embedder = Embedder(backend, ears)
    jobs = {1: INPUTS, 2: INPUTS[:1], 3: INPUTS[::-1]}
    for job_id, inputs in jobs.items():
        embedder.submit(task(job_id, *inputs))
    run(embedder)
    assert ears.vectors == {job_id: expected(*inputs) for job_id, inputs in jobs.items()}
    for job_id, inputs in jobs.items():
        end = ears.ends[job_id]
        assert isinstance(end, Finished)
        assert end.usage == Usage(sum(map(len, inputs)), 0, 0)
    assert not backend.cells


def test_inputs_share_a_decode_up_to_the_rows_of_one() -> None:
    backend, ears = FakeBackend(), Ears()
    embedder = Embedder(backend, ears)
    embedder.submit(task(1, [1, 2, 3], [4, 5], [6, 7, 8], [9, 10, 11, 12]))
    run(embedder)
    assert [len(rows) for rows in backend.batches] == [8, 4]


def test_an_input_larger_than_a_packed_decode_goes_alone() -> None:
    backend, ears = FakeBackend(n_ctx=20, n_batch=20), Ears()
    embedder = Embedder(backend, ears)
    embedder.submit(task(1, [1], range(20, 40), [2]))
    run(embedder)
    assert [len(rows) for rows in backend.batches] == [1, 20, 1]
    assert ears.vectors[1] == expected([1], range(20, 40), [2])


def test_a_long_input_is_read_in_parts_beside_others_within_the_context() -> None:
    backend, ears = FakeBackend(in_parts=True), Ears()
    embedder = Embedder(backend, ears)
    inputs = [range(30, 50), [1, 2], range(50, 82), [3], range(82, 114)]
    embedder.submit(task(1, *inputs))
    run(embedder)
    assert ears.vectors[1] == expected(*inputs)
    assert max(map(len, backend.batches)) == 8


def test_a_short_job_does_not_wait_for_a_long_one() -> None:
    backend, ears = FakeBackend(), Ears()
    embedder = Embedder(backend, ears)
    embedder.submit(task(1, *([number] * 8 for number in range(20, 60))))
    embedder.step()
    embedder.submit(task(2, [1, 2]))
    embedder.step()
    embedder.step()
    assert isinstance(ears.ends[2], Finished)
    assert 1 not in ears.ends


def test_a_cancelled_job_computes_no_more_and_leaves_no_cells() -> None:
    backend, ears = FakeBackend(in_parts=True), Ears()
    embedder = Embedder(backend, ears)
    embedder.submit(task(1, range(20, 50), [1]))
    embedder.submit(task(2, [7, 8]))
    embedder.step()
    assert backend.cells
    embedder.cancel(1)
    embedder.cancel(1)
    embedder.cancel(99)
    assert not backend.cells
    run(embedder)
    assert ears.vectors == {2: expected([7, 8])}
    assert list(ears.ends) == [2]


def test_a_failed_decode_ends_its_jobs_and_no_others() -> None:
    backend, ears = FakeBackend(), Ears()
    embedder = Embedder(backend, ears)
    embedder.submit(task(1, [1] * 8))
    embedder.submit(task(2, [2] * 8))
    backend.status = -3
    embedder.step()
    backend.status = 0
    run(embedder)
    assert isinstance(ears.ends[1], Internal)
    assert "-3" in ears.ends[1].message
    assert ears.vectors == {2: expected([2] * 8)}


def test_what_cannot_be_computed_spoils_its_own_decode_and_nothing_after_it() -> None:
    backend, ears = FakeBackend(in_parts=True), Ears()
    embedder = Embedder(backend, ears)
    embedder.submit(task(1, [1, POISON]))
    embedder.submit(task(2, range(20, 50)))
    run(embedder)
    embedder.submit(task(3, [5]))
    run(embedder)
    assert isinstance(ears.ends[1], Internal)
    assert isinstance(ears.ends[2], Internal)
    assert backend.n_wipes == 1
    assert ears.vectors == {3: expected([5])}


def test_a_vector_has_length_one_after_it_is_cut() -> None:
    assert unit([3.0, 4.0, 12.0], 2) == struct.pack("<2f", 0.6, 0.8)
    assert unit([0.0, 0.0], 2) == bytes(8)
    assert unit([2.0], 2) is None
    assert unit([math.inf, 1.0], 2) is None
    assert unit([1e30, 1e30], 2) == struct.pack("<2f", *[0.5**0.5] * 2)
