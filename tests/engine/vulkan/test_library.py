"""The packed library of the Vulkan backend, kept in the cache folder and verified each time."""

import hashlib
import lzma
from pathlib import Path

import pytest

from shimmy.engine.vulkan import library
from shimmy.errors import ModelUnavailable
from shimmy.system import vulkan_archive

CODE = b"\x7fELF, as far as these tests know" * 100
DIGEST = hashlib.sha256(CODE).hexdigest()


@pytest.fixture(autouse=True)
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "vulkan.xz"
    path.write_bytes(lzma.compress(CODE))
    monkeypatch.setattr(vulkan_archive, "built", lambda: None)
    monkeypatch.setattr(vulkan_archive, "packed", lambda: (path, DIGEST))
    return path


def content(cache_dir: Path | None) -> bytes:
    with library.path(cache_dir) as path:
        return Path(path).read_bytes()


def kept(cache_dir: Path) -> list[Path]:
    return sorted((cache_dir / library.FOLDER).glob("*"))


def test_it_is_unpacked_once(tmp_path: Path, archive: Path) -> None:
    assert content(tmp_path) == CODE
    (place,) = kept(tmp_path)
    assert place.stat().st_mode & 0o077 == 0
    archive.unlink()
    assert content(tmp_path) == CODE


def test_a_damaged_or_foreign_one_is_written_anew(tmp_path: Path) -> None:
    content(tmp_path)
    (place,) = kept(tmp_path)
    place.write_bytes(CODE[:-1] + b"?")
    assert content(tmp_path) == CODE
    place.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(CODE)
    place.symlink_to(elsewhere)
    assert content(tmp_path) == CODE
    assert not place.is_symlink()


def test_those_of_other_versions_are_removed(tmp_path: Path) -> None:
    other = tmp_path / library.FOLDER / "libggml-vulkan-0123456789abcdef.so"
    other.parent.mkdir()
    other.write_bytes(b"older")
    content(tmp_path)
    assert not other.exists()
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize("is_there", [False, True])
def test_another_version_that_removes_the_file_disturbs_no_loader(is_there: bool, tmp_path: Path) -> None:
    if is_there:
        content(tmp_path)
    with library.path(tmp_path) as path:
        (place,) = kept(tmp_path)
        place.unlink()
        assert Path(path).read_bytes() == CODE


def test_without_a_place_it_lies_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert content(None) == CODE
    (tmp_path / library.FOLDER).write_text("a file where the folder would be")
    assert content(tmp_path) == CODE
    monkeypatch.setattr(library, "_is_noexec", lambda _: True)
    assert content(tmp_path / "noexec") == CODE
    assert kept(tmp_path / "noexec") == []


def test_an_archive_with_other_content_is_refused(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(lzma.compress(CODE + b"!"))
    with pytest.raises(ModelUnavailable, match="damaged"):
        content(tmp_path)
    archive.write_bytes(b"no xz")
    with pytest.raises(ModelUnavailable, match="damaged"):
        content(tmp_path)
