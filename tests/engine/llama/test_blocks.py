"""The real llama.cpp with a tiny MiniMax M3, whose layers attend to two blocks of eight tokens alone.

All is computed with a cache in F32: in another order it is nearly the same.
"""

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama import backend, context
from shimmy.engine.llama.binding import LIBRARY_FOLDER, llama
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.formats.convert.convert import convert
from shimmy.formats.gguf import reader
from shimmy.formats.pooling_type import EmbeddingPlan
from shimmy.wire.worker_options import cell_bytes
from tests.golden.weights import write_folder

if TYPE_CHECKING:
    from collections.abc import Callable

N_CTX, N_BATCH = 1024, 64
PROMPT = [7 * place % 300 for place in range(150)]
APART = 0.05  # log-probabilities and vectors that all tokens lead to


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder("minimax-m3", tmp_path_factory.mktemp("blocks") / "minimax-m3", "5")
    convert(folder, folder.with_suffix(".gguf"), lambda _: None)
    return folder.with_suffix(".gguf")


def opened(path: Path, cpu: CpuBackend, *, kv_type: str = "f32") -> LlamaModel:
    """Asked for more sequences than it may have."""
    model = LlamaModel(path, cpu)
    model.open_context(n_ctx=N_CTX, n_batch=N_BATCH, n_sequences=8, n_outputs=8, n_threads=1, kv_type=kv_type)
    return model


def extended(model: LlamaModel, tokens: list[int], start: int, n_rows: int = N_BATCH) -> list[float]:
    """The logits after `tokens`, of which those before `start` are resident."""
    row = -1
    for first in range(start, len(tokens), n_rows):
        model.backend.batch.clear()
        row = model.backend.batch.add(tokens[first : first + n_rows], first, 0, n_outputs=1)
        assert model.backend.decode() == 0
    return list(llama.llama_get_logits_ith(model.backend._context, row)[: model.vocab.n_vocab])


def computed(model: LlamaModel, tokens: list[int]) -> list[float]:
    model.backend.wipe()
    return extended(model, tokens, 0)


def test_it_has_one_sequence_and_attends_to_blocks(
    path: Path, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several of them, llama.cpp lets each token attend to all others without an error."""
    model = opened(path, cpu)
    assert model.n_sequences == model.backend.n_open == 1
    few, many = PROMPT[:16], PROMPT
    found = computed(model, few), computed(model, many)
    monkeypatch.setattr(backend, "keep_blocks", lambda _: None)
    dense = opened(path, cpu)
    assert dense.n_sequences == 8
    assert computed(dense, few) == pytest.approx(found[0], abs=1e-2), "two blocks are all there is"
    assert computed(dense, many) != pytest.approx(found[1], abs=APART)


@pytest.mark.parametrize("seed", range(3))
def test_it_computes_the_same_whatever_was_dropped_stored_and_moved(seed: int, path: Path, cpu: CpuBackend) -> None:
    """One row reads the blocks that it chose, several rows read all behind a mask."""
    random, model, fresh = Random(seed), opened(path, cpu), opened(path, cpu)
    tokens: list[int] = []
    stored: list[tuple[list[int], memoryview]] = []

    def drop() -> None:
        n_kept = max(0, len(tokens) - random.choice((1, 5, 30, 200)))
        assert model.backend.forget(0, n_kept)
        del tokens[n_kept:]

    def store() -> None:
        if tokens:
            state = model.backend.save_sequence(0, len(tokens))
            assert state is not None
            stored.append((list(tokens), memoryview(bytearray().join(state))))

    def put_back() -> None:
        if stored:
            tokens[:], state = random.choice(stored)
            model.backend.forget(0, 0)
            assert model.backend.load_sequence(0, len(tokens), state)

    def move() -> None:
        model.backend.resize(random.choice((N_CTX // 2, N_CTX)), 1)

    others: list[Callable[[], None]] = [drop, store, put_back, move]
    n_compared, n_apart = 0, 0
    for _ in range(60):
        for _ in range(random.randint(0, 2)):
            random.choice(others)()
        start = len(tokens) if len(tokens) < N_CTX // 2 - 2 * N_BATCH else 0
        if not start:
            model.backend.wipe()
            tokens.clear()
        tokens += [random.randrange(300) for _ in range(random.choice((1, 1, 3, 16, 70)))]
        found = extended(model, tokens, start)
        if len(tokens) > 2 * 16:
            n_compared += 1
            n_apart += found != pytest.approx(computed(fresh, tokens), abs=APART / 2)
    assert n_compared > 25
    # Flash attention rounds: a block, or an expert, that is as good as another one may be chosen in its place.
    assert n_apart <= n_compared // 10


def test_vectors_are_made_of_blocks_one_at_a_time(path: Path, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors: list[list[float]] = []
    for keeps in (context.keep_blocks, lambda _: None):
        monkeypatch.setattr(context, "keep_blocks", keeps)
        model = LlamaModel(path, cpu)
        model.open_embeddings(EmbeddingPlan("last", N_CTX, N_BATCH, N_BATCH, in_parts=True), 1)
        embeddings = model.embeddings
        assert embeddings is not None
        assert embeddings.n_sequences == (N_BATCH if vectors else 1)
        for first in range(0, len(PROMPT), N_BATCH):
            embeddings.batch.clear()
            rows = PROMPT[first : first + N_BATCH]
            embeddings.batch.add(rows, first, 0, n_outputs=len(rows))
            assert embeddings.compute() == 0
        vectors.append(embeddings.vector(0))
    assert vectors[0] != pytest.approx(vectors[1], abs=APART)


def test_a_cell_takes_what_is_reckoned_with(path: Path, cpu: CpuBackend) -> None:
    """Keys and values of the model; keys of the index, which llama.cpp saves with values that it sets aside for it."""
    model = opened(path, cpu, kv_type="f16")
    n_bytes = []
    for n_tokens in (64, 128):
        computed(model, PROMPT[:n_tokens])
        n_bytes.append(model.backend.sequence_bytes(0))
    n_named = 3 * 4 * 2  # position and sequence of a cell, in both caches
    assert (n_bytes[1] - n_bytes[0]) / 64 == cell_bytes(reader.read_header(path).n_kv) + n_named
