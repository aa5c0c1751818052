"""LoRA adapters for models of golden families: what the engine computes, and what it would leave out without a word."""

from pathlib import Path

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend
from shimmy.formats.convert import peft
from shimmy.formats.convert.convert import convert
from shimmy.formats.format_errors import Unconvertible
from tests.formats.convert.test_peft import base_of, converted, difference, log_probabilities
from tests.golden.weights import checkpoint, write_folder, write_safetensors
from tests.peft_adapters import ALPHA, RANK, merged, pairs, write_adapter
from tests.tiny_checkpoints import Weights

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
DENSE = ("gate_proj", "up_proj", "down_proj")
MODULES = {
    "ministral3": (*ATTENTION, *DENSE),
    "qwen35": (*ATTENTION, *DENSE),
    "qwen3-next": (*ATTENTION, "mlp.gate", "linear_attn.out_proj", "in_proj_ba", *DENSE),
    "glm4": (*ATTENTION, "gate_up_proj", "down_proj"),
    "glm4-moe": (*ATTENTION, *DENSE),
    "gemma3n": (*ATTENTION, "linear_left", "linear_right", "per_layer_projection"),
    "gemma4": (*ATTENTION, *DENSE, "per_layer_input_gate", "per_layer_projection"),
}
LEFT_OUT = {
    "qwen35": ("in_proj_qkv", "in_proj_z", "linear_attn.out_proj"),
    "gemma3n": ("embed_tokens_per_layer", "per_layer_model_projection", "altup_projections.0", "modality_router"),
    "gemma4": ("embed_tokens_per_layer", "per_layer_model_projection"),
}
TOLERANCE = 1e-2  # GELU goes through a table in half precision


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


def tensors_of(family: str) -> dict[str, Weights]:
    _, tensors = checkpoint(family, "5")
    return {name: Weights(shape, data, dtype) for name, (dtype, shape, data) in tensors.items()}


def model_of(folder: Path, family: str, tensors: dict[str, Weights]) -> Path:
    path = write_folder(family, folder, "5")
    write_safetensors(
        path / "model.safetensors", {name: (one.dtype, one.shape, one.data) for name, one in tensors.items()}
    )
    convert(path, path.with_suffix(".gguf"), lambda _: None)
    return path.with_suffix(".gguf")


@pytest.mark.parametrize("family", MODULES)
def test_an_adapter_computes_what_the_merged_weights_do(family: str, cpu: CpuBackend, tmp_path: Path) -> None:
    tensors = tensors_of(family)
    matrices = pairs(tensors, MODULES[family])
    path = model_of(tmp_path / "base", family, tensors)
    adapter = converted(write_adapter(tmp_path / "adapter", matrices), path)
    whole = log_probabilities(model_of(tmp_path / "merged", family, merged(tensors, matrices, ALPHA / RANK)), cpu)
    assert difference(log_probabilities(path, cpu, adapter), whole) < TOLERANCE
    assert difference(log_probabilities(path, cpu), whole) > 10 * TOLERANCE


@pytest.mark.parametrize("family", LEFT_OUT)
def test_what_the_engine_would_not_change_is_refused(family: str, tmp_path: Path) -> None:
    tensors = tensors_of(family)
    base = base_of(model_of(tmp_path / "base", family, tensors))
    for module in LEFT_OUT[family]:
        adapter = peft.read(write_adapter(tmp_path / module, pairs(tensors, (module,))))
        with pytest.raises(Unconvertible, match=module):
            peft.plan(adapter, base)
