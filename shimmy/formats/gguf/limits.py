"""What llama.cpp would abort on in the metadata and tensors of a model, found in the header and said in words.

The limits are those of llama.cpp's `llama_model_base::load_hparams`, `llama-hparams.h` and of ggml's operations on the
CPU. Knows nothing of files. What is not looked for here, the engine refuses by itself, or says as it gives up.
"""

import math
from collections.abc import Container, Iterable, Mapping

from shimmy.formats.gguf.header import INDEXED, Array, Value, selecting_layers

MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1_024  # LLAMA_MAX_EXPERTS
MAX_BLOCK_TOKENS = 65_536  # to which, as one, a layer attends: masks are as long as the last one's end
MIN_CONTEXT = 2  # tokens: one to read and one to write
MAX_CONTEXT = 2**31 - 1  # where a length is signed
_ROPE_SCALINGS = (b"none", b"linear", b"yarn", b"longrope")
_NO_TOKENIZERS = (b"none", b"no_vocab")
_EPSILONS = ("layer_norm_rms_epsilon", "layer_norm_epsilon", "group_norm_epsilon")
_F32 = 0
_MIN_INDEX_SIZE = 64  # of the matrices, all of powers of two, that the keys of indexers are rotated with
_INDEXER = ("attn_q_b.weight", "attn_k.weight", "k_norm.weight", "k_norm.bias", "proj.weight")
# ggml_type: Q8_1 and Q8_K are for activations, and matrices of I8, I16, I32, I64 and F64 cannot be multiplied with.
_NO_WEIGHTS = {9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}
# ggml adds and multiplies with these in F32 alone.
_ALWAYS_F32 = (b"norm.weight", b".bias")
_TABLES_OF_NUMBERS = b"tid2eid.weight"  # which experts a token has


def refusal(
    metadata: Mapping[bytes, Value], architecture: str, tensors: Iterable[tuple[bytes, int, int]]
) -> str | None:
    """Why a model cannot be served, None where nothing stands against it; `tensors` are name, dimensions, ggml_type."""
    return (
        _about_sizes(metadata, architecture)
        or _about_experts(metadata, architecture)
        or _about_indexers(metadata, architecture)
        or _about_delta_attention(metadata, architecture)
        or _about_block_indexes(metadata, architecture)
        or _about_numbers(metadata, architecture)
        or _about_tensors(tensors)
    )


def _about_sizes(metadata: Mapping[bytes, Value], architecture: str) -> str | None:
    if metadata.get(b"tokenizer.ggml.model") in _NO_TOKENIZERS:
        return "it has no tokenizer: its tokens cannot be made text"
    if architecture.startswith("gemma") and metadata.get(f"{architecture}.rope.dimension_count".encode()) == 0:
        return "its positions have 0 dimensions"  # the engine would reckon for ever
    n_blocks, n_ctx, n_nextn = (
        metadata.get(f"{architecture}.{key}".encode())
        for key in ("block_count", "context_length", "nextn_predict_layers")
    )
    if isinstance(n_blocks, int) and not 0 < n_blocks <= MAX_BLOCKS:
        return f"it has {n_blocks} blocks, and the engine takes 1 to {MAX_BLOCKS}"
    if isinstance(n_ctx, int) and n_ctx < MIN_CONTEXT:
        return f"its context length is {n_ctx}, too few tokens to read and write any"
    if isinstance(n_ctx, int) and n_ctx > MAX_CONTEXT:  # the engine would tell of a negative one
        return f"its context length is {n_ctx}, and the engine takes {MAX_CONTEXT} at most"
    if isinstance(n_nextn, int) and isinstance(n_blocks, int) and n_nextn > n_blocks:
        return f"{n_nextn} of its {n_blocks} blocks are to predict further tokens"
    return None


def _about_experts(metadata: Mapping[bytes, Value], architecture: str) -> str | None:
    if architecture.startswith("hunyuan"):  # one expert is none there
        return None
    n_experts, n_groups, n_groups_used = (
        _largest(metadata.get(f"{architecture}.{key}".encode()))
        for key in ("expert_count", "expert_group_count", "expert_group_used_count")
    )
    n_used = _largest(metadata.get(f"{architecture}.expert_used_count".encode()))
    if n_experts > MAX_EXPERTS:
        return f"it has {n_experts} experts, and the engine takes {MAX_EXPERTS} at most"
    if n_used > n_experts or (n_experts and not n_used):
        return f"it uses {n_used} of its {n_experts} experts"
    if n_groups and n_groups >= n_experts:
        return f"its {n_experts} experts are in {n_groups} groups"
    if n_groups > 1 and (n_experts % n_groups or not 0 < n_groups_used < n_groups):
        return f"it uses {n_groups_used} of {n_groups} groups of its {n_experts} experts"
    return None


