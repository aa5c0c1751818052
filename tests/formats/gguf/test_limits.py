"""What the engine would abort on in models whose layers select tokens or blocks, found in the header, said in words."""

from pathlib import Path

import pytest

from shimmy.formats.gguf.reader import InvalidGguf, validate
from tests.tiny_models import ARRAY, BOOL, FLOAT32, STRING, UINT32, Items, Metadata, Tensor, encode_gguf

PARTS = ("attn_q_b.weight", "attn_k.weight", "k_norm.weight", "k_norm.bias", "proj.weight")


def indexers(*layers: int) -> list[Tensor]:
    shapes = [(4,) if "norm" in part else (4, 4) for part in PARTS for _ in layers]
    names = [f"blk.{layer}.indexer.{part}" for part in PARTS for layer in layers]
    return [
        Tensor(name, shape, bytes(16 if len(shape) == 1 else 64)) for name, shape in zip(names, shapes, strict=True)
    ]


def metadata(architecture: str, size: int = 128, *types: bool, n_rotated: int = 64) -> Metadata:
    found: Metadata = [
        ("general.architecture", STRING, architecture),
        (f"{architecture}.context_length", UINT32, 512),
        (f"{architecture}.block_count", UINT32, 3),
        (f"{architecture}.attention.indexer.key_length", UINT32, size),
        (f"{architecture}.rope.dimension_count", UINT32, n_rotated),
    ]
    return [*found, (f"{architecture}.attention.indexer.types", ARRAY, Items(BOOL, types))] if types else found


def written(path: Path, told: Metadata, tensors: list[Tensor]) -> Path:
    path.write_bytes(encode_gguf(told, tensors))
    return path


@pytest.mark.parametrize(
    ("told", "layers"),
    [
        (metadata("deepseek32"), (0, 1, 2)),
        (metadata("glm-dsa"), (0, 1, 2)),
        (metadata("glm-dsa", 64, True, False, True), (0, 2)),
        ([*metadata("glm-dsa", 64, True, False), ("glm-dsa.nextn_predict_layers", UINT32, 1)], (0,)),
        (metadata("deepseek2", 7), ()),
    ],
)
def test_a_model_has_the_indexers_that_it_names(told: Metadata, layers: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    head = Tensor("output_norm.weight", (4,), bytes(16))
    validate(written(path, told, [head, *indexers(*layers)]))
    for missing in indexers(*layers):
        tensors = [tensor for tensor in indexers(*layers) if tensor.name != missing.name]
        with pytest.raises(InvalidGguf, match=f"it has no `{missing.name}`"):
            validate(written(path, told, [head, *tensors]))


def test_an_indexer_may_be_in_another_shard(tmp_path: Path) -> None:
    shards = [tmp_path / f"model-0000{number}-of-00002.gguf" for number in (1, 2)]
    head = Tensor("output_norm.weight", (4,), bytes(16))
    for number, (shard, told, tensors) in enumerate(
        zip(shards, (metadata("deepseek32"), []), ([head, *indexers(0)], indexers(1, 2)), strict=True)
    ):
        written(shard, [*told, ("split.no", UINT32, number), ("split.count", UINT32, 2)], tensors)
    validate(shards[0])
    written(shards[1], [("split.no", UINT32, 1), ("split.count", UINT32, 2)], indexers(1))
    with pytest.raises(InvalidGguf, match=r"blk\.2\.indexer"):
        validate(shards[0])


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (metadata("deepseek32", 96), "96 numbers"),
        (metadata("deepseek32", 32), "32 numbers"),
        (metadata("glm-dsa", 0), "0 numbers"),
        (metadata("glm-dsa", 64, n_rotated=128), "64 numbers"),
        (metadata("glm-dsa", 64, False, True, True), "first layer"),
        ([*metadata("glm-dsa"), ("glm-dsa.attention.indexer.top_k", UINT32, 0)], "select 0 tokens"),
        ([*metadata("deepseek32"), ("deepseek32.nextn_predict_layers", UINT32, 3)], "no blocks but"),
    ],
)
def test_other_indexers_are_refused(told: Metadata, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidGguf, match=reason):
        validate(written(tmp_path / "model.gguf", told, indexers(0, 1, 2)))


def blocks(**more: int) -> Metadata:
    sizes = {
        "context_length": 512, "block_count": 3, "attention.head_count_kv": 4, "rope.dimension_count": 64,
        "attention.indexer.head_count": 4, "attention.indexer.key_length": 128, "attention.indexer.block_size": 128,
        "attention.indexer.top_k": 16, **{f"attention.indexer.{key}": size for key, size in more.items()},
    }  # fmt: skip
    found: Metadata = [("general.architecture", STRING, "minimax-m3")]
    return found + [(f"minimax-m3.{key}", UINT32, size) for key, size in sizes.items()]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"head_count": 2}, "2 heads"),
        ({"key_length": 32}, "32 numbers"),
        ({"block_size": 0}, "blocks of 0 tokens"),
        ({"block_size": 2**31}, "tokens"),
        ({"top_k": 0}, "0 blocks"),
    ],
)
def test_other_blocks_are_refused(more: dict[str, int], reason: str, tmp_path: Path) -> None:
    head = Tensor("output_norm.weight", (4,), bytes(16))
    validate(written(tmp_path / "plain.gguf", blocks(), [head]))
    with pytest.raises(InvalidGguf, match=reason):
        validate(written(tmp_path / "model.gguf", blocks(**more), [head]))


def test_a_kimi_linear_with_queries_in_two_steps_is_refused(tmp_path: Path) -> None:
    """The engine would look for a matrix that is not there, and crash."""
    head, told = Tensor("output_norm.weight", (4,), bytes(16)), metadata("kimi-linear")
    for size in (0, 24):
        path = written(tmp_path / "model.gguf", [*told, ("kimi-linear.attention.q_lora_rank", UINT32, size)], [head])
        if size:
            with pytest.raises(InvalidGguf, match="two steps"):
                validate(path)
        else:
            validate(path)


@pytest.mark.parametrize(("bound", "is_safe"), [(0.0, True), (5.0, True), (float("nan"), True), (-5.0, False)])
def test_a_ling_3_whose_states_fade_without_a_bound_is_refused(bound: float, is_safe: bool, tmp_path: Path) -> None:
    head, told = Tensor("output_norm.weight", (4,), bytes(16)), metadata("bailingmoe3")
    for number, flag in ((-5.0, True), (bound, is_safe)):
        more: Metadata = [
            ("bailingmoe3.kda.gate_lower_bound", FLOAT32, number), ("bailingmoe3.kda.safe_gate", BOOL, flag),
        ]  # fmt: skip
        path = written(tmp_path / "model.gguf", [*told, *more], [head])
        if number == -5.0 and flag:
            validate(path)
        else:
            with pytest.raises(InvalidGguf, match="bound"):
                validate(path)
