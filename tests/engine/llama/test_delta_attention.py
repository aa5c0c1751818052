"""The real llama.cpp with tiny models of Kimi delta attention, whose state is of the whole sequence.

All is computed in F32: in another order it is nearly the same.
"""

from pathlib import Path
from random import Random

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER, llama
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.formats.convert.convert import convert
from shimmy.formats.gguf import reader
from shimmy.wire.worker_options import cell_bytes
from tests.golden.weights import write_folder

N_CTX, N_BATCH, N_SEQUENCES = 1024, 64, 4
PROMPT = [7 * place % 300 for place in range(150)]


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


@pytest.fixture(scope="module", params=["kimi-linear", "kimi-k3", "ling3"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(request.param, tmp_path_factory.mktemp("delta") / request.param, "5")
    convert(folder, folder.with_suffix(".gguf"), lambda _: None)
    return folder.with_suffix(".gguf")


def opened(path: Path, cpu: CpuBackend, *, kv_type: str = "f32") -> LlamaModel:
    model = LlamaModel(path, cpu)
    model.open_context(
        n_ctx=N_CTX, n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=N_SEQUENCES, n_threads=1, kv_type=kv_type
    )
    return model


def logits(model: LlamaModel, row: int) -> list[float]:
    return list(llama.llama_get_logits_ith(model.backend._context, row)[: model.vocab.n_vocab])


def extended(model: LlamaModel, tokens: list[int], start: int, sequence: int = 0) -> list[float]:
    """The logits after `tokens`, of which those before `start` are resident."""
    row = -1
    for first in range(start, len(tokens), N_BATCH):
        model.backend.batch.clear()
        row = model.backend.batch.add(tokens[first : first + N_BATCH], first, sequence, n_outputs=1)
        assert model.backend.decode() == 0
    return logits(model, row)


def computed(model: LlamaModel, tokens: list[int]) -> list[float]:
    model.backend.wipe()
    return extended(model, tokens, 0)


@pytest.mark.parametrize("seed", range(2))
def test_sequences_beside_each_other_are_computed_as_alone(seed: int, path: Path, cpu: CpuBackend) -> None:
    """Rows of a prompt beside single rows, sequences that end and begin anew, states that are stored and put back."""
    random, model, fresh = Random(seed), opened(path, cpu), opened(path, cpu)
    resident: list[list[int]] = [[] for _ in range(N_SEQUENCES)]
    stored: list[tuple[list[int], memoryview]] = []
    for _ in range(30):
        sequence = random.randrange(N_SEQUENCES)
        match random.randrange(4):
            case 0:
                model.backend.forget(sequence, 0)
                resident[sequence] = []
            case 1 if resident[sequence]:
                state = model.backend.save_sequence(sequence, len(resident[sequence]))
                assert state is not None
                stored.append((list(resident[sequence]), memoryview(bytearray().join(state))))
            case 2 if stored:
                tokens, data = random.choice(stored)
                model.backend.forget(sequence, 0)
                assert model.backend.load_sequence(sequence, len(tokens), data)
                resident[sequence] = list(tokens)
        model.backend.batch.clear()
        rows = {}
        for number in random.sample(range(N_SEQUENCES), random.randint(1, N_SEQUENCES)):
            tokens = [random.randrange(300) for _ in range(random.choice((1, 1, 3, 16)))]
            rows[number] = model.backend.batch.add(tokens, len(resident[number]), number, n_outputs=1)
            resident[number] += tokens
        assert model.backend.decode() == 0
        for number, row in rows.items():
            assert logits(model, row) == pytest.approx(computed(fresh, resident[number]), abs=1e-3)


def test_a_state_is_of_the_whole_sequence(path: Path, cpu: CpuBackend) -> None:
    model = opened(path, cpu)
    wanted = computed(model, PROMPT)
    assert not model.backend.share(0, 1, 100)
    assert not model.backend.forget(0, 100)
    assert model.backend.forget(0, 0)
    assert extended(model, PROMPT, 0, sequence=2) == pytest.approx(wanted, abs=1e-4)


def test_a_sequence_takes_what_is_reckoned_with(path: Path, cpu: CpuBackend) -> None:
    model, header = opened(path, cpu, kv_type="f16"), reader.read_header(path)
    n_bytes = {}
    for n_tokens in (64, 128):
        computed(model, PROMPT[:n_tokens])
        n_bytes[n_tokens] = model.backend.sequence_bytes(0)
    n_named = 3 * 4  # position and sequence of a cell
    a_cell = (n_bytes[128] - n_bytes[64]) / 64
    assert a_cell == cell_bytes(header.n_kv) + n_named
    assert 0 <= n_bytes[64] - 64 * a_cell - 4 * header.n_state < 400
