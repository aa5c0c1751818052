"""Qwen3-Next and Qwen3.5: gated delta nets, and what is refused of them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import convert, plan
from tests.formats.convert.families.changed_folders import changed, check_names_of_tensors, metadata, reason, refusal
from tests.golden.weights import Tensor, checkpoint, write_folder, write_json, write_safetensors


@pytest.mark.parametrize("family", ["qwen3-next", "qwen35", "qwen35-moe"])
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path)


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen25-vl", "qwen3-vl", "qwen3-vl-moe"])
def test_each_tensor_of_the_text_part_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path, lambda name: "visual." in name)


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen25-vl"])
def test_a_config_without_a_part_for_texts_is_the_same(family: str, tmp_path: Path) -> None:
    """As most of these models are published: with all settings beside those of the eyes, and `mrope` as a type."""
    folder = write_folder(family, tmp_path / "model", "4")
    nested = plan(folder)
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    scaling = {"type": "mrope", "mrope_section": [2, 3, 3]}
    write_json(folder / "config.json", {**text, **config, "rope_scaling": scaling})
    assert plan(folder).recipe.metadata == nested.recipe.metadata


def test_positions_of_a_model_with_eyes_can_be_scaled(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    found = metadata(changed("qwen25-vl", {"rope_parameters": rope | {"mrope_section": [2, 3, 3]}}, tmp_path))
    assert (found["rope.scaling.type"], found["rope.scaling.factor"]) == ("yarn", 4.0)


def turned(tensor: Tensor) -> Tensor:
    """Matrices of F32 by their columns."""
    dtype, (n_matrices, n_rows, n_columns), data = tensor
    numbers = [data[start : start + 4] for start in range(0, len(data), 4)]
    size = n_rows * n_columns
    columns = (
        numbers[matrix * size + column : (matrix + 1) * size : n_columns]
        for matrix in range(n_matrices)
        for column in range(n_columns)
    )
    return dtype, (n_matrices, n_columns, n_rows), b"".join(number for column in columns for number in column)


def test_experts_may_be_stored_by_rows_or_by_columns(tmp_path: Path) -> None:
    """By columns on the hub and by transformers 4; by rows where transformers 5 wrote them."""
    _, tensors = checkpoint("qwen3-vl-moe", "5")
    by_rows = {name: turned(tensor) if ".experts." in name else tensor for name, tensor in tensors.items()}
    made = []
    for name, found in (("columns", tensors), ("rows", by_rows)):
        folder = write_folder("qwen3-vl-moe", tmp_path / name / "model", "5")
        write_safetensors(folder / "model.safetensors", found)
        convert(folder, folder.with_suffix(".gguf"), lambda _: None)
        made.append(folder.with_suffix(".gguf").read_bytes())
    assert made[0] == made[1]


def test_square_matrices_of_experts_are_refused(tmp_path: Path) -> None:
    folder = changed("qwen3-vl-moe", {"moe_intermediate_size": 32}, tmp_path)
    _, tensors = checkpoint("qwen3-vl-moe", "5")
    sides = {"gate_up_proj": (6, 64, 64), "down_proj": (6, 32, 64)}
    cut = {
        name: ("F32", sides[name.rpartition(".")[2]], bytes(4 * math.prod(sides[name.rpartition(".")[2]])))
        for name in tensors
        if ".experts." in name
    }
    write_safetensors(folder / "model.safetensors", tensors | cut)
    assert "square" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({"moe_intermediate_size": 24}, "shape"),
    ],
    ids=str,
)
def test_other_experts_of_one_with_eyes_are_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("qwen3-vl-moe", changes, tmp_path)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5000.0}}, "llama3"),
        ({"hidden_act": "gelu"}, "activation"),
        ({"num_key_value_heads": 4}, "shape"),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["qwen2-vl", "qwen3-vl", "qwen3-vl-moe"])
def test_another_one_with_eyes_is_refused(family: str, changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason(family, changes, tmp_path)


def test_a_drafting_layer_and_eyes_are_passed_over(tmp_path: Path) -> None:
    folder = write_folder("qwen35", tmp_path / "model", "5")
    _, tensors = checkpoint("qwen35", "5")
    more = ("mtp.layers.0.input_layernorm.weight", "mtp.fc.weight", "model.visual.blocks.0.norm1.weight")
    write_safetensors(folder / "model.safetensors", {**tensors, **dict.fromkeys(more, ("F32", (4,), bytes(16)))})
    assert plan(folder).shapes == plan(write_folder("qwen35", tmp_path / "plain", "5")).shapes


def test_kinds_of_layers_follow_from_the_interval(tmp_path: Path) -> None:
    assert "layers.3.self_attn" in reason("qwen35", {"layer_types": ..., "full_attention_interval": 4}, tmp_path)


@pytest.mark.parametrize("family", ["qwen3-next", "qwen35-moe"])
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"layer_types": ["full_attention"] * 4}, "layer_types"),
        ({"layer_types": ["linear_attention"] * 3}, "layer_types"),
        ({"linear_value_head_dim": 32}, "linear_value_head_dim"),
        ({"linear_num_value_heads": 5}, "linear_num_value_heads"),
        ({"linear_num_value_heads": 4}, "shape"),
        ({"linear_num_value_heads": 132}, "linear_num_value_heads"),
        ({"linear_num_key_heads": 3}, "shape"),
        ({"linear_num_key_heads": 10**9}, "linear_num_key_heads"),
        ({"linear_conv_kernel_dim": 3}, "shape"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "activation"),
        ({"moe_intermediate_size": 32}, "shape"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5000.0}}, "llama3"),
    ],
    ids=str,
)
def test_another_one_is_refused(family: str, changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason(family, changes, tmp_path)


@pytest.mark.parametrize("sections", [[3, 3, 2], [6, 1, 1], [11, 11, 10], None])
def test_each_pair_of_a_head_is_rotated_whatever_the_sections_are(sections: list[int] | None, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5, "mrope_section": sections}
    found = metadata(changed("qwen35", {"rope_parameters": rope}, tmp_path))
    _, (times, heights, widths, others) = found["rope.dimension_sections"]
    covered = [place for place in range(64) if place < 3 * (times, heights, widths)[place % 3]]
    assert covered == list(range(len(covered)))
    assert found["rope.dimension_count"] // 2 <= len(covered) <= found["attention.key_length"]
    assert others == 0


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_checkpoint_says_whether_a_head_is_tied_where_config_json_says_both(is_tied: bool, tmp_path: Path) -> None:
    folder = changed("qwen35-multimodal", {"tie_word_embeddings": is_tied}, tmp_path)  # in the text model's part
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"tie_word_embeddings": not is_tied})
    assert "output.weight" not in plan(folder).shapes
    _, tensors = checkpoint("qwen35-multimodal", "5")
    (embeddings,) = [tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight")]
    write_safetensors(folder / "model.safetensors", {**tensors, "lm_head.weight": embeddings})
    assert "output.weight" in plan(folder).shapes
