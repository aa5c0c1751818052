"""A scan lists what can be served, whatever else lies around, and says why it leaves something out."""

import os
import socket
import struct
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import pytest

from shimmy import config
from shimmy.catalog.assign_names import Names
from shimmy.catalog.catalog import BROKEN, Catalog, Entry, Model, Rejected, diff, shown
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.scan import Discovery, report, scan
from shimmy.catalog.walk import MAX_DEPTH
from shimmy.formats.convert import convert, converted
from shimmy.formats.convert.cache import UNFINISHED
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf.header import GgufHeader, GgufKind
from shimmy.system import files
from tests.golden.weights import write_folder
from tests.peft_adapters import write_adapter
from tests.tiny_checkpoints import random_weights, write_tiny_llama
from tests.tiny_models import BOOL, N_EMBD, STRING, UINT32, Metadata, Tensor, encode_gguf, vocabulary, write_tiny_model


def scan_paths(*paths: Path, folders: tuple[Path, ...] = ()) -> Catalog:
    given = {"model_path": paths, "model_dirs": folders}
    flags = {name: [str(path) for path in some] for name, some in given.items() if some}
    return scan(config.load(flags, {}), Headers())


def names(catalog: Catalog) -> list[str]:
    return [model.name for model in catalog.models]


def reasons(catalog: Catalog) -> dict[str, str]:
    return {entry.name: entry.reason for entry in catalog.rejected}


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_a_model_is_listed_with_what_its_header_says(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, "Tiny_Model.F32", n_ctx_train=768, chat_template=None)
    status = path.stat()
    (model,) = scan_paths(path).models
    assert model == Model(
        name="tiny-model.f32",
        path=path,
        files=((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns),),
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        architecture="llama",
        quantization="F32",
        n_params=157_632,
        n_ctx_train=768,
        n_vocab=len(vocabulary()),
        n_layers=2,
        n_embd=64,
        n_ff=128,
        n_expert_params=0,
        n_heads=4,
        n_kv=256,
        n_state=0,
        has_chat_template=False,
    )


def test_folders_are_searched_and_only_gguf_files_are_opened(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "top")
    write_tiny_model(folder(tmp_path / "a" / "b"), "deep")
    write_tiny_model(tmp_path, "shout").rename(tmp_path / "shout.GGUF")
    write_tiny_model(tmp_path, "other").rename(tmp_path / "other.bin")
    write_tiny_model(tmp_path, "unfinished").rename(tmp_path / "unfinished.gguf.part")
    assert names(scan_paths(folders=(tmp_path,))) == ["deep", "shout", "top"]
    assert names(scan_paths(tmp_path)) == ["deep", "shout", "top"]


def test_a_file_named_by_its_path_may_have_any_name(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, "tiny").rename(tmp_path / "Model.v2_F32")
    assert names(scan_paths(path)) == ["model.v2-f32"]


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_model(tmp_path, "tiny")
    monkeypatch.chdir(tmp_path)
    (model,) = scan_paths(Path("tiny.gguf")).models
    assert model.path == path


def test_shards_are_one_model(tmp_path: Path) -> None:
    first = write_tiny_model(tmp_path, "Tiny", n_shards=3)
    (model,) = scan_paths(folders=(tmp_path,)).models
    assert (model.name, model.path, model.n_params) == ("tiny", first, 157_632)
    assert model.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert model.mtime_ns == max(path.stat().st_mtime_ns for path in tmp_path.iterdir())


def test_any_shard_may_be_named(tmp_path: Path) -> None:
    first = write_tiny_model(tmp_path, "tiny", n_shards=3)
    (model,) = scan_paths(tmp_path / "tiny-00002-of-00003.gguf", first).models
    assert model.path == first


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_incomplete_set_of_shards_is_one_entry_with_the_reason(tmp_path: Path, number: int) -> None:
    write_tiny_model(tmp_path, "tiny", n_shards=3)
    gone = tmp_path / f"tiny-{number:05d}-of-00003.gguf"
    gone.unlink()
    catalog = scan_paths(tmp_path)
    assert names(catalog) == []
    assert reasons(catalog) == {"tiny": f"its shard `{gone.name}` is missing"}
    assert catalog.rejected[0].path == min(tmp_path.iterdir())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_broken_shard_makes_one_entry(tmp_path: Path, number: int) -> None:
    first = write_tiny_model(tmp_path, "tiny", n_shards=3)
    (tmp_path / f"tiny-{number:05d}-of-00003.gguf").write_bytes(b"broken" * 10)
    catalog = scan_paths(tmp_path)
    assert names(catalog) == []
    (entry,) = catalog.rejected
    assert (entry.name, entry.path) == ("tiny", first)
    assert entry.reason.endswith("it does not begin with `GGUF`")


