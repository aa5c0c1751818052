"""Ling 1, and Ling 2 with its experts in groups, and what is refused of them."""

from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import plan
from tests.formats.convert.families.changed_folders import changed, check_names_of_tensors, metadata, reason
from tests.golden.weights import checkpoint, write_folder, write_safetensors


@pytest.mark.parametrize("family", ["ling1", "ling2"])
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path)


@pytest.mark.parametrize("model_type", ["bailing_moe", "bailing_moe_v2"])
def test_groups_of_experts_are_told(model_type: str, tmp_path: Path) -> None:
    found = metadata(changed("ling2", {"model_type": model_type}, tmp_path))
    assert (found["expert_group_count"], found["expert_group_used_count"]) == (4, 2)
    assert (found["leading_dense_block_count"], found["rope.dimension_count"]) == (1, 8)


def test_a_drafting_layer_is_passed_over(tmp_path: Path) -> None:
    folder = changed("ling2", {"num_nextn_predict_layers": 1}, tmp_path)
    _, tensors = checkpoint("ling2", "5")
    draft = {"model.layers.3.eh_proj.weight": ("F32", (4,), bytes(16))}
    write_safetensors(folder / "model.safetensors", {**tensors, **draft})
    assert plan(folder).shapes == plan(write_folder("ling2", tmp_path / "plain", "5")).shapes


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architectures": ["BailingMoeForCausalLM"]}, "partial_rotary_factor"),
        ({"score_function": "softmax"}, "score_function"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"moe_router_enable_expert_bias": False}, "moe_router_enable_expert_bias"),
        ({"use_qk_norm": False}, "use_qk_norm"),
        ({"use_qkv_bias": True}, "use_qkv_bias"),
        ({"use_bias": True}, "use_bias"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"moe_shared_expert_intermediate_size": 32}, "moe_shared_expert_intermediate_size"),
        ({"num_shared_experts": 1}, "shape"),
        ({"routed_scaling_factor": 0.0}, "routed_scaling_factor"),
        ({"first_k_dense_replace": 3}, "first_k_dense_replace"),
        ({"head_dim": 32}, "head_dim"),
        ({"n_group": 3}, "n_group"),
        ({"topk_group": 1}, "topk_group"),
        ({"partial_rotary_factor": 0.4375}, "partial_rotary_factor"),
    ],
    ids=str,
)
def test_another_one_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("ling2", changes, tmp_path)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"use_bias": True}, "use_bias"),
        ({"use_bias": ...}, "use_bias"),
        ({"use_qkv_bias": True}, "use_qkv_bias"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"norm_head": True}, "norm_head"),
        ({"norm_softmax": True}, "norm_softmax"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"first_k_dense_replace": 1}, "first_k_dense_replace"),
        ({"num_experts_per_tok": 1}, "num_experts_per_tok"),
        ({"num_shared_experts": 0}, "num_shared_experts"),
        ({"num_shared_experts": 1}, "shape"),
        ({"num_experts": 7}, "shape"),
        ({"num_attention_heads": 8}, "shape"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_parameters": ...}, "yarn"),
    ],
    ids=str,
)
def test_another_first_one_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("ling1", changes, tmp_path)
