"""Gemma 4: layers of two sizes, keys that layers share, and what is refused of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import convert, plan
from shimmy.formats.gguf import reader
from tests.formats.convert.families.changed_folders import changed, check_names_of_tensors, metadata, reason
from tests.golden.weights import N_VOCAB, checkpoint, write_folder, write_json, write_safetensors


@pytest.mark.parametrize("family", ["gemma4", "gemma4-large", "gemma4-moe"])
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path)


def test_keys_that_are_not_used_eyes_and_ears_are_passed_over(tmp_path: Path) -> None:
    folder = write_folder("gemma4", tmp_path / "model", "5")
    plain = plan(folder).shapes
    _, tensors = checkpoint("gemma4", "5")
    layer = "model.language_model.layers.3.self_attn"
    more = [f"{layer}.{part}.weight" for part in ("k_proj", "v_proj", "k_norm")]
    more += [f"model.{part}.weight" for part in ("vision_tower.a", "embed_vision.b", "audio_tower.c", "embed_audio.d")]
    write_safetensors(folder / "model.safetensors", {**tensors, **dict.fromkeys(more, ("F32", (4,), bytes(16)))})
    assert plan(folder).shapes == plain


def test_sizes_of_layers_are_read_in_the_style_of_any_version(tmp_path: Path) -> None:
    folder = write_folder("gemma4-large", tmp_path / "model", "5")
    plain = plan(folder).recipe
    config = json.loads((folder / "config.json").read_text())
    own = {"head_dim": 32, "num_key_value_heads": 1}
    assert ("per_layer_config" in config) != ("global_head_dim" in config)
    for key in ("per_layer_config", "global_head_dim", "num_global_key_value_heads"):
        config.pop(key, None)
    for style in ({"per_layer_config": {"2": own}}, {"global_head_dim": 32, "num_global_key_value_heads": 1}):
        write_json(folder / "config.json", config | style)
        found = plan(folder).recipe
        assert (found.metadata, found.outputs) == (plain.metadata, plain.outputs)


def test_inputs_of_layers_that_a_model_does_not_have_limit_no_tokens(tmp_path: Path) -> None:
    folder = changed("gemma4-large", {"vocab_size_per_layer_input": 7}, tmp_path)
    convert(folder, tmp_path / "model.gguf", lambda _: None)
    assert reader.validated(tmp_path / "model.gguf").tensors[b"token_embd.weight"].shape[1] == N_VOCAB


@pytest.mark.parametrize("own", [{}, {layer: {"num_key_value_heads": 2} for layer in "13"}], ids=str)
def test_layers_without_a_window_may_have_heads_of_the_size_of_all(own: dict[str, Any], tmp_path: Path) -> None:
    """Transformers leaves their size out of `per_layer_config` then."""
    folder = changed("gemma4", {"per_layer_config": own}, tmp_path)
    _, tensors = checkpoint("gemma4", "5")
    for name in [name for name in tensors if "layers.1.self_attn" in name or "layers.3.self_attn" in name]:
        layer = int(name.partition("layers.")[2][0])
        tensors[name] = tensors[name.replace(f"layers.{layer}", f"layers.{layer - 1}")]
    write_safetensors(folder / "model.safetensors", tensors)
    found = metadata(folder)
    assert found["attention.key_length"] == found["attention.key_length_swa"] == 16


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ({"attention_bias": True}, "attention_bias"),
        ({"num_kv_shared_layers": 1}, "share"),
        ({"num_kv_shared_layers": 4}, "num_kv_shared_layers"),
        ({"num_kv_shared_layers": 0}, "layers.2.self_attn.k_proj"),
        ({"use_double_wide_mlp": False}, "shape"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types"),
        (
            {"layer_types": ["full_attention"] * 4, "per_layer_config": ..., "global_head_dim": 32},
            "no layer with a window",
        ),
        ({"layer_types": ["sliding_attention"] * 4, "per_layer_config": {}}, "layer_types"),
        ({"hidden_size_per_layer_input": 0}, "per_layer"),
        ({"hidden_size_per_layer_input": 10**9}, "hidden_size_per_layer_input"),
        ({"vocab_size_per_layer_input": 7}, "shape"),
        ({"final_logit_softcapping": 0.0}, "final_logit_softcapping"),
        ({"enable_moe_block": True, "num_experts": 6, "top_k_experts": 7}, "num_experts_per_tok"),
        ({"hidden_activation": "silu"}, "activation"),
        ({"per_layer_config": {"1": {"head_dim": 32}}}, "per_layer_config"),
        ({"per_layer_config": {str(layer): {"head_dim": 30 + layer} for layer in (1, 3)}}, "per_layer_config"),
        (
            {"per_layer_config": {str(layer): {"head_dim": 32, "sliding_window": 4} for layer in (1, 3)}},
            "per_layer_config",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5000.0}}}, "rope_type"),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "proportional", "rope_theta": 5000.0, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                }
            },
            "factor",
        ),
    ],
    ids=str,
)
def test_another_gemma_4_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("gemma4", changes, tmp_path)