def _about_indexers(metadata: Mapping[bytes, Value], architecture: str) -> str | None:
    if architecture not in INDEXED:
        return None
    selects = selecting_layers(metadata, architecture)
    if not selects:  # the engine would look for the size of their keys for ever
        return "it has no blocks but those that predict further tokens"
    size, n_rotated = (
        _largest(metadata.get(f"{architecture}.{key}".encode()))
        for key in ("attention.indexer.key_length", "rope.dimension_count")
    )
    if size.bit_count() != 1 or size < max(_MIN_INDEX_SIZE, n_rotated):
        return f"its indexers have keys of {size} numbers, where the engine needs a power of two of 64 or more"
    if metadata.get(f"{architecture}.attention.indexer.top_k".encode()) == 0:  # the engine would say nothing
        return "its layers select 0 tokens to attend to"
    return None if selects[0] else "its first layer has no indexer, and no layer before it has selected tokens"


def _about_delta_attention(metadata: Mapping[bytes, Value], architecture: str) -> str | None:
    if architecture == "kimi-linear" and _largest(metadata.get(b"kimi-linear.attention.q_lora_rank")):
        return "its queries are made in two steps, which the engine does not compute for Kimi Linear"
    if architecture == "bailingmoe3":
        bound, is_safe = (metadata.get(f"bailingmoe3.kda.{key}".encode()) for key in ("gate_lower_bound", "safe_gate"))
        if is_safe == 0 or (isinstance(bound, int | float) and not bound < 0):
            return "its states fade without a bound, which the engine does not compute for Ling 3"
    return None


def _about_block_indexes(metadata: Mapping[bytes, Value], architecture: str) -> str | None:
    """Of the blocks of tokens that layers attend to."""
    if architecture != "minimax-m3":
        return None
    n_heads, n_heads_kv, size, n_rotated, n_tokens, n_blocks = (
        _largest(metadata.get(f"{architecture}.{key}".encode()))
        for key in (
            "attention.indexer.head_count", "attention.head_count_kv", "attention.indexer.key_length",
            "rope.dimension_count", "attention.indexer.block_size", "attention.indexer.top_k",
        )
    )  # fmt: skip
    if n_heads != n_heads_kv:
        return f"its index has {n_heads} heads, where the engine needs one for each of the {n_heads_kv} heads of keys"
    if size < n_rotated:
        return f"its index has keys of {size} numbers, of which {n_rotated} would be rotated"
    if not 0 < n_tokens <= MAX_BLOCK_TOKENS or not n_blocks:
        return f"its layers attend to {n_blocks} blocks of {n_tokens} tokens"
    return None


def missing_indexer(metadata: Mapping[bytes, Value], architecture: str, tensors: Container[bytes]) -> str | None:
    """What of an indexer is not among `tensors`, all of a model's, which the engine would use without looking."""
    for layer, selects in enumerate(selecting_layers(metadata, architecture)):
        for part in _INDEXER if selects else ():
            name = f"blk.{layer}.indexer.{part}"
            if name.encode() not in tensors:
                return (
                    f"it has no `{name}`, and the engine selects tokens by it: another GGUF of this model may have it"
                )
    return None


def _about_numbers(metadata: Mapping[bytes, Value], architecture: str) -> str | None:
    for name in _EPSILONS:
        epsilon = metadata.get(f"{architecture}.attention.{name}".encode())
        if isinstance(epsilon, float) and not (math.isfinite(epsilon) and epsilon >= 0):
            return f"its `{architecture}.attention.{name}` is {epsilon:g}, and has to be 0 or more"
    scaling = metadata.get(f"{architecture}.rope.scaling.type".encode(), _ROPE_SCALINGS[0])
    if isinstance(scaling, bytes) and scaling not in _ROPE_SCALINGS:
        return f"its positions are scaled in a way that is not known: `{scaling[:32].decode('utf-8', 'replace')}`"
    return None


def _about_tensors(tensors: Iterable[tuple[bytes, int, int]]) -> str | None:
    for name, n_dimensions, code in tensors:
        if name.endswith(_ALWAYS_F32) and code != _F32:
            return f"its tensor `{name.decode('utf-8', 'replace')}` is not F32, which the engine needs there"
        is_matrix = n_dimensions > 1 and name.endswith(b".weight") and not name.endswith(_TABLES_OF_NUMBERS)
        if is_matrix and code in _NO_WEIGHTS:
            return f"its tensor `{name.decode('utf-8', 'replace')}` is of type {_NO_WEIGHTS[code]}, no weights are"
    return None


def _largest(value: Value) -> int:
    numbers = value.numbers if isinstance(value, Array) else (value,)
    return max((number for number in numbers if isinstance(number, int)), default=0)
