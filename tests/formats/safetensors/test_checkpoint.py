"""Headers in SafeTensors: sound ones are read as they are, and no broken or hostile one does more than say why."""

import json
import os
import struct
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shimmy.formats.convert.convert import plan
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors import checkpoint
from shimmy.formats.safetensors.checkpoint import InvalidSafetensors, TensorReader, read_folder
from tests import tiny_families
from tests.rewriting import rewrite
from tests.tiny_checkpoints import Weights, encode_safetensors, write_checkpoint, write_tiny_llama

TWO = {"a": Weights((2, 3), bytes(range(24))), "b": Weights((4,), b"abcdefgh", "BF16")}


def file_of(header: Any, n_data: int = 32, *, n_header: int | None = None) -> bytes:
    """A file with this header, which may be text that is no JSON."""
    content = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(content) if n_header is None else n_header) + content + bytes(n_data)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def reason(folder: Path, content: bytes) -> str:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidSafetensors) as caught:
        read_folder(folder)
    return str(caught.value)


def test_tensors_are_where_the_header_says(tmp_path: Path) -> None:
    content = encode_safetensors(TWO)
    (tmp_path / "model.safetensors").write_bytes(content)
    found = read_folder(tmp_path)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.tensors.items()} == {
        "a": ("F32", (2, 3)), "b": ("BF16", (4,)),
    }  # fmt: skip
    for name, tensor in found.tensors.items():
        assert content[tensor.offset : tensor.offset + tensor.n_bytes] == TWO[name].data
    assert [file.size_bytes for file in found.files] == [len(content)]


def test_a_part_of_a_tensor_is_read_into_a_buffer(tmp_path: Path) -> None:
    found = read_folder(write_checkpoint(tmp_path, {}, TWO, n_shards=2))
    buffer = bytearray(4)
    with TensorReader() as reader:
        reader.read(found.tensors["a"], 8, memoryview(buffer))
        assert buffer == bytes(range(8, 12))
        reader.read(found.tensors["b"], 0, memoryview(buffer))
        assert buffer == b"abcd"


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_safetensors(TWO))
    found = read_folder(tmp_path)
    with TensorReader() as reader:
        reader.read(found.tensors["a"], 0, memoryview(bytearray(1)))
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(InvalidSafetensors, match="cut off while"):
            reader.read(found.tensors["b"], 0, memoryview(bytearray(8)))
    with TensorReader() as reader, pytest.raises(InvalidSafetensors, match="was changed while"):
        reader.read(found.tensors["a"], 0, memoryview(bytearray(1)))


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    whole = read_folder(write_tiny_llama(tmp_path / "whole"))
    shards = read_folder(write_tiny_llama(tmp_path / "shards", n_shards=4))
    assert len(shards.files) == 4
    assert {name: tensor.shape for name, tensor in shards.tensors.items()} == {
        name: tensor.shape for name, tensor in whole.tensors.items()
    }


def test_links_into_the_blobs_of_the_hub_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--tiny"
    snapshot = write_checkpoint(repository / "snapshots" / "abc", {}, TWO, n_shards=2)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.glob("*.safetensors"))):
        blob = repository / "blobs" / str(number)
        path.rename(blob)
        path.symlink_to(f"../../blobs/{number}")
    assert set(read_folder(snapshot).tensors) == {"a", "b"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "too few for SafeTensors"),
        (b"\0" * 7, "too few for SafeTensors"),
        (file_of({}, 0, n_header=2**63), "cut off, or no SafeTensors"),
        (file_of({}, 0, n_header=3), "cut off, or no SafeTensors"),
        (b"GGUF" + bytes(100), "cut off, or no SafeTensors"),
        (file_of("", 8), "not valid JSON"),
        (file_of("{", 8), "not valid JSON"),
        (file_of("[]", 8), "not a JSON object"),
        (file_of('"\\ud800"', 8), "not a JSON object"),
        (file_of("[" * 100_000, 8), "not valid JSON"),
        (file_of("[" * 400_000, 8), "larger than any model"),
        (file_of("{}" * 200_000, 8), "larger than any model"),
        (file_of('{"a": 1, "a": 1}'), "the key `a` twice"),
        (file_of('{"a": {"dtype": "F32", "dtype": "F32"}}'), "the key `dtype` twice"),
        (file_of('{"a\\nb": 1}'), r"its tensor `a\nb` is not described"),
        (file_of({"": entry()}), "a name of 0 characters"),
        (file_of({"x" * 300: entry()}), "a name of 300 characters"),
        (file_of({"a": entry("F7")}), "the unknown type `F7`"),
        (file_of({"a": entry(["F32"])}), "the unknown type"),
        (file_of({"a": entry(shape=[-2])}), "impossible shape"),
        (file_of({"a": entry(shape=[2.0])}), "impossible shape"),
        (file_of({"a": entry(shape=[True, 2])}), "impossible shape"),
        (file_of({"a": entry(shape=None)}), "impossible shape"),
        (file_of({"a": entry(shape=[1] * 9)}), "impossible shape"),
        (file_of({"a": entry(shape=[10**30])}), "impossible shape"),
        (file_of({"a": entry(offsets=[8, 0])}), "impossible offsets"),
        (file_of({"a": entry(offsets=[-8, 0])}), "impossible offsets"),
        (file_of({"a": entry(offsets=[0, 8, 8])}), "impossible offsets"),
        (file_of({"a": entry(offsets={})}), "impossible offsets"),
        (file_of({"a": entry(shape=[3])}), "another number of bytes"),
        (file_of({"a": entry("F4", [3], [0, 1])}), "another number of bytes"),
        (file_of({"a": entry(offsets=[28, 36])}), "ends behind the end"),
        (file_of({"a": entry(), "b": entry(offsets=[4, 12])}), "overlaps with another"),
        (file_of({"a": entry(), "b": entry()}), "overlaps with another"),
        (file_of('{"a": 1' + "0" * 10_000 + "}"), "not valid JSON"),
    ],
)
def test_a_broken_header_is_refused_with_the_reason(content: bytes, words: str, tmp_path: Path) -> None:
    said = reason(tmp_path, content)
    assert words in said
    assert "\n" not in said
    assert len(said) < 300


