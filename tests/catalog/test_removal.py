"""What goes with a model, and what stays."""

from dataclasses import replace
from pathlib import Path

import pytest

from shimmy import config
from shimmy.catalog.catalog import Catalog
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.removal import removal
from shimmy.catalog.scan import scan
from shimmy.errors import BadRequest, RemovalFailed
from shimmy.formats import ollama_store
from tests.ollama_store import put_in_ollama
from tests.tiny_checkpoints import write_tiny_llama
from tests.tiny_models import write_tiny_model


def catalog(*folders: Path) -> Catalog:
    return scan(config.load({"model_dirs": [str(folder) for folder in folders]}, {}), Headers())


def remove(name: str, *folders: Path) -> None:
    removal(catalog(*folders).resolve(name), folders).carry_out()


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def in_hub(cache: Path, repository: str, name: str, seed: int = 0, revision: str = "a" * 40) -> Path:
    """As huggingface_hub has it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(revision)
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True, exist_ok=True)
    blob = folder / "blobs" / f"{seed:064}"
    if not blob.exists():
        write_tiny_model(folder, "new", seed=seed).rename(blob)
    (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    return folder


def test_a_file_and_its_links_in_the_folders_go(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "tiny")
    write_tiny_model(tmp_path, "other", seed=1)
    (tmp_path / "link.gguf").symlink_to("tiny.gguf")
    (tmp_path / "notes.txt").touch()
    remove("tiny", tmp_path)
    assert left(tmp_path) == ["notes.txt", "other.gguf"]


def test_a_link_out_of_the_folders_goes_and_its_file_stays(tmp_path: Path) -> None:
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    models.mkdir()
    elsewhere.mkdir()
    write_tiny_model(elsewhere, "tiny")
    (models / "tiny.gguf").symlink_to(elsewhere / "tiny.gguf")
    remove("tiny", models)
    assert left(tmp_path) == ["elsewhere/tiny.gguf"]


def test_files_behind_a_link_to_a_folder_elsewhere_are_refused(tmp_path: Path) -> None:
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    models.mkdir()
    elsewhere.mkdir()
    write_tiny_model(elsewhere, "tiny")
    (models / "folder").symlink_to(elsewhere)
    with pytest.raises(BadRequest, match="delete it yourself"):
        remove("tiny", models)
    assert left(elsewhere) == ["tiny.gguf"]


def test_the_last_model_of_a_repository_takes_all_of_it_along(tmp_path: Path) -> None:
    folder = in_hub(tmp_path, "o/tiny", "tiny.gguf")
    (folder / "snapshots" / ("a" * 40) / "mmproj-F16.gguf").symlink_to("../../blobs/x")
    (folder / "blobs" / "x").write_bytes(b"projector")
    in_hub(tmp_path, "o/other", "other.gguf", seed=1)
    what = removal(catalog(tmp_path).resolve("tiny"), [tmp_path])
    assert {str(path.relative_to(folder)) for path in what.files} == set(left(folder))
    what.carry_out()
    assert not folder.exists()
    assert [model.name for model in catalog(tmp_path).models] == ["other"]


@pytest.mark.parametrize(
    "name", [f"{7:064}.shimmy.incomplete", f"{7:064}.shimmy.extents", f"{7:064}.incomplete", f"{7:064}"]
)
def test_what_a_pull_has_fetched_into_a_repository_stays(tmp_path: Path, name: str) -> None:
    folder = in_hub(tmp_path, "o/tiny", "tiny.gguf")
    (folder / "blobs" / name).write_bytes(b"the next model")
    remove("tiny", tmp_path)
    assert left(folder) == [f"blobs/{name}", "refs/main"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "original/consolidated.00.pth", "onnx/model.onnx", "x.ckpt"])
def test_weights_of_other_kinds_stay_with_their_repository(tmp_path: Path, name: str) -> None:
    folder = in_hub(tmp_path, "o/tiny", "tiny.gguf")
    other = folder / "snapshots" / ("a" * 40) / name
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(b"weights")
    remove("tiny", tmp_path)
    assert other.exists()


def test_what_comes_between_the_look_and_the_end_stays(tmp_path: Path) -> None:
    folder = in_hub(tmp_path, "o/tiny", "tiny.gguf")
    what = removal(catalog(tmp_path).resolve("tiny"), [tmp_path])
    (folder / "blobs" / "x.shimmy.incomplete").touch()
    what.carry_out()
    assert left(folder) == ["blobs/x.shimmy.incomplete"]


def test_one_of_several_models_takes_its_blob_alone(tmp_path: Path) -> None:
    folder = in_hub(tmp_path, "o/tiny", "tiny-Q4_0.gguf")
    in_hub(tmp_path, "o/tiny", "tiny-Q8_0.gguf", seed=1)
    remove("tiny-q4-0", tmp_path)
    assert left(folder / "blobs") == [f"{1:064}"]
    assert [model.name for model in catalog(tmp_path).models] == ["tiny-q8-0"]


def test_a_blob_that_another_revision_needs_stays_until_that_goes(tmp_path: Path) -> None:
    folder = in_hub(tmp_path, "o/tiny", "tiny.gguf", revision="b" * 40)
    in_hub(tmp_path, "o/tiny", "renamed.gguf", revision="a" * 40)
    model = catalog(tmp_path).resolve("renamed")
    assert len(model.places) == 2  # one file, two names of it: both go
    remove("renamed", tmp_path)
    assert not folder.exists()


def test_a_tag_of_ollamas_takes_what_no_other_needs(tmp_path: Path) -> None:
    host = "registry.ollama.ai/library"
    put_in_ollama(tmp_path, f"{host}/tiny/latest", system=b"Be kind.")
    put_in_ollama(tmp_path, f"{host}/tiny/stern", system=b"Be stern.")
    n_blobs = len([*(tmp_path / "blobs").iterdir()])
    remove("tiny:latest", tmp_path)
    assert len([*(tmp_path / "blobs").iterdir()]) == n_blobs - 1  # the system message
    assert [model.name for model in catalog(tmp_path).models] == ["tiny:stern"]
    remove("tiny:stern", tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b'{"layers": [', b"[]", b'{"layers": [7]}'])
def test_a_manifest_that_cannot_be_read_may_need_every_blob(tmp_path: Path, content: bytes) -> None:
    library = "registry.ollama.ai/library"
    put_in_ollama(tmp_path, f"{library}/tiny/latest")
    put_in_ollama(tmp_path, f"{library}/tiny/stern", system=b"Be stern.")
    damaged = tmp_path / "manifests" / library / "tiny" / "stern"
    damaged.write_bytes(content)
    before = left(tmp_path)
    with pytest.raises(RemovalFailed, match=rf"{damaged}.*nothing was deleted"):
        remove("tiny:latest", tmp_path)
    assert left(tmp_path) == before
    damaged.rename(damaged.with_name(".DS_Store"))  # which is no manifest
    remove("tiny:latest", tmp_path)
    assert [model.name for model in catalog(tmp_path).models] == []


def test_a_blob_that_a_manifest_needs_since_then_stays(tmp_path: Path) -> None:
    library = "registry.ollama.ai/library"
    put_in_ollama(tmp_path, f"{library}/tiny/latest")
    what = removal(catalog(tmp_path).resolve("tiny"), [tmp_path])
    put_in_ollama(tmp_path, f"{library}/new/latest")
    what.carry_out()
    assert [model.name for model in catalog(tmp_path).models] == ["new:latest"]


def test_nothing_goes_while_a_model_is_pulled_into_the_store(tmp_path: Path) -> None:
    put_in_ollama(tmp_path, "registry.ollama.ai/library/tiny/latest")
    before = left(tmp_path)
    with ollama_store.pulling(tmp_path), pytest.raises(RemovalFailed, match=r"being pulled.*nothing was deleted"):
        remove("tiny:latest", tmp_path)
    assert set(before) < set(left(tmp_path))
    remove("tiny:latest", tmp_path)
    assert catalog(tmp_path).models == ()


def test_what_another_model_loads_stays(tmp_path: Path) -> None:
    store, folder = tmp_path / "ollama", tmp_path / "folder"
    put_in_ollama(store, "registry.ollama.ai/library/tiny/latest", system=b"Be kind.")
    folder.mkdir()
    write_tiny_model(folder, "other", seed=1)
    models = catalog(store, folder)
    blob = next(path for path in (store / "blobs").iterdir() if path.stat().st_size > 100_000)
    projector = replace(models.resolve("other"), projector=blob)
    adapter = replace(models.resolve("other"), files=((blob.stat().st_dev, blob.stat().st_ino, 0, 0),))
    for other in (projector, adapter):
        what = removal(models.resolve("tiny"), [store, folder], [models.resolve("tiny"), other])
        assert blob not in what.files
        assert len(what.files) == 3  # the manifest, the template, the system message
    assert blob in removal(models.resolve("tiny"), [store, folder], models.models).files


def test_a_folder_of_safetensors_keeps_what_is_not_the_models(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    write_tiny_llama(folder)
    mine = ["dataset.json", "model-notes.safetensors", "notes.md", "requirements.txt", "tokenizer.txt"]
    for name in (*mine, "tiktoken.model", "hy.tiktoken"):
        (folder / name).touch()
    (folder / "added_tokens.json").mkdir()
    remove("tiny", tmp_path)
    assert left(folder) == mine
    assert (folder / "added_tokens.json").is_dir()


def test_nothing_goes_where_one_folder_may_not_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_model(tmp_path, "tiny")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "tiny.gguf").symlink_to("../tiny.gguf")
    what = removal(catalog(tmp_path).resolve("tiny"), [tmp_path])
    assert len(what.files) == 2
    monkeypatch.setattr("os.access", lambda path, _mode: path != folder)
    with pytest.raises(RemovalFailed, match="nothing was deleted"):
        what.carry_out()
    assert left(tmp_path) == ["folder/tiny.gguf", "tiny.gguf"]


def test_a_file_that_stays_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_model(tmp_path, "tiny")
    what = removal(catalog(tmp_path).resolve("tiny"), [tmp_path])
    assert what.size_bytes > 500_000

    def refuse(_: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(missing_ok))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RemovalFailed, match="Permission denied"):
        what.carry_out()