def test_shards_that_are_not_what_their_names_say(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "lone").rename(tmp_path / "tiny-00002-of-00002.gguf")
    other = write_tiny_model(folder(tmp_path / "other"), "tiny", n_shards=2)
    other.rename(tmp_path / "tiny-00001-of-00002.gguf")
    (tmp_path / "other" / "tiny-00002-of-00002.gguf").rename(tmp_path / "renamed.gguf")
    catalog = scan_paths(tmp_path)
    assert names(catalog) == ["tiny-00002-of-00002"]  # its header says that it is a whole model
    assert reasons(catalog) == {
        "renamed": "it is shard 2 of 2: its name has to end with `-00002-of-00002.gguf`",
        "tiny": "its shard `tiny-00002-of-00002.gguf` is not what its name says",
    }


def test_one_file_by_many_paths_is_one_model(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, "tiny")
    (tmp_path / "symbolic.gguf").symlink_to(path)
    (tmp_path / "hard.gguf").hardlink_to(path)
    (tmp_path / "again").symlink_to(tmp_path)
    assert names(scan_paths(path, tmp_path, folders=(tmp_path,))) == ["tiny"]


def test_a_huggingface_cache_is_one_model_under_its_link(tmp_path: Path) -> None:
    blob = write_tiny_model(folder(tmp_path / "models--x" / "blobs"), "blob").rename(tmp_path / "models--x/blobs/0123")
    for revision in ("aaaa", "bbbb"):
        (folder(tmp_path / "models--x" / "snapshots" / revision) / "Tiny-F32.gguf").symlink_to(blob)
    assert names(scan_paths(tmp_path)) == ["tiny-f32"]


def test_shards_that_are_links_are_found_beside_the_link(tmp_path: Path) -> None:
    write_tiny_model(folder(tmp_path / "blobs"), "tiny", n_shards=2)
    for number in (1, 2):
        blob = (tmp_path / "blobs" / f"tiny-{number:05d}-of-00002.gguf").rename(tmp_path / "blobs" / str(number))
        (tmp_path / f"linked-{number:05d}-of-00002.gguf").symlink_to(blob)
    assert names(scan_paths(tmp_path)) == ["linked"]


def test_a_name_that_is_taken_gets_its_folder(tmp_path: Path) -> None:
    for place in ("a", "b", "c/b", "d/b"):
        write_tiny_model(folder(tmp_path / place), "tiny", seed=ord(place[0]))
    catalog = scan_paths(tmp_path)
    assert {model.name: str(model.path.parent.relative_to(tmp_path)) for model in catalog.models} == {
        "tiny": "a",
        "tiny@b": "b",
        "tiny@b-2": "c/b",
        "tiny@b-3": "d/b",
    }
    assert names(scan_paths(tmp_path / "b", tmp_path)) == ["tiny", "tiny@a", "tiny@b", "tiny@b-2"]


def write_other(path: Path, architecture: str = "llama", kind: str = "adapter", seed: int = 0) -> Path:
    """A file that is no model, such as an adapter."""
    metadata: Metadata = [("general.architecture", STRING, architecture), ("general.type", STRING, kind)]
    path.write_bytes(encode_gguf(metadata, [Tensor("weights", (8,), bytes([seed] * 32))]))
    return path


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ([("general.architecture", STRING, "clip")], "projector"),
        ([("general.architecture", STRING, "llama"), ("general.type", STRING, "adapter")], "adapter"),
        ([("general.type", STRING, "imatrix")], "importance matrix"),
    ],
)
def test_what_is_no_model_is_not_listed_as_one(tmp_path: Path, metadata: Metadata, kind: str) -> None:
    path = tmp_path / "looks-like-a-model.gguf"
    path.write_bytes(encode_gguf(metadata, [Tensor("weights", (8,), bytes(32))]))
    catalog = scan_paths(path)
    assert names(catalog) == []
    (entry,) = catalog.rejected
    assert (entry.name, entry.kind) == ("looks-like-a-model", kind)
    assert entry.reason == f"it is {GgufKind(kind).noun}, not a model"


