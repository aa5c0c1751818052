"""The types that weights can be converted to: each is one that the engine makes, and takes a matrix for as we say."""

import struct
from pathlib import Path
from random import Random

import pytest

from shimmy.engine.llama.quantize import FILE_TYPES, main, quantize
from shimmy.errors import ModelUnavailable
from shimmy.formats.convert.convert import convert
from shimmy.formats.gguf import importance, reader
from shimmy.formats.gguf.importance import ImportanceMatrix
from shimmy.wire.worker_options import IGNORES_MATRIX, NEEDS_MATRIX, SAFETENSORS_TYPES
from tests.importance_files import write_gguf_matrix
from tests.tiny_checkpoints import LLAMA_CONFIG, random_weights, write_checkpoint, write_tokenizer

WIDTH = 256  # of a block of the K types


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer whose rows are as long as the longest blocks."""
    folder, random = tmp_path_factory.mktemp("wide"), Random(0)
    shapes = {
        "model.embed_tokens": (LLAMA_CONFIG["vocab_size"], WIDTH), "model.norm": (WIDTH,),
        "model.layers.0.input_layernorm": (WIDTH,), "model.layers.0.post_attention_layernorm": (WIDTH,),
        **{f"model.layers.0.self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
        **{f"model.layers.0.mlp.{name}_proj": (WIDTH, WIDTH) for name in ("gate", "up", "down")},
    }  # fmt: skip
    config = LLAMA_CONFIG | {
        "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "tie_word_embeddings": True
    }  # fmt: skip
    tensors = {f"{name}.weight": random_weights(random, shape) for name, shape in shapes.items()}
    write_checkpoint(folder / "model", config, tensors)
    write_tokenizer(folder / "model")
    convert(folder / "model", folder / "model.gguf", lambda _: None)
    return folder / "model.gguf"


@pytest.fixture(scope="module")
def matrix(source: Path, tmp_path_factory: pytest.TempPathFactory) -> ImportanceMatrix:
    """For all weights of the layer; columns count from 1 to 100."""
    random = Random(1)
    path = tmp_path_factory.mktemp("matrix") / "matrix.gguf"
    names = [name.decode() for name in reader.contents(source).tensors if name.startswith(b"blk.")]
    weights = [name for name in names if not name.endswith("_norm.weight")]
    return importance.read(
        write_gguf_matrix(path, {name: ([10 ** random.uniform(0, 2) for _ in range(WIDTH)], [1]) for name in weights})
    )


def bits(path: Path) -> float:
    """Of a weight. Embeddings and the parts of a tiny model that are made larger weigh more here than in a model."""
    header = reader.read_header(path)
    return 8 * header.size_bytes / header.n_params


def test_all_tables_have_the_same_types() -> None:
    assert FILE_TYPES.keys() == SAFETENSORS_TYPES.keys() >= NEEDS_MATRIX | IGNORES_MATRIX


@pytest.mark.parametrize("name", [name for name in SAFETENSORS_TYPES if name not in NEEDS_MATRIX])
def test_every_type_is_made(name: str, source: Path, matrix: ImportanceMatrix, tmp_path: Path) -> None:
    plain, weighted = tmp_path / "plain.gguf", tmp_path / "weighted.gguf"
    quantize(source, plain, file_type=name, n_threads=1)
    assert reader.read_header(plain).quantization == name.upper().removesuffix("_MOE")
    if name != "mxfp4_moe":  # its experts take 4.5 bits, and this model has none
        assert 0.6 < bits(plain) / SAFETENSORS_TYPES[name] < 1.75
    quantize(source, weighted, file_type=name, n_threads=1, matrix=matrix)
    assert (plain.read_bytes() == weighted.read_bytes()) == (name in IGNORES_MATRIX)


# The tables of the others take the engine seconds to make.
SLOW = [pytest.param(name, marks=pytest.mark.thorough) for name in sorted(NEEDS_MATRIX - {"iq3_xs", "q2_k_s"})]


@pytest.mark.parametrize("name", ["iq3_xs", "q2_k_s", *SLOW])
def test_types_that_need_a_matrix(name: str, source: Path, matrix: ImportanceMatrix, tmp_path: Path) -> None:
    target = tmp_path / "made.gguf"
    with pytest.raises(ModelUnavailable, match="could not quantise"):
        quantize(source, target, file_type=name, n_threads=1)
    quantize(source, target, file_type=name, n_threads=1, matrix=matrix)
    assert reader.read_header(target).quantization == name.upper()
    assert 0.6 < bits(target) / SAFETENSORS_TYPES[name] < 1.5


def test_columns_that_count_more_are_rounded_less(source: Path, matrix: ImportanceMatrix, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    weights, counted = dict(matrix.values(matrix.entries))[name], {}
    exact = rows_of(source, name)
    for found in (None, matrix):
        target = tmp_path / f"{found is None}.gguf"
        quantize(source, target, file_type="q4_0", n_threads=1, matrix=found)
        pairs = zip(exact, rows_of(target, name), strict=True)
        counted[found is None] = sum(
            weight * (a - b) ** 2 for row in pairs for weight, a, b in zip(weights, *row, strict=True)
        )
    assert counted[False] < 0.95 * counted[True]


def rows_of(path: Path, name: str) -> list[list[float]]:
    """The numbers of a weight in F32 or Q4_0 (`dequantize_row_q4_0` of ggml-quants.c)."""
    found = reader.contents(path)
    data = path.read_bytes()[found.starts[name.encode()] :]
    if found.tensors[name.encode()].code == 0:
        return [list(struct.unpack_from(f"<{WIDTH}f", data, 4 * WIDTH * row)) for row in range(WIDTH)]
    return [
        [number for block in range(WIDTH // 32) for number in _q4_0(data, (row * WIDTH // 32 + block) * 18)]
        for row in range(WIDTH)
    ]


def _q4_0(data: bytes, start: int) -> list[float]:
    scale, *codes = struct.unpack_from("<e16B", data, start)
    return [scale * ((code >> shift & 15) - 8) for shift in (0, 4) for code in codes]


def test_a_type_that_needs_a_matrix_needs_it_for_all_weights(source: Path, tmp_path: Path) -> None:
    path = write_gguf_matrix(tmp_path / "matrix.gguf", {"blk.0.attn_q.weight": ([1.0] * WIDTH, [1])})
    with pytest.raises(
        ModelUnavailable, match=r"quantise its weights: Missing importance matrix for tensor blk.0.attn_k.weight"
    ):
        quantize(source, tmp_path / "made.gguf", file_type="q2_k_s", n_threads=1, matrix=importance.read(path))


def test_the_share_of_tensors_is_told(source: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    quantize(source, tmp_path / "made.gguf", file_type="q4_0", n_threads=1, on_progress=shares.append)
    n_tensors = len(reader.contents(source).tensors)
    assert shares == [index / n_tensors for index in range(n_tensors)]


def test_numbers_that_cannot_be_are_refused_before_the_engine_sees_them(source: Path, tmp_path: Path) -> None:
    path = write_gguf_matrix(tmp_path / "matrix.gguf", {"blk.0.attn_q.weight": ([float("nan")] * WIDTH, [1])})
    with pytest.raises(importance.InvalidMatrix, match="none of squares"):
        quantize(source, tmp_path / "made.gguf", file_type="q4_0", n_threads=1, matrix=importance.read(path))
    assert main([str(source), str(tmp_path / "made.gguf"), "q4_0", "1", str(path)]) == 1


def test_weights_of_another_model_are_not_read(source: Path, tmp_path: Path) -> None:
    sums = {"blk.0.attn_q.weight": ([1.0] * WIDTH, [1]), "blk.9.attn_q.weight": ([float("nan")] * WIDTH, [1])}
    path = write_gguf_matrix(tmp_path / "matrix.gguf", sums)
    quantize(source, tmp_path / "made.gguf", file_type="q4_0", n_threads=1, matrix=importance.read(path))
    assert reader.read_header(tmp_path / "made.gguf").quantization == "Q4_0"
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelUnavailable, match="`text`"):
        quantize(tmp_path / "text", tmp_path / "x", file_type="q4_0", n_threads=1, matrix=importance.read(path))
