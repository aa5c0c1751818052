"""What the one-file program does about its unpacked folder; `_MEIPASS` and the outer process are played by the test."""

import asyncio
import errno
import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shimmy.system import frozen_program, unpacked_folder
from tests.fakes import on_loop


@pytest.fixture
def home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this 'frozen program', among what else lies in the temporary folder."""
    folder = another(tmp_path / "_MEIours")
    monkeypatch.setattr(sys, "_MEIPASS", str(folder), raising=False)
    monkeypatch.setattr(unpacked_folder, "_contents", [])
    return folder


def be_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the outer process is dead."""
    adopter = os.getppid() + 1  # not 1: the tests themselves may have been adopted
    monkeypatch.setattr(os, "getppid", lambda: adopter)


def another(path: Path, *, marker: bytes | None = unpacked_folder.MARKER_TEXT, age_s: float = 0) -> Path:
    """An unpacked folder; without a marker it is not one of ours."""
    (path / "llama_cpp").mkdir(parents=True)
    if marker is not None:
        (path / unpacked_folder.MARKER).write_bytes(marker)
    status = path.stat()
    os.utime(path, (status.st_atime - age_s, status.st_mtime - age_s))
    return path


def can_be_cleared(folder: Path) -> bool:
    """Whether those who ask first, as systemd-tmpfiles does, are free to remove the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def inhabited(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    yield
    os.close(descriptor)


@pytest.fixture
def home(home_folder: Path) -> Iterator[frozen_program.UnpackedFolder]:
    assert home_folder.is_dir()
    yield frozen_program.UnpackedFolder()
    leave_home()


def leave_home() -> None:
    """Take the claim back, as the end of the process would."""
    os.close(unpacked_folder._claimed)
    unpacked_folder._claimed = -1


# -- in a source tree ------------------------------------------------------------------------------------------------


def test_in_a_source_tree_there_is_no_folder_and_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert unpacked_folder.folder() is None
    home = frozen_program.UnpackedFolder()
    be_adopted(monkeypatch)
    home.sweep()
    home.look_after()
    home.leave()
    assert list(tmp_path.iterdir()) == []


@on_loop
async def test_a_server_of_a_source_tree_is_nobodys_orphan(monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    looks: list[float] = []

    async def look_again(after_s: float) -> None:
        looks.append(after_s)
        if len(looks) == 3:
            raise Enough

    home = frozen_program.UnpackedFolder()
    be_adopted(monkeypatch)
    monkeypatch.setattr(asyncio, "sleep", look_again)
    with pytest.raises(Enough):
        await home.until_orphaned()


# -- our own folder --------------------------------------------------------------------------------------------------


def test_the_folder_itself_is_locked_as_long_as_we_live(home_folder: Path) -> None:
    home = frozen_program.UnpackedFolder()
    assert not can_be_cleared(home_folder)
    home.look_after()
    assert not can_be_cleared(home_folder)
    leave_home()
    assert can_be_cleared(home_folder)


def test_the_outer_process_removes_the_folder_while_it_lives(
    home_folder: Path, home: frozen_program.UnpackedFolder
) -> None:
    home.leave()
    assert home_folder.is_dir()


def test_an_orphan_removes_its_folder_itself(
    home_folder: Path, home: frozen_program.UnpackedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home_folder / "library.so").touch()
    be_adopted(monkeypatch)
    home.leave()
    home.leave()
    assert not home_folder.exists()


@on_loop
async def test_the_death_of_the_outer_process_is_noticed(home_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([10, 10, 10, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(frozen_program, "_LOOK_EVERY_S", 0)
    monkeypatch.setattr(frozen_program, "_LOOK_AFTER_EVERY_S", 0)
    home = frozen_program.UnpackedFolder()
    (home_folder / unpacked_folder.MARKER).unlink()
    await home.until_orphaned()
    assert next(parents, None) is None
    assert (home_folder / unpacked_folder.MARKER).exists()  # looked after meanwhile
    leave_home()


def test_what_is_removed_comes_back_and_is_ours_again(
    home_folder: Path, home: frozen_program.UnpackedFolder, caplog: pytest.LogCaptureFixture
) -> None:
    home_folder.rename(home_folder.with_name("removed"))
    home.look_after()
    assert (home_folder / unpacked_folder.MARKER).read_bytes() == unpacked_folder.MARKER_TEXT
    assert not can_be_cleared(home_folder)
    assert f"`{home_folder}`" in caplog.text


def test_what_an_import_has_put_back_is_told_once(
    home_folder: Path, home: frozen_program.UnpackedFolder, caplog: pytest.LogCaptureFixture
) -> None:
    home_folder.rename(home_folder.with_name("removed"))
    assert unpacked_folder.restore()
    for _ in range(2):
        home.look_after()
    assert len(caplog.records) == 1
    assert f"`{home_folder}`" in caplog.text


def test_what_cannot_come_back_is_told_once(
    home: frozen_program.UnpackedFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> bool:
        raise OSError(errno.ENOSPC, "the program cannot be put back: No space left on device")

    monkeypatch.setattr(unpacked_folder, "restore", full)
    home.look_after()
    home.look_after()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "No space left on device" in record.getMessage()


def test_nothing_in_the_folder_grows_old(
    home_folder: Path, home: frozen_program.UnpackedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_s = time.time() - 10 * 86400
    paths = [home_folder / unpacked_folder.MARKER, home_folder / "llama_cpp", home_folder]
    for path in paths:
        os.utime(path, (old_s, old_s))
    home.look_after()
    assert home_folder.stat().st_mtime == pytest.approx(old_s, abs=1)  # not at every look
    monkeypatch.setattr(frozen_program, "_FRESHEN_EVERY_S", 0)
    home.look_after()
    assert all(min(path.stat().st_mtime, path.stat().st_atime) > old_s + 86400 for path in paths)


# -- the folders of others -------------------------------------------------------------------------------------------


def test_what_killed_programs_left_behind_is_removed(home_folder: Path, home: frozen_program.UnpackedFolder) -> None:
    old = another(home_folder.with_name("_MEIold"))
    (old / "llama_cpp" / "deep").mkdir()
    half = another(home_folder.with_name("_MEIhalf"))
    (half / "llama_cpp").rmdir()  # it was killed while it unpacked
    home.sweep()
    assert not old.exists()
    assert not half.exists()
    assert home_folder.is_dir()


def test_a_folder_somebody_lives_in_stays(home_folder: Path, home: frozen_program.UnpackedFolder) -> None:
    theirs = another(home_folder.with_name("_MEIother"))
    with inhabited(theirs):
        home.sweep()
        home.sweep()
    assert theirs.is_dir()
    home.sweep()
    assert not theirs.exists()


def test_folders_of_other_programs_and_other_things_stay(
    home_folder: Path, home: frozen_program.UnpackedFolder
) -> None:
    others = [
        another(home_folder.with_name("_MEIother"), marker=None, age_s=30 * 86400),
        another(home_folder.with_name("_MEIempty"), marker=b"", age_s=30 * 86400),
        another(home_folder.with_name("_MEIalike"), marker=unpacked_folder.MARKER_TEXT + b"and more"),
        another(home_folder.with_name("photos")),
        home_folder.with_name("_MEIfile"),
    ]
    (others[0] / "shimmy.lock").touch()
    others[-1].touch()
    home.sweep()
    assert all(path.exists() for path in others)


def test_a_link_is_not_followed(
    home_folder: Path, home: frozen_program.UnpackedFolder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = another(tmp_path_factory.mktemp("elsewhere") / "precious")
    link = home_folder.with_name("_MEIlink")
    link.symlink_to(target)
    home.sweep()
    assert target.is_dir()
    assert link.is_symlink()


def test_a_folder_of_another_user_stays(
    home_folder: Path, home: frozen_program.UnpackedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = another(home_folder.with_name("_MEItheirs"))
    monkeypatch.setattr(os, "geteuid", lambda: theirs.stat().st_uid + 1)
    home.sweep()
    assert theirs.is_dir()
