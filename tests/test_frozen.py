"""What the one-file program does about its unpacked folder; `_MEIPASS` and the outer process are played by the test."""

import asyncio
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimmy import frozen
from tests.fakes import on_loop


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this 'frozen program', among what else lies in the temporary folder."""
    folder = tmp_path / "_MEIours"
    folder.mkdir()
    monkeypatch.setattr(sys, "_MEIPASS", str(folder), raising=False)
    return folder


def be_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the outer process is dead."""
    monkeypatch.setattr(os, "getppid", lambda: 1)


def another(unpacked: Path, name: str, *, lock: bool = True, marker: bool = True, age_s: float = 0) -> Path:
    folder = unpacked.parent / name
    folder.mkdir()
    if lock:
        (folder / "shimmy.lock").touch()
    if marker:
        (folder / "llama_cpp").mkdir()
    status = folder.stat()
    os.utime(folder, (status.st_atime - age_s, status.st_mtime - age_s))
    return folder


@pytest.fixture
def home(unpacked: Path) -> Iterator[frozen.Home]:
    assert unpacked.is_dir()
    home = frozen.Home()
    yield home
    home._lock.close()


# -- in a source tree ------------------------------------------------------------------------------------------------


def test_in_a_source_tree_there_is_no_folder_and_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert frozen.folder() is None
    home = frozen.Home()
    be_adopted(monkeypatch)
    home.sweep()
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

    home = frozen.Home()
    be_adopted(monkeypatch)
    monkeypatch.setattr(asyncio, "sleep", look_again)
    with pytest.raises(Enough):
        await home.until_orphaned()


# -- our own folder --------------------------------------------------------------------------------------------------


def test_the_folder_is_claimed_as_long_as_we_live(unpacked: Path, home: frozen.Home) -> None:
    assert frozen.folder() == unpacked
    with (unpacked / "shimmy.lock").open("r+") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    home._lock.close()
    with (unpacked / "shimmy.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_outer_process_removes_the_folder_while_it_lives(unpacked: Path, home: frozen.Home) -> None:
    home.leave()
    assert unpacked.is_dir()


def test_an_orphan_removes_its_folder_itself(
    unpacked: Path, home: frozen.Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    (unpacked / "library.so").touch()
    be_adopted(monkeypatch)
    home.leave()
    home.leave()
    assert not unpacked.exists()


@on_loop
@pytest.mark.usefixtures("unpacked")
async def test_the_death_of_the_outer_process_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([10, 10, 10, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(frozen, "_LOOK_EVERY_S", 0)
    home = frozen.Home()
    await home.until_orphaned()
    assert next(parents, None) is None
    home._lock.close()


# -- the folders of others -------------------------------------------------------------------------------------------


def test_what_killed_programs_left_behind_is_removed(unpacked: Path, home: frozen.Home) -> None:
    old = another(unpacked, "_MEIold")
    (old / "llama_cpp" / "deep").mkdir()
    half = another(unpacked, "_MEIhalf", lock=False, age_s=3600)
    home.sweep()
    assert not old.exists()
    assert not half.exists()
    assert unpacked.is_dir()


def test_a_folder_somebody_lives_in_stays(unpacked: Path, home: frozen.Home) -> None:
    inhabited = another(unpacked, "_MEIother")
    with (inhabited / "shimmy.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        home.sweep()
    assert inhabited.is_dir()


def test_a_folder_that_is_just_being_unpacked_stays(unpacked: Path, home: frozen.Home) -> None:
    fresh = another(unpacked, "_MEIfresh", lock=False)
    home.sweep()
    assert fresh.is_dir()


def test_folders_of_other_programs_and_other_things_stay(unpacked: Path, home: frozen.Home) -> None:
    others = [
        another(unpacked, "_MEIother", lock=False, marker=False, age_s=3600),
        another(unpacked, "photos"),
        unpacked.parent / "_MEIfile",
    ]
    others[-1].touch()
    home.sweep()
    assert all(path.exists() for path in others)


def test_a_link_is_not_followed(unpacked: Path, home: frozen.Home, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = another(tmp_path_factory.mktemp("elsewhere") / "unused", "precious")
    link = unpacked.parent / "_MEIlink"
    link.symlink_to(target)
    home.sweep()
    assert target.is_dir()
    assert link.is_symlink()


def test_a_folder_of_another_user_stays(unpacked: Path, home: frozen.Home, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = another(unpacked, "_MEItheirs")
    monkeypatch.setattr(os, "getuid", lambda: theirs.stat().st_uid + 1)
    home.sweep()
    assert theirs.is_dir()
