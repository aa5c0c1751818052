"""Packed libraries are unpacked once, and those that are loaded from memory are not taken for each other."""

import errno
import lzma
import zlib
from pathlib import Path

import pytest

from shimmy.engine.llama.unpack_libraries import in_memory, part_content, unpack, unpacked
from shimmy.errors import ModelUnavailable
from shimmy.system import files, unpacked_folder


def test_a_library_is_read_from_its_path() -> None:
    with in_memory("some", b"some bytes") as path:
        assert Path(path).read_bytes() == b"some bytes"


def test_no_two_libraries_have_the_same_path() -> None:
    # The first one's descriptor is free again, and the dynamic loader would take the second for the first.
    paths = []
    for name in ("one", "two", "three"):
        with in_memory(name, name.encode()) as path:
            paths.append(path)
            assert Path(path).read_bytes() == name.encode()
    assert len(set(paths)) == 3


def test_a_library_is_a_file_for_as_long_as_needed_where_the_system_has_none_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "in_memory", lambda _name: None)
    monkeypatch.setattr(unpacked_folder, "folder", lambda: tmp_path)  # where code may run, wherever else it may not
    with in_memory("some", b"some bytes") as path:
        assert Path(path).parent == tmp_path
        assert Path(path).read_bytes() == b"some bytes"
    assert [*tmp_path.iterdir()] == []


def test_what_is_packed_is_unpacked_beside_it_and_once(tmp_path: Path) -> None:
    (tmp_path / "libsome.so.1.z").write_bytes(zlib.compress(b"a library"))
    (tmp_path / "other.xz").write_bytes(b"not ours")
    unpack(tmp_path)
    assert (tmp_path / "libsome.so.1").read_bytes() == b"a library"
    assert len([*tmp_path.iterdir()]) == 3
    (tmp_path / "libsome.so.1").write_bytes(b"as it was left")
    unpack(tmp_path)
    assert (tmp_path / "libsome.so.1").read_bytes() == b"as it was left"


def test_a_damaged_library_is_a_load_that_failed(tmp_path: Path) -> None:
    packed = bytearray(zlib.compress(b"a library" * 100))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "libsome.so.z").write_bytes(packed)
    with pytest.raises(ModelUnavailable, match="the program's own file is damaged: fetch it again"):
        unpack(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["libsome.so.z"]


def test_a_part_that_is_cut_off_or_damaged_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked_folder, "folder", lambda: tmp_path)
    packed = lzma.compress(b"a library" * 100)
    (tmp_path / "some.xz").write_bytes(packed)
    assert part_content("some.xz") == b"a library" * 100
    middle = len(packed) // 2
    for damaged in (packed[:-1], packed[:middle], b"", b"no xz", packed[:middle] + b"????" + packed[middle + 4 :]):
        (tmp_path / "some.xz").write_bytes(damaged)
        with pytest.raises(ModelUnavailable, match="the program's own file is damaged: fetch it again"):
            part_content("some.xz")


def test_a_part_that_cannot_be_brought_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.xz").mkdir()
    monkeypatch.setattr(unpacked_folder, "folder", lambda: tmp_path)
    with pytest.raises(ModelUnavailable, match=r"folder.xz` cannot be read: Is a directory"):
        part_content("folder.xz")

    def full(name: str) -> Path:
        raise OSError(errno.ENOSPC, f"`{name}` cannot be put back: No space left on device")

    monkeypatch.setattr(unpacked_folder, "part", full)
    with pytest.raises(ModelUnavailable, match=r"`some.xz` cannot be put back: No space left on device"):
        part_content("some.xz")


def test_no_room_to_unpack_is_a_load_that_failed(tmp_path: Path) -> None:
    def full() -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelUnavailable, match=r"cannot be unpacked to .*: No space left on device"):
        unpacked(tmp_path / "libsome.so", full)
    assert [*tmp_path.iterdir()] == []