def test_a_vocabulary_is_not_listed_as_a_model(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.gguf").write_bytes(encode_gguf([("general.architecture", STRING, "llama")]))
    catalog = scan_paths(tmp_path)
    assert names(catalog) == []
    assert reasons(catalog) == {"vocabulary": "it is a vocabulary, not a model"}


@pytest.mark.parametrize(
    ("architecture", "keys", "is_embedding"),
    [
        ("llama", [], False),
        ("bert", [], True),
        ("nomic-bert", [], True),
        ("jina-bert-v2", [("jina-bert-v2.pooling_type", UINT32, 0)], True),
        ("t5encoder", [], True),
        ("qwen3", [("qwen3.pooling_type", UINT32, 3)], True),
        ("qwen3", [("qwen3.pooling_type", UINT32, 0)], False),
        ("qwen3", [("qwen3.pooling_type", STRING, "mean")], False),
        ("qwen3", [("llama.pooling_type", UINT32, 3)], False),
        ("dream", [("dream.attention.causal", BOOL, False)], False),
    ],
)
def test_what_a_model_is_for(tmp_path: Path, architecture: str, keys: Metadata, is_embedding: bool) -> None:
    metadata: Metadata = [("general.architecture", STRING, architecture), *keys]
    (tmp_path / "model.gguf").write_bytes(encode_gguf(metadata, [Tensor("weights", (8,), bytes(32))]))
    assert [model.is_embedding for model in scan_paths(tmp_path).models] == [is_embedding]


@pytest.mark.parametrize(
    ("architecture", "keys", "is_causal", "pooling"),
    [
        ("llama", [], True, ""),
        ("bert", [("bert.pooling_type", UINT32, 1)], False, "mean"),
        ("bert", [("bert.attention.causal", BOOL, True), ("bert.pooling_type", UINT32, 2)], False, "cls"),
        ("qwen3", [("qwen3.pooling_type", UINT32, 3)], True, "last"),
        ("qwen3", [("qwen3.pooling_type", UINT32, 4), ("qwen3.attention.causal", BOOL, False)], False, "rank"),
        ("qwen3", [("qwen3.pooling_type", UINT32, 77)], True, ""),
    ],
)
def test_how_a_model_pools(tmp_path: Path, architecture: str, keys: Metadata, is_causal: bool, pooling: str) -> None:
    metadata: Metadata = [("general.architecture", STRING, architecture), *keys]
    (tmp_path / "model.gguf").write_bytes(encode_gguf(metadata, [Tensor("weights", (8,), bytes(32))]))
    (model,) = scan_paths(tmp_path).models
    assert (model.is_causal, model.pooling) == (is_causal, pooling)


def test_adapters_and_a_projector_belong_to_the_models_beside_them(tmp_path: Path) -> None:
    house, other = folder(tmp_path / "house"), folder(tmp_path / "other")
    write_tiny_model(house, "tiny")
    write_tiny_model(house, "sharded", n_shards=2)
    write_tiny_model(other, "lonely")
    adapters = (write_other(house / "a-lora.gguf", seed=1), write_other(house / "zz-lora.gguf", seed=2))
    write_other(house / "for-another.gguf", "gemma", seed=3)
    projector = write_other(house / "mmproj-a.gguf", "clip", "mmproj", seed=4)
    write_other(house / "mmproj-b.gguf", "clip", "mmproj", seed=5)
    catalog = scan_paths(tmp_path)
    assert {model.name: (model.adapters, model.projector) for model in catalog.models} == {
        "tiny": (adapters, projector),
        "sharded": (adapters, projector),
        "lonely": ((), None),
    }
    assert [*reasons(catalog)] == ["for-another", "mmproj-b"]


def write_peft(path: Path, n_embd: int = N_EMBD, module: str = "self_attn.q_proj", **changes: Any) -> Path:
    """A folder with a LoRA adapter for models whose vectors have `n_embd` numbers."""
    shapes = {"lora_A": (4, n_embd), "lora_B": (n_embd, 4)}
    name = f"base_model.model.model.layers.0.{module}"
    tensors = {f"{name}.{half}.weight": random_weights(Random(0), shape) for half, shape in shapes.items()}
    return write_adapter(path, tensors, **changes)


def test_an_adapter_in_safetensors_belongs_to_the_models_beside_its_folder(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "tiny")
    whole = write_tiny_llama(tmp_path / "whole")
    write_tiny_model(folder(tmp_path / "other"), "lonely")
    adapter, inner = write_peft(tmp_path / "adapter"), write_peft(whole / "checkpoint-10")
    write_peft(tmp_path / "of_another_size", 2 * N_EMBD)
    write_peft(tmp_path / "of-another-family", module="self_attn.qkv_proj")
    write_peft(tmp_path / "dora", use_dora=True)
    (write_peft(tmp_path / "no-weights") / "adapter_model.safetensors").unlink()
    catalog = scan_paths(tmp_path)
    assert {model.name: model.adapters for model in catalog.models} == {
        "tiny": (adapter,), "whole": (adapter,), "lonely": (),
    }  # fmt: skip
    found = reasons(catalog)
    plain = "it is an adapter, not a model"
    assert {name: found[name] for name in ("of-another-size", "of-another-family", inner.name)} == dict.fromkeys(
        ("of-another-size", "of-another-family", inner.name), plain
    )
    assert found["dora"].startswith("it has `use_dora`")
    assert len(found) == 4
    assert {entry.kind for entry in catalog.rejected} == {"adapter"}


def test_mistrals_own_format_is_listed_with_the_reason_why_not(tmp_path: Path) -> None:
    model = folder(tmp_path / "ministral")
    (model / "params.json").write_text("{}")
    (model / "consolidated.safetensors").write_bytes(bytes(8))
    catalog = scan_paths(tmp_path)
    assert not catalog.models
    assert "Mistral's own format" in reasons(catalog)["ministral"]


def test_a_model_whose_adapter_in_safetensors_changes_is_another_one(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "tiny")
    catalogs = [scan_paths(tmp_path)]
    for change in (
        lambda: write_peft(tmp_path / "adapter"),
        lambda: write_peft(tmp_path / "adapter", lora_alpha=99),
        lambda: None,
        (tmp_path / "adapter" / "adapter_config.json").unlink,
    ):
        change()
        catalogs.append(scan_paths(tmp_path))
    assert [len(diff(old, new).changed) for old, new in pairwise(catalogs)] == [1, 1, 0, 1]


def test_an_adapter_in_the_folder_of_its_model_leaves_the_model_a_model(tmp_path: Path) -> None:
    both = write_peft(write_tiny_llama(tmp_path / "both"))
    (write_peft(tmp_path / "adapter-with-config") / "config.json").write_text("{}")
    catalog = scan_paths(tmp_path)
    assert [(model.name, model.path) for model in catalog.models] == [("both", both)]
    assert catalog.models[0].adapters == (tmp_path / "adapter-with-config", both)


def test_a_model_whose_adapters_change_is_another_one_and_its_projector_makes_no_difference(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "tiny")
    adapter, projector = tmp_path / "lora.gguf", tmp_path / "mmproj.gguf"
    catalogs = [scan_paths(tmp_path)]
    for change in (
        lambda: write_other(adapter),
        lambda: os.utime(adapter, ns=(1, 1)),
        lambda: write_other(adapter, seed=1).rename(adapter),
        adapter.unlink,
        lambda: write_other(projector, "clip"),
        lambda: os.utime(projector, ns=(1, 1)),
    ):
        change()
        catalogs.append(scan_paths(tmp_path))
    changes = [len(diff(old, new).changed) for old, new in pairwise(catalogs)]
    assert changes == [1, 1, 1, 1, 0, 0]
    assert catalogs[-1].models[0].projector == projector


def write_safetensors(path: Path, config: bytes = b'{"model_type": "qwen2"}') -> Path:
    """A folder as the hub ships it, as far as anybody looks into it."""
    folder(path)
    (path / "config.json").write_bytes(config)
    for number in (1, 2):
        (path / f"model-0000{number}-of-00002.safetensors").touch()
    return path


def test_a_safetensors_folder_is_an_entry_with_the_reason(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "deep" / "Qwen2.5_0.5B")
    (folder(tmp_path / "only-config") / "config.json").write_text("{}")
    (folder(tmp_path / "only-weights") / "model.safetensors").touch()
    for roots in ((tmp_path,), (path,), (path, tmp_path)):
        catalog = scan_paths(*roots)
        assert names(catalog) == []
        (entry,) = catalog.rejected
        assert (entry.name, entry.path, entry.kind, entry.architecture) == (
            "qwen2.5-0.5b", path, "safetensors", "qwen2",
        )  # fmt: skip
        assert entry.reason == "it has neither `model.safetensors` nor `model.safetensors.index.json`"


def test_a_safetensors_folder_without_a_tokenizer_is_no_model(tmp_path: Path) -> None:
    """It was listed, and could not be loaded."""
    path = write_tiny_llama(tmp_path / "tiny")
    (path / "tokenizer.model").rename(tmp_path / "kept")
    (entry,) = scan_paths(tmp_path).rejected
    assert entry.reason == "it has neither a `tokenizer.json` nor a `tokenizer.model`"
    (tmp_path / "kept").rename(path / "tokenizer.model")
    assert names(scan_paths(tmp_path)) == ["tiny"]


def test_a_sound_safetensors_folder_is_listed_as_the_gguf_it_will_become(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "Tiny_Model", n_shards=2)
    (found,) = scan_paths(tmp_path).models
    (made_as_gguf,) = scan_paths(write_tiny_model(folder(tmp_path / "other"), "tiny-model")).models
    alike = ("architecture", "quantization", "n_params", "n_ctx_train", "n_embd", "n_ff", "n_kv", "has_chat_template")
    assert (found.name, found.path) == ("tiny-model", path)
    for name in alike:
        assert getattr(found, name) == getattr(made_as_gguf, name), name
    write_tiny_llama(path, seed=1, n_shards=2)
    (changed,) = scan_paths(path).models
    assert changed != found


def test_a_folder_that_a_reader_fails_on_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tiny_llama(tmp_path / "tiny")
    write_tiny_model(tmp_path, "other")

    def fail(folder: Path) -> NoReturn:
        raise ValueError(f"too many values in {folder.name}\n")

    monkeypatch.setattr(convert, "plan", fail)
    discovery = Discovery(config.load({"model_path": [str(tmp_path)]}, {}), Headers(), Names())
    for _ in range(2):
        catalog = discovery.look()
        assert names(catalog) == ["other"]
        assert reasons(catalog) == {"tiny": "it cannot be understood: ValueError: too many values in tiny\\n"}
    (record,) = caplog.records
    assert str(path) in record.getMessage()


def test_a_file_that_the_reader_fails_on_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tiny_model(tmp_path, "odd")
    write_tiny_model(tmp_path, "other")
    read = Headers.read

    def fail(headers: Headers, file: Path, status: os.stat_result) -> GgufHeader:
        if file.name == "odd.gguf":
            raise IndexError("\x1b" + "x" * 9999)
        return read(headers, file, status)

    discovery = Discovery(config.load({"model_path": [str(tmp_path)]}, {}), Headers(), Names())
    with monkeypatch.context() as failing:
        failing.setattr(Headers, "read", fail)
        for _ in range(2):
            catalog = discovery.look()
            assert names(catalog) == ["other"]
            (reason,) = reasons(catalog).values()
            assert reason.startswith(r"it cannot be understood: IndexError: \x1bxxx")
            assert len(reason) <= 500
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    write_tiny_model(tmp_path, "odd")
    assert names(discovery.look()) == ["odd", "other"]


def test_what_the_first_converter_refused_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_llama(tmp_path / "models" / "tiny")
    settings = config.load({"model_path": [str(path)]}, {})

    def refuse(_: Path) -> NoReturn:
        raise Unconvertible("its weights are quantised")

    with monkeypatch.context() as first:
        first.setattr(convert, "plan", refuse)
        first.setattr(converted, "CONVERTER_VERSION", 1)
        headers = Headers(tmp_path / "cache")
        assert len(scan(settings, headers).rejected) == 1
        headers.save()
    assert names(scan(settings, Headers(tmp_path / "cache"))) == ["tiny"]


def test_a_type_asked_for_is_that_of_safetensors_folders(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "tiny")
    wanted = config.load({"model_path": [str(tmp_path)], "safetensors_type": "q8_0"}, {})
    (found,) = scan(wanted, Headers()).models
    assert found.quantization == "Q8_0"
    assert found.size_bytes < found.n_params * 4 / 3


def test_weights_that_do_not_fit_a_type_are_told(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "tiny")
    headers = Headers()
    for file_type, is_told in (("q4_k_m", True), ("q8_0", False), ("q5_k_m", True), ("q4_k_m", True)):
        wanted = config.load({"model_path": [str(tmp_path)], "safetensors_type": file_type}, {})
        (found,) = scan(wanted, headers).models
        told = [notice for notice in found.notices if "not all of its weights become" in notice]
        assert [file_type.upper() in notice for notice in told] == [True] * is_told


def test_a_module_of_a_model_for_embeddings_is_no_model(tmp_path: Path) -> None:
    """Its folder has a config.json and weights, and was listed as a model that cannot be served."""
    gemma = write_folder("embedding-gemma", tmp_path / "gemma", "5")
    assert (gemma / "2_Dense" / "config.json").exists()
    catalog = scan_paths(tmp_path)
    assert names(catalog) == ["gemma"]
    assert not catalog.rejected
    (gemma / "modules.json").write_text("{}")
    assert "modules.json" in reasons(scan_paths(tmp_path))["gemma"]


def test_a_safetensors_folder_beside_a_gguf_takes_no_name(tmp_path: Path) -> None:
    write_tiny_model(write_safetensors(tmp_path / "tiny"), "tiny")
    catalog = scan_paths(tmp_path)
    assert names(catalog) == ["tiny"]
    assert [entry.kind for entry in catalog.rejected] == ["safetensors"]


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (b'{"architectures": ["LlamaForCausalLM"]}', "LlamaForCausalLM"),
        (b'{"model_type": 7, "architectures": ["A", "B"]}', "A"),
        (b'{"model_type": "a\\nb"}', ""),
        (b'{"model_type": "%s"}' % (b"x" * 65), ""),
        (b'{"architectures": "LlamaForCausalLM"}', ""),
        (b'{"architectures": []}', ""),
        (b"[]", ""),
        (b"null", ""),
        (b"", ""),
        (b"\xff\xfe\xfd", ""),
        (b"[" * 100_000, ""),
        (b'{"model_type": ' + b"9" * 10_000 + b"}", ""),
        (b'{"model_type": "llama"}' + b" " * (1 << 20), ""),
    ],
    ids=range(13),
)
def test_a_hostile_config_says_nothing_and_does_no_harm(tmp_path: Path, config: bytes, architecture: str) -> None:
    write_safetensors(tmp_path / "model", config)
    assert [entry.architecture for entry in scan_paths(tmp_path).rejected] == [architecture]