def test_a_header_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_HEADER_BYTES", 100)
    assert "too many" in reason(tmp_path, file_of(" " * 101))


def test_all_headers_together_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_llama(tmp_path, n_shards=4)
    monkeypatch.setattr(checkpoint, "MAX_HEADERS_BYTES", 1_000)
    with pytest.raises(InvalidSafetensors, match="too many"):
        read_folder(tmp_path)


def test_a_gap_between_tensors_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(file_of({"a": entry(), "b": entry(offsets=[16, 24])}))
    assert set(read_folder(tmp_path).tensors) == {"a", "b"}


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    os.mkfifo(path)
    with pytest.raises(InvalidSafetensors, match="not a regular file"):
        read_folder(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(InvalidSafetensors, match="not a regular file"):
        read_folder(tmp_path)


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index.pop("weight_map"), "no `weight_map`"),
        (lambda index: index.update(weight_map={}), "no `weight_map`"),
        (lambda index: index.update(weight_map=[FIRST]), "no `weight_map`"),
        (lambda index: index["weight_map"].update(a=7), "not a file of this folder"),
        (lambda index: index["weight_map"].update(a=f"../{FIRST}"), "not a file of this folder"),
        (lambda index: index["weight_map"].update(a=f"/etc/{FIRST}"), "not a file of this folder"),
        (lambda index: index["weight_map"].update(a=f"sub\\{FIRST}"), "not a file of this folder"),
        (lambda index: index["weight_map"].update(a="a\0.safetensors"), "not a file of this folder"),
        (lambda index: index["weight_map"].update(a="passwd"), "not a file of this folder"),
        (lambda index: index["weight_map"].update(a="x" * 300 + ".safetensors"), "not a file of this folder"),
        (lambda index: index["weight_map"].update(a="other.safetensors"), "`other.safetensors` is missing"),
        (lambda index: index["weight_map"].update(a=SECOND), "is not in"),
        (lambda index: index["weight_map"].update(c=FIRST), "is not in"),
        (lambda index: index.update(weight_map={str(n): f"{n}.safetensors" for n in range(1_025)}), "lists 1025 files"),
    ],
)
def test_a_broken_index_is_refused_with_the_reason(
    change: Callable[[dict[str, Any]], object], words: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, {}, TWO, n_shards=2)
    change_index(folder, change)
    with pytest.raises(InvalidSafetensors) as caught:
        read_folder(folder)
    assert words in str(caught.value)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, {}, TWO, n_shards=2)
    (folder / SECOND).write_bytes(encode_safetensors(TWO))
    with pytest.raises(InvalidSafetensors, match="`a` is in two"):
        read_folder(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSafetensors, match=r"neither `model\.safetensors` nor"):
        read_folder(tmp_path)


def test_weights_that_are_pickles_are_named(tmp_path: Path) -> None:
    for name in ("training_args.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"):
        (tmp_path / name).touch()
    with pytest.raises(InvalidSafetensors, match=r"in `pytorch_model-00001-of-00002\.bin`, which is not read"):
        read_folder(tmp_path)


