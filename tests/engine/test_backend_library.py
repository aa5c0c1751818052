"""The libraries of the engine's backends, packed or as they are, kept in the cache folder and verified each time."""

import errno
import hashlib
import logging
import lzma
from pathlib import Path

import pytest

from shimmy.engine import backend_library
from shimmy.errors import ModelUnavailable
from shimmy.system import unpacked_folder
from shimmy.system.backends import FOR_GPUS, RPC, Backend

CODE = b"\x7fELF, as far as these tests know" * 100
DIGEST = hashlib.sha256(CODE).hexdigest()


@pytest.fixture(params=(*FOR_GPUS, RPC), ids=str)
def backend(request: pytest.FixtureRequest) -> Backend:
    made: Backend = request.param
    return made


@pytest.fixture(autouse=True)
def program(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What is in the file of the program."""
    inside = {backend.archive: packed(backend, CODE), backend.digest: f"{DIGEST} {len(CODE)}\n".encode()}

    def content(name: str) -> bytes:
        if name not in inside:
            raise OSError(errno.EIO, "gone")
        return inside[name]

    monkeypatch.setattr(Backend, "built", lambda _: None)
    monkeypatch.setattr(unpacked_folder, "content", content)
    return inside


def packed(backend: Backend, data: bytes) -> bytes:
    return lzma.compress(data) if backend.archive.endswith(".xz") else data


def content(backend: Backend, cache_dir: Path | None) -> bytes:
    with backend_library.path(backend, cache_dir) as path:
        return Path(path).read_bytes()


def kept(backend: Backend, cache_dir: Path) -> list[Path]:
    return sorted((cache_dir / backend.folder).glob("*"))


def test_it_is_unpacked_once_and_that_is_said(
    backend: Backend, tmp_path: Path, program: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert content(backend, tmp_path) == CODE
    (place,) = kept(backend, tmp_path)
    assert place.stat().st_mode & 0o077 == 0
    del program[backend.archive]
    assert content(backend, tmp_path) == CODE
    assert caplog.messages == [f"unpacking the engine's {backend.name}"]


def test_a_damaged_or_foreign_one_is_written_anew(backend: Backend, tmp_path: Path) -> None:
    content(backend, tmp_path)
    (place,) = kept(backend, tmp_path)
    place.write_bytes(CODE[:-1] + b"?")
    assert content(backend, tmp_path) == CODE
    place.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(CODE)
    place.symlink_to(elsewhere)
    assert content(backend, tmp_path) == CODE
    assert not place.is_symlink()


def test_those_of_other_versions_are_removed(backend: Backend, tmp_path: Path) -> None:
    other = tmp_path / backend.folder / f"{Path(backend.library).stem}-0123456789abcdef.so"
    other.parent.mkdir()
    other.write_bytes(b"older")
    content(backend, tmp_path)
    assert not other.exists()
    assert len(kept(backend, tmp_path)) == 1


@pytest.mark.parametrize("is_there", [False, True])
def test_another_version_that_removes_the_file_disturbs_no_loader(
    is_there: bool, backend: Backend, tmp_path: Path
) -> None:
    if is_there:
        content(backend, tmp_path)
    with backend_library.path(backend, tmp_path) as path:
        (place,) = kept(backend, tmp_path)
        place.unlink()
        assert Path(path).read_bytes() == CODE


def test_without_a_place_it_lies_in_memory(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert content(backend, None) == CODE
    (tmp_path / backend.folder).write_text("a file where the folder would be")
    assert content(backend, tmp_path) == CODE
    monkeypatch.setattr(backend_library, "_is_noexec", lambda _: True)
    assert content(backend, tmp_path / "noexec") == CODE
    assert kept(backend, tmp_path / "noexec") == []


def test_another_library_than_was_put_into_the_program_is_refused(
    backend: Backend, program: dict[str, bytes], tmp_path: Path
) -> None:
    for damaged in (packed(backend, CODE + b"!"), packed(backend, CODE)[:-8], b"no archive", b""):
        program[backend.archive] = damaged
        with pytest.raises(ModelUnavailable, match="damaged"):
            content(backend, tmp_path)
    program[backend.archive], program[backend.digest] = packed(backend, CODE), b""
    with pytest.raises(ModelUnavailable, match="damaged"):
        content(backend, tmp_path)


def test_a_program_that_cannot_be_read_is_told(backend: Backend, program: dict[str, bytes], tmp_path: Path) -> None:
    program.clear()
    with pytest.raises(ModelUnavailable, match=f"{backend.name} cannot be unpacked: gone"):
        content(backend, tmp_path)
