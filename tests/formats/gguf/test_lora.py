"""Which adapter files are let through to llama.cpp: none that it refuses itself, or would abort the process on."""

import math
import struct
from pathlib import Path

import pytest

from shimmy.formats.gguf import lora, reader
from shimmy.formats.gguf.reader import InvalidGguf
from shimmy.formats.gguf.tensor_types import GGML_TYPES
from tests.tiny_models import (
    ARRAY,
    FLOAT32,
    FLOAT64,
    N_EMBD,
    STRING,
    UINT32,
    Items,
    Tensor,
    Value,
    adapter_tensors,
    vocabulary,
    write_tiny_adapter,
    write_tiny_model,
)

Q4_0, Q8_0, I32, NVFP4 = 2, 8, 26, 40
N_TOKENS = len(vocabulary())


def tensor(name: str, *shape: int, code: int = 0) -> Tensor:
    _, n_elements, n_bytes = GGML_TYPES[code]
    return Tensor(name, shape, bytes(math.prod(shape) // n_elements * n_bytes), code)


def pair(name: str, a: tuple[int, ...], b: tuple[int, ...], code: int = 0) -> list[Tensor]:
    return [tensor(f"{name}.lora_a", *a, code=code), tensor(f"{name}.lora_b", *b)]


def model_tensors(path: Path) -> dict[bytes, reader.StoredTensor]:
    return reader.tensors(path, reader.validate(path))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, reader.StoredTensor]:
    return model_tensors(write_tiny_model(tmp_path_factory.mktemp("models")))


def check(path: Path, model: dict[bytes, reader.StoredTensor]) -> None:
    lora.check(lora.read(path), model)


def test_what_the_tests_write_fits(tmp_path: Path, model: dict[bytes, reader.StoredTensor]) -> None:
    check(write_tiny_adapter(tmp_path), model)
    check(write_tiny_adapter(tmp_path, changes=[("adapter.lora.alpha", FLOAT32, 8.0), ("more", UINT32, 1)]), model)


def test_the_tensors_of_all_shards_count(tmp_path: Path, model: dict[bytes, reader.StoredTensor]) -> None:
    assert model_tensors(write_tiny_model(tmp_path, n_shards=3)) == model
    assert model[b"token_embd.weight"] == ((N_EMBD, N_TOKENS), 0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("general.type", STRING, "model"), "`general.type` is not `adapter`"),
        (("general.type", ARRAY, Items(STRING, ["adapter"])), "`general.type` is not `adapter`"),
        (("general.type", STRING, "adapter\0"), "`general.type` is not `adapter`"),
        (("adapter.type", STRING, "dora"), "`adapter.type` is not `lora`"),
        (("adapter.type", UINT32, 1), "`adapter.type` is not `lora`"),
        (("adapter.lora.alpha", FLOAT64, 1.0), "no 32-bit float"),
        (("adapter.lora.alpha", UINT32, 1), "no 32-bit float"),
        (("adapter.lora.alpha\0", UINT32, 1), "zero byte"),
        (("adapter.alora.invocation_tokens", ARRAY, Items(UINT32, [1])), "activated LoRA"),
        (("general.architecture", UINT32, 1), "`general.architecture` is missing"),
    ],
)
def test_metadata_that_llama_cpp_would_stumble_over(
    change: tuple[str, int, Value], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidGguf, match=complaint):
        lora.read(write_tiny_adapter(tmp_path, changes=[change]))


def test_a_model_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(InvalidGguf, match="a model, not an adapter"):
        lora.read(write_tiny_model(tmp_path))