def test_a_config_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "model")
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")
    assert [entry.architecture for entry in scan_paths(tmp_path).rejected] == [""]


def test_what_is_no_model_takes_no_models_name(tmp_path: Path) -> None:
    write_other(folder(tmp_path / "a") / "tiny.gguf", "gemma")
    write_tiny_model(folder(tmp_path / "b"), "tiny")
    catalog = scan_paths(tmp_path)
    assert names(catalog) == ["tiny"]
    assert [*reasons(catalog)] == ["tiny@a"]


def test_a_broken_file_keeps_its_name_so_that_the_others_keep_theirs(tmp_path: Path) -> None:
    path = write_tiny_model(folder(tmp_path / "a"), "tiny")
    write_tiny_model(folder(tmp_path / "b"), "tiny", seed=1)
    assert names(scan_paths(tmp_path)) == ["tiny", "tiny@b"]
    path.write_bytes(b"")
    catalog = scan_paths(tmp_path)
    assert names(catalog) == ["tiny@b"]
    assert [*reasons(catalog)] == ["tiny"]


def test_broken_things_become_entries_with_the_reason(tmp_path: Path) -> None:
    good = write_tiny_model(tmp_path, "good")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "random.gguf").write_bytes(Random(1).randbytes(1000))
    (tmp_path / "cut.gguf").write_bytes(good.read_bytes()[:-1000])
    (tmp_path / "boastful.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "fifo.gguf")
    catalog = scan_paths(tmp_path)
    assert names(catalog) == ["good"]
    found = reasons(catalog)
    assert found.pop("cut").startswith("it is cut off: its tensors need ")
    assert found == {
        "empty": "it has 0 bytes, too few for a GGUF file",
        "random": "it does not begin with `GGUF`",
        "boastful": f"it claims {2**60} tensors and {2**60} keys, more than any model has",
        "fifo": "it is not a regular file",
    }
    assert {entry.kind for entry in catalog.rejected} == {BROKEN}
    assert {entry.path for entry in catalog.rejected} == {tmp_path / f"{entry.name}.gguf" for entry in catalog.rejected}


def test_one_broken_file_by_many_paths_is_one_entry(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"broken")
    (tmp_path / "link.gguf").symlink_to("broken.gguf")
    assert [*reasons(scan_paths(tmp_path / "broken.gguf", tmp_path))] == ["broken"]


def test_links_that_lead_nowhere_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_model(tmp_path, "good")
    (tmp_path / "dangling.gguf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.gguf").symlink_to(tmp_path / "circle.gguf")
    catalog = scan_paths(tmp_path / "missing", tmp_path)
    assert names(catalog) == ["good"]
    assert catalog.rejected == ()
    for name in ("missing", "dangling.gguf", "circle.gguf"):
        assert caplog.text.count(f"`{tmp_path / name}` is passed over: ") == 1, name


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_model(tmp_path, "secret")
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything, so the system's refusal is played
        monkeypatch.setattr(files, "FileIO", refuse_to_open)
    assert reasons(scan_paths(tmp_path)) == {"secret": "it cannot be read: Permission denied"}


def test_a_file_that_nobody_may_look_at_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_model(tmp_path, "good")
    secret = write_tiny_model(tmp_path, "secret")
    real_stat = Path.stat

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:  # as in a folder without its `x` bit
        if path == secret:
            raise PermissionError(13, "Permission denied")
        return real_stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", stat)
    assert names(scan_paths(tmp_path)) == ["good"]
    assert f"`{secret}` is passed over: Permission denied" in caplog.text


def test_a_reason_that_quotes_the_file_forges_no_line_of_the_log(tmp_path: Path) -> None:
    key = ("evil\nline\x1b[31m", UINT32, 1)
    (tmp_path / "twice.gguf").write_bytes(encode_gguf([key, key]))
    assert reasons(scan_paths(tmp_path)) == {"twice": "its key `evil\\nline\\x1b[31m` appears twice"}


def refuse_to_open(path: Path, **_: object) -> NoReturn:
    raise PermissionError(13, "Permission denied", str(path))


@pytest.mark.parametrize("file_name", [b"new\nline.gguf", b"\xff\xfe.gguf", b"\x1b[31mred.gguf"])
@pytest.mark.parametrize("is_broken", [True, False])
def test_a_name_that_cannot_be_printed_harms_no_log_and_no_json(
    tmp_path: Path, file_name: bytes, is_broken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / os.fsdecode(file_name)
    path.write_bytes(b"" if is_broken else write_tiny_model(tmp_path.parent, "source").read_bytes())
    catalog = scan_paths(tmp_path)
    report(catalog.rejected, ())
    entries: list[Entry] = [*catalog.models, *catalog.rejected]
    (entry,) = entries
    assert isinstance(entry, Rejected) == is_broken
    assert entry.path == path
    assert entry.name.isprintable()
    assert shown(entry.path).isprintable()
    assert caplog.text.count("\n") == is_broken
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_what_may_not_be_read_does_not_end_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_model(tmp_path, "good")
    folder(tmp_path / "secret")
    real_scandir = os.scandir

    def scandir(path: Path) -> object:  # root may read everything, so the system's refusal is played
        if path == tmp_path / "secret":
            raise PermissionError(13, "Permission denied")
        return real_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert names(scan_paths(tmp_path)) == ["good"]
    assert f"`{tmp_path / 'secret'}` is passed over: Permission denied" in caplog.text


def test_circles_of_folders_and_bottomless_ones_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    levels = [f"level{n}" for n in range(MAX_DEPTH + 1)]
    deepest = folder(tmp_path.joinpath(*levels))
    write_tiny_model(deepest.parent, "reached")
    write_tiny_model(deepest, "too-deep")
    (tmp_path / "level0" / "up").symlink_to(tmp_path)
    (tmp_path / "level0" / "self").symlink_to(tmp_path / "level0" / "self")
    assert names(scan_paths(tmp_path)) == ["reached"]
    assert f"`{deepest}` is passed over: it lies more than {MAX_DEPTH} folders deep" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        *(".Trash", ".Trash-1000", ".Trashes", "$RECYCLE.BIN", "@eaDir", "#recycle", "lost+found", ".git", ".no_exist"),
        *(".ipynb_checkpoints", "__MACOSX", "System Volume Information", ".snapshots", ".stversions", "@Recycle"),
        *(".local/share/Trash", "RECYCLER", f"{UNFINISHED}x1_y2z3"),
    ],
)
def test_what_was_thrown_away_and_its_like_are_no_models(tmp_path: Path, name: str) -> None:
    write_tiny_model(tmp_path, "good")
    write_tiny_model(folder(tmp_path / name / "files"), "bad", seed=1)
    write_tiny_llama(tmp_path / name / "whole")
    catalog = scan_paths(tmp_path)
    assert (names(catalog), catalog.rejected) == (["good"], ())
    assert names(scan_paths(tmp_path / name)) == ["bad", "whole"], "but for one who names it"


