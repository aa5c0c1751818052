"""Files of the unpacked folder come back from the program's file; both are made by the test."""

import errno
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from shimmy.system import files as whole
from shimmy.system import unpacked_folder

FILES = {"base_library.zip": b"modules", "deep/er/libsome.so": b"\x7fELF", "late_module.py": b"value = 7\n"}
# What is unpacked when it is needed.
DATA = {"data/one.xz": b"packed", "data/two.xz": b"packed too"}
# A C library of the file, which is packed, and is unpacked where the system has none.
C_LIBRARY = {"libc/libc.so.6": b"\x7fELF" * 99}


def program_with(files: dict[str, bytes]) -> bytes:
    """A bootloader and PyInstaller's archive behind it, with what ELF has behind that."""
    table, content = b"", b""
    kinds = {name: b"b" if ".so" in name else b"x" if name in DATA else b"Z" for name in files}
    entries = [(name, data, name in C_LIBRARY, kinds[name]) for name, data in files.items()]
    for name, data, is_packed, kind in [("main", b"code", True, b"s"), *entries]:
        encoded, stored = name.encode() + bytes(16 - len(name) % 16), zlib.compress(data) if is_packed else data
        places = (18 + len(encoded), len(content), len(stored), len(data))
        table += struct.pack("!IIIIBc", *places, is_packed, kind) + encoded
        content += stored
    sizes = (len(content + table) + 88, len(content), len(table))
    cookie = struct.pack("!8sIIII64s", unpacked_folder._MAGIC, *sizes, 311, b"libpython.so")
    return b"bootloader" * 9999 + content + table + cookie + b"section headers"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    program = tmp_path / "shimmy"
    program.write_bytes(program_with(FILES | DATA | C_LIBRARY))
    folder = tmp_path / "_MEIours"
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(sys, "_MEIPASS", str(folder), raising=False)
    monkeypatch.setattr(unpacked_folder, "_contents", [])
    monkeypatch.setattr(unpacked_folder, "_claimed", -1)
    monkeypatch.setattr(unpacked_folder, "_made_as", [os.geteuid(), 0o700])
    assert unpacked_folder.restore()
    yield folder
    os.close(unpacked_folder._claimed)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WHOLE = FILES | {unpacked_folder.MARKER: unpacked_folder.MARKER_TEXT}


def test_all_that_belongs_there_is_made(home: Path) -> None:
    assert content(home) == WHOLE
    assert home.stat().st_mode & 0o077 == 0
    assert not unpacked_folder.restore()  # nothing is missing


def test_a_c_library_comes_back_where_the_program_runs_with_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_SHIMMY_LIBC", "own")
    unpacked_folder._contents.clear()
    assert unpacked_folder.restore()
    assert content(home) == WHOLE | C_LIBRARY
    assert os.access(home / "libc" / "libc.so.6", os.X_OK)


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_was_removed_comes_back(home: Path, name: str) -> None:
    (home / name).unlink()
    assert unpacked_folder.restore()
    assert content(home) == WHOLE


def test_a_file_that_was_cut_off_is_made_whole(home: Path) -> None:
    (home / "base_library.zip").write_bytes(b"mod")
    assert unpacked_folder.restore()
    assert content(home) == WHOLE


def test_a_part_that_is_asked_for_is_there(home: Path) -> None:
    for name in ("late_module.py", "data/one.xz"):
        assert unpacked_folder.part(name).read_bytes() == (FILES | DATA)[name]
        unpacked_folder.part(name).unlink()
        assert unpacked_folder.part(name).read_bytes() == (FILES | DATA)[name]
    assert content(home) == WHOLE | {"data/one.xz": DATA["data/one.xz"]}
    (home / "data" / "one.xz").unlink()
    n_before = unpacked_folder.n_removals()
    assert not unpacked_folder.restore()  # who needs it will ask
    assert unpacked_folder.n_removals() == n_before


def test_all_parts_with_a_beginning_are_there_when_they_are_asked_for(home: Path) -> None:
    assert sorted(unpacked_folder.parts("data/")) == [home / name for name in DATA]
    assert content(home) == WHOLE | DATA


def test_modules_of_an_archive_that_was_removed_are_imported(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(home / "base_library.zip", "w") as archive:
        archive.writestr("early_module.py", "value = 5")
        archive.writestr("zipped_module.py", "value = 6")
    monkeypatch.syspath_prepend(str(home / "base_library.zip"))
    assert import_module("early_module").value == 5
    monkeypatch.setattr(sys, "executable", f"/proc/self/root{tmp_path}/shimmy")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    unpacked_folder.keep()
    (home / "base_library.zip").unlink()
    assert import_module("zipped_module").value == 6
    for name in ("early_module", "zipped_module"):
        del sys.modules[name]


def test_a_module_whose_file_was_removed_is_imported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.syspath_prepend(str(home))
    unpacked_folder.keep()
    with pytest.raises(ModuleNotFoundError):
        import_module("no_such_module")
    (home / "late_module.py").unlink()
    assert import_module("late_module").value == 7
    del sys.modules["late_module"]


@pytest.mark.parametrize("impostor", ["writable", "link", "theirs"])
def test_nothing_is_put_where_another_user_can_change_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impostor: str
) -> None:
    home.rename(tmp_path / "removed")
    if impostor == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        home.symlink_to(tmp_path / "elsewhere")
    else:
        home.mkdir()
        home.chmod(0o777 if impostor == "writable" else 0o700)
    if impostor == "theirs":
        monkeypatch.setattr(unpacked_folder, "_made_as", [home.lstat().st_uid + 1, 0o700])
    with pytest.raises(OSError, match="somebody else's folder has its name"):
        unpacked_folder.restore()
    assert [*home.iterdir()] == []


def test_where_all_files_have_one_owner_and_mode_it_is_ours(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: home.lstat().st_uid + 1)  # as on CIFS or VFAT
    monkeypatch.setattr(unpacked_folder, "_made_as", [home.lstat().st_uid, 0o777])
    home.chmod(0o777)
    (home / "late_module.py").unlink()
    assert unpacked_folder.restore()
    assert content(home) == WHOLE


def test_no_room_to_put_a_file_back_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(whole, "write_atomically", write)
    (home / "late_module.py").unlink()
    with pytest.raises(OSError, match=f"cannot be put back into `{home}`: No space left on device") as caught:
        unpacked_folder.restore()
    assert caught.value.errno == errno.ENOSPC


def test_a_damaged_program_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(sys.executable)
    packed = zlib.compress(C_LIBRARY["libc/libc.so.6"])
    program.write_bytes(program.read_bytes().replace(packed, bytes(len(packed))))
    monkeypatch.setenv("_SHIMMY_LIBC", "own")
    unpacked_folder._contents.clear()
    with pytest.raises(OSError, match="the program's own file is damaged: fetch it again"):
        unpacked_folder.restore()
    assert not (home / "libc").exists()


def test_where_code_may_not_run_libraries_lie_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    for name in ("libsome.so.1", "_json.cpython-311-x86_64-linux-gnu.so", "base_library.zip"):
        for data in (b"before", b"after"):
            unpacked_folder.put(tmp_path / "folder" / name, data)
        assert (tmp_path / "folder" / name).read_bytes() == b"after"
        assert (tmp_path / "folder" / name).is_symlink() == (".so" in name)
    assert len([*(tmp_path / "folder").iterdir()]) == 3


def test_in_a_source_tree_nothing_is_kept() -> None:
    finders = [*sys.meta_path]
    unpacked_folder.keep()
    assert (sys.meta_path, unpacked_folder.restore()) == (finders, False)
    assert unpacked_folder.parts("") == []
