"""A scan lists what can be served, whatever else lies around, and says why it leaves something out."""

import logging
import os
from pathlib import Path

import pytest

from shimmy import config
from shimmy.discovery import MAX_DEPTH, scan
from shimmy.headers import Headers
from shimmy.registry import Catalog, Model
from tests.tiny_models import STRING, Metadata, Tensor, encode_gguf, vocabulary, write_tiny_model


def scan_paths(*paths: Path, folders: tuple[Path, ...] = ()) -> Catalog:
    given = {"model_path": paths, "model_dirs": folders}
    flags = {name: [str(path) for path in some] for name, some in given.items() if some}
    return scan(config.load(flags, {}), Headers())


def names(catalog: Catalog) -> list[str]:
    return [model.name for model in catalog.models]


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
        files=((status.st_dev, status.st_ino),),
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        architecture="llama",
        quantization="F32",
        n_params=157_632,
        n_ctx_train=768,
        n_vocab=len(vocabulary()),
        n_embd=64,
        n_ff=128,
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
def test_an_incomplete_set_of_shards_is_not_listed(
    tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_model(tmp_path, "tiny", n_shards=3)
    (tmp_path / f"tiny-{number:05d}-of-00003.gguf").unlink()
    assert names(scan_paths(tmp_path)) == []
    assert caplog.text.count(f"its shard `tiny-{number:05d}-of-00003.gguf` is missing or broken") == 1


def test_shards_that_are_not_what_their_names_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_model(tmp_path, "lone").rename(tmp_path / "tiny-00002-of-00002.gguf")
    other = write_tiny_model(folder(tmp_path / "other"), "tiny", n_shards=2)
    other.rename(tmp_path / "tiny-00001-of-00002.gguf")
    (tmp_path / "other" / "tiny-00002-of-00002.gguf").rename(tmp_path / "renamed.gguf")
    assert names(scan_paths(tmp_path)) == ["tiny-00002-of-00002"]  # its header says that it is a whole model
    assert "is not what its name says" in caplog.text
    assert "its name has to end with `-00002-of-00002.gguf`" in caplog.text


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


@pytest.mark.parametrize(
    "metadata",
    [
        [("general.architecture", STRING, "clip")],
        [("general.architecture", STRING, "llama"), ("general.type", STRING, "adapter")],
        [("general.type", STRING, "imatrix")],
    ],
)
def test_what_cannot_be_served_is_not_listed(
    tmp_path: Path, metadata: Metadata, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "looks-like-a-model.gguf"
    path.write_bytes(encode_gguf(metadata, [Tensor("weights", (8,), bytes(32))]))
    assert names(scan_paths(path)) == []
    assert f"`{path}` is not listed: it is no model" in caplog.text


def test_a_vocabulary_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.gguf").write_bytes(encode_gguf([("general.architecture", STRING, "llama")]))
    assert names(scan_paths(tmp_path)) == []


def test_broken_things_are_logged_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = write_tiny_model(tmp_path, "good")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "random.gguf").write_bytes(os.urandom(1000))
    (tmp_path / "cut.gguf").write_bytes(good.read_bytes()[:-1000])
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "dangling.gguf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.gguf").symlink_to(tmp_path / "circle.gguf")
    os.mkfifo(tmp_path / "fifo.gguf")
    assert names(scan_paths(tmp_path / "missing", tmp_path)) == ["good"]
    for name in ("missing", "empty.gguf", "random.gguf", "cut.gguf", "dangling.gguf", "circle.gguf", "fifo.gguf"):
        assert caplog.text.count(f"`{tmp_path / name}` is") == 1, name


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
    assert f"more than {MAX_DEPTH} deep" in caplog.text


def test_a_scan_has_no_memory(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, "tiny", n_ctx_train=512)
    before = scan_paths(tmp_path)
    write_tiny_model(tmp_path, "tiny", n_ctx_train=1024)
    assert scan_paths(tmp_path).models[0].n_ctx_train == 1024
    path.unlink()
    assert scan_paths(tmp_path).models == ()
    assert before.models[0].n_ctx_train == 512
