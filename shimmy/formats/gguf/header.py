"""What the metadata of a GGUF file say of it: what it is, and the sizes that its memory is reckoned from.

Knows the keys of ggml and llama.cpp; nothing of how they lie in a file (`gguf` reads that), nor of bytes of memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

CONTEXT_LIMIT = "shimmy.context_length_limit"  # in our own files: beyond it the engine would compute something else
MAX_KEPT_NUMBERS = 1_024  # of an array; one for each layer is the most that is wanted

# fmt: off
# llama_ftype in include/llama.h, under the names people write into file names.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}
# fmt: on

# Architectures that only make embeddings; any other does where it says how to pool.
_ENCODERS = frozenset(
    ("bert", "modern-bert", "neo-bert", "eurobert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3",
     "t5encoder", "gemma-embedding", "llama-embed")
)  # fmt: skip
_WITHOUT_CACHE = _ENCODERS - {"t5encoder"}  # llama.cpp gives it one that it never uses
# Architectures that keep one vector a token for the keys and values of all heads (src/models/ in llama.cpp): a cache of
# such vectors has no values beside them. A file that was written before llama.cpp could do so lacks the `_mla` keys.
_LATENT_KEYS = ("attention.key_length_mla", "attention.value_length_mla")
_LATENT = frozenset(("deepseek2", "deepseek32", "glm-dsa", "mistral4", "kimi-linear", "kimi-k3", "bailingmoe3"))
INDEXED = frozenset(("deepseek32", "glm-dsa"))  # and a second cache, of the keys by which layers select tokens
_GLM52_CONTEXT = 2**20  # from there on, not all layers of a GLM 5 have such keys
_POOLING_TYPES = {1: "mean", 2: "cls", 3: "last", 4: "rank"}  # llama_pooling_type in include/llama.h


@dataclass(frozen=True, slots=True)
class Array:
    """An array: how long it is, its numbers where they are few, and how long the longest of its strings is."""

    n_items: int
    numbers: tuple[Any, ...] = ()
    longest_bytes: int = 0  # 0 where they were not walked one by one
    code: int = 0  # gguf_type of its items
    start: int = 0  # where in the file they begin


Value = int | float | bytes | Array | None  # None: a string too long to keep


class GgufKind(StrEnum):
    """What a GGUF file is; only a model can be served by itself."""

    MODEL = "model"
    PROJECTOR = "projector"
    ADAPTER = "adapter"
    IMPORTANCE_MATRIX = "importance matrix"
    VOCABULARY = "vocabulary"

    @property
    def noun(self) -> str:
        """With its article, for a sentence."""
        return f"{'an' if self[0] in 'aeiou' else 'a'} {self}"


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What one file says of itself. The second and later shards of a model know only their own tensors."""

    kind: GgufKind
    architecture: str  # '' in a later shard
    name: str  # general.name, '' when absent
    quantization: str  # of general.file_type, like 'Q4_K_M'; '' when unknown
    n_params: int  # elements of all tensors in this file
    n_ctx_train: int  # 0 when unknown
    n_vocab: int  # 0 when unknown, as are the next three
    n_layers: int
    n_embd: int
    n_ff: int  # of the widest layer
    n_expert_params: int  # about how many of n_params belong to experts that only some tokens use
    n_heads: int  # of the layer with the most, that a query attends with
    n_kv: int  # elements of K and V that one token takes in the KV cache of all layers
    n_state: int  # elements of the state that one sequence takes in all recurrent layers
    has_chat_template: bool
    is_embedding: bool  # made for embeddings, not for text
    is_causal: bool  # each token sees only those before it
    pooling: str  # 'mean', 'cls', 'last', or 'rank' for one that ranks texts; '' when the file does not say
    shard: int  # counted from 0
    n_shards: int
    size_bytes: int


