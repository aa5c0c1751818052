"""The KV pool's bookkeeping: every cell is counted once, and the pool has the size that is needed."""

import random

from shimmy.engine.kv.kv_pool import KvPool
from shimmy.engine.kv.prefix_tree import Sequence
from tests.engine.fake_backend import FakeBackend

NO_SCALES = ()


def fill(cells: KvPool, backend: FakeBackend, prompt: list[int], *, uses_cache: bool = True) -> Sequence:
    """Run a prompt as the scheduler would: a sequence for it, room, and a decode of what is not there."""
    choice = cells.choose(prompt, NO_SCALES)
    assert choice is not None
    n_kept = cells.take(choice, prompt, NO_SCALES, uses_cache=uses_cache)
    rest = prompt[n_kept:]
    assert cells.make_room(len(rest))
    for start in range(0, len(rest), backend.n_batch):
        chunk = rest[start : start + backend.n_batch]
        backend.batch.clear()
        backend.batch.add(chunk, len(choice.sequence.tokens), choice.sequence.id, n_outputs=0)
        assert backend.decode() == 0
        cells.extend(choice.sequence, chunk)
    return choice.sequence


def pool(n_ctx: int = 64, **fields: int) -> tuple[KvPool, FakeBackend]:
    backend = FakeBackend(n_ctx=n_ctx, **fields)
    return KvPool(backend), backend


def test_a_shared_beginning_takes_its_cells_once() -> None:
    cells, backend = pool()
    system = list(range(1, 31))
    for number in range(4):
        fill(cells, backend, [*system, 100 + number])
    assert cells.n_free == 64 - 30 - 4 == 64 - backend.n_used


def test_cells_are_free_when_the_last_that_shares_them_lets_go() -> None:
    cells, backend = pool()
    system = list(range(1, 21))
    sequences = [fill(cells, backend, [*system, 100 + number]) for number in range(3)]
    for sequence, n_free in zip(sequences, (64 - 22, 64 - 21, 64), strict=True):
        cells.free(sequence)
        assert cells.n_free == n_free == 64 - backend.n_used


def test_what_a_choice_takes_counts_shared_cells_once() -> None:
    cells, backend = pool()
    system = list(range(1, 21))
    fill(cells, backend, [*system, 100])
    choice = cells.choose([*system, 101, 102], NO_SCALES)
    assert choice is not None
    assert cells.n_taken_with(choice, choice.n_kept) == 21, "all of it belongs to the busy one already"
    cells.release(fill(cells, backend, [7, 8, 9, 10]))
    choice = cells.choose([7, 8, 9, 11], NO_SCALES)
    assert choice is not None
    assert cells.n_taken_with(choice, choice.n_kept) == 21 + 3


def test_whatever_happens_every_cell_is_counted_once() -> None:
    chance = random.Random(7)
    for _ in range(60):
        cells, backend = pool(n_ctx=200, n_sequences=6, n_cells=chance.choice([20, 60, 200]))
        backend.n_cells_max = chance.choice([60, 200])
        roots = [[chance.randrange(1, 5) for _ in range(20)] for _ in range(3)]
        for _ in range(60):
            busy = [sequence for sequence in cells.sequences if sequence.busy]
            if len(busy) == len(cells.sequences) or (busy and chance.random() < 0.5):
                sequence = chance.choice(busy)
                if chance.random() < 0.3:
                    cells.free(sequence)
                else:
                    cells.trim(sequence, chance.randrange(len(sequence.tokens) + 1))
                    cells.release(sequence)
                    assert not sequence.busy
            elif sum(len(sequence.tokens) for sequence in busy) < 20:
                prompt = chance.choice(roots)[: chance.randrange(1, 20)] + [chance.randrange(1, 5)] * 3
                fill(cells, backend, prompt, uses_cache=chance.random() < 0.8)
            if chance.random() < 0.1:
                cells.shrink()
            assert backend.n_cells - cells.n_free == backend.n_used
            for sequence in cells.sequences:
                assert sequence.tokens == backend.cells[sequence.id]
                assert sum(edge.n_tokens for edge in sequence.edges) == len(sequence.tokens)


