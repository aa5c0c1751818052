"""Headers: what is read from good files, and that no bad one is accepted, costs much or breaks anything."""

import os
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.gguf.header import MAX_KEPT_NUMBERS, Array, GgufHeader, GgufKind, describe
from shimmy.formats.gguf.reader import InvalidGguf, read_header, validate
from shimmy.formats.gguf.tensor_types import GGML_TYPES
from tests.rewriting import rewrite
from tests.tiny_models import (
    ARRAY,
    BOOL,
    FLOAT32,
    FLOAT64,
    INT8,
    INT32,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Items,
    Metadata,
    Tensor,
    Value,
    encode_gguf,
    encode_header,
    encode_string,
    vocabulary,
    write_tiny_model,
)

MINIMAL: Metadata = [("general.architecture", STRING, "llama"), ("llama.context_length", UINT32, 4096)]
WEIGHTS = Tensor("weights", (8, 4), bytes(128))

Reader = Callable[[Path], GgufHeader]
both = pytest.mark.parametrize("read", [read_header, validate])


def _write(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


@both
def test_a_model_says_what_it_is(tmp_path: Path, read: Reader) -> None:
    path = write_tiny_model(tmp_path, "tiny", n_ctx_train=640)
    assert read(path) == GgufHeader(
        kind=GgufKind.MODEL,
        architecture="llama",
        name="tiny",
        quantization="F32",
        n_params=157_632,
        n_ctx_train=640,
        n_vocab=len(vocabulary()),
        n_layers=2,
        n_embd=64,
        n_ff=128,
        n_expert_params=0,
        n_heads=4,
        n_kv=256,
        n_state=0,
        has_chat_template=True,
        is_embedding=False,
        is_causal=True,
        pooling="",
        shard=0,
        n_shards=1,
        size_bytes=path.stat().st_size,
    )


def test_layers_without_number_are_not_counted() -> None:
    found = describe({b"general.architecture": b"llama", b"llama.block_count": 2**32 - 1}, 1, 1, 1)
    assert (found.architecture, found.n_layers) == ("llama", MAX_KEPT_NUMBERS)


def test_a_model_without_a_template(tmp_path: Path) -> None:
    assert not read_header(write_tiny_model(tmp_path, chat_template=None)).has_chat_template
    assert not read_header(write_tiny_model(tmp_path, chat_template="")).has_chat_template


def test_version_2_and_every_type_of_value(tmp_path: Path) -> None:
    metadata: Metadata = [
        ("a", UINT8, 1),
        ("b", INT8, -1),
        ("c", UINT16, 1),
        ("d", FLOAT32, 0.5),
        ("e", BOOL, True),
        ("f", UINT64, 2**64 - 1),
        ("g", FLOAT64, 0.5),
        ("h", ARRAY, Items(BOOL, [True, False])),
        ("i", ARRAY, Items(STRING, [])),
        ("j", ARRAY, Items(FLOAT64, [0.5])),
        ("k", STRING, "x" * 1000),
        *MINIMAL,
        ("general.file_type", UINT32, 15),
    ]
    header = read_header(_write(tmp_path, encode_gguf(metadata, [WEIGHTS], version=2)))
    assert (header.n_ctx_train, header.quantization, header.n_params) == (4096, "Q4_K_M", 32)


def test_a_shard_knows_its_place(tmp_path: Path) -> None:
    first = read_header(write_tiny_model(tmp_path, "tiny", n_shards=3))
    last = read_header(tmp_path / "tiny-00003-of-00003.gguf")
    assert (first.shard, first.n_shards, first.architecture) == (0, 3, "llama")
    assert (last.shard, last.n_shards, last.architecture, last.kind) == (2, 3, "", GgufKind.MODEL)


def test_all_shards_are_validated(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, "tiny", n_shards=3)
    assert validate(path) == read_header(path)
    last = tmp_path / "tiny-00003-of-00003.gguf"
    whole = last.read_bytes()
    last.write_bytes(whole[:-100])
    with pytest.raises(InvalidGguf, match="cut off"):
        validate(path)
    last.write_bytes((tmp_path / "tiny-00002-of-00003.gguf").read_bytes())
    with pytest.raises(InvalidGguf, match=r"`tiny-00003-of-00003\.gguf` is not what its name says"):
        validate(path)
    with pytest.raises(InvalidGguf, match=r"its name has to end with `-00001-of-00003\.gguf`"):
        validate(path.rename(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ([("general.architecture", STRING, "clip")], GgufKind.PROJECTOR),
        ([("general.architecture", STRING, "llama"), ("general.type", STRING, "mmproj")], GgufKind.PROJECTOR),
        ([("general.architecture", STRING, "llama"), ("general.type", STRING, "adapter")], GgufKind.ADAPTER),
        ([("general.architecture", STRING, "llama"), ("adapter.type", STRING, "lora")], GgufKind.ADAPTER),
        ([("general.type", STRING, "imatrix")], GgufKind.IMPORTANCE_MATRIX),
    ],
)
def test_what_is_no_model(tmp_path: Path, metadata: Metadata, kind: GgufKind) -> None:
    assert read_header(_write(tmp_path, encode_gguf(metadata, [WEIGHTS]))).kind is kind


def test_a_file_without_tensors_is_a_vocabulary(tmp_path: Path) -> None:
    assert read_header(_write(tmp_path, encode_gguf(MINIMAL))).kind is GgufKind.VOCABULARY


@pytest.mark.parametrize(
    ("code", "value"), [(UINT32, 1024), (INT32, -1), (STRING, "x"), (FLOAT32, 1.5), (ARRAY, Items(UINT32, [1]))]
)
def test_a_senseless_file_type_is_unknown(tmp_path: Path, code: int, value: Value) -> None:
    metadata: Metadata = [*MINIMAL, ("general.file_type", code, value)]
    assert read_header(_write(tmp_path, encode_gguf(metadata, [WEIGHTS]))).quantization == ""


def _with_vocabulary(tokens: list[str | bytes]) -> bytes:
    metadata: Metadata = [
        *MINIMAL,
        ("tokenizer.ggml.tokens", ARRAY, Items(STRING, tokens)),
        ("tokenizer.ggml.token_type", ARRAY, Items(INT32, [1] * len(tokens))),
        ("tokenizer.ggml.merges", ARRAY, Items(STRING, [f"{n} {n}" for n in range(70_000)])),
        ("tokenizer.chat_template", STRING, "{{ messages }}" * 100),
    ]
    return encode_gguf(metadata, [WEIGHTS])


@pytest.mark.parametrize(
    "odd",
    [
        b"",
        b"\0" * 40,
        b"tokenizer.",
        b"tokenizer.ggml.merges",
        b"x" * 300_000,  # longer than the window
        encode_string("tokenizer.ggml.bos_token_id") + struct.pack("<II", UINT32, 1),
        encode_string("tokenizer.ggml.merges") + struct.pack("<IIQ", ARRAY, STRING, 0),
    ],
)
@pytest.mark.parametrize("place", [0, 20_000, 39_999])
def test_a_long_vocabulary_is_jumped_over_whatever_is_in_it(tmp_path: Path, odd: bytes, place: int) -> None:
    tokens: list[str | bytes] = [f"token{n}" for n in range(40_000)]
    tokens[place] = odd
    path = _write(tmp_path, _with_vocabulary(tokens))
    assert read_header(path) == validate(path)
    assert read_header(path).has_chat_template


def test_a_long_vocabulary_at_the_end_of_the_metadata(tmp_path: Path) -> None:
    metadata: Metadata = [*MINIMAL, ("tokenizer.ggml.tokens", ARRAY, Items(STRING, [str(n) for n in range(5_000)]))]
    assert read_header(_write(tmp_path, encode_gguf(metadata, [WEIGHTS]))).n_params == 32


@both
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too few"),
        (b"GGUF", "too few"),
        (b"PK\3\4" + bytes(100), "does not begin with `GGUF`"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4976698672\n", "`git lfs pull`"),
        (b"version https://example.com/spec\n" + bytes(100), "does not begin with `GGUF`"),
        (encode_gguf(MINIMAL, version=1), "version 1"),
        (encode_gguf(MINIMAL, version=3 << 24), "big-endian"),
        (encode_gguf(MINIMAL, version=0), "version 0"),
        (encode_gguf(MINIMAL, version=4), "version 4"),
        (encode_gguf([("llama.context_length", UINT32, 1)], [WEIGHTS]), "`general.architecture` is missing"),
        (encode_gguf([("", UINT32, 1)]), "is empty"),
        (encode_gguf([*MINIMAL, *MINIMAL]), "`general.architecture` appears twice"),
        (encode_gguf([("k" * 2000, UINT32, 1)]), "2000 bytes"),
        (encode_gguf([*MINIMAL, ("general.alignment", UINT32, 0)]), "power of two"),
        (encode_gguf([*MINIMAL, ("general.alignment", UINT32, 48)]), "power of two"),
        (encode_gguf([*MINIMAL, ("general.alignment", STRING, "32")]), "power of two"),
        (encode_gguf([*MINIMAL, ("split.no", UINT16, 3), ("split.count", UINT16, 3)]), "shard 4 of 3"),
        (encode_gguf([*MINIMAL, ("split.count", UINT64, 10**18)]), "shard 1 of 1000000000000000000"),
        (encode_gguf(MINIMAL, [WEIGHTS, WEIGHTS]), "`weights` appears twice"),
        (encode_gguf(MINIMAL, [Tensor("n" * 64, (8,), bytes(32))]), "64 bytes"),
        (encode_gguf(MINIMAL, [Tensor("t", (1, 1, 1, 1, 1), bytes(4))]), "5 dimensions"),
        (encode_gguf(MINIMAL, [Tensor("t", (8,), bytes(32), code=4)]), "unknown type 4"),
        (encode_gguf(MINIMAL, [Tensor("t", (8,), bytes(32), code=2**32 - 1)]), "unknown type"),
        (encode_gguf(MINIMAL, [Tensor("t", (33,), bytes(36), code=2)]), "whole Q4_0 blocks"),
        (encode_gguf(MINIMAL, [Tensor("t", (), bytes(36), code=2)]), "whole Q4_0 blocks"),
        (encode_gguf(MINIMAL, [Tensor("t", (2**32, 2**32), bytes(32))]), "impossible shape"),
        (encode_gguf(MINIMAL, [Tensor("t", (0, 2**64 - 1), bytes(32))]), "impossible shape"),
        (encode_gguf(MINIMAL, [Tensor("t", (2**60,), bytes(32))]), "cut off"),
        (encode_gguf(MINIMAL, [Tensor("t", (8,), bytes(32), offset=32)]), "belongs at 0"),
        (encode_gguf(MINIMAL, [Tensor("t", (8,), bytes(32), offset=1)]), "belongs at 0"),
        (encode_gguf(MINIMAL, [WEIGHTS, Tensor("t", (8,), bytes(32), offset=96)]), "belongs at 128"),
        (encode_gguf(MINIMAL, [WEIGHTS, Tensor("t", (8,), bytes(32), offset=2**64 - 32)]), "belongs at 128"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(tmp_path: Path, read: Reader, data: bytes, reason: str) -> None:
    with pytest.raises(InvalidGguf, match=reason):
        read(_write(tmp_path, data))


def _head(n_tensors: int, n_keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + rest


def _array(code: int, n_items: int, rest: bytes = b"") -> bytes:
    return _head(1, 1, encode_string("a") + struct.pack("<IIQ", ARRAY, code, n_items) + rest)


@both
@pytest.mark.parametrize(
    "data",
    [
        _head(2**64 - 1, 1),
        _head(1, 2**64 - 1),
        _head(1, 4096),
        _head(65_536, 0),
        _head(1, 1, struct.pack("<Q", 2**64 - 1)),
        _head(1, 1, encode_string("a") + struct.pack("<I", 13)),
        _head(1, 1, encode_string("a") + struct.pack("<I", 2**32 - 1)),
        _head(1, 1, encode_string("a") + struct.pack("<IQ", STRING, 2**64 - 1)),
        _head(1, 1, encode_string("a") + struct.pack("<IQ", STRING, 2**63)),
        _array(UINT64, 2**64 - 1),
        _array(UINT64, 2**61),
        _array(UINT32, 2**30),
        _array(STRING, 2**64 - 1),
        _array(STRING, 2_000_000),
        _array(STRING, 1_500, struct.pack("<Q", 2**64 - 1) + bytes(20_000)),
        _array(STRING, 1_500, struct.pack("<Q", 2**63 - 5) + bytes(20_000)),
        _array(ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 1000),
        _array(13, 0),
    ],
)
def test_wild_numbers_cost_nothing(tmp_path: Path, read: Reader, data: bytes) -> None:
    path = _write(tmp_path, data)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidGguf):
            read(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_reading_a_long_vocabulary_takes_little_memory(tmp_path: Path) -> None:
    path = _write(tmp_path, _with_vocabulary([f"token{n}" for n in range(150_000)]))
    assert path.stat().st_size > 4_000_000
    tracemalloc.start()
    try:
        read_header(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_a_header_of_a_huge_file_ends_within_its_limit(tmp_path: Path) -> None:
    path = _write(tmp_path, _array(UINT8, 2**34))
    os.truncate(path, 2**35)  # a file of holes
    with pytest.raises(InvalidGguf, match="does not end within"):
        read_header(path)


@both
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, read: Reader) -> None:
    metadata: Metadata = [
        *MINIMAL,
        ("tokens", ARRAY, Items(STRING, ["a", "", "bc"])),
        ("ids", ARRAY, Items(INT32, [1])),
    ]
    whole = encode_gguf(metadata, [Tensor("first", (8, 4), bytes(128)), Tensor("second", (3,), bytes(12))])
    needed_bytes = len(whole) - 20  # ggml does not ask for the padding behind the last tensor
    path = tmp_path / "model.gguf"
    for n_bytes in range(needed_bytes):
        rewrite(path, whole[:n_bytes])
        with pytest.raises(InvalidGguf):
            read(path)
    rewrite(path, whole[:needed_bytes])
    assert read(path).n_params == 35


@both
def test_a_file_with_any_byte_changed_is_refused_or_read(tmp_path: Path, read: Reader) -> None:
    metadata: Metadata = [*MINIMAL, ("tokens", ARRAY, Items(STRING, ["a", "bc"]))]
    whole = encode_gguf(metadata, [WEIGHTS])
    path = tmp_path / "model.gguf"
    for index in range(len(encode_header(metadata, [WEIGHTS]))):
        for value in (0, 0x7F, 0xFF):
            rewrite(path, whole[:index] + bytes([value]) + whole[index + 1 :])
            with suppress(InvalidGguf):
                assert read(path).size_bytes == len(whole)


def test_names_that_are_not_utf8_are_shown_anyway(tmp_path: Path) -> None:
    metadata: Metadata = [*MINIMAL, ("general.name", STRING, b"\xff\xfe")]
    assert read_header(_write(tmp_path, encode_gguf(metadata, [WEIGHTS]))).name == "\ufffd\ufffd"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.gguf")
    for path in (tmp_path, tmp_path / "fifo.gguf", Path("/dev/zero")):
        with pytest.raises(InvalidGguf, match="not a regular file"):
            read_header(path)
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "missing.gguf")


def test_the_table_of_types_is_that_of_ggml() -> None:
    """Bits for each weight, as everyone who quantises knows them."""
    bits = {name: n_bytes * 8 / n_elements for name, n_elements, n_bytes in GGML_TYPES.values()}
    known = {"F32": 32, "BF16": 16, "Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q6_K": 6.5625, "Q5_K": 5.5}
    known |= {
        "Q4_K": 4.5,
        "Q3_K": 3.4375,
        "Q2_K": 2.625,
        "IQ4_XS": 4.25,
        "IQ2_XXS": 2.0625,
        "MXFP4": 4.25,
        "NVFP4": 4.5,
    }
    assert {name: bits[name] for name in known} == known
    assert len(GGML_TYPES) == 35


def latent(architecture: str, **more: Any) -> int:
    """`n_kv` of three layers with one vector of 40 numbers a token, by what else a file says."""
    sizes: dict[str, Any] = {
        "block_count": 3, "embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 1,
        "attention.key_length": 40, "attention.value_length": 32, "attention.key_length_mla": 24,
        "attention.value_length_mla": 12, "attention.indexer.key_length": 64, **more,
    }  # fmt: skip
    metadata: dict[bytes, Any] = {f"{architecture}.{key}".encode(): value for key, value in sizes.items()}
    return describe(metadata | {b"general.architecture": architecture.encode()}, 1, 1, 1).n_kv


@pytest.mark.parametrize("architecture", ["deepseek2", "mistral4"])
def test_one_vector_a_token_has_no_values_beside_it(architecture: str) -> None:
    assert latent(architecture) == 3 * 40
    assert latent(architecture, **{"attention.key_length_mla": 0}) == 3 * (40 + 32), "as older files have it"


def test_layers_that_select_tokens_have_a_second_cache() -> None:
    types = "attention.indexer.types"
    assert latent("deepseek32") == latent("glm-dsa") == 3 * 40 + 3 * 64
    assert latent("glm-dsa", **{types: Array(3, (True, False, True))}) == 3 * 40 + 2 * 64
    assert latent("deepseek32", **{types: Array(3, (True, False, True))}) == 3 * 40 + 3 * 64
    # GLM 5.2, whose older files do not say so: six in the first 18 layers, and then one in each four.
    assert latent("glm-dsa", block_count=18, context_length=2**20) == 18 * 40 + 6 * 64
    assert latent("glm-dsa", block_count=18, context_length=2**20 - 1) == 18 * 40 + 18 * 64
    # A layer that drafts has no cell.
    assert latent("glm-dsa", nextn_predict_layers=1, **{types: Array(2, (True, False))}) == 2 * 40 + 64
    assert latent("deepseek32", nextn_predict_layers=4) == 0
