"""Writes GGUF files: byte for byte what a test asks for, and tiny models the real engine loads: llama, Mamba and BERT.

The models have random weights, so they say nothing of sense, but greedy text is steady, differs from prompt to prompt
and from seed to seed, and does not end by itself. The same arguments give the same bytes.
"""

import math
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from string import ascii_letters, digits, punctuation

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
F32 = 0  # ggml_type

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

N_EMBD, N_LAYER, N_HEAD, N_FF = 64, 2, 4, 128
SHARP = 20.0  # weights with which every head looks at one token only
UNKNOWN_TOKEN, BOS_TOKEN, EOS_TOKEN = range(3)

MAMBA_N_CONV, MAMBA_N_STATE, MAMBA_N_RANK = 4, 8, 4

BERT_N_EMBD, BERT_N_LAYER, BERT_N_HEAD, BERT_N_FF = 32, 2, 2, 64
BERT_EPSILON = 1e-12
BERT_PAD, BERT_UNKNOWN, BERT_CLS, BERT_SEP, BERT_MASK = range(5)

_FORMATS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))

Item = int | float | bool | str | bytes


@dataclass(frozen=True)
class Items:
    """An array in metadata."""

    code: int
    items: Sequence[Item]


Value = Item | Items
Metadata = list[tuple[str, int, Value]]  # key, gguf_type, value


@dataclass(frozen=True)
class Tensor:
    """One tensor; `shape` in ggml's order, the row length first. An `offset` that is None is computed."""

    name: str
    shape: tuple[int, ...]
    data: bytes = b""
    code: int = F32
    offset: int | None = None


def encode_string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def encode_value(code: int, value: Value) -> bytes:
    if isinstance(value, Items):
        head = struct.pack("<IQ", value.code, len(value.items))
        return head + b"".join(encode_value(value.code, item) for item in value.items)
    if isinstance(value, str | bytes):
        return encode_string(value)
    return struct.pack("<" + _FORMATS[code], value)


def encode_header(
    metadata: Metadata, tensors: Sequence[Tensor] = (), *, version: int = 3, alignment: int = 32
) -> bytes:
    """A GGUF file up to where the tensors' data begins."""
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    parts += [encode_string(key) + struct.pack("<I", code) + encode_value(code, value) for key, code, value in metadata]
    end = 0
    for tensor in tensors:
        offset = end if tensor.offset is None else tensor.offset
        n_dimensions = len(tensor.shape)
        layout = f"<I{n_dimensions}QIQ"
        parts += [encode_string(tensor.name), struct.pack(layout, n_dimensions, *tensor.shape, tensor.code, offset)]
        end += _padded(len(tensor.data), alignment)
    header = b"".join(parts)
    return header.ljust(_padded(len(header), alignment), b"\0") if tensors else header


def encode_gguf(metadata: Metadata, tensors: Sequence[Tensor] = (), *, version: int = 3, alignment: int = 32) -> bytes:
    """A whole GGUF file."""
    data = (tensor.data.ljust(_padded(len(tensor.data), alignment), b"\0") for tensor in tensors)
    return encode_header(metadata, tensors, version=version, alignment=alignment) + b"".join(data)


def write_tiny_model(
    folder: Path,
    name: str = "tiny",
    *,
    n_ctx_train: int = 512,
    chat_template: str | None = CHATML,
    seed: int = 0,
    n_shards: int = 1,
    n_layers: int = N_LAYER,
    focus: float = SHARP,
    more: Sequence[tuple[str, int, Value]] = (),
) -> Path:
    """Write `name`.gguf, or its shards, into `folder` and return the path of the (first) file: about 0.6 MB in all.

    `focus` is the size of the weights of queries and keys: with a small one, heads look at many tokens. `more` is added
    to its metadata.
    """
    metadata = [*model_metadata(name, n_ctx_train, chat_template, n_layers), *more]
    tensors = model_tensors(seed, focus, n_layers)
    if n_shards == 1:
        path = folder / f"{name}.gguf"
        path.write_bytes(encode_gguf(metadata, tensors))
        return path
    paths = [folder / f"{name}-{number:05d}-of-{n_shards:05d}.gguf" for number in range(1, n_shards + 1)]
    for index, path in enumerate(paths):
        split: Metadata = [
            ("split.no", UINT16, index),
            ("split.count", UINT16, n_shards),
            ("split.tensors.count", INT32, len(tensors)),
        ]
        path.write_bytes(encode_gguf([*(metadata if index == 0 else []), *split], tensors[index::n_shards]))
    return paths[0]


