"""The real llama.cpp with tiny models: a sequence that was put back is as good as the one that was computed."""

from pathlib import Path

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER, llama
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.formats.convert.convert import convert
from tests.golden.weights import write_folder
from tests.tiny_models import write_tiny_mamba

N_CTX, N_BATCH, N_SEQUENCES = 512, 64, 4
PROMPT = [(7 * place) % 300 for place in range(150)]


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


# Attention to everything, to windows of 16 tokens in most layers, and to windows in half of them; one vector
# a token for keys and values, and with that only 32 tokens, which each layer selects, or some for others.
@pytest.fixture(
    scope="module", params=["llama-gqa", "gemma3-text-linear", "gemma2", "deepseek3", "deepseek32", "glm-dsa"]
)
def model(request: pytest.FixtureRequest, cpu: CpuBackend, tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    folder = write_folder(request.param, tmp_path_factory.mktemp("state") / request.param, "4")
    path = folder.with_suffix(".gguf")
    convert(folder, path, lambda _: None)
    return opened(path, cpu)


def opened(path: Path, cpu: CpuBackend, *, n_sequences: int = N_SEQUENCES) -> LlamaModel:
    """In F32, so that what is computed in another order is nearly the same."""
    model = LlamaModel(path, cpu)
    model.open_context(n_ctx=N_CTX, n_batch=N_BATCH, n_sequences=n_sequences, n_outputs=32, n_threads=1, kv_type="f32")
    return model


@pytest.fixture(autouse=True)
def _empty(model: LlamaModel) -> None:
    model.backend.wipe()


def compute(model: LlamaModel, tokens: list[int], sequence: int, start: int = 0) -> list[float]:
    """The logits after the last of `tokens`, of which those before `start` are resident."""
    row = -1
    for first in range(start, len(tokens), N_BATCH):
        chunk = tokens[first : first + N_BATCH]
        model.backend.batch.clear()
        row = model.backend.batch.add(chunk, first, sequence, n_outputs=1)
        assert model.backend.decode() == 0
    logits: list[float] = llama.llama_get_logits_ith(model.backend._context, row)[: model.vocab.n_vocab]
    return logits


def saved(model: LlamaModel, sequence: int, n_tokens: int) -> memoryview:
    state = model.backend.save_sequence(sequence, n_tokens)
    assert state is not None
    return memoryview(bytearray().join(state))


def assert_alike(found: list[float], expected: list[float]) -> None:
    """Batches of another shape round the last bit of some keys the other way: 5e-4 with SSE 4.2, less with AVX."""
    assert max(expected) - min(expected) > 0.1
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_sequence_that_was_put_back_goes_on_as_before(model: LlamaModel) -> None:
    expected = compute(model, [*PROMPT, 5, 6, 7], 0)
    model.backend.wipe()
    compute(model, PROMPT, 0)
    data = saved(model, 0, len(PROMPT))
    model.backend.wipe()

    assert model.backend.load_sequence(2, len(PROMPT), data)

    assert_alike(compute(model, [*PROMPT, 5, 6, 7], 2, start=len(PROMPT)), expected)


@pytest.mark.parametrize("n_kept", [1, 15, 16, 17, 40, 100, 149])
def test_it_can_be_rewound_to_any_place_and_shared_up_to_it(model: LlamaModel, n_kept: int) -> None:
    other = [*PROMPT[:n_kept], 9, 8, 9]
    expected = compute(model, other, 0)
    model.backend.wipe()
    compute(model, PROMPT, 1)
    data = saved(model, 1, len(PROMPT))
    model.backend.wipe()
    assert model.backend.load_sequence(1, len(PROMPT), data)

    model.backend.share(1, 3, n_kept)
    assert_alike(compute(model, other, 3, start=n_kept), expected)
    model.backend.forget(1, n_kept)
    assert_alike(compute(model, other, 1, start=n_kept), expected)


def test_what_others_hold_stays_as_it_is(model: LlamaModel) -> None:
    other = [(11 * place) % 300 for place in range(90)]
    expected = compute(model, [*other, 5], 0)
    model.backend.wipe()
    compute(model, PROMPT, 1)
    data = saved(model, 1, len(PROMPT))
    compute(model, other, 0)
    model.backend.forget(1, 0)

    assert model.backend.load_sequence(2, len(PROMPT), data)

    assert_alike(compute(model, [*other, 5], 0, start=len(other)), expected)
    assert [llama.llama_memory_seq_pos_max(model.backend._memory, sequence) for sequence in (1, 3)] == [-1, -1]


def test_a_sequence_that_lacks_tokens_is_not_saved(model: LlamaModel) -> None:
    compute(model, PROMPT, 0)
    assert model.backend.save_sequence(0, len(PROMPT) + 1) is None
    assert model.backend.save_sequence(0, len(PROMPT) - 1) is None
    assert model.backend.save_sequence(3, 1) is None
    llama.llama_memory_seq_rm(model.backend._memory, 0, 0, 20)
    assert model.backend.save_sequence(0, len(PROMPT)) is None


def test_what_does_not_fit_leaves_the_sequence_empty(model: LlamaModel) -> None:
    compute(model, PROMPT, 0)
    data = saved(model, 0, len(PROMPT))
    for sequence in (1, 2):
        compute(model, PROMPT, sequence)
    assert not model.backend.load_sequence(3, len(PROMPT), data)
    assert llama.llama_memory_seq_pos_max(model.backend._memory, 3) == -1
    for sequence in (1, 2):
        assert llama.llama_memory_seq_pos_max(model.backend._memory, sequence) == len(PROMPT) - 1


def test_a_window_that_lost_cells_is_not_gone_on_from(model: LlamaModel) -> None:
    """A pool with room for all gave cells of one sequence to the next, and what shared them said something else."""
    other = [*PROMPT[:40], 9, 8, 9]
    expected = compute(model, other, 3)
    model.backend.wipe()
    compute(model, [(13 * place) % 300 for place in range(120)], 1)
    compute(model, PROMPT, 0)
    model.backend.forget(1, 0)
    compute(model, [(17 * place) % 300 for place in range(150)], 2)

    n_shared = 40 if model.backend.share(0, 3, 40) else 0
    assert_alike(compute(model, other, 3, start=n_shared), expected)
    n_kept = 40 if model.backend.forget(0, 40) else 0
    model.backend.forget(0, n_kept)
    assert_alike(compute(model, other, 0, start=n_kept), expected)


def test_a_recurrent_sequence_goes_on_as_before(cpu: CpuBackend, tmp_path: Path) -> None:
    model = opened(write_tiny_mamba(tmp_path), cpu)
    assert not model.can_rewind
    expected = compute(model, [*PROMPT, 5, 6, 7], 0)
    model.backend.wipe()
    assert max(abs(a - b) for a, b in zip(compute(model, [5, 6, 7], 1), expected, strict=True)) > 0.1, "it forgets"
    compute(model, PROMPT, 0)
    data = saved(model, 0, len(PROMPT))
    assert model.backend.save_sequence(0, len(PROMPT) - 1) is None
    model.backend.wipe()

    assert model.backend.load_sequence(2, len(PROMPT), data)

    assert_alike(compute(model, [*PROMPT, 5, 6, 7], 2, start=len(PROMPT)), expected)
    assert not model.backend.forget(2, 10), "which is why it is taken whole or not at all"


def test_a_state_of_other_length_is_not_taken(model: LlamaModel) -> None:
    compute(model, PROMPT, 0)
    data = saved(model, 0, len(PROMPT))
    assert not model.backend.load_sequence(1, len(PROMPT) + 1, data)
    assert llama.llama_memory_seq_pos_max(model.backend._memory, 1) == -1
