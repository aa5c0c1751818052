"""Falcon-H1: where the numbers go that its matrices are multiplied with, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.adaptable import Adaptable
from shimmy.formats.convert.convert import convert, plan
from shimmy.formats.format_errors import Unconvertible
from tests.formats.convert.families.changed_folders import changed, check_names_of_tensors, reason
from tests.golden.weights import write_folder


@pytest.mark.parametrize("family", ["falcon-h1", "falcon-h1-tied"])
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path)


def test_matrices_stay_in_their_type(tmp_path: Path) -> None:
    outputs = plan(write_folder("falcon-h1", tmp_path / "model", "5", "BF16")).recipe.outputs
    wide = {output.info.name for output in outputs if output.info.kind == "F32" and len(output.info.shape) == 2}
    small = {f"blk.{layer}.{name}" for layer in (0, 1) for name in ("ssm_conv1d.weight", "ssm_a", "ssm_d")}
    assert wide - small == {"token_embd.weight"}  # which are looked up, and multiplied with nothing


def test_a_head_beside_embeddings_that_are_tied_to_it_has_to_be_the_same(tmp_path: Path) -> None:
    folder = changed("falcon-h1", {"tie_word_embeddings": True}, tmp_path)
    with pytest.raises(Unconvertible, match="lm_head"):
        convert(folder, tmp_path / "made.gguf", lambda _: None)


def test_a_head_is_needed_where_nothing_ties_it(tmp_path: Path) -> None:
    assert "lm_head" in reason("falcon-h1-tied", {"tie_word_embeddings": ...}, tmp_path)


def test_adapters_would_be_added_behind_the_numbers() -> None:
    assert Adaptable.of("falcon-h1").row("model.layers.0.self_attn.q_proj")[0] is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"ssm_multipliers": [0.7, 0.5, 0.35, 1.2, 0.8]}, "ssm_multipliers"),
        ({"ssm_multipliers": [0.7, 0.5]}, "ssm_multipliers"),
        ({"ssm_multipliers": 0.7}, "ssm_multipliers"),
        ({"mlp_multipliers": [0.0, 1.0]}, "mlp_multipliers"),
        ({"mlp_multipliers": [1.0, "much"]}, "mlp_multipliers"),
        ({"embedding_multiplier": -1.0}, "embedding_multiplier"),
        ({"lm_head_multiplier": 1e30}, "lm_head_multiplier"),
        ({"key_multiplier": 0}, "key_multiplier"),
        ({"mamba_rms_norm": True}, "mamba_rms_norm"),
        ({"mamba_conv_bias": False}, "mamba_conv_bias"),
        ({"mamba_proj_bias": True}, "mamba_proj_bias"),
        ({"projectors_bias": True}, "projectors_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"mamba_d_ssm": 128}, "mamba_d_ssm"),
        ({"mamba_n_heads": 5, "mamba_n_groups": 2}, "mamba_n_heads"),
        ({"time_step_limit": [0.1, 1.0]}, "time_step_limit"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}}, "linear"),
        ({"hidden_act": "gelu"}, "activation"),
    ],
    ids=str,
)
def test_another_falcon_h1_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("falcon-h1", changes, tmp_path)