def write_tiny_bpe(
    folder: Path, name: str = "bpe", *, pre: str = "gpt-4o", words: str = "", n_ctx_train: int = 512,
    chat_template: str = CHATML,
) -> Path:  # fmt: skip
    """Write `name`.gguf, a llama with a byte-level vocabulary of as many tokens as the others, and return its path.

    `pre` is how its tokenizer cuts a text into words (`tokenizer.ggml.pre`), `words` how Shimmy does it in its place.
    """
    tokens, merges = bpe_vocabulary()
    common = model_metadata(name, n_ctx_train, chat_template)
    metadata: Metadata = [
        *(each for each in common if not each[0].startswith("tokenizer.ggml.")),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, pre),
        ("tokenizer.ggml.tokens", ARRAY, Items(STRING, [text for text, _ in tokens])),
        ("tokenizer.ggml.token_type", ARRAY, Items(INT32, [kind for _, kind in tokens])),
        ("tokenizer.ggml.merges", ARRAY, Items(STRING, merges)),
        ("tokenizer.ggml.bos_token_id", UINT32, BOS_TOKEN),
        ("tokenizer.ggml.eos_token_id", UINT32, EOS_TOKEN),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
        *([("shimmy.tokenizer.words", STRING, words)] if words else []),
    ]
    path = folder / f"{name}.gguf"
    path.write_bytes(encode_gguf(metadata, model_tensors(0)))
    return path