def test_a_pool_grows_with_what_is_needed_and_shrinks_when_nobody_needs_it() -> None:
    cells, backend = pool(n_ctx=1000, n_cells=16, n_batch=1000)
    first = fill(cells, backend, [1] * 10)
    assert backend.sizes == [16]
    second = fill(cells, backend, [2] * 8)
    assert backend.sizes == [16, 32], "twice as many"
    third = fill(cells, backend, [3] * 300)
    assert backend.sizes == [16, 32, 1000], "all, before there is much to be moved"
    for sequence in (first, second, third):
        cells.free(sequence)
    cells.shrink()
    assert backend.sizes[-1] == 256, "room for the next turn"


def test_a_pool_grows_at_once_to_what_is_expected_and_to_no_more_than_was_asked_for() -> None:
    cells, backend = pool(n_ctx=400, n_cells=16)
    cells.expect(16)
    cells.expect(50)
    cells.expect(9999)
    assert backend.sizes == [16, 50, 400]


def test_a_pool_takes_what_memory_there_is_and_tries_again_after_a_rest() -> None:
    cells, backend = pool(n_ctx=1000, n_cells=16, n_batch=1000)
    backend.n_cells_max = 300
    sequence = fill(cells, backend, [1] * 260)
    assert backend.sizes == [16, 262], "all of them were too many, and so was half of that"
    assert not cells.make_room(100)
    assert backend.sizes[2:] == [292], "half way to what is too much, and half way again"
    backend.n_cells_max = 1000
    assert not cells.make_room(100), "it has learnt that there is no more"
    cells.free(sequence)
    cells.shrink()
    fill(cells, backend, [1] * 600)
    assert backend.sizes[-1] == 1000


def test_more_sequences_are_opened_for_more_jobs_and_closed_when_they_hold_nothing() -> None:
    cells, backend = pool(n_ctx=400, n_sequences=8, n_open=2)
    busy = [fill(cells, backend, [number] * 5) for number in range(1, 3)]
    assert backend.n_open == 2
    busy.append(fill(cells, backend, [3] * 5))
    assert backend.n_open == len(cells.sequences) == 8
    for sequence in busy[:2]:
        cells.free(sequence)
    cells.shrink()
    assert backend.n_open == len(cells.sequences) == 8, "what the third holds may be wanted again"
    cells.free(busy[2])
    cells.shrink()
    assert backend.n_open == len(cells.sequences) == 2


def test_more_sequences_are_opened_for_what_prompts_come_back_to() -> None:
    cells, backend = pool(n_ctx=4000, n_sequences=8, n_open=3)
    for _ in range(2):
        for number in range(1, 5):
            prompt = [number] * 20
            cells.asked(prompt)
            cells.release(fill(cells, backend, prompt))
    assert backend.n_open == 8
    assert sorted(sequence.tokens[0] for sequence in cells.sequences if sequence.tokens) == [1, 2, 3, 4]


def test_a_pool_takes_all_that_is_booked_and_beyond_that_what_is_needed() -> None:
    cells, backend = pool(n_ctx=8000, n_cells=16, n_batch=8000, n_sequences=8)
    backend.n_booked = 1000
    for n_tokens in (10, 300, 900, 2000):
        fill(cells, backend, [n_tokens] * n_tokens)
    assert backend.sizes == [16, 1000, 2000, 4000]
    backend.n_cells_max = 5000
    fill(cells, backend, [5] * 1500)
    assert 4710 < backend.sizes[-1] <= 5000
    assert not cells.make_room(3000)


def test_idle_sequences_make_room_where_the_pool_cannot_grow() -> None:
    cells, backend = pool(n_ctx=1000, n_cells=32)
    backend.n_cells_max = 32
    cells.release(fill(cells, backend, [1] * 20))
    busy = fill(cells, backend, [2] * 20)
    assert backend.sizes == [32]
    assert [sequence.tokens for sequence in cells.sequences if sequence.tokens] == [[2] * 20]
    assert not cells.make_room(20), "there is nobody left who could give something up"
    assert cells.evict() is False
    cells.release(busy)
    assert cells.make_room(20)


def test_a_sequence_that_frees_nothing_is_given_up_last() -> None:
    cells, backend = pool(n_ctx=400)
    shared = fill(cells, backend, [*range(1, 20)])
    also = fill(cells, backend, [*range(1, 20), 30, 31])
    cells.trim(also, 18)
    own = fill(cells, backend, [40, 41, 42])
    for sequence in (also, shared, own):
        cells.release(sequence)
    cells.evict()
    assert [bool(sequence.tokens) for sequence in (shared, also, own)] == [False, True, True]
