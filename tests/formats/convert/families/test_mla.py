"""Models with one compressed vector for the keys and values of all heads, and what is refused of them."""

import struct
from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.adaptable import Adaptable
from shimmy.formats.convert.convert import plan
from shimmy.formats.convert.transforms import chunks
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import TensorReader
from tests.formats.convert.families.changed_folders import changed, check_names_of_tensors, metadata, reason
from tests.golden.weights import checkpoint, write_folder, write_json, write_safetensors

FAMILIES = ["deepseek2", "deepseek2-lite", "deepseek3", "deepseek32", "glm4-moe-lite", "glm-dsa", "mistral4"]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_the_part_for_keys_is_transposed_in_each_head(dtype: str, tmp_path: Path) -> None:
    found = plan(write_folder("deepseek3", tmp_path / "model", "5", dtype))
    _, tensors = checkpoint("deepseek3", "5", dtype)
    _, (n_rows, n_latent), stored = tensors["model.layers.1.self_attn.kv_b_proj.weight"]
    n_bytes, n_heads, n_key, n_value = len(stored) // (n_rows * n_latent), 4, 16, 12
    numbers = [stored[at : at + n_bytes] for at in range(0, len(stored), n_bytes)]
    rows = [numbers[at : at + n_latent] for at in range(0, len(numbers), n_latent)]
    heads = [rows[at : at + n_key + n_value] for at in range(0, n_rows, n_key + n_value)]
    written = {output.info.name: output for output in found.recipe.outputs}
    with TensorReader() as reader:
        keys, values = (b"".join(chunks(written[f"blk.1.attn_{part}_b.weight"], reader)) for part in "kv")
    assert len(heads) == n_heads
    assert keys == b"".join(row[column] for head in heads for column in range(n_latent) for row in head[:n_key])
    assert values == b"".join(number for head in heads for row in head[n_key:] for number in row)


def test_a_drafting_layer_is_passed_over_and_no_more_than_that(tmp_path: Path) -> None:
    folder = changed("deepseek3", {"num_nextn_predict_layers": 1}, tmp_path)
    plain = plan(folder).shapes
    _, tensors = checkpoint("deepseek3", "5")
    draft = {"model.layers.3.eh_proj.weight": ("F32", (4,), bytes(16))}
    write_safetensors(folder / "model.safetensors", {**tensors, **draft})
    assert plan(folder).shapes == plain


def test_kimi_k2_is_deepseek_v3(tmp_path: Path) -> None:
    folder = changed("deepseek3", {"model_type": "kimi_k2"}, tmp_path)
    assert metadata(folder)["expert_group_used_count"] == 2


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_kimi_k25_is_kimi_k2(prefix: str, tmp_path: Path) -> None:
    config, tensors = checkpoint("deepseek3", "5")
    plain = plan(write_folder("deepseek3", tmp_path / "plain", "5"))
    folder = write_folder("deepseek3", tmp_path / "model", "5")
    text = config | {"model_type": "kimi_k2"}
    outer = {"architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25", "text_config": text}
    write_json(folder / "config.json", outer)
    named = {name.replace("model.", prefix): tensor for name, tensor in tensors.items()}
    eyes = dict.fromkeys(("vision_tower.patch_embed.proj.weight", "mm_projector.proj.0.bias"), ("F32", (4,), bytes(16)))
    write_safetensors(folder / "model.safetensors", {**named, **eyes})
    assert plan(folder).shapes == plain.shapes


def test_groups_that_are_all_used_are_none(tmp_path: Path) -> None:
    assert "expert_group_count" not in metadata(changed("deepseek3", {"topk_group": 4}, tmp_path))


def test_layers_without_experts_are_told_in_two_ways(tmp_path: Path) -> None:
    kinds = {"mlp_layer_types": ["dense", "sparse", "sparse"], "first_k_dense_replace": ...}
    assert metadata(changed("glm4-moe-lite", kinds, tmp_path))["leading_dense_block_count"] == 1


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, [True, False, True]),
        ({"indexer_types": ["full", "shared", "full", "full"]}, [True, False, True]),  # as the layer that drafts has it
        ({"indexer_types": ..., "index_topk_pattern": "FSF"}, [True, False, True]),
        ({"indexer_types": ..., "index_topk_pattern": ["full", "shared", "full"]}, [True, False, True]),
        ({"indexer_types": None, "index_topk_freq": 2, "index_skip_topk_offset": 1}, [True, False, True]),
        ({"indexer_types": None, "index_topk_freq": 4, "index_skip_topk_offset": 0}, [False, False, False]),
        ({"indexer_types": None}, [True, True, True]),
    ],
)
def test_which_layers_of_glm_5_select_tokens(said: dict[str, Any], wanted: list[bool], tmp_path: Path) -> None:
    """As `GlmMoeDsaConfig` of transformers reads it; one that lacks its indexer then says so."""
    folder = changed("glm-dsa", said, tmp_path)
    if wanted == [True, False, True]:
        assert metadata(folder)["attention.indexer.types"][1] == wanted
    else:
        with pytest.raises(Unconvertible, match="layers.1.self_attn.indexer" if any(wanted) else "indexer_types"):
            plan(folder)


def test_an_indexer_that_a_layer_does_not_use_is_passed_over(tmp_path: Path) -> None:
    folder = changed("glm-dsa", {"indexer_types": ["full", "shared", "shared"]}, tmp_path)
    found = plan(folder)
    assert [name for name in found.shapes if ".indexer." in name and not name.startswith("blk.0.")] == []
    assert found.recipe.n_ctx == 512


