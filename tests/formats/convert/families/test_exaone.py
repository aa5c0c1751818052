"""Exaone 3.5, 4.5 and K-EXAONE, and what is refused of them."""

from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import plan
from tests.formats.convert.families.changed_folders import FILE, changed, check_names_of_tensors, metadata, reason
from tests.golden.weights import checkpoint, write_folder, write_json, write_safetensors


@pytest.mark.parametrize("family", ["exaone3", "exaone-moe"])
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path)


@pytest.mark.parametrize("model_type", ["exaone4", "exaone4_5_text"])
def test_the_text_part_of_exaone_4_5_is_an_exaone_4(model_type: str, tmp_path: Path) -> None:
    folder = write_folder("exaone4-window", tmp_path / "model", "5")
    wanted = plan(folder)
    text, tensors = checkpoint("exaone4-window", "5")
    config = {
        "architectures": ["Exaone4_5_ForConditionalGeneration"], "model_type": "exaone4_5", "vision_config": {},
        "text_config": text | {"model_type": model_type, "architectures": None}, "tie_word_embeddings": False,
    }  # fmt: skip
    write_json(folder / "config.json", config)
    more = ("model.visual.blocks.0.norm1.weight", "mtp.layers.0.input_layernorm.weight", "mtp.fc.weight")
    nested = {name.replace("model.", "model.language_model."): tensor for name, tensor in tensors.items()}
    write_safetensors(folder / FILE, nested | dict.fromkeys(more, ("F32", (4,), bytes(16))))
    found = plan(folder)
    assert (found.recipe.metadata, found.shapes) == (wanted.recipe.metadata, wanted.shapes)


def test_a_base_of_the_rotation_that_is_left_out_is_that_of_transformers(tmp_path: Path) -> None:
    assert metadata(changed("exaone-moe", {"rope_parameters": ...}, tmp_path))["rope.freq_base"] == 10_000.0


def test_the_first_layers_without_experts_are_told_in_either_way(tmp_path: Path) -> None:
    kinds = metadata(write_folder("exaone-moe", tmp_path / "kinds" / "model", "5"))
    number = metadata(changed("exaone-moe", {"mlp_layer_types": ...}, tmp_path))
    assert kinds["leading_dense_block_count"] == number["leading_dense_block_count"] == 3


def test_windows_are_told_in_letters_or_by_a_period(tmp_path: Path) -> None:
    usual = write_folder("exaone-moe", tmp_path / "usual" / "model", "5")
    letters = changed("exaone-moe", {"layer_types": ..., "sliding_window_pattern": "LLLG"}, tmp_path)
    assert metadata(letters) == metadata(usual)


@pytest.mark.parametrize("name", ["ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"])
def test_either_spelling_of_the_class_is_known(name: str, tmp_path: Path) -> None:
    assert plan(changed("exaone-moe", {"architectures": [name]}, tmp_path)).architecture == "exaone-moe"


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [
        ("exaone3", {"activation_function": "gelu"}, "activation"),
        ("exaone3", {"num_layers": 3}, "h.2."),
        ("exaone3", {"num_layers": 1}, "h.1."),
        ("exaone3", {"num_key_value_heads": 4}, "shape"),
        ("exaone3", {"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ("exaone3", {"tie_word_embeddings": False}, "lm_head"),
        ("exaone-moe", {"sliding_window": ..., "layer_types": ["full_attention"] * 5}, "layer_types"),
        ("exaone-moe", {"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ("exaone-moe", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0}}, "yarn"),
        ("exaone-moe", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("exaone-moe", {"scoring_func": "softmax"}, "scoring_func"),
        ("exaone-moe", {"mlp_layer_types": ["dense", "sparse"] * 2 + ["sparse"]}, "mlp_layer_types"),
        ("exaone-moe", {"mlp_layer_types": ..., "first_k_dense_replace": 2}, "layers.2.mlp"),
        ("exaone-moe", {"num_shared_experts": 1}, "shape"),
        ("exaone-moe", {"n_group": 5}, "n_group"),
        ("exaone-moe", {"routed_scaling_factor": 0.0}, "routed_scaling_factor"),
        ("exaone-moe", {"num_experts": 7}, "shape"),
    ],
    ids=str,
)
def test_another_one_is_refused(family: str, changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason(family, changes, tmp_path)
