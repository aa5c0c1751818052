"""The catalog follows the disk: what has settled is published, what arrives is not, what breaks stays as it was."""

import asyncio
import os
from pathlib import Path

from shimmy import config
from shimmy.headers import Headers
from shimmy.librarian import Librarian
from shimmy.registry import CatalogDiff, Registry
from tests.fakes import on_loop, until
from tests.tiny_models import write_tiny_model


class House:
    """A librarian for one folder, and what it has told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry()
        self.told: list[CatalogDiff] = []
        settings = config.load({"model_dirs": [str(folder)]}, {})
        self.librarian = Librarian(settings, self.registry, Headers(), self.told.append)
        self.librarian.publish_first()

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.registry.catalog.models]

    async def look(self, times: int = 1) -> list[bool]:
        return [await self.librarian.look() for _ in range(times)]


@on_loop
async def test_what_is_there_at_the_start_is_published_at_once(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "first")
    house = House(tmp_path)
    assert house.names == ["first"]
    assert await house.look() == [True]
    assert house.told == []


@on_loop
async def test_a_new_file_is_published_when_two_looks_saw_it_the_same(tmp_path: Path) -> None:
    house = House(tmp_path)
    path = write_tiny_model(tmp_path, "new")
    assert await house.look() == [False]
    assert house.names == []
    os.utime(path, ns=(1, 1))  # somebody still writes
    assert await house.look() == [False]
    assert house.names == []
    assert await house.look() == [True]
    assert house.names == ["new"]
    assert [model.name for model in house.told[0].added] == ["new"]


@on_loop
async def test_a_file_that_comes_in_pieces_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    content = write_tiny_model(tmp_path, "source").read_bytes()
    (tmp_path / "source.gguf").unlink()
    house = House(tmp_path)
    path = tmp_path / "pieces.gguf"
    for end in range(0, len(content), len(content) // 5):
        path.write_bytes(content[:end])
        await house.look(2)
        assert house.names == []
    path.write_bytes(content)
    await house.look(2)
    assert house.names == ["pieces"]


@on_loop
async def test_a_replaced_file_is_told_once_it_has_settled(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "model")
    house = House(tmp_path)
    before = house.registry.catalog.models[0]
    other = write_tiny_model(tmp_path, "other", n_ctx_train=256).rename(tmp_path / "other")
    other.rename(tmp_path / "model.gguf")
    assert await house.look(2) == [False, True]
    (diff,) = house.told
    assert [model.name for model in diff.changed] == ["model"]
    assert diff.changed[0] != before
    assert house.registry.catalog.models == diff.changed


@on_loop
async def test_a_broken_file_leaves_what_was_there(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, "model")
    house = House(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    await house.look(3)
    assert house.names == ["model"]
    assert house.told == []
    path.unlink()
    await house.look()
    assert house.names == []
    assert [model.name for model in house.told[0].removed] == ["model"]


@on_loop
async def test_it_looks_when_it_is_asked_to_until_everything_has_settled(tmp_path: Path) -> None:
    house = House(tmp_path)
    task = asyncio.create_task(house.librarian.run())
    write_tiny_model(tmp_path, "new")
    house.librarian.look_again()
    await until(lambda: house.names == ["new"])
    (tmp_path / "new.gguf").unlink()
    house.librarian.look_again()
    await until(lambda: house.names == [])
    task.cancel()
