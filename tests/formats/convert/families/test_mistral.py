"""Mistral 3: the text part of a model with eyes, Ministral 3, and what is refused of both."""

import json
from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import convert, plan
from shimmy.formats.format_errors import Unconvertible
from tests.formats.convert.families.changed_folders import changed, check_names_of_tensors, metadata, reason
from tests.golden.weights import write_folder, write_json


def test_the_text_part_is_taken_by_the_names_that_both_versions_have(tmp_path: Path) -> None:
    found = plan(write_folder("mistral3", tmp_path / "model", "5"))
    assert (found.architecture, found.notices) == ("llama", ())
    assert not any("vision" in name or "projector" in name for name in found.shapes)


def test_each_tensor_of_ministral_3_is_needed(tmp_path: Path) -> None:
    check_names_of_tensors("ministral3", tmp_path)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 2.0}}, "llama3"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5000.0, "llama_4_scaling_beta": "much"}}, "llama_4"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "llama_4_scaling_beta": 0.1}},
            "original_max_position_embeddings",
        ),
        ({"hidden_act": "gelu"}, "activation"),
    ],
    ids=str,
)
def test_another_ministral_3_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("ministral3", changes, tmp_path)


def test_queries_grow_by_the_original_context_with_any_rotation(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5000.0, "llama_4_scaling_beta": 0.1}
    folder = changed("ministral3", {"rope_parameters": rope | {"original_max_position_embeddings": 16}}, tmp_path)
    found = metadata(folder)
    assert (found["attention.temperature_scale"], found["rope.scaling.original_context_length"]) == (0.1, 16)


def test_mistral_4_is_not_mistral_3(tmp_path: Path) -> None:
    changes = {"model_type": "mistral4", "head_dim": None, "rope_parameters": {"rope_type": "default"}}
    assert "num_key_value_heads" in reason("mistral3", changes, tmp_path)


def test_mistrals_own_format_is_refused_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "params.json", {"dim": 64, "n_layers": 2})
    (tmp_path / "consolidated.safetensors").write_bytes(bytes(8))
    with pytest.raises(Unconvertible, match=r"params\.json"):
        plan(tmp_path)


def test_mistrals_own_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_folder("ministral3", tmp_path / "model", "5")
    (folder / "tokenizer.json").rename(folder / "tekken.json")
    with pytest.raises(Unconvertible, match=r"tekken\.json"):
        convert(folder, tmp_path / "model.gguf", lambda _: None)


def test_a_folder_with_both_formats_is_read_by_its_config_json(tmp_path: Path) -> None:
    folder = write_folder("ministral3", tmp_path / "model", "5")
    (folder / "params.json").write_text(json.dumps({"dim": 64}))
    (folder / "consolidated.safetensors").write_bytes(bytes(8))
    assert plan(folder).architecture == "mistral3"
