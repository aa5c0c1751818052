"""GLM 4 and GLM 4.5, and what is refused of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import plan
from tests.formats.convert.families.changed_folders import check_names_of_tensors, reason
from tests.golden.weights import checkpoint, write_folder, write_json, write_safetensors


@pytest.mark.parametrize("family", ["glm4", "glm4-moe", "glm4-moe-norms"])
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path)


@pytest.mark.parametrize("family", ["glm4v", "glm4v-moe"])
def test_each_tensor_of_the_text_part_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path, lambda name: "visual." in name)


@pytest.mark.parametrize("family", ["glm4v", "glm4v-moe"])
def test_glm_4_6v_is_the_same_under_another_class(family: str, tmp_path: Path) -> None:
    folder = write_folder(family, tmp_path / "model", "5")
    wanted = plan(folder)
    config = json.loads((folder / "config.json").read_text())
    change = {"architectures": ["Glm46VForConditionalGeneration"], "model_type": "glm46v"}
    write_json(folder / "config.json", config | change)
    assert (plan(folder).recipe.metadata, plan(folder).shapes) == (wanted.recipe.metadata, wanted.shapes)


def test_a_drafting_layer_is_passed_over_and_no_more_than_that(tmp_path: Path) -> None:
    folder = write_folder("glm4-moe", tmp_path / "model", "5")
    plain = plan(folder).shapes
    _, tensors = checkpoint("glm4-moe", "5")
    draft = {"model.layers.3.eh_proj.weight": ("F32", (4,), bytes(16))}
    write_safetensors(folder / "model.safetensors", {**tensors, **draft})
    assert plan(folder).shapes == plain
    assert "layers.3.eh_proj" not in reason("glm4-moe", {"num_hidden_layers": 4}, tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"n_group": 2}, "n_group"),
        ({"topk_group": 2}, "topk_group"),
        ({"routed_scaling_factor": 0.0}, "routed_scaling_factor"),
        ({"n_shared_experts": 1}, "shape"),
        ({"n_shared_experts": 10**9}, "n_shared_experts"),
        ({"first_k_dense_replace": 2}, "layers.1.mlp"),
        ({"first_k_dense_replace": 3}, "first_k_dense_replace"),
        ({"use_qk_norm": True}, "layers.0.self_attn.q_norm"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers"),
        ({"hidden_act": "gelu"}, "activation"),
    ],
    ids=str,
)
def test_another_glm_45_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("glm4-moe", changes, tmp_path)


def test_norms_of_heads_are_not_left_out(tmp_path: Path) -> None:
    assert "k_norm" in reason("glm4-moe-norms", {"use_qk_norm": False}, tmp_path)