def test_a_link_to_nothing_beside_a_model_is_no_file_of_it_and_one_in_a_circle_is_named(tmp_path: Path) -> None:
    """A text file whose link was broken kept a model from being listed, and the reason did not name it."""
    good, bad = write_tiny_llama(tmp_path / "good"), write_tiny_llama(tmp_path / "bad")
    for name in ("notes.txt", "generation_config.json"):
        (good / name).symlink_to(tmp_path / "nothing")
    (bad / "notes.txt").symlink_to(bad / "notes.txt")
    catalog = scan_paths(tmp_path)
    assert names(catalog) == ["good"]
    assert reasons(catalog) == {"bad": "its `notes.txt` cannot be read: Too many levels of symbolic links"}


def test_a_macs_attributes_of_a_model_are_none(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "good").with_name("._good.gguf").write_bytes(bytes(4096))
    for path in (*write_tiny_llama(tmp_path / "whole").iterdir(), *folder(tmp_path / "other").iterdir()):
        path.with_name(f"._{path.name}").write_bytes(bytes(4096))
    for name in ("._config.json", "._model.safetensors"):
        (tmp_path / "other" / name).write_bytes(bytes(4096))
    catalog = scan_paths(tmp_path)
    assert (names(catalog), catalog.rejected) == (["good", "whole"], ())


