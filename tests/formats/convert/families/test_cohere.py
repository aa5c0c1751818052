"""Command R, Command R7B and A, and what is refused of them."""

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


@pytest.mark.parametrize("family", ["cohere", "cohere2"])
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path)


def test_norms_of_heads_are_needed_where_they_are_promised(tmp_path: Path) -> None:
    folder = write_folder("cohere-norms", tmp_path / "model", "5")
    _, tensors = checkpoint("cohere-norms", "5")
    name = "model.layers.63.self_attn.k_norm.weight"
    write_safetensors(folder / FILE, {other: tensor for other, tensor in tensors.items() if other != name})
    assert "layers.63.self_attn.k_norm" in refusal(folder)


def test_the_context_is_what_it_was_trained_for(tmp_path: Path) -> None:
    assert metadata(changed("cohere", {"model_max_length": 131_072}, tmp_path))["context_length"] == 131_072


def test_windows_follow_from_their_period(tmp_path: Path) -> None:
    kinds = metadata(write_folder("cohere2", tmp_path / "kinds" / "model", "5"))
    assert metadata(changed("cohere2", {"layer_types": ...}, tmp_path)) == kinds


@pytest.mark.parametrize("name", ["Cohere2VisionForConditionalGeneration", "AyaVisionForConditionalGeneration"])
def test_the_text_part_of_one_with_eyes_is_taken(name: str, tmp_path: Path) -> None:
    folder = write_folder("cohere2", tmp_path / "model", "5")
    wanted = plan(folder)
    text, tensors = checkpoint("cohere2", "5")
    config = {
        "architectures": [name], "model_type": "cohere2_vision", "vision_config": {},
        "text_config": text | {"architectures": None},
    }  # fmt: skip
    write_json(folder / "config.json", config)
    nested = {name.replace("model.", "model.language_model."): tensor for name, tensor in tensors.items()}
    more = ("model.vision_tower.head.weight", "model.multi_modal_projector.linear_1.weight")
    write_safetensors(folder / FILE, nested | dict.fromkeys(more, ("F32", (4,), bytes(16))))
    assert (plan(folder).recipe.metadata, plan(folder).shapes) == (wanted.recipe.metadata, wanted.shapes)


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [
        ("cohere", {"use_qk_norm": True}, "use_qk_norm"),
        ("cohere-norms", {"use_qk_norm": False}, "use_qk_norm"),
        ("cohere", {"attention_bias": True}, "attention_bias"),
        ("cohere", {"logit_scale": 0.0}, "logit_scale"),
        ("cohere", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("cohere", {"hidden_act": "gelu"}, "activation"),
        ("cohere", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0}}, "yarn"),
        ("cohere", {"use_parallel_block": False}, "use_parallel_block"),
        ("cohere", {"use_gated_activation": False}, "use_gated_activation"),
        ("cohere", {"head_dim": 32}, "head_dim"),
        ("cohere2", {"use_qk_norm": True}, "use_qk_norm"),
        ("cohere2", {"rotary_pct": 0.5}, "rotary_pct"),
        ("cohere2", {"order_of_interleaved_layers": "global_attn_first"}, "order_of_interleaved_layers"),
        ("cohere2", {"layer_types": ["full_attention"] * 5}, "layer_types"),
        ("cohere2", {"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ("cohere2", {"sliding_window": 0}, "sliding_window"),
    ],
    ids=str,
)
def test_another_one_is_refused(family: str, changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason(family, changes, tmp_path)
