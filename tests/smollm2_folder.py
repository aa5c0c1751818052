"""SmolLM2 as the Hugging Face hub would ship it, written out of its GGUF: the weights of an F32 GGUF that llama.cpp
made, in SafeTensors, beside the tokenizer that its vocabulary is."""

import ctypes
import os
from array import array
from math import prod
from pathlib import Path
from typing import Any

from shimmy.engine.llama import binding
from shimmy.formats.gguf.reader import read_header, tensors
from shimmy.formats.gguf.tensor_types import GGML_TYPES
from tests.tiny_checkpoints import LLAMA_NAMES, Weights, in_halves, write_checkpoint
from tests.tokenizer_folders import read_metadata, smollm2, write_folder

ALIGNMENT = 32
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def write_as(file_type: int, source: Path, target: Path) -> Path:
    """The GGUF `source` with all weights of `file_type` (llama_ftype), made by llama.cpp itself."""
    params = binding.llama.llama_model_quantize_default_params()
    params.ftype = file_type
    params.allow_requantize = True
    if binding.llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp could not write {target}")
    return target


def write_smollm2_folder(folder: Path, gguf: Path, *, dtype: str = "F32", n_shards: int = 1) -> Path:
    """The folder of the model in `gguf`, whose weights are F32; as BF16 they are rounded as llama.cpp rounds."""
    metadata = read_metadata(gguf)
    n_heads, n_kv_heads = metadata["llama.attention.head_count"], metadata["llama.attention.head_count_kv"]
    config = CONFIG | {
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata["llama.rope.freq_base"],
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "torch_dtype": {"F32": "float32", "BF16": "bfloat16"}[dtype],
    }
    weights: dict[str, Weights] = {}
    for name, (shape, data) in _tensors(gguf).items():
        part = name.removesuffix(".weight")
        if part.endswith(("attn_q", "attn_k")):
            data = in_halves(data, n_heads if part.endswith("q") else n_kv_heads, 4 * shape[-1])  # noqa: PLW2901
        layer, _, short = part.removeprefix("blk.").rpartition(".")
        target = f"model.layers.{layer}.{LLAMA_NAMES[short]}" if layer else LLAMA_NAMES[short]
        weights[f"{target}.weight"] = Weights(shape, data if dtype == "F32" else _bf16(data), dtype)
    write_checkpoint(folder, config, weights, n_shards=n_shards)
    return write_folder(
        folder,
        tokenizer_json=smollm2(gguf),
        tokenizer_config_json={
            "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>",
            "chat_template": metadata["tokenizer.chat_template"], "tokenizer_class": "GPT2Tokenizer",
        },
    )  # fmt: skip


def _tensors(gguf: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Shape, the row length last, and bytes of each tensor; their data ends the file."""
    infos = tensors(gguf, read_header(gguf))
    sizes = {}
    for name, info in infos.items():
        _, block_elements, block_bytes = GGML_TYPES[info.code]
        sizes[name] = prod(info.shape) // block_elements * block_bytes
    start = gguf.stat().st_size - sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values())
    found = {}
    with gguf.open("rb") as file:
        for name, size in sizes.items():
            file.seek(start)
            found[name.decode()] = (infos[name].shape[::-1], file.read(size))
            start += -(-size // ALIGNMENT) * ALIGNMENT
    return found


def _bf16(data: bytes) -> bytes:
    """F32 numbers rounded to the nearest BF16, ties to even."""
    words = array("I", data)
    return array("H", [(word + 0x7FFF + (word >> 16 & 1)) >> 16 for word in words]).tobytes()