def test_an_indexer_ranks_in_full_precision(tmp_path: Path) -> None:
    found = plan(write_folder("glm-dsa", tmp_path / "model", "5", "BF16"))
    kinds = {output.info.name: output.info.kind for output in found.recipe.outputs}
    parts = ("proj.weight", "k_norm.weight", "k_norm.bias", "attn_k.weight", "attn_q_b.weight")
    assert [kinds[f"blk.2.indexer.{part}"] for part in parts] == ["F32"] * 3 + ["BF16"] * 2


@pytest.mark.parametrize("architecture", ["deepseek2", "deepseek32", "glm-dsa"])
def test_adapters_change_only_what_the_engine_multiplies_with_them(architecture: str) -> None:
    adaptable = Adaptable.of(architecture)
    modules = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "indexer.wk")
    found = [name for name in modules if adaptable.row(f"model.layers.0.self_attn.{name}")[0]]
    assert found == ["o_proj"]


ROPE: dict[str, Any] = {
    "rope_type": "yarn", "rope_theta": 5000.0, "factor": 16.0, "original_max_position_embeddings": 128,
    "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [
        ("deepseek3", {"n_group": 3}, "n_group"),
        ("deepseek3", {"n_group": 8}, "n_group"),
        ("deepseek3", {"topk_group": 5}, "topk_group"),
        ("deepseek3", {"topk_group": 1}, "topk_group"),
        ("deepseek3", {"topk_method": "greedy"}, "topk_method"),
        ("deepseek3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek3", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("deepseek3", {"rope_interleave": False}, "rope_interleave"),
        ("deepseek3", {"attention_bias": True}, "attention_bias"),
        ("deepseek3", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("deepseek3", {"routed_scaling_factor": 0.0}, "routed_scaling_factor"),
        ("deepseek3", {"first_k_dense_replace": 3}, "first_k_dense_replace"),
        ("deepseek3", {"n_shared_experts": 0}, "n_shared_experts"),
        ("deepseek3", {"kv_lora_rank": 16}, "shape"),
        ("deepseek3", {"qk_nope_head_dim": 12, "v_head_dim": 16}, "shape"),
        ("deepseek3", {"qk_nope_head_dim": 10**7}, "qk_nope_head_dim"),
        ("deepseek3", {"q_lora_rank": ...}, "q_proj"),
        ("deepseek32", {"q_lora_rank": 0}, "q_lora_rank"),
        ("deepseek32", {"index_topk": 0}, "index_topk"),
        ("deepseek32", {"index_n_heads": 0}, "index_n_heads"),
        ("deepseek32", {"index_n_heads": 6}, "shape"),
        ("deepseek32", {"index_head_dim": 32}, "index_head_dim"),
        ("deepseek32", {"index_head_dim": 96}, "index_head_dim"),
        ("deepseek32", {"index_head_dim": 128}, "shape"),
        ("deepseek32", {"qk_rope_head_dim": 128}, "index_head_dim"),
        ("deepseek32", {"indexer_rope_interleave": True}, "indexer_rope_interleave"),
        ("deepseek32", {"topk_group": 1, "num_experts_per_tok": 3}, "topk_group"),
        ("deepseek32", {"rope_parameters": ROPE | {"mscale": 0.7, "mscale_all_dim": 0.7}}, "mscale"),
        ("glm-dsa", {"indexer_rope_interleave": False}, "indexer_rope_interleave"),
        ("glm-dsa", {"rope_interleave": False}, "rope_interleave"),
        ("glm-dsa", {"rope_parameters": ROPE}, "yarn"),
        ("glm-dsa", {"indexer_types": ["shared", "full", "full"]}, "indexer_types"),
        ("glm-dsa", {"indexer_types": ["full", "shared"]}, "indexer_types"),
        ("glm-dsa", {"indexer_types": ["full", "shared", "half"]}, "indexer_types"),
        ("glm-dsa", {"indexer_types": ..., "index_topk_pattern": "FXF"}, "indexer_types"),
        ("glm-dsa", {"indexer_types": ..., "index_topk_pattern": 3}, "index_topk_pattern"),
        ("deepseek3", {"num_hidden_layers": 27}, "27 layers"),
        ("deepseek3", {"num_hidden_layers": 48, "vocab_size": 128256}, "48 layers"),
        ("deepseek3", {"rope_parameters": ROPE | {"mscale": 0.7}}, "mscale"),
        ("deepseek3", {"rope_parameters": {**ROPE, "mscale": 0.0, "mscale_all_dim": 0.0}}, "mscale"),
        ("deepseek3", {"rope_parameters": ROPE | {"attention_factor": 1.0}}, "mscale"),
        ("deepseek3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}}, "linear"),
        ("deepseek2", {"n_group": 3, "topk_group": 2, "topk_method": "group_limited_greedy"}, "3 groups"),
        ("deepseek2", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("deepseek2", {"scoring_func": "sigmoid"}, "scoring_func"),
        ("glm4-moe-lite", {"mlp_layer_types": ["sparse", "dense", "sparse"]}, "mlp_layer_types"),
        ("glm4-moe-lite", {"mlp_layer_types": ["dense"] * 3}, "mlp_layer_types"),
        ("mistral4", {"rope_parameters": ROPE | {"mscale": 0.7, "mscale_all_dim": 0.7}}, "mscale"),
        ("mistral4", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("mistral4", {"rope_parameters": ...}, "rope_parameters"),
        ("mistral4", {"head_dim": 8}, "head_dim"),
    ],
    ids=str,
)
def test_another_one_is_refused(family: str, changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason(family, changes, tmp_path)


def test_the_numbers_of_yarn_are_those_that_the_engine_undoes(tmp_path: Path) -> None:
    found = metadata(write_folder("deepseek2", tmp_path / "model", "5"))
    assert found["rope.scaling.attn_factor"] == 1
    assert struct.pack("<f", found["rope.scaling.yarn_log_multiplier"]) == struct.pack("<f", 0.07)
