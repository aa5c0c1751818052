"""Qwen2-MoE, MiniMax M2, LFM2-MoE, OLMoE, ERNIE 4.5, dots.llm1, Hunyuan, the unified Gemma 4: what is refused."""

from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import plan
from tests.formats.convert.families.changed_folders import changed, check_names_of_tensors, metadata, reason
from tests.golden.weights import write_folder


@pytest.mark.parametrize(
    "family", ["qwen2-moe", "minimax-m2", "lfm2-moe", "olmoe", "ernie-moe", "gemma4-unified", "dots1", "hunyuan-moe"]
)
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path)


def test_a_rotated_part_is_told_by_its_size_or_by_its_share(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    by_size = {"rope_parameters": rope, "rotary_dim": 16}
    by_share = {"rope_parameters": rope | {"partial_rotary_factor": 0.5}, "rotary_dim": ...}
    for index, changes in enumerate((by_size, by_share)):
        assert metadata(changed("minimax-m2", changes, tmp_path / str(index)))["rope.dimension_count"] == 16


def test_hunyuan_has_numbers_for_each_layer_or_for_all(tmp_path: Path) -> None:
    lists = {"num_experts": [6, 6], "moe_topk": [2, 2], "num_shared_expert": [1, 1]}
    assert metadata(changed("hunyuan-moe", lists, tmp_path / "lists")) == metadata(
        write_folder("hunyuan-moe", tmp_path / "model", "5")
    )


def test_layers_of_lfm2_have_experts_from_one_on(tmp_path: Path) -> None:
    found = plan(write_folder("lfm2-moe", tmp_path / "model", "5"))
    assert [layer for layer in range(4) if f"blk.{layer}.ffn_gate_exps.weight" in found.shapes] == [1, 2, 3]


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [
        ("qwen2-moe", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("qwen2-moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen2-moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("qwen2-moe", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("qwen2-moe", {"shared_expert_intermediate_size": 16}, "shape"),
        ("minimax-m2", {"scoring_func": "softmax"}, "scoring_func"),
        ("minimax-m2", {"qk_norm_type": "per_head"}, "qk_norm_type"),
        ("minimax-m2", {"use_qk_norm": False}, "use_qk_norm"),
        ("minimax-m2", {"use_routing_bias": False}, "use_routing_bias"),
        ("minimax-m2", {"shared_intermediate_size": 48}, "shared_intermediate_size"),
        ("minimax-m2", {"attn_type_list": [1, 0]}, "attn_type_list"),
        ("minimax-m2", {"attn_type_list": 1}, "attn_type_list"),
        ("minimax-m2", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("minimax-m2", {"rotary_dim": 64}, "rotary_dim"),
        ("minimax-m2", {"num_local_experts": 7}, "shape"),
        ("lfm2-moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("lfm2-moe", {"use_expert_bias": False}, "use_expert_bias"),
        ("lfm2-moe", {"routed_scaling_factor": 1.5}, "routed_scaling_factor"),
        ("lfm2-moe", {"num_dense_layers": 4}, "num_dense_layers"),
        ("lfm2-moe", {"num_dense_layers": 0}, "layers.0.feed_forward"),
        ("lfm2-moe", {"moe_intermediate_size": 32}, "shape"),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"),
        ("olmoe", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("olmoe", {"num_experts": 7}, "shape"),
        ("ernie-moe", {"moe_layer_interval": 2}, "moe_layer_interval"),
        ("ernie-moe", {"moe_layer_end_index": 1}, "moe_layer_end_index"),
        ("ernie-moe", {"moe_layer_start_index": 3}, "moe_layer_start_index"),
        ("ernie-moe", {"moe_num_shared_experts": 0}, "moe_num_shared_experts"),
        ("ernie-moe", {"moe_k": 7}, "moe_k"),
        ("ernie-moe", {"moe_intermediate_size": 32}, "shape"),
        ("ernie-moe", {"use_bias": True}, "use_bias"),
        ("dots1", {"n_group": 2}, "n_group"),
        ("dots1", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("dots1", {"attention_bias": True}, "attention_bias"),
        ("dots1", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("dots1", {"scoring_func": "softmax"}, "scoring_func"),
        ("dots1", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "window"),
        ("dots1", {"layer_types": ..., "sliding_window": 16, "max_window_layers": 1}, "window"),
        ("dots1", {"first_k_dense_replace": 2}, "layers.1.mlp"),
        ("dots1", {"n_shared_experts": 1}, "shape"),
        ("hunyuan-moe", {"use_cla": True}, "use_cla"),
        ("hunyuan-moe", {"use_qk_norm": False}, "use_qk_norm"),
        ("hunyuan-moe", {"use_mixed_mlp_moe": False}, "use_mixed_mlp_moe"),
        ("hunyuan-moe", {"num_shared_expert": [1, 2]}, "num_shared_expert"),
        ("hunyuan-moe", {"moe_topk": [2, 3]}, "moe_topk"),
        ("hunyuan-moe", {"num_experts": [6, 5]}, "num_experts"),
        ("hunyuan-moe", {"num_experts": 7}, "shape"),
        ("hunyuan-moe", {"moe_topk": 7}, "num_experts_per_tok"),
        ("gemma4-unified", {"attention_bias": True}, "attention_bias"),
        ("gemma4-unified", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    ],
    ids=str,
)
def test_another_one_is_refused(family: str, changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason(family, changes, tmp_path)
