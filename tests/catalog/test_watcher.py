"""Real events of the real system: whatever happens to files and folders, somebody is told to look again."""

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from shimmy import config
from shimmy.catalog import watcher as module
from shimmy.catalog.assign_names import Names
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.scan import Discovery
from shimmy.catalog.watcher import Watcher
from shimmy.system.inotify import Inotify
from tests.fakes import on_loop, until

DEADLINE_S = 10


class Told:
    """Counts how often the watcher spoke, and has it follow the folders that a look finds."""

    def __init__(self, *roots: Path) -> None:
        self.n_times = 0
        self.places: set[Path] = set()
        self.is_everything = False
        settings = config.load({"model_dirs": [str(root) for root in roots]}, {})
        self._discovery = Discovery(settings, Headers(), Names())
        self._discovery.look()
        self.watcher = Watcher(roots, self)
        self.watcher.follow(self._discovery.watched)

    def __call__(self, changed: Collection[Path] | None) -> None:
        self.n_times += 1
        self.places |= {*(changed or ())}
        self.is_everything |= changed is None
        self._discovery.look(changed)
        self.watcher.follow(self._discovery.watched)

    async def quiet(self) -> int:
        """Wait until nothing is said for a while."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                before = self.n_times
                await asyncio.sleep(0.3)
                if self.n_times == before:
                    return before

    async def after(self, act: Callable[[], object]) -> None:
        """Do something and wait until it is noticed."""
        before = await self.quiet()
        act()
        await until(lambda: self.n_times != before)


@asynccontextmanager
async def watching(*roots: Path) -> AsyncIterator[Told]:
    told = Told(*roots)
    task = asyncio.create_task(told.watcher.run())
    try:
        await until(lambda: told.n_times > 0)
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@on_loop
async def test_files_that_come_change_move_and_go(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    aside = tmp_path.parent / f"{tmp_path.name}-aside"
    aside.write_text("aside")
    async with watching(tmp_path) as told:
        await told.after(lambda: file.write_text("new"))
        await told.after(lambda: file.write_text("changed"))
        await told.after(lambda: file.rename(tmp_path / "b.gguf"))
        await told.after(lambda: os.link(aside, tmp_path / "linked.gguf"))
        await told.after(lambda: aside.rename(tmp_path / "moved.gguf"))
        await told.after((tmp_path / "b.gguf").unlink)


@on_loop
async def test_folders_that_appear_below(tmp_path: Path) -> None:
    async with watching(tmp_path) as told:
        await told.after(lambda: (tmp_path / "a" / "b").mkdir(parents=True))
        await told.after(lambda: (tmp_path / "a" / "b" / "deep.gguf").write_text("x"))


@on_loop
async def test_a_folder_that_is_missing_appears_vanishes_and_returns(tmp_path: Path) -> None:
    root = tmp_path / "later"
    (tmp_path / "there").mkdir()
    async with watching(tmp_path / "there", root) as told:
        for _ in range(2):
            await told.after(root.mkdir)
            await told.after(lambda: (root / "a.gguf").write_text("x"))
            await told.after(lambda: shutil.rmtree(root))


@on_loop
async def test_a_single_file(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_text("x")
    async with watching(file) as told:
        await told.after(lambda: file.write_text("changed"))


@on_loop
async def test_reading_is_no_change(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_text("x")
    async with watching(tmp_path) as told:
        before = await told.quiet()
        for _ in range(5):
            file.read_text()
            os.scandir(tmp_path).close()
        assert await told.quiet() == before


@on_loop
async def test_a_folder_that_the_system_will_not_watch_is_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Inotify, "add", refuse)
    monkeypatch.setattr(module, "POLL_UNWATCHED_EVERY_S", 0.1)
    monkeypatch.setattr(module, "CHECK_EVERY_S", 0.05)
    async with watching(tmp_path) as told:
        await until(lambda: told.n_times >= 5)
    assert len([record for record in caplog.records if "max_user_watches" in record.message]) == 1


@on_loop
async def test_a_folder_that_is_replaced_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one may have the identity of the old."""
    monkeypatch.setattr(module, "CHECK_EVERY_S", 0.1)
    root = tmp_path / "root"
    root.mkdir()

    def replace() -> None:
        root.rmdir()
        root.mkdir()

    async with watching(root) as told:
        for _ in range(3):
            await told.after(replace)
            await asyncio.sleep(2 * module.CHECK_EVERY_S)
            await told.after(lambda: (root / "a.gguf").write_text("x"))
            (root / "a.gguf").unlink()