def describe(metadata: dict[bytes, Value], n_tensors: int, n_params: int, size_bytes: int) -> GgufHeader:
    """What a file with this `metadata` is; all of it may be nonsense, and nothing is raised."""
    shard, n_shards = _integer(metadata, b"split.no"), _integer(metadata, b"split.count") or 1
    architecture = _text(metadata, b"general.architecture")
    file_type = metadata.get(b"general.file_type")
    is_causal = architecture not in _ENCODERS and metadata.get(f"{architecture}.attention.causal".encode(), 1) != 0
    pooling = _POOLING_TYPES.get(_integer(metadata, f"{architecture}.pooling_type".encode()), "")
    return GgufHeader(
        kind=_kind(metadata, n_tensors or n_shards > 1),
        architecture=architecture,
        name=_text(metadata, b"general.name"),
        quantization=_FILE_TYPES.get(file_type, "") if isinstance(file_type, int) else "",
        n_params=n_params,
        n_ctx_train=max(0, _integer(metadata, f"{architecture}.context_length".encode())),
        n_vocab=_n_vocab(metadata, architecture),
        n_layers=_n_layers(metadata, architecture),
        n_embd=_largest(metadata, architecture, "embedding_length"),
        n_ff=_largest(metadata, architecture, "feed_forward_length"),
        n_expert_params=_n_expert_params(metadata, architecture),
        n_heads=_largest(metadata, architecture, "attention.head_count"),
        n_kv=_n_kv(metadata, architecture),
        n_state=_n_state(metadata, architecture),
        has_chat_template=metadata.get(b"tokenizer.chat_template", b"") != b"",
        is_embedding=architecture in _ENCODERS or bool(pooling),
        is_causal=is_causal,
        pooling=pooling,
        shard=shard,
        n_shards=n_shards,
        size_bytes=size_bytes,
    )


def _n_vocab(metadata: dict[bytes, Value], architecture: str) -> int:
    tokens = metadata.get(b"tokenizer.ggml.tokens")
    return tokens.n_items if isinstance(tokens, Array) else _largest(metadata, architecture, "vocab_size")


def _n_layers(metadata: Mapping[bytes, Value], architecture: str) -> int:
    """No more than a model can have: others count them."""
    return min(_largest(metadata, architecture, "block_count"), MAX_KEPT_NUMBERS)


def _n_expert_params(metadata: dict[bytes, Value], architecture: str) -> int:
    """Of three matrices for each expert in each layer."""
    n_layers, n_experts = (_largest(metadata, architecture, key) for key in ("block_count", "expert_count"))
    keys = ("expert_feed_forward_length", "feed_forward_length")
    n_ff = next(filter(None, (_largest(metadata, architecture, key) for key in keys)), 0)
    return n_layers * n_experts * 3 * _largest(metadata, architecture, "embedding_length") * n_ff


def _n_kv(metadata: dict[bytes, Value], architecture: str) -> int:
    """As llama.cpp sizes its KV cache: for each layer its KV heads times the length of a key and a value."""
    if architecture in _WITHOUT_CACHE:
        return 0
    n_layers = _n_layers(metadata, architecture)
    n_heads = _numbers(metadata, architecture, "attention.head_count")
    n_heads_kv = _numbers(metadata, architecture, "attention.head_count_kv") or n_heads
    n_embd_head = _largest(metadata, architecture, "embedding_length") // max((1, *n_heads))
    n_key = _largest(metadata, architecture, "attention.key_length") or n_embd_head
    n_value = _largest(metadata, architecture, "attention.value_length") or n_embd_head
    if architecture in _LATENT and all(_largest(metadata, architecture, key) for key in _LATENT_KEYS):
        n_value = 0
    if architecture in INDEXED:  # the layers behind the last one, which draft, have no cell
        n_layers = max(0, n_layers - _largest(metadata, architecture, "nextn_predict_layers"))
    n_heads_in_all = sum(n_heads_kv[:n_layers]) if len(n_heads_kv) > 1 else n_layers * sum(n_heads_kv)
    return n_heads_in_all * (n_key + n_value) + _n_index(metadata, architecture, n_layers)


