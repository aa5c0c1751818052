"""The real llama.cpp with a tiny model, in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from tests.engine.llama.generating import (
    N_BATCH,
    N_CTX,
    N_SEQUENCES,
)


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


@pytest.fixture(scope="module")
def loaded(tiny_model: Path, cpu: CpuBackend) -> LlamaModel:
    model = LlamaModel(tiny_model, cpu)
    model.open_context(n_ctx=N_CTX, n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    model.warm_up()
    return model


@pytest.fixture
def model(loaded: LlamaModel) -> Iterator[LlamaModel]:
    """The model with an empty KV pool."""
    yield loaded
    for sequence in range(N_SEQUENCES):
        loaded.backend.forget(sequence, 0)
