"""Llamas with the weights that each layout's own library wrote: log-probabilities beside those of the same in F32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend
from tests.engine.layouts.stored import cases, config_of, matrix_of, output_of, tensors_of, weights
from tests.engine.layouts.test_quantised_llama import log_probabilities, made
from tests.tiny_checkpoints import LLAMA_CONFIG, N_VOCAB, Weights, write_checkpoint, write_tokenizer

CASES = cases()
MODULES = tuple(f"model.layers.{layer}.mlp.down_proj" for layer in range(2))
HEAD_DIM, N_HEADS = 16, 4


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


def plain_tensors(n_embd: int, n_ff: int) -> dict[str, Weights]:
    """A Llama whose layers move log-probabilities by some tenths."""
    random = np.random.default_rng(4)

    def drawn(*shape: int, size: float) -> Weights:
        return Weights(shape, random.normal(0, size, shape).astype("<f4").tobytes())

    tensors = {
        "model.embed_tokens.weight": drawn(N_VOCAB, n_embd, size=1.0),
        "lm_head.weight": drawn(N_VOCAB, n_embd, size=0.1),
        "model.norm.weight": Weights((n_embd,), np.ones(n_embd, "<f4").tobytes()),
    }
    for layer in range(len(MODULES)):
        before = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{before}.{name}.weight"] = tensors["model.norm.weight"]
        for name in "qkv":
            tensors[f"{before}.self_attn.{name}_proj.weight"] = drawn(N_HEADS * HEAD_DIM, n_embd, size=0.1)
        tensors[f"{before}.self_attn.o_proj.weight"] = drawn(n_embd, N_HEADS * HEAD_DIM, size=0.1)
        for name in ("gate", "up"):
            tensors[f"{before}.mlp.{name}_proj.weight"] = drawn(n_ff, n_embd, size=0.1)
    return tensors


@pytest.mark.parametrize("name", CASES)
def test_a_model_computes_what_its_weights_say(name: str, tmp_path: Path, cpu: CpuBackend) -> None:
    """The down projections have these weights: their rows go into each vector of the model."""
    case = CASES[name]
    n_embd, n_ff = case["shape"]
    config: dict[str, Any] = {
        **LLAMA_CONFIG, "hidden_size": n_embd, "intermediate_size": n_ff, "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_HEADS, "head_dim": HEAD_DIM,
    }  # fmt: skip
    others = plain_tensors(n_embd, n_ff)
    matrix = matrix_of(
        tmp_path / "one.safetensors", config_of(case), tensors_of(case, MODULES[0]), (n_embd, n_ff), MODULES[0]
    )
    assert matrix is not None
    exact = Weights((n_embd, n_ff), weights(output_of(matrix)).tobytes())
    stored = {key: tensor for module in MODULES for key, tensor in tensors_of(case, module).items()}
    plain = {f"{module}.weight": exact for module in MODULES}
    without = {f"{module}.weight": Weights(exact.shape, bytes(len(exact.data))) for module in MODULES}
    found = []
    for folder, settings, own in (
        ("stored", config | config_of(case), stored), ("plain", config, plain), ("without", config, without),
    ):  # fmt: skip
        write_checkpoint(tmp_path / folder, settings, {**others, **own})
        write_tokenizer(tmp_path / folder)
        found.append(log_probabilities(made(tmp_path / folder), cpu))
    assert np.abs(found[0] - found[1]).max() < 2e-2
    assert np.abs(found[2] - found[1]).max() > 0.2, "the weights make no difference"