def _n_index(metadata: dict[bytes, Value], architecture: str, n_layers: int) -> int:
    """Elements of one token's keys in the second cache."""
    if architecture == "minimax-m3":  # of the layers with experts; llama.cpp sets values aside for them, too
        n_layers -= _largest(metadata, architecture, "leading_dense_block_count")
        keys = ("attention.indexer.key_length", "attention.value_length")
        return max(0, n_layers) * sum(_largest(metadata, architecture, key) for key in keys)
    selects = selecting_layers(metadata, architecture)[:n_layers]
    return selects.count(True) * _largest(metadata, architecture, "attention.indexer.key_length")


def selecting_layers(metadata: Mapping[bytes, Value], architecture: str) -> list[bool]:
    """Which layers select the tokens that they attend to by keys of their own; none of most architectures."""
    if architecture not in INDEXED:
        return []
    n_layers = max(0, _n_layers(metadata, architecture) - _largest(metadata, architecture, "nextn_predict_layers"))
    if architecture == "glm-dsa":
        if found := _numbers(metadata, architecture, "attention.indexer.types"):
            return [bool(number) for number in (found if len(found) > 1 else found * n_layers)][:n_layers]
        if _largest(metadata, architecture, "context_length") >= _GLM52_CONTEXT:
            return [layer < 2 or layer % 4 == 2 for layer in range(n_layers)]
    return [True] * n_layers


def _n_state(metadata: dict[bytes, Value], architecture: str) -> int:
    """As llama.cpp sizes the state of Mamba and its kin: for each layer that of its convolution and that of its SSM.

    Delta attention convolves queries, keys and values, and has a square matrix for each head; lightning attention
    (MiniMax 01) has that alone.
    """
    n_layers = _n_layers(metadata, architecture)
    size, n_heads = (_largest(metadata, architecture, key) for key in ("kda.head_dim", "attention.head_count"))
    if architecture == "minimax-01":
        return n_layers * n_heads * _largest(metadata, architecture, "attention.key_length") ** 2
    if size:
        kinds = _numbers(metadata, architecture, "attention.head_count_kv")[:n_layers]
        n_recurrent = kinds.count(0) if len(kinds) > 1 else n_layers
        n_inner, n_conv = n_heads * size, _largest(metadata, architecture, "ssm.conv_kernel")
        return n_recurrent * n_inner * (3 * max(0, n_conv - 1) + size)
    keys = ("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count")
    n_conv, n_inner, n_state, n_groups = (_largest(metadata, architecture, key) for key in keys)
    return n_layers * (max(0, n_conv - 1) * (n_inner + 2 * n_groups * n_state) + n_state * n_inner)


def _numbers(metadata: Mapping[bytes, Value], architecture: str, key: str) -> tuple[int, ...]:
    """The whole numbers under `key`, one for each layer or one for all; what cannot be a size counts as 0."""
    value = metadata.get(f"{architecture}.{key}".encode())
    values = value.numbers if isinstance(value, Array) else (value,) if value is not None else ()
    return tuple(number if isinstance(number, int) and 0 <= number < 2**32 else 0 for number in values)


def _largest(metadata: Mapping[bytes, Value], architecture: str, key: str) -> int:
    return max(_numbers(metadata, architecture, key), default=0)


def _kind(metadata: dict[bytes, Value], has_tensors: int | bool) -> GgufKind:
    declared = _text(metadata, b"general.type")
    if declared == "mmproj" or _text(metadata, b"general.architecture") == "clip":
        return GgufKind.PROJECTOR
    if declared == "adapter" or b"adapter.type" in metadata:
        return GgufKind.ADAPTER
    if declared == "imatrix":
        return GgufKind.IMPORTANCE_MATRIX
    return GgufKind.MODEL if has_tensors else GgufKind.VOCABULARY


def _text(metadata: dict[bytes, Value], key: bytes) -> str:
    value = metadata.get(key)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _integer(metadata: dict[bytes, Value], key: bytes) -> int:
    value = metadata.get(key)
    return value if isinstance(value, int) else 0