@cache
def bpe_vocabulary() -> tuple[tuple[tuple[str, int], ...], list[str]]:
    """All tokens with llama.cpp's token type, as many as `vocabulary` has, and the merges that lead to them."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    letters = [*map(chr, visible), *(chr(256 + index) for index in range(len(others)))]  # of the bytes, as in GPT-2
    merges = ["A A", "AA AA", "h e", "l l", "he ll", "hell o", "Ġ t", "h i", "Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "- -", "-- --"]
    tokens = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((letter, 1) for letter in letters)]
    tokens += [(merge.replace(" ", ""), 1) for merge in merges]
    n_filling = len(vocabulary()) - len(tokens) - 2
    tokens += [(f"filling{number}", 1) for number in range(n_filling)]
    return (*tokens, ("<|im_start|>", 3), ("<|im_end|>", 3)), merges


def write_tiny_mamba(folder: Path, name: str = "mamba", *, n_ctx_train: int = 512, seed: int = 0) -> Path:
    """Write `name`.gguf, a recurrent model with the vocabulary of the others, and return its path: about 0.6 MB."""
    sizes = {
        "context_length": n_ctx_train, "embedding_length": N_EMBD, "block_count": N_LAYER, "feed_forward_length": 0,
        "attention.head_count": 0, "ssm.conv_kernel": MAMBA_N_CONV, "ssm.inner_size": 2 * N_EMBD,
        "ssm.state_size": MAMBA_N_STATE, "ssm.time_step_rank": MAMBA_N_RANK,
    }  # fmt: skip
    others = [each for each in model_metadata(name, n_ctx_train, CHATML)[1:] if not each[0].startswith("llama.")]
    metadata: Metadata = [
        ("general.architecture", STRING, "mamba"),
        *others,
        *((f"mamba.{key}", UINT32, size) for key, size in sizes.items()),
        ("mamba.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
    ]
    path = folder / f"{name}.gguf"
    path.write_bytes(encode_gguf(metadata, tuple(_mamba_tensors(Random(seed)))))
    return path


def write_tiny_bert(
    folder: Path, name: str = "bert", *, n_ctx_train: int = 64, pooling: int | None = 1, seed: int = 0
) -> Path:
    """Write `name`.gguf, a BERT with a WordPiece vocabulary, into `folder` and return its path: about 100 KB.

    `pooling` is a llama_pooling_type (1 mean, 2 cls, 3 last, 4 rank), or None for a file that does not say.
    """
    tokens = bert_vocabulary()
    metadata: Metadata = [
        ("general.architecture", STRING, "bert"),
        ("general.type", STRING, "model"),
        ("general.name", STRING, name),
        ("general.file_type", UINT32, 0),
        ("bert.context_length", UINT32, n_ctx_train),
        ("bert.embedding_length", UINT32, BERT_N_EMBD),
        ("bert.block_count", UINT32, BERT_N_LAYER),
        ("bert.feed_forward_length", UINT32, BERT_N_FF),
        ("bert.attention.head_count", UINT32, BERT_N_HEAD),
        ("bert.attention.layer_norm_epsilon", FLOAT32, BERT_EPSILON),
        ("bert.attention.causal", BOOL, False),
        *([] if pooling is None else [("bert.pooling_type", UINT32, pooling)]),
        ("tokenizer.ggml.model", STRING, "bert"),
        ("tokenizer.ggml.tokens", ARRAY, Items(STRING, list(tokens))),
        ("tokenizer.ggml.token_type", ARRAY, Items(INT32, [3 if text.startswith("[") else 1 for text in tokens])),
        ("tokenizer.ggml.token_type_count", UINT32, 2),
        ("tokenizer.ggml.padding_token_id", UINT32, BERT_PAD),
        ("tokenizer.ggml.unknown_token_id", UINT32, BERT_UNKNOWN),
        ("tokenizer.ggml.bos_token_id", UINT32, BERT_CLS),
        ("tokenizer.ggml.seperator_token_id", UINT32, BERT_SEP),
        ("tokenizer.ggml.mask_token_id", UINT32, BERT_MASK),
    ]
    path = folder / f"{name}.gguf"
    path.write_bytes(encode_gguf(metadata, bert_tensors(n_ctx_train, seed)))
    return path


@cache
def bert_vocabulary() -> tuple[str, ...]:
    """As llama.cpp has WordPiece: `▁` begins a word, and nothing marks what goes on with one."""
    words = ("hello", "world", "the", "user", "fox", "tells", "a", "story", "of", "water")
    letters = ascii_letters[:26] + digits
    beginnings = [f"▁{text}" for text in (*words, *letters, *".,!?")]
    return ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*beginnings, *letters, "ing", "ed", "s"]))


@cache
def bert_tensors(n_ctx_train: int, seed: int) -> tuple[Tensor, ...]:
    """Weights of the size that trained ones have, so that each layer adds about as much as it is given."""
    random = Random(seed)
    n_embd, n_ff = BERT_N_EMBD, BERT_N_FF

    def norm(name: str) -> Iterator[Tensor]:
        yield _spread(random, f"{name}.weight", (n_embd,), 0.3, mean=1.0)
        yield _spread(random, f"{name}.bias", (n_embd,), 0.3)

    def linear(name: str, n_in: int, n_out: int) -> Iterator[Tensor]:
        yield _spread(random, f"{name}.weight", (n_in, n_out), n_in**-0.5)
        yield _spread(random, f"{name}.bias", (n_out,), 0.1)

    tensors = [
        _spread(random, "token_embd.weight", (n_embd, len(bert_vocabulary())), 1.0),
        _spread(random, "token_types.weight", (n_embd, 2), 0.3),
        _spread(random, "position_embd.weight", (n_embd, n_ctx_train), 0.3),
        *norm("token_embd_norm"),
    ]
    for layer in range(BERT_N_LAYER):
        block = f"blk.{layer}"
        for projection in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors += linear(f"{block}.{projection}", n_embd, n_embd)
        tensors += norm(f"{block}.attn_output_norm")
        tensors += linear(f"{block}.ffn_up", n_embd, n_ff)
        tensors += linear(f"{block}.ffn_down", n_ff, n_embd)
        tensors += norm(f"{block}.layer_output_norm")
    return tuple(tensors)


def write_tiny_adapter(
    folder: Path,
    name: str = "adapter",
    *,
    seed: int = 0,
    rank: int = 4,
    changes: Sequence[tuple[str, int, Value]] = (),
    tensors: Sequence[Tensor] | None = None,
) -> Path:
    """Write `name`.gguf, a LoRA adapter of the tiny models that changes what they say, and return its path.

    `changes` replaces keys of its metadata, or adds to them; `tensors` replaces its tensors.
    """
    replaced = {key for key, _, _ in changes}
    metadata: Metadata = [
        ("general.type", STRING, "adapter"),
        ("general.architecture", STRING, "llama"),
        ("adapter.type", STRING, "lora"),
        ("adapter.lora.alpha", FLOAT32, float(rank)),
    ]
    kept = [row for row in metadata if row[0] not in replaced]
    path = folder / f"{name}.gguf"
    path.write_bytes(encode_gguf([*kept, *changes], adapter_tensors(seed, rank) if tensors is None else tensors))
    return path


def adapter_tensors(seed: int = 0, rank: int = 4) -> tuple[Tensor, ...]:
    """Pairs for what a tiny model reads (the values of its first layer) and for what it says."""
    random = Random(seed)
    n_tokens = len(vocabulary())
    return (
        _spread(random, "blk.0.attn_v.weight.lora_a", (N_EMBD, rank), 0.25),
        _spread(random, "blk.0.attn_v.weight.lora_b", (rank, N_EMBD), 0.25),
        _spread(random, "output.weight.lora_a", (N_EMBD, rank), 0.25),
        _spread(random, "output.weight.lora_b", (rank, n_tokens), 0.25, zero_rows=_silent_tokens()),
    )


def _silent_tokens() -> list[int]:
    """Tokens that are no plain text."""
    return [index for index, (_, kind) in enumerate(vocabulary()) if kind != 1]


def _padded(n_bytes: int, alignment: int) -> int:
    return (n_bytes + alignment - 1) // alignment * alignment


@cache
def vocabulary() -> tuple[tuple[str, int], ...]:
    """All tokens with llama.cpp's token type: 1 normal, 2 unknown, 3 control, 6 byte."""
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
    words = ["▁the", "▁and", "▁hello", "▁world", "▁user", "▁assistant", "▁system"]
    pieces = ["▁", "\n", *digits, *ascii_letters, *punctuation, *syllables, *("▁" + text for text in syllables)]
    # SentencePiece joins two pieces only when their sum is a piece too: these are the steps towards the words.
    steps = [word[:length] for length in range(2, 11) for word in words]
    normal = dict.fromkeys([*pieces, *steps])
    return (
        ("<unk>", 2),
        ("<s>", 3),
        ("</s>", 3),
        *((f"<0x{byte:02X}>", 6) for byte in range(256)),
        *((piece, 1) for piece in normal),
        ("<|im_start|>", 3),
        ("<|im_end|>", 3),
    )


