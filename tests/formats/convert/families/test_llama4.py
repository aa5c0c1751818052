"""Llama 4, and what is refused of it: most of it is a constant of the engine."""

from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import plan
from tests.formats.convert.families.changed_folders import (
    FILE,
    changed,
    check_names_of_tensors,
    metadata,
    reason,
    refusal,
)
from tests.golden.weights import checkpoint, write_folder, write_json, write_safetensors


def test_each_tensor_is_needed(tmp_path: Path) -> None:
    check_names_of_tensors("llama4", tmp_path)


def test_the_text_part_of_one_with_eyes_is_taken(tmp_path: Path) -> None:
    folder = write_folder("llama4", tmp_path / "model", "5")
    wanted = plan(folder)
    text, tensors = checkpoint("llama4", "5")
    config = {
        "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "vision_config": {},
        "text_config": text | {"architectures": None},
    }  # fmt: skip
    write_json(folder / "config.json", config)
    nested = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    more = ("vision_model.class_embedding", "multi_modal_projector.linear_1.weight")
    write_safetensors(folder / FILE, nested | dict.fromkeys(more, ("F32", (4,), bytes(16))))
    assert (plan(folder).recipe.metadata, plan(folder).shapes) == (wanted.recipe.metadata, wanted.shapes)


def test_widths_are_told_under_the_names_that_others_have(tmp_path: Path) -> None:
    found = metadata(write_folder("llama4", tmp_path / "model", "5"))
    assert (found["feed_forward_length"], found["expert_feed_forward_length"]) == (96, 48)
    assert found["interleave_moe_layer_step"] == 2


def test_an_older_word_for_the_growth_of_queries_is_known(tmp_path: Path) -> None:
    plan(changed("llama4", {"attn_temperature_tuning": 4, "no_rope_layers": [], "layer_types": ...}, tmp_path))


@pytest.mark.parametrize("family", ["llama4", "qwen3-vl-moe"])
def test_quantised_experts_by_columns_are_refused(family: str, tmp_path: Path) -> None:
    quantised = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    folder = write_folder(family, tmp_path / "model", "5")
    config, tensors = checkpoint(family, "5")
    write_json(folder / "config.json", config | {"quantization_config": quantised})
    eighths = {
        name: ("F8_E4M3", shape, data[: len(data) // 4]) if ".experts." in name else (dtype, shape, data)
        for name, (dtype, shape, data) in tensors.items()
    }
    write_safetensors(folder / FILE, eighths)
    assert "quantised as they lie, by columns" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"attention_chunk_size": 4096}, "attention_chunk_size"),
        ({"floor_scale": 4096}, "floor_scale"),
        ({"attn_scale": 0.2}, "attn_scale"),
        ({"attn_temperature_tuning": False}, "attn_temperature_tuning"),
        ({"no_rope_layers": [1] * 5}, "no_rope_layers"),
        ({"no_rope_layers": ..., "no_rope_layer_interval": 2}, "no_rope_layer_interval"),
        ({"layer_types": ["full_attention"] * 5}, "layer_types"),
        ({"use_qk_norm": False}, "use_qk_norm"),
        ({"num_local_experts": 128}, "use_qk_norm"),
        ({"attention_bias": True}, "attention_bias"),
        ({"moe_layers": [0, 2, 4]}, "moe_layers"),
        ({"moe_layers": ..., "interleave_moe_layer_step": 1}, "layers.0.feed_forward"),
        ({"num_local_experts": 5}, "shape"),
        ({"intermediate_size": 64}, "shape"),
        ({"intermediate_size_mlp": 64}, "shape"),
        ({"hidden_act": "gelu"}, "activation"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0}}, "yarn"),
    ],
    ids=str,
)
def test_another_one_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("llama4", changes, tmp_path)
