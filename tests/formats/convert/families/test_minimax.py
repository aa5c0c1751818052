"""MiniMax M3: its index in both styles of config.json, and what is refused of it."""

from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import plan
from tests.formats.convert.families.changed_folders import changed, check_names_of_tensors, metadata, reason
from tests.golden.weights import checkpoint, write_folder, write_safetensors

FLAGS = [0, 1, 1]  # of each layer, as the hub has its kinds
INDEX = {
    "use_sparse_attention": True, "sparse_index_dim": 16, "sparse_num_index_heads": 2, "sparse_topk_blocks": 2,
    "sparse_block_size": 8, "sparse_score_type": "max", "sparse_init_block": 0, "sparse_local_block": 1,
    "sparse_disable_index_value": FLAGS, "sparse_attention_freq": FLAGS,
}  # fmt: skip
OF_THE_HUB = {
    **dict.fromkeys(("layer_types", "mlp_layer_types", "rope_parameters", "model_type"), ...),
    **dict.fromkeys(("index_n_heads", "index_head_dim", "index_block_size", "index_topk_blocks"), ...),
    "moe_layer_freq": FLAGS, "sparse_attention_config": INDEX, "hidden_act": "swigluoai", "scoring_func": "sigmoid",
    "partial_rotary_factor": 0.5, "rope_theta": 5000, "use_gemma_norm": True, "use_qk_norm": True, "swiglu_limit": 7,
    "qk_norm_type": "per_head", "n_shared_experts": 1, "use_routing_bias": True, "attention_output_gate": False,
}  # fmt: skip


def of_the_hub(**changes: Any) -> dict[str, Any]:
    return OF_THE_HUB | {"sparse_attention_config": INDEX | changes}


def is_of_the_eyes(name: str) -> bool:
    return name.startswith(("vision_tower.", "multi_modal_projector.", "patch_merge_mlp."))


def test_each_tensor_is_needed(tmp_path: Path) -> None:
    check_names_of_tensors("minimax-m3", tmp_path, is_of_the_eyes)


def test_both_styles_are_one_model(tmp_path: Path) -> None:
    ours = metadata(write_folder("minimax-m3", tmp_path / "plain", "5"))
    assert metadata(changed("minimax-m3", of_the_hub(), tmp_path)) == ours
    assert (ours["rope.dimension_count"], ours["feed_forward_length"], ours["expert_feed_forward_length"]) == (
        16,
        96,
        48,
    )
    assert (ours["leading_dense_block_count"], ours["attention.indexer.block_size"]) == (1, 8)


def test_drafting_layers_are_passed_over(tmp_path: Path) -> None:
    folder = write_folder("minimax-m3", tmp_path / "model", "5")
    plain = plan(folder).shapes
    _, tensors = checkpoint("minimax-m3", "5")
    draft = {"language_model.model.mtp.layers.0.eh_proj.weight": ("F32", (4,), bytes(16))}
    write_safetensors(folder / "model.safetensors", {**tensors, **draft})
    assert plan(folder).shapes == plain


def test_the_index_is_exact_whatever_the_type_of_the_others(tmp_path: Path) -> None:
    outputs = plan(write_folder("minimax-m3", tmp_path / "model", "5", "BF16")).recipe.outputs
    kinds = {output.info.name: output.info.kind for output in outputs}
    assert (kinds["blk.1.indexer.q_proj.weight"], kinds["blk.1.attn_q.weight"]) == ("F32", "BF16")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"index_n_heads": 1}, "index_n_heads"),
        ({"index_head_dim": 8}, "index_head_dim"),
        ({"index_head_dim": 32}, "shape"),
        ({"index_block_size": 0}, "index_block_size"),
        ({"index_topk_blocks": 0}, "index_topk_blocks"),
        ({"index_local_blocks": -1}, "index_local_blocks"),
        ({"swiglu_alpha": 1.5}, "swiglu_alpha"),
        ({"swiglu_limit": 10.0}, "swiglu_limit"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"qk_norm_type": "per_layer"}, "qk_norm_type"),
        ({"use_gemma_norm": False}, "use_gemma_norm"),
        ({"use_routing_bias": False}, "use_routing_bias"),
        ({"attention_output_gate": True}, "attention_output_gate"),
        ({"n_shared_experts": 2}, "n_shared_experts"),
        ({"shared_intermediate_size": 96}, "shared_intermediate_size"),
        ({"routed_scaling_factor": 0.0}, "routed_scaling_factor"),
        ({"dense_intermediate_size": 48}, "shape"),
        ({"layer_types": ["full_attention"] * 3}, "an index"),
        ({"layer_types": ["minimax_m3_sparse"] * 3}, "an index"),
        ({"mlp_layer_types": ["sparse", "dense", "sparse"]}, "an index"),
        ({"mlp_layer_types": ["dense", "odd", "sparse"]}, "mlp_layer_types"),
        ({"mlp_layer_types": ["dense"] * 3, "layer_types": ["full_attention"] * 3}, "has experts"),
        ({"layer_types": ...}, "layer_types"),
        ({"sparse_attention_config": 5}, "sparse_attention_config"),
        (of_the_hub(sparse_attention_freq=[0, 1]), "layer_types"),
        (of_the_hub(sparse_attention_freq=None), "layer_types"),
        (of_the_hub(use_sparse_attention=False), "use_sparse_attention"),
        (of_the_hub(sparse_score_type="mean"), "sparse_score_type"),
        (of_the_hub(sparse_init_block=1), "sparse_init_block"),
        (of_the_hub(sparse_disable_index_value=[0, 1, 0]), "sparse_disable_index_value"),
        (of_the_hub(sparse_num_index_heads=4), "index_n_heads"),
    ],
    ids=str,
)
def test_another_one_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("minimax-m3", changes, tmp_path)
