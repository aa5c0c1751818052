"""Kimi Linear and Kimi K3: kinds of layers in both styles of config.json, and what is refused of them."""

import struct
from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.adaptable import Adaptable
from shimmy.formats.convert.convert import plan
from shimmy.formats.convert.transforms import chunks
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import TensorReader
from shimmy.formats.tokenizer.vocab import require_tokenizer
from tests.formats.convert.families.changed_folders import changed, check_names_of_tensors, metadata, reason
from tests.golden.weights import checkpoint, write_folder

# As the hub has them, where transformers 5 has `layer_types` and others.
OF_THE_HUB = {
    "layer_types": ..., "mlp_layer_types": ..., "linear_head_dim": ..., "linear_num_heads": ...,
    "linear_conv_kernel_dim": ..., "first_k_dense_replace": 1, "mla_use_nope": True,
    "linear_attn_config": {
        "full_attn_layers": [3], "kda_layers": [1, 2, 4], "head_dim": 16, "num_heads": 4, "short_conv_kernel_size": 4,
    },
}  # fmt: skip


def of_the_hub(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = OF_THE_HUB["linear_attn_config"]  # type: ignore[assignment]
    return OF_THE_HUB | {"linear_attn_config": settings | changes}


@pytest.mark.parametrize("family", ["kimi-linear", "kimi-k3"])
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path)


def test_both_styles_are_one_model(tmp_path: Path) -> None:
    """Layers are counted from one on the hub."""
    ours, theirs = metadata(write_folder("kimi-linear", tmp_path / "plain", "5")), of_the_hub()
    assert metadata(changed("kimi-linear", theirs, tmp_path)) == ours
    assert ours["attention.head_count_kv"][1] == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"q_lora_rank": 24}, "q_lora_rank"),
        ({"moe_renormalize": False}, "norm_topk_prob"),
        ({"mla_use_output_gate": True}, "mla_use_output_gate"),
        ({"routed_expert_hidden_size": 48}, "routed_expert_hidden_size"),
        ({"mla_use_nope": False}, "mla_use_nope"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"linear_num_heads": 8}, "linear_num_heads"),
        ({"linear_head_dim": 32}, "shape"),
        ({"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim"),
        ({"linear_conv_kernel_dim": 3}, "shape"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"layer_types": ["linear_attention"] * 4}, "layer_types"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "layer_types"),
        ({"moe_router_activation_func": "softmax"}, "moe_router_activation_func"),
        ({"topk_method": "greedy"}, "topk_method"),
        ({"num_expert_group": 4}, "n_group"),
        ({"routed_scaling_factor": 0}, "routed_scaling_factor"),
        ({"linear_attn_config": 5}, "linear_attn_config"),
        (of_the_hub(use_full_rank_gate=True), "use_full_rank_gate"),
        (of_the_hub(gate_lower_bound=-5.0), "gate_lower_bound"),
        (of_the_hub(full_attn_layers=[3, 4]), "kda_layers"),
        (of_the_hub(full_attn_layers=[0]), "kda_layers"),
        (of_the_hub(full_attn_layers=["3"]), "kda_layers"),
        (of_the_hub(full_attn_layers=None), "kda_layers"),
        (of_the_hub(num_heads=2), "linear_num_heads"),
        (of_the_hub(head_dim=2**30), "linear_head_dim"),
    ],
    ids=str,
)
def test_another_kimi_linear_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("kimi-linear", changes, tmp_path)


def of_k3(**changes: Any) -> dict[str, Any]:
    config, _ = checkpoint("kimi-k3", "5")
    return {"linear_attn_config": config["text_config"]["linear_attn_config"] | changes}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (of_k3(use_full_rank_gate=False), "use_full_rank_gate"),
        (of_k3(gate_lower_bound=5.0), "gate_lower_bound"),
        (of_k3(gate_lower_bound=float("-inf")), "gate_lower_bound"),
        (of_k3(gate_lower_bound="x"), "gate_lower_bound"),
        (of_k3(full_attn_layers=[3]), "kda_layers"),
        ({"hidden_act": "silu"}, "silu"),
        ({"activation_situ_linear_beta": 0}, "activation_situ_linear_beta"),
        ({"activation_situ_beta": -1}, "activation_situ_beta"),
        ({"attn_res_block_size": 0}, "attn_res_block_size"),
        ({"attn_res_block_size": None}, "mlp_res_norm"),
        ({"mla_use_output_gate": False}, "g_proj"),
        ({"latent_moe_use_norm": False}, "routed_expert_norm"),
        ({"routed_expert_hidden_size": 64}, "shape"),
        ({"routed_expert_hidden_size": None}, "shape"),
        ({"q_lora_rank": None}, "q_proj"),
    ],
    ids=str,
)
def test_another_kimi_k3_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("kimi-k3", changes, tmp_path)


