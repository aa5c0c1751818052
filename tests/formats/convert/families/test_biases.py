"""Biases: those that a configuration promises have to be there, and no others."""

from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import plan
from tests.formats.convert.families.changed_folders import FILE, changed, check_names_of_tensors, reason, refusal
from tests.golden.weights import checkpoint, write_safetensors


@pytest.mark.parametrize(
    "family",
    ["qwen2", "seed-oss", "llama-mqa-biases", "granite-biases", "nemotron-h-latent", "arcee", "starcoder2", "stablelm"],
)
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    """A Qwen2 without one of its biases was converted, and computed something else."""
    check_names_of_tensors(family, tmp_path)


@pytest.mark.parametrize(
    "names", [{"qkv_bias": True, "bias": True}, {"attention_bias": True, "mlp_bias": True}], ids=["hub", "transformers"]
)
def test_internlm_3_is_a_llama(names: dict[str, Any], tmp_path: Path) -> None:
    wanted = plan(changed("llama-mqa-biases", {}, tmp_path / "llama"))
    changes = {"model_type": "internlm3", "architectures": ["InternLM3ForCausalLM"], "head_dim": 16}
    folder = changed("llama-mqa-biases", changes | {"attention_bias": ..., "mlp_bias": ...} | names, tmp_path)
    assert (plan(folder).recipe.metadata, plan(folder).shapes) == (wanted.recipe.metadata, wanted.shapes)


@pytest.mark.parametrize(
    ("family", "changes", "name"),
    [
        ("llama-gqa", {"attention_bias": True}, "q_proj.bias"),
        ("llama-gqa", {"mlp_bias": True}, "gate_proj.bias"),
        ("granite", {"attention_bias": True}, "q_proj.bias"),
        ("smollm3", {"attention_bias": True}, "q_proj.bias"),
        ("qwen3", {"attention_bias": True}, "q_proj.bias"),
        ("qwen3-moe", {"attention_bias": True}, "q_proj.bias"),
        ("olmo2", {"attention_bias": True}, "q_proj.bias"),
        ("glm4-moe", {"attention_bias": True}, "q_proj.bias"),
        ("granite4-attention", {"attention_bias": True}, "q_proj.bias"),
        ("ernie45", {"use_bias": True}, "q_proj.bias"),
    ],
)
def test_a_promised_bias_has_to_be_there(family: str, changes: dict[str, Any], name: str, tmp_path: Path) -> None:
    assert f"{name}` is missing" in reason(family, changes, tmp_path)


@pytest.mark.parametrize("family", ["llama-gqa", "mistral", "mixtral", "qwen3", "granite", "smollm3"])
def test_a_bias_that_nothing_promises_is_refused(family: str, tmp_path: Path) -> None:
    """transformers passes over it, and the engine would add it."""
    folder = changed(family, {}, tmp_path)
    _, tensors = checkpoint(family, "5")
    name = "model.layers.0.self_attn.v_proj.bias"
    rows = tensors[name.replace("bias", "weight")][1][0]
    write_safetensors(folder / FILE, {**tensors, name: ("F32", (rows,), bytes(4 * rows))})
    assert "v_proj.bias` is not one that the architecture" in refusal(folder)


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [
        ("starcoder2", {"use_bias": False}, "use_bias"),
        ("starcoder2", {"hidden_act": "silu"}, "activation"),
        ("starcoder2", {"head_dim": 32}, "head_dim"),
        ("arcee", {"hidden_act": "silu"}, "activation"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
        ("stablelm", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("stablelm", {"use_parallel_residual": True}, "post_attention_layernorm"),
        ("stablelm", {"use_qkv_bias": False}, "proj.bias"),
        ("stablelm-parallel", {"use_parallel_residual": False}, "post_attention_layernorm"),
    ],
    ids=str,
)
def test_another_one_is_refused(family: str, changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason(family, changes, tmp_path)
