"""Folders with a tiny Llama whose down projections are a matrix that a layout's own library wrote (golden/layouts.py).

Knows the golden cases as files of a model; what their weights are, a test asks the library's hash or the engine.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.engine.layouts.stored import cases, config_of, tensors_of
from tests.tiny_checkpoints import LLAMA_CONFIG, N_VOCAB, Weights, write_checkpoint, write_tokenizer

N_LAYERS = 2
MODULES = tuple(f"model.layers.{layer}.mlp.down_proj" for layer in range(N_LAYERS))
_HEAD_DIM, _N_HEADS = 16, 4


def write_layout_model(folder: Path, name: str) -> Path:
    """The new `folder` with the quantised weights of the golden case `name`; returns it."""
    case = cases()[name]
    stored = {key: tensor for module in MODULES for key, tensor in tensors_of(case, module).items()}
    return write_model(folder, (case["shape"][0], case["shape"][1]), stored, config_of(case))


def write_model(
    folder: Path, shape: tuple[int, int], down: Mapping[str, Weights], settings: Mapping[str, Any] | None = None
) -> Path:
    """The same model with other tensors for its down projections, of the `shape` (n_embd, n_ff); returns `folder`."""
    n_embd, n_ff = shape
    config = {
        **LLAMA_CONFIG, "hidden_size": n_embd, "intermediate_size": n_ff, "num_attention_heads": _N_HEADS,
        "num_key_value_heads": _N_HEADS, "head_dim": _HEAD_DIM, **(settings or {}),
    }  # fmt: skip
    write_checkpoint(folder, config, {**_other_tensors(n_embd, n_ff), **down})
    write_tokenizer(folder)
    return folder


def _other_tensors(n_embd: int, n_ff: int) -> dict[str, Weights]:
    """Of a Llama whose layers move log-probabilities by some tenths."""
    random = np.random.default_rng(4)

    def drawn(*shape: int, size: float) -> Weights:
        return Weights(shape, random.normal(0, size, shape).astype("<f4").tobytes())

    tensors = {
        "model.embed_tokens.weight": drawn(N_VOCAB, n_embd, size=1.0),
        "lm_head.weight": drawn(N_VOCAB, n_embd, size=0.1),
        "model.norm.weight": Weights((n_embd,), np.ones(n_embd, "<f4").tobytes()),
    }
    for layer in range(N_LAYERS):
        before = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{before}.{name}.weight"] = tensors["model.norm.weight"]
        for name in "qkv":
            tensors[f"{before}.self_attn.{name}_proj.weight"] = drawn(_N_HEADS * _HEAD_DIM, n_embd, size=0.1)
        tensors[f"{before}.self_attn.o_proj.weight"] = drawn(n_embd, _N_HEADS * _HEAD_DIM, size=0.1)
        for name in ("gate", "up"):
            tensors[f"{before}.mlp.{name}_proj.weight"] = drawn(n_ff, n_embd, size=0.1)
    return tensors