def test_what_the_engine_knows_another_way_is_told(tmp_path: Path) -> None:
    found = metadata(write_folder("kimi-k3", tmp_path / "plain", "5"))
    assert (found["kda.gate_lower_bound"], found["activation.situ_linear_beta"]) == (-5.0, 2.5)
    assert found["expert_weights_norm"]
    one = {"num_experts_per_token": 1, "activation_situ_linear_beta": None, "activation_situ_beta": None}
    found = metadata(changed("kimi-k3", one | of_k3(gate_lower_bound=None), tmp_path))
    assert not found["expert_weights_norm"]  # its own code divides by the sum of several alone
    assert (found["activation.situ_beta"], found["activation.situ_linear_beta"]) == (1, 0)
    assert "kda.gate_lower_bound" not in found


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_scores_of_residuals_are_products_and_numbers_behind_the_heads_are_none(dtype: str, tmp_path: Path) -> None:
    outputs = {
        output.info.name: output for output in plan(write_folder("kimi-k3", tmp_path / "x", "5", dtype)).recipe.outputs
    }
    _, tensors = checkpoint("kimi-k3", "5", dtype)

    def wide(name: str) -> list[float]:
        kind, _, data = tensors[f"language_model.model.{name}"]
        data = data if kind == "F32" else b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
        return [*struct.unpack(f"<{len(data) // 4}f", data)]

    with TensorReader() as reader:
        scores, fading = (
            b"".join(chunks(outputs[name], reader)) for name in ("blk.1.attn_res_score.weight", "blk.1.ssm_a")
        )
    norm, projection = (wide(f"layers.1.self_attention_res_{part}.weight") for part in ("norm", "proj"))
    wanted = struct.pack("<64f", *(one * other for one, other in zip(norm, projection, strict=True)))
    assert scores == wanted
    assert len(wide("layers.1.self_attn.A_log")) == 8
    assert len(fading) == 4 * 4
    assert outputs["blk.1.ssm_a"].info.shape == (4,)


def test_adapters_change_what_the_engine_multiplies_with_them() -> None:
    linear, k3 = (Adaptable.of(f"kimi-{name}") for name in ("linear", "k3"))
    for name in ("self_attn.q_proj", "self_attn.o_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.f_a_proj"):
        assert linear.row(f"model.layers.1.{name}")[0] is None
        assert linear.has(f"model.layers.1.{name}")
        assert k3.row(f"language_model.model.layers.1.{name}")[0] is None
    assert linear.row("model.layers.0.mlp.up_proj")[0] is not None
    assert linear.row("model.layers.1.block_sparse_moe.shared_experts.up_proj")[0] is not None
    assert k3.row("language_model.model.layers.0.mlp.up_proj")[0] is None
    for found, prefix in ((linear, ""), (k3, "language_model.")):
        assert found.row(f"{prefix}model.layers.1.block_sparse_moe.experts.3.w2")[0] is not None
        assert found.row(f"{prefix}lm_head")[0] is None


def test_a_tokenizer_of_tiktoken_alone_is_refused_by_name_where_its_publisher_is_not_known(tmp_path: Path) -> None:
    folder = write_folder("kimi-linear", tmp_path / "model", "5")
    (folder / "tokenizer.json").rename(folder / "qwen.tiktoken")
    with pytest.raises(Unconvertible, match="tiktoken"):
        require_tokenizer(folder)
    (folder / "qwen.tiktoken").rename(folder / "tiktoken.model")
    require_tokenizer(folder)