@on_loop
async def test_folders_and_files_that_links_lead_to(tmp_path: Path) -> None:
    models, elsewhere, other = (tmp_path / name for name in ("models", "elsewhere", "other"))
    for folder in (models, elsewhere / "below", other):
        folder.mkdir(parents=True)
    (models / "linked").symlink_to(elsewhere)
    target = other / "target"
    target.write_text("x")
    (models / "a.gguf").symlink_to(target)
    async with watching(models) as told:
        await told.after(lambda: (elsewhere / "b.gguf").write_text("x"))
        await told.after(lambda: (elsewhere / "below" / "c.gguf").write_text("x"))
        await told.after(lambda: target.write_text("changed"))
        await told.after(lambda: target.rename(other / "aside"))
        await told.after(lambda: (other / "aside").rename(target))
        (tmp_path / "new").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "new")
        await told.after(lambda: (tmp_path / "link").rename(models / "linked"))
        await told.after(lambda: (tmp_path / "new" / "d.gguf").write_text("x"))
    assert not told.is_everything


@on_loop
async def test_what_may_be_read(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.gguf", tmp_path / "folder"
    file.write_text("x")
    folder.mkdir()
    async with watching(tmp_path) as told:
        for path in (file, folder):
            await told.after(partial(path.chmod, 0))
            await told.after(partial(path.chmod, 0o755))
        await told.after(lambda: os.utime(file, (1, 1)))


@on_loop
async def test_a_folder_in_the_place_of_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "models" / name / "deep").mkdir(parents=True)
    async with watching(tmp_path / "models") as told:
        await told.after(lambda: (tmp_path / "models" / "a").rename(tmp_path / "aside"))
        await told.after(lambda: (tmp_path / "models" / "b").rename(tmp_path / "models" / "a"))
        await told.after(lambda: (tmp_path / "models" / "a" / "deep" / "a.gguf").write_text("x"))
        assert tmp_path / "models" / "a" / "deep" / "a.gguf" in told.places
        before = await told.quiet()
        (tmp_path / "aside" / "deep" / "b.gguf").write_text("x")
        assert await told.quiet() == before


@on_loop
async def test_a_file_that_grows_is_told_a_few_times_a_second(tmp_path: Path) -> None:
    async with watching(tmp_path) as told:
        before = await told.quiet()
        with (tmp_path / "a.gguf.part").open("wb", buffering=0) as file:
            for _ in range(3_000):
                file.write(b"x")
                await asyncio.sleep(0)
        assert 0 < await told.quiet() - before < 300


@on_loop
async def test_one_folder_that_the_system_will_not_watch_is_polled_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As at the limit of watches: those for the first folders are to be had, those for the others are not."""
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    real_add = Inotify.add

    def add(inotify: Inotify, folder: Path) -> int:
        if folder in folders[1:]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_add(inotify, folder)

    monkeypatch.setattr(Inotify, "add", add)
    monkeypatch.setattr(module, "POLL_UNWATCHED_EVERY_S", 0.1)
    monkeypatch.setattr(module, "CHECK_EVERY_S", 0.05)
    async with watching(tmp_path) as told:
        told.places.clear()
        before = told.n_times
        await until(lambda: told.n_times >= before + 5)
        assert told.places == {*folders[1:]}
        (folders[0] / "a.gguf").write_text("x")
        await until(lambda: folders[0] / "a.gguf" in told.places)
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert f"`{folders[1]}` and perhaps other model folders cannot be watched" in warning
    assert "fs.inotify.max_user_watches" in warning


@on_loop
async def test_without_an_instance_all_folders_are_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(Inotify, "__init__", refuse)
    monkeypatch.setattr(module, "POLL_UNWATCHED_EVERY_S", 0.1)
    monkeypatch.setattr(module, "CHECK_EVERY_S", 0.05)
    async with watching(tmp_path) as told:
        told.places.clear()
        await until(lambda: told.places == {tmp_path, tmp_path / "a"})
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "fs.inotify.max_user_instances" in warning


@on_loop
async def test_when_more_happened_than_can_be_told_everything_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(tmp_path) as told:
        await told.quiet()
        monkeypatch.setattr(Inotify, "read", lambda _: None)
        (tmp_path / "a.gguf").write_text("x")
        await until(lambda: told.is_everything)


@on_loop
async def test_a_second_run_watches_as_the_first_did(tmp_path: Path) -> None:
    async with watching(tmp_path) as told:
        await until(lambda: n_watches() == 1)
    assert n_watches() == 0
    task = asyncio.create_task(told.watcher.run())
    await until(lambda: n_watches() == 1)
    await told.after(lambda: (tmp_path / "a.gguf").write_text("x"))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@on_loop
async def test_watches_are_given_back(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / str(number)).mkdir()
    async with watching(tmp_path) as told:
        await until(lambda: n_watches() == 21)
        shutil.rmtree(tmp_path / "7")
        await until(lambda: n_watches() == 20)
        await told.quiet()
    assert n_watches() == 0


def n_watches() -> int:
    """Of this process, over all its inotify descriptors."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if "inotify" in str(link.readlink()):
                found += Path(f"/proc/self/fdinfo/{link.name}").read_text().count("inotify wd:")
    return found
