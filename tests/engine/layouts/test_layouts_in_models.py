"""Llamas with the weights that each layout's own library wrote: log-probabilities beside those of the same in F32."""

from pathlib import Path

import numpy as np
import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend
from tests.engine.layouts.stored import cases, config_of, matrix_of, output_of, tensors_of, weights
from tests.engine.layouts.test_quantised_llama import log_probabilities, made
from tests.layout_models import MODULES, write_layout_model, write_model
from tests.tiny_checkpoints import Weights

CASES = cases()


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


@pytest.mark.parametrize("name", CASES)
def test_a_model_computes_what_its_weights_say(name: str, tmp_path: Path, cpu: CpuBackend) -> None:
    """The down projections have these weights: their rows go into each vector of the model."""
    case = CASES[name]
    shape = (case["shape"][0], case["shape"][1])
    tensors = tensors_of(case, MODULES[0])
    matrix = matrix_of(tmp_path / "one.safetensors", config_of(case), tensors, shape, MODULES[0])
    assert matrix is not None
    exact = Weights(shape, weights(output_of(matrix)).tobytes())
    nothing = Weights(shape, bytes(len(exact.data)))
    folders = (
        write_layout_model(tmp_path / "stored", name),
        write_model(tmp_path / "plain", shape, {f"{module}.weight": exact for module in MODULES}),
        write_model(tmp_path / "without", shape, {f"{module}.weight": nothing for module in MODULES}),
    )
    found = [log_probabilities(made(folder), cpu) for folder in folders]
    assert np.abs(found[0] - found[1]).max() < 2e-2
    assert np.abs(found[2] - found[1]).max() > 0.2, "the weights make no difference"