MARKS = (".aria2", ".st", ".lftp-pget-status", ".part", ".crdownload", ".incomplete", ".download", ".tmp", "-partial")


@pytest.mark.parametrize("mark", MARKS)
def test_what_a_downloader_has_not_finished_is_not_served_though_its_size_is_right(tmp_path: Path, mark: str) -> None:
    whole = write_tiny_llama(tmp_path / "whole")
    paths = [write_tiny_model(tmp_path, "model"), write_tiny_model(tmp_path, "shards", n_shards=2, seed=1)]
    marks = [path.with_name(f"{path.name}{mark}") for path in (*paths, whole / "model.safetensors")]
    for path in marks:
        path.write_bytes(b"")
    found = reasons(scan_paths(tmp_path)) | reasons(scan_paths(paths[0]))
    for name, path in zip(("model", "shards", "whole"), marks, strict=True):
        assert found[name].endswith(f"it is still being downloaded: `{path.name}` lies beside it")
        assert names(scan_paths(tmp_path)) == []
    for path in marks:
        path.unlink()
    assert names(scan_paths(tmp_path)) == ["model", "shards", "whole"]


def test_a_download_of_a_whole_folder_is_not_served_before_it_is_finished(tmp_path: Path) -> None:
    write_tiny_model(folder(tmp_path / "many" / "deep"), "model")
    write_tiny_llama(tmp_path / "many" / "whole")
    write_tiny_model(tmp_path, "other", seed=1)
    discovery = Discovery(config.load({"model_dirs": [str(tmp_path)]}, {}), Headers(), Names())
    assert names(discovery.look()) == ["model", "other", "whole"]
    mark = tmp_path / "many.aria2"
    for changed in ({mark}, {tmp_path / "many" / "deep" / "model.gguf"}, None):
        mark.touch()
        catalog = discovery.look(changed)
        assert names(catalog) == ["other"]
        assert set(reasons(catalog).values()) == {"it is still being downloaded: `many.aria2` lies beside it"}
    mark.unlink()
    assert names(discovery.look({mark})) == ["model", "other", "whole"]