def model_metadata(name: str, n_ctx_train: int, chat_template: str | None, n_layers: int = N_LAYER) -> Metadata:
    tokens = vocabulary()
    metadata: Metadata = [
        ("general.architecture", STRING, "llama"),
        ("general.type", STRING, "model"),
        ("general.name", STRING, name),
        ("general.file_type", UINT32, 0),
        ("llama.context_length", UINT32, n_ctx_train),
        ("llama.embedding_length", UINT32, N_EMBD),
        ("llama.block_count", UINT32, n_layers),
        ("llama.feed_forward_length", UINT32, N_FF),
        ("llama.attention.head_count", UINT32, N_HEAD),
        ("llama.attention.head_count_kv", UINT32, N_HEAD),
        ("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        ("llama.rope.dimension_count", UINT32, N_EMBD // N_HEAD),
        ("llama.vocab_size", UINT32, len(tokens)),
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", ARRAY, Items(STRING, [text for text, _ in tokens])),
        ("tokenizer.ggml.scores", ARRAY, Items(FLOAT32, [-float(index) for index in range(len(tokens))])),
        ("tokenizer.ggml.token_type", ARRAY, Items(INT32, [kind for _, kind in tokens])),
        ("tokenizer.ggml.unknown_token_id", UINT32, UNKNOWN_TOKEN),
        ("tokenizer.ggml.bos_token_id", UINT32, BOS_TOKEN),
        ("tokenizer.ggml.eos_token_id", UINT32, EOS_TOKEN),
        ("tokenizer.ggml.add_bos_token", BOOL, True),
        ("tokenizer.ggml.add_eos_token", BOOL, False),
    ]
    if chat_template is not None:
        metadata.append(("tokenizer.chat_template", STRING, chat_template))
    return metadata


@cache
def model_tensors(seed: int, focus: float = SHARP, n_layers: int = N_LAYER) -> tuple[Tensor, ...]:
    """All tensors of the model that `write_tiny_model` writes with this seed and focus."""
    return tuple(_tensors(Random(seed), focus, n_layers))


def _tensors(random: Random, focus: float, n_layers: int) -> Iterator[Tensor]:
    """Weights under which a batch's shape moves a logit by about 1e-6, where a trained model's moves by 1e-3.

    Two things keep F16 rounding in the KV cache out of the text: keys and queries so large that every head looks at
    one token only, and embeddings and values of one size, which F16 holds exactly. The second layer adds little, but
    enough that a token's cache depends on the tokens before it.
    """
    tokens = vocabulary()
    yield _signs(random, "token_embd.weight", (N_EMBD, len(tokens)), 1.0)
    yield _norm("output_norm.weight")
    # Tokens that are no plain text get logit 0, far below the best: the text is readable and does not end.
    yield _spread(random, "output.weight", (N_EMBD, len(tokens)), 0.5, zero_rows=_silent_tokens())
    for layer in range(n_layers):
        block = f"blk.{layer}"
        yield _norm(f"{block}.attn_norm.weight")
        yield _spread(random, f"{block}.attn_q.weight", (N_EMBD, N_EMBD), focus)
        yield _spread(random, f"{block}.attn_k.weight", (N_EMBD, N_EMBD), focus)
        yield _signs(random, f"{block}.attn_v.weight", (N_EMBD, N_EMBD), 0.25)
        yield _spread(random, f"{block}.attn_output.weight", (N_EMBD, N_EMBD), 0.25 if layer == 0 else 0.08)
        yield _norm(f"{block}.ffn_norm.weight")
        yield _spread(random, f"{block}.ffn_gate.weight", (N_EMBD, N_FF), 0.1)
        yield _spread(random, f"{block}.ffn_up.weight", (N_EMBD, N_FF), 0.1)
        yield _spread(random, f"{block}.ffn_down.weight", (N_FF, N_EMBD), 0.1)


def _mamba_tensors(random: Random) -> Iterator[Tensor]:
    n_inner = 2 * N_EMBD
    yield _signs(random, "token_embd.weight", (N_EMBD, len(vocabulary())), 1.0)
    yield _norm("output_norm.weight")
    yield _spread(random, "output.weight", (N_EMBD, len(vocabulary())), 0.5, zero_rows=_silent_tokens())
    for layer in range(N_LAYER):
        block = f"blk.{layer}"
        yield _norm(f"{block}.attn_norm.weight")
        yield _spread(random, f"{block}.ssm_in.weight", (N_EMBD, 2 * n_inner), 0.2)
        yield _spread(random, f"{block}.ssm_conv1d.weight", (MAMBA_N_CONV, n_inner), 0.5)
        yield _spread(random, f"{block}.ssm_conv1d.bias", (n_inner,), 0.1)
        yield _spread(random, f"{block}.ssm_x.weight", (n_inner, MAMBA_N_RANK + 2 * MAMBA_N_STATE), 0.2)
        yield _spread(random, f"{block}.ssm_dt.weight", (MAMBA_N_RANK, n_inner), 0.5)
        yield _spread(random, f"{block}.ssm_dt.bias", (n_inner,), 0.5, mean=-4.0)  # which makes it forget slowly
        yield _spread(random, f"{block}.ssm_a", (MAMBA_N_STATE, n_inner), 0.2, mean=-1.0)
        yield _spread(random, f"{block}.ssm_d", (n_inner,), 0.2, mean=1.0)
        yield _spread(random, f"{block}.ssm_out.weight", (n_inner, N_EMBD), 0.2)


def _norm(name: str) -> Tensor:
    return Tensor(name, (N_EMBD,), struct.pack(f"<{N_EMBD}f", *[1.0] * N_EMBD))


def _signs(random: Random, name: str, shape: tuple[int, int], size: float) -> Tensor:
    """Weights of one size and of either sign."""
    weights = [size if byte < 128 else -size for byte in random.randbytes(shape[0] * shape[1])]
    return Tensor(name, shape, struct.pack(f"<{len(weights)}f", *weights))


def _spread(
    random: Random,
    name: str,
    shape: tuple[int, ...],
    deviation: float,
    *,
    mean: float = 0.0,
    zero_rows: Iterable[int] = (),
) -> Tensor:
    """Weights spread evenly around `mean` with the given standard deviation."""
    row_length, n_weights = shape[0], math.prod(shape)
    integers = struct.unpack(f"<{n_weights}h", random.randbytes(2 * n_weights))
    scale = deviation * 3**0.5 / 2**15
    weights = array("f", [mean + scale * integer for integer in integers])
    for row in zero_rows:
        weights[row * row_length : (row + 1) * row_length] = array("f", bytes(4 * row_length))
    return Tensor(name, shape, struct.pack(f"<{len(weights)}f", *weights))
