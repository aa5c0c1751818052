"""Writes folders as the Hugging Face hub ships them, with tiny models of random weights in SafeTensors.

The same arguments give the same bytes. `write_tiny_llama` writes the very model that `write_tiny_model` writes as GGUF.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.golden.weights import Numbers, encode
from tests.tiny_models import (
    BOS_TOKEN,
    CHATML,
    EOS_TOKEN,
    N_EMBD,
    N_FF,
    N_HEAD,
    N_LAYER,
    UNKNOWN_TOKEN,
    model_tensors,
    vocabulary,
)

N_VOCAB = len(vocabulary())


@dataclass(frozen=True)
class Weights:
    """One tensor; `shape` as SafeTensors has it, the row length last."""

    shape: tuple[int, ...]
    data: bytes
    dtype: str = "F32"


def encode_safetensors(tensors: Mapping[str, Weights]) -> bytes:
    """One file, with the padding that its own library writes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        offsets = [end, end + len(tensor.data)]
        entries[name] = {"dtype": tensor.dtype, "shape": [*tensor.shape], "data_offsets": offsets}
        end = offsets[1]
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + b"".join(tensor.data for tensor in tensors.values())


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Weights], *, n_shards: int = 1
) -> Path:
    """Write config.json and the tensors, in one file or in shards with an index; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if n_shards == 1:
        (folder / "model.safetensors").write_bytes(encode_safetensors(tensors))
        return folder
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for index in range(n_shards):
        file_name = f"model-{index + 1:05d}-of-{n_shards:05d}.safetensors"
        shard = {name: tensors[name] for name in names[index::n_shards]}
        (folder / file_name).write_bytes(encode_safetensors(shard))
        weight_map |= dict.fromkeys(shard, file_name)
    index_json = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_json))
    return folder


def write_tokenizer(folder: Path) -> None:
    """The vocabulary of the tiny GGUFs as a SentencePiece model, with the files beside it."""
    pieces = b"".join(_piece(text, -float(index), kind) for index, (text, kind) in enumerate(vocabulary()))
    trainer = b"\x18\x02\x98\x02\x01"  # model_type BPE, byte_fallback
    normalizer = b"\x0a\x08identity\x18\x01\x20\x00\x28\x01"  # a prefix, all white space, and that as `▁`
    specs = b"\x12" + _varint(len(trainer)) + trainer + b"\x1a" + _varint(len(normalizer)) + normalizer
    (folder / "tokenizer.model").write_bytes(pieces + specs)
    tokenizer_config = {
        "add_bos_token": True, "add_eos_token": False, "add_prefix_space": True, "bos_token": "<s>",
        "eos_token": "</s>", "unk_token": "<unk>", "chat_template": CHATML, "tokenizer_class": "LlamaTokenizer",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))


def _piece(text: str, score: float, kind: int) -> bytes:
    """`ModelProto.pieces` of sentencepiece_model.proto; its types are llama.cpp's."""
    data = text.encode()
    body = b"\x0a" + _varint(len(data)) + data + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind)
    return b"\x0a" + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": N_EMBD, "intermediate_size": N_FF,
    "num_hidden_layers": N_LAYER, "num_attention_heads": N_HEAD, "num_key_value_heads": N_HEAD, "hidden_act": "silu",
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": N_VOCAB,
    "bos_token_id": BOS_TOKEN, "eos_token_id": EOS_TOKEN, "unk_token_id": UNKNOWN_TOKEN,
    "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip

LLAMA_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def llama_tensors(seed: int = 0) -> dict[str, Weights]:
    """The tensors of the tiny GGUF by the names, and with the order of rows, that transformers has."""
    tensors = {}
    for tensor in model_tensors(seed):
        base = tensor.name.removesuffix(".weight")
        data = tensor.data
        if base.startswith("blk."):
            _, layer, base = base.split(".")
            if base in {"attn_q", "attn_k"}:
                data = in_halves(data, N_HEAD, 4 * tensor.shape[0])
            name = f"model.layers.{layer}.{LLAMA_NAMES[base]}.weight"
        else:
            name = f"{LLAMA_NAMES[base]}.weight"
        tensors[name] = Weights(tensor.shape[::-1], data)
    return tensors


def in_halves(data: bytes, n_heads: int, row_bytes: int) -> bytes:
    """Of each head the rows with even numbers first, then those with odd ones: rotated pairs are half a head apart."""
    rows = [data[start : start + row_bytes] for start in range(0, len(data), row_bytes)]
    n_rows = len(rows) // n_heads
    heads = [rows[start : start + n_rows] for start in range(0, len(rows), n_rows)]
    return b"".join(row for head in heads for row in (*head[::2], *head[1::2]))


def write_tiny_llama(folder: Path, *, seed: int = 0, n_shards: int = 1) -> Path:
    """A folder that converts to the tensors, and says the text, of `write_tiny_model(..., seed=seed)`."""
    write_checkpoint(folder, LLAMA_CONFIG, llama_tensors(seed), n_shards=n_shards)
    write_tokenizer(folder)
    return folder


def random_weights(random: Random, shape: Sequence[int], dtype: str = "F32", deviation: float = 0.1) -> Weights:
    """Weights spread evenly around zero, in F32, F16 or BF16."""
    return Weights(tuple(shape), encode(random_numbers(random, shape, deviation), dtype), dtype)


def random_numbers(random: Random, shape: Sequence[int], deviation: float = 0.1) -> Numbers:
    """Those of `random_weights`, not rounded yet."""
    numbers = np.array([random.random() for _ in range(prod(shape))])
    return (2 * numbers - 1) * deviation * 3**0.5
