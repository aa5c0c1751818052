"""Ling 3: kinds of layers in both styles of config.json, and what is refused of it."""

import math
import struct
from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.adaptable import Adaptable
from shimmy.formats.convert.convert import plan
from shimmy.formats.convert.transforms import chunks
from shimmy.formats.safetensors.checkpoint import TensorReader
from tests.formats.convert.families.changed_folders import changed, check_names_of_tensors, metadata, reason
from tests.golden.weights import checkpoint, write_folder, write_safetensors

# As the hub has them, where transformers 5 has other names and says the kind of each layer.
OF_THE_HUB = {
    **dict.fromkeys(("layer_types", "mlp_layer_types", "linear_head_dim", "linear_conv_kernel_dim"), ...),
    **dict.fromkeys(("model_max_length", "num_expert_group", "num_experts_per_token", "moe_renormalize"), ...),
    "max_position_embeddings": 512, "n_group": 4, "num_experts_per_tok": 3, "norm_topk_prob": True, "head_dim": 16,
    "rope_parameters": ..., "rope_theta": 5000, "rope_interleave": True, "kda_lower_bound": -5, "no_kda_lora": True,
    "gated_attention_proj_granularity_type": "head_wise", "moe_router_enable_expert_bias": True, "q_lora_rank": None,
    "moe_shared_expert_intermediate_size": 48, "score_function": "sigmoid", "expert_swiglu_limit_list": None,
    "architectures": ["BailingMoeV3ForCausalLM"], "partial_rotary_factor": 1, "use_qk_norm": True, "use_bias": False,
}  # fmt: skip


@pytest.mark.parametrize("family", ["ling3", "ling3-low-rank"])
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path)


def test_both_styles_are_one_model(tmp_path: Path) -> None:
    """Of four layers in groups of three, the one behind the first group is latent, as the last one of the group."""
    ours = metadata(write_folder("ling3", tmp_path / "plain", "5"))
    assert metadata(changed("ling3", OF_THE_HUB, tmp_path)) == ours
    assert ours["attention.head_count_kv"][1] == [0, 0, 1, 1]
    assert (ours["expert_group_used_count"], ours["kda.gate_lower_bound"]) == (2, -5)


def test_a_drafting_layer_is_passed_over(tmp_path: Path) -> None:
    folder = changed("ling3", {"num_nextn_predict_layers": 1}, tmp_path)
    _, tensors = checkpoint("ling3", "5")
    draft = {"model.layers.4.eh_proj.weight": ("F32", (4,), bytes(16))}
    write_safetensors(folder / "model.safetensors", {**tensors, **draft})
    assert plan(folder).shapes == plan(write_folder("ling3", tmp_path / "plain", "5")).shapes


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_how_fast_states_fade_is_positive(dtype: str, tmp_path: Path) -> None:
    outputs = plan(write_folder("ling3", tmp_path / "model", "5", dtype)).recipe.outputs
    fading = next(output for output in outputs if output.info.name == "blk.1.ssm_a")
    kind, _, data = checkpoint("ling3", "5", dtype)[1]["model.layers.1.attention.A_log"]
    data = data if kind == "F32" else b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
    with TensorReader() as reader:
        found = struct.unpack("<4f", b"".join(chunks(fading, reader)))
    assert found == pytest.approx([math.exp(number) for number in struct.unpack("<4f", data)])
    assert fading.info.shape == (1, 4)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architectures": ["BailingMoeV2_5ForCausalLM"]}, "BailingMoeV2_5ForCausalLM"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types"),
        ({"layer_types": ["linear_attention"] * 4}, "layer_types"),
        ({"layer_types": ["linear_attention", "mamba"] * 2}, "layer_types"),
        ({"layer_types": None, "layer_group_size": 0}, "layer_group_size"),
        ({"layer_types": None, "layer_group_size": 2}, "layers.1"),
        ({"linear_head_dim": 32}, "shape"),
        ({"qk_rope_head_dim": 8}, "shape"),
        ({"q_lora_rank": 24}, "q_a_proj"),
        ({"rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": 5}, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": 5000.0, "rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_interleave": False}, "rope_interleave"),
        ({"kda_safe_gate": False}, "kda_safe_gate"),
        ({"kda_lower_bound": 0}, "kda_lower_bound"),
        ({"kda_lower_bound": "x"}, "kda_lower_bound"),
        ({"no_kda_lora": False}, "no_kda_lora"),
        ({"gated_attention_proj_granularity_type": "element_wise"}, "gated_attention_proj_granularity_type"),
        ({"use_mla_nope": True}, "use_mla_nope"),
        ({"use_qkv_bias": True}, "use_qkv_bias"),
        ({"use_nGPT": True}, "use_nGPT"),
        ({"pregate_inference": True}, "pregate_inference"),
        ({"expert_swiglu_limit_list": [None, 7.0]}, "expert_swiglu_limit_list"),
        ({"share_expert_swiglu_limit_list": 5}, "share_expert_swiglu_limit_list"),
        ({"score_function": "softmax"}, "score_function"),
        ({"moe_router_enable_expert_bias": False}, "moe_router_enable_expert_bias"),
        ({"moe_shared_expert_intermediate_size": 32}, "moe_shared_expert_intermediate_size"),
        ({"num_expert_group": 3}, "n_group"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
    ],
    ids=str,
)
def test_another_one_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("ling3", changes, tmp_path)


def test_adapters_change_what_the_engine_multiplies_with_them() -> None:
    found = Adaptable.of("bailingmoe3")
    for name in ("attention.q_proj", "attention.dense", "attention.g_proj", "attention.f_proj"):
        assert found.row(f"model.layers.1.{name}")[0] is None
        assert found.has(f"model.layers.1.{name}")
    assert found.row("model.layers.0.mlp.up_proj")[0] is not None
    assert found.row("model.layers.1.mlp.experts.3.down_proj")[0] is not None