def test_a_file_that_git_left_elsewhere_is_called_that(tmp_path: Path) -> None:
    """Who clones a repository without Git LFS has a text of three lines in the place of each large file."""
    (tmp_path / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4976698672\n"
    )
    with pytest.raises(InvalidSafetensors, match=r"its `model\.safetensors` is not there.*`git lfs pull`"):
        read_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version of another kind")
    with pytest.raises(InvalidSafetensors, match="no SafeTensors file"):
        read_folder(tmp_path)


# -- hostile bytes ---------------------------------------------------------------------------------------------------

N_MUTATIONS = 10_000
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**32, 2**63, 2**64, 10**40, 0.5, -1.5, 1e308, float("nan"),
    float("inf"), "", "x", "F32", "BF16", "../../etc/passwd", "/dev/zero", "a\0b", "\ud800", [], [[]], [0], {},
    {"": {}}, ["full_attention"], ["sliding_attention", "full_attention"], {"rope_type": "yarn"},
    {"rope_type": "llama3"},
    {"rope_type": "linear", "factor": 1e-9}, {"type": ["x"]}, {"full_attention": 5}, {"quant_method": {}},
)  # fmt: skip


def mutated_json(random: Random, value: Any) -> Any:
    """The value with a few of its parts replaced, removed or doubled."""
    copy = json.loads(json.dumps(value))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        target: Any = copy
        keys: list[Any] = []
        while isinstance(target, dict | list) and target and (not keys or random.random() < 0.7):
            parent = target
            keys.append(random.choice([*target]) if isinstance(target, dict) else random.randrange(len(target)))
            target = parent[keys[-1]]
        odd = deepcopy(random.choice(ODD_VALUES))
        if isinstance(parent, dict) and random.random() < 0.15:
            del parent[keys[-1]]
        elif isinstance(parent, dict) and random.random() < 0.1:
            parent[f"{keys[-1]}{random.randrange(3)}"] = target
        elif type(target) is int and random.random() < 0.5:
            parent[keys[-1]] = target + random.choice((-1, 1, 4, -target, target))
        else:
            parent[keys[-1]] = odd
        if not copy:
            break
    return copy


def mutated_bytes(random: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 2, 4))):
        at = random.randrange(min(len(changed), 2_000))
        match random.randrange(4):
            case 0:
                changed[at] = random.randrange(256)
            case 1:
                del changed[at : at + random.choice((1, 8, 5_000))]
            case 2:
                changed[at:at] = random.randbytes(random.choice((1, 8)))
            case _:
                changed[at : at + 1] = random.choice((b'"', b"{", b"}", b"[", b"9", b"-", b","))
        if not changed:
            return b""
    return bytes(changed)


def mutated(random: Random, files: dict[str, bytes], config: Any, index: Any) -> tuple[str, bytes]:
    """The name of one of the files, and something else to be in it."""
    kind = random.randrange(5)
    shard = random.choice([name for name in files if name.endswith(".safetensors")])
    if kind == 0:
        return shard, mutated_bytes(random, files[shard])
    if kind == 1:
        n_header = struct.unpack_from("<Q", files[shard])[0]
        header = json.dumps(mutated_json(random, json.loads(files[shard][8 : 8 + n_header]))).encode()
        return shard, struct.pack("<Q", len(header)) + header + files[shard][8 + n_header :]
    if kind == 2 and index is not None:
        return "model.safetensors.index.json", json.dumps(mutated_json(random, index)).encode()
    if kind == 3:
        return "config.json", mutated_bytes(random, files["config.json"])
    return "config.json", json.dumps(mutated_json(random, config)).encode()


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_mutated_headers_and_configs_give_a_plan_or_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    real_open = os.open

    def watched_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        opened.append(Path(path))
        return real_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", watched_open)
    n_plans = 0
    for number, model_type in enumerate(tiny_families.CONFIGS):
        random = Random(number)
        n_shards = number % 3 + 1
        config = tiny_families.config(model_type)
        folder = write_checkpoint(tmp_path / model_type, config, tiny_families.tensors(model_type), n_shards=n_shards)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        index = json.loads(files["model.safetensors.index.json"]) if n_shards > 1 else None
        for _ in range(N_MUTATIONS // len(tiny_families.CONFIGS) + 1):
            name, content = mutated(random, files, config, index)
            rewrite(folder / name, content)
            try:
                found = plan(folder)
            except (InvalidSafetensors, Unconvertible) as exc:
                said = str(exc)
                assert said.isprintable()
                assert len(said) < 1000  # the longest shows a pre-tokenizer
            else:
                n_plans += 1
                assert found.n_params > 0
                assert 0 < found.n_ctx_train < 2**31
            rewrite(folder / name, files[name])
    assert all(path.parent.parent == tmp_path for path in opened)
    assert 500 < n_plans < N_MUTATIONS / 2  # both are tried
