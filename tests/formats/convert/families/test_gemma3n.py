"""Gemma 3n, and what is refused of it: llama.cpp has many of its sizes as constants."""

from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import convert, plan
from shimmy.formats.gguf import reader
from tests.formats.convert.families.changed_folders import reason, refusal
from tests.golden.weights import N_VOCAB, checkpoint, write_folder, write_safetensors


def test_tokens_without_inputs_of_the_layers_are_none(tmp_path: Path) -> None:
    """As published: the last embeddings stand for pictures and sounds."""
    folder = write_folder("gemma3n", tmp_path / "model", "5")
    _, tensors = checkpoint("gemma3n", "5")
    name = "model.language_model.embed_tokens.weight"
    dtype, (n_rows, width), data = tensors[name]
    tensors[name] = (dtype, (n_rows + 2, width), data + bytes(2 * 4 * width))
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 320', '"vocab_size": 322'))
    write_safetensors(folder / "model.safetensors", tensors)
    assert plan(folder).header().n_vocab == N_VOCAB
    convert(folder, tmp_path / "model.gguf", lambda _: None)
    found = reader.validated(tmp_path / "model.gguf").tensors
    assert found[b"per_layer_token_embd.weight"].shape[1] == found[b"token_embd.weight"].shape[1] == N_VOCAB


def test_keys_of_layers_that_share_them_may_be_missing(tmp_path: Path) -> None:
    """As transformers 5 writes them."""
    folder = write_folder("gemma3n", tmp_path / "model", "5")
    plain = plan(folder).shapes
    _, tensors = checkpoint("gemma3n", "5")
    unused = {
        f"model.language_model.layers.{layer}.self_attn.{part}.weight"
        for layer in (20, 21)
        for part in ("k_proj", "v_proj", "k_norm")
    }
    assert unused <= tensors.keys()
    write_safetensors(
        folder / "model.safetensors", {name: tensor for name, tensor in tensors.items() if name not in unused}
    )
    assert plan(folder).shapes == plain


@pytest.mark.parametrize(
    "name",
    ["altup_projections.2", "embed_tokens_per_layer", "layers.19.self_attn.k_proj", "layers.0.laurel.linear_left"],
)
def test_a_tensor_too_few_is_named(name: str, tmp_path: Path) -> None:
    folder = write_folder("gemma3n", tmp_path / "model", "5")
    plan(folder)
    _, tensors = checkpoint("gemma3n", "5")
    del tensors[f"model.language_model.{name}.weight"]
    write_safetensors(folder / "model.safetensors", tensors)
    assert name in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_kv_shared_layers": 4}, "num_kv_shared_layers"),
        ({"activation_sparsity_pattern": [0.9] * 22}, "activation_sparsity_pattern"),
        ({"layer_types": ["full_attention"] * 22}, "layer_types"),
        ({"altup_num_inputs": 2}, "altup_num_inputs"),
        ({"altup_active_idx": 1}, "altup_active_idx"),
        ({"altup_correct_scale": False}, "altup_correct_scale"),
        ({"laurel_rank": 32}, "laurel_rank"),
        ({"hidden_size_per_layer_input": 128}, "hidden_size_per_layer_input"),
        ({"final_logit_softcapping": 20.0}, "final_logit_softcapping"),
        ({"intermediate_size": [48] * 21 + [96]}, "intermediate_size"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
    ],
    ids=str,
)  # fmt: skip
def test_another_gemma_3n_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason("gemma3n", changes, tmp_path)