QUERY = "blk.0.attn_q.weight"
SHAPE = "another shape"


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ([], "no pairs"),
        ([tensor("blk.0.attn_norm.weight", N_EMBD)], "no pairs"),
        ([tensor(QUERY, N_EMBD, N_EMBD)], "is of no pair"),
        ([tensor(f"{QUERY}.lora_a", N_EMBD, 4)], "is not complete"),
        ([tensor(f"{QUERY}.lora_b", 4, N_EMBD)], "is not complete"),
        (pair("blk.9.attn_q.weight", (N_EMBD, 4), (4, N_EMBD)), "no tensor `blk.9.attn_q.weight`"),
        (pair(QUERY, (32, 4), (4, N_EMBD)), SHAPE),
        (pair(QUERY, (N_EMBD, 4), (4, 32)), SHAPE),
        (pair(QUERY, (N_EMBD, 4), (8, N_EMBD)), SHAPE),
        (pair(QUERY, (N_EMBD, 0), (0, N_EMBD)), SHAPE),
        (pair(QUERY, (N_EMBD, 4, 2), (4, N_EMBD)), SHAPE),
        (pair(QUERY, (N_EMBD, 4), (4, N_EMBD, 2)), SHAPE),
        (pair(QUERY, (N_EMBD, 4, 1, 2), (4, N_EMBD, 1, 2)), SHAPE),
        (pair(QUERY, (N_EMBD, 4), (4, N_EMBD), I32), "a type that adapters cannot have"),
        (pair(QUERY, (N_EMBD, 4), (4, N_EMBD), Q4_0), "a type that adapters cannot have"),
        (pair("token_embd.weight", (4, N_TOKENS), (8, N_EMBD)), SHAPE),
        (pair("token_embd.weight", (N_EMBD, 4), (4, N_TOKENS)), SHAPE),
        ([*adapter_tensors(), tensor("x.lora_a\0_norm.weight", N_EMBD)], "zero byte"),
    ],
)
def test_tensors_that_do_not_fit(
    tensors: list[Tensor], complaint: str, tmp_path: Path, model: dict[bytes, reader.StoredTensor]
) -> None:
    with pytest.raises(InvalidGguf, match=complaint):
        check(write_tiny_adapter(tmp_path, tensors=tensors), model)


def test_tensors_that_do_fit(tmp_path: Path, model: dict[bytes, reader.StoredTensor]) -> None:
    for tensors in (
        pair(QUERY, (N_EMBD, 4), (4, N_EMBD), Q8_0),
        pair(QUERY, (N_EMBD, 4, 1, 1), (4, N_EMBD)),
        pair("token_embd.weight", (4, N_TOKENS), (4, N_EMBD)),
        [*adapter_tensors(), tensor("blk.0.attn_norm.weight", N_EMBD)],
    ):
        check(write_tiny_adapter(tmp_path, tensors=tensors), model)


def test_what_depends_on_the_model(tmp_path: Path, model: dict[bytes, reader.StoredTensor]) -> None:
    embeddings = pair("token_embd.weight", (4, N_TOKENS), (4, N_EMBD))
    without_output = {name: each for name, each in model.items() if name != b"output.weight"}
    with pytest.raises(InvalidGguf, match="uses as its output"):
        check(write_tiny_adapter(tmp_path, tensors=embeddings), without_output)
    query = write_tiny_adapter(tmp_path, tensors=pair(QUERY, (N_EMBD, 4), (4, N_EMBD)))
    with pytest.raises(InvalidGguf, match="NVFP4"):
        check(query, {QUERY.encode(): reader.StoredTensor((N_EMBD, N_EMBD), NVFP4)})
    experts = {QUERY.encode(): reader.StoredTensor((N_EMBD, N_EMBD, 8), 0)}
    with pytest.raises(InvalidGguf, match=SHAPE):
        check(query, experts)
    check(write_tiny_adapter(tmp_path, tensors=pair(QUERY, (N_EMBD, 4, 8), (4, N_EMBD, 8))), experts)


def test_a_file_cut_at_every_place_is_refused(tmp_path: Path) -> None:
    tensors = [
        Tensor(each.name, each.shape, struct.pack("<f", 1.0) * math.prod(each.shape))
        for each in pair(QUERY, (N_EMBD, 1), (1, N_EMBD))
    ]
    whole = write_tiny_adapter(tmp_path, tensors=tensors).read_bytes()
    path = tmp_path / "cut.gguf"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InvalidGguf):
            lora.read(path)