def test_what_safari_has_not_finished_is_no_model(tmp_path: Path) -> None:
    write_tiny_model(folder(tmp_path / "model.gguf.download"), "model")
    write_tiny_model(folder(tmp_path / "my.download"), "other", seed=1)
    assert names(scan_paths(tmp_path)) == ["other"]


def test_what_marks_no_file_hides_none(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "model")
    write_tiny_model(folder(tmp_path / "house"), "inner", seed=1)
    folder(tmp_path / "house.tmp")
    for name in ("other.gguf.aria2", "model.aria2", ".model.gguf.Ab3dE6", "model.gguf.txt", "model.gguf.sha256"):
        (tmp_path / name).touch()
    assert names(scan_paths(tmp_path)) == ["inner", "model"]


def test_a_linked_folder_comes_after_the_folder_and_is_a_name_of_the_model_it_is(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "models" / "qwen")
    write_tiny_model(folder(tmp_path / "models" / "more"), "tiny")
    for name, to in (("a-link", "more"), ("gpt-4", "qwen")):
        (tmp_path / "models" / name).symlink_to(to)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "claude").symlink_to(tmp_path / "models" / "qwen")
    for roots in ((tmp_path,), (tmp_path / "other", tmp_path / "models")):
        catalog = scan_paths(*roots)
        assert names(catalog) == ["qwen", "tiny"]
        assert catalog.resolve("tiny").path.parent.name == "more"
        for name in ("qwen", "gpt-4", "claude"):
            assert catalog.resolve(name) is catalog.models[0]


def test_things_that_are_no_files_harm_nothing(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "good")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.gguf"))
        os.mkfifo(tmp_path / "fifo.gguf")
        (tmp_path / "device.gguf").symlink_to("/dev/zero")
        folder(tmp_path / "folder.gguf" / "inner.gguf")
        catalog = scan_paths(tmp_path)
    assert names(catalog) == ["good"]
    assert set(reasons(catalog).values()) == {"it is not a regular file"}
    assert len(catalog.rejected) == 3


def test_a_scan_has_no_memory(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, "tiny", n_ctx_train=512)
    before = scan_paths(tmp_path)
    write_tiny_model(tmp_path, "tiny", n_ctx_train=1024)
    assert scan_paths(tmp_path).models[0].n_ctx_train == 1024
    path.unlink()
    assert scan_paths(tmp_path).models == ()
    assert before.models[0].n_ctx_train == 512
