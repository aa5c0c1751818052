"""The catalog follows the disk: what has settled is published, what arrives is not, what breaks stays as it was."""

import asyncio
import json
import logging
import os
from pathlib import Path
from time import monotonic
from typing import NoReturn

import pytest

from shimmy import config
from shimmy.catalog import publisher as module
from shimmy.catalog.catalog import CatalogDiff, Registry
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.publisher import SETTLE_S, CatalogPublisher, LookAllowance
from shimmy.catalog.scan import Discovery, Watched
from shimmy.errors import Overloaded
from shimmy.messages.model_info import ModelDefaults
from tests.fakes import on_loop, until
from tests.golden.weights import write_folder
from tests.ollama_store import put_in_ollama
from tests.tiny_models import STRING, Tensor, encode_gguf, write_tiny_adapter, write_tiny_model


class House:
    """A librarian for one folder, the time it sees, and what it has told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry()
        self.told: list[CatalogDiff] = []
        self.now_s: float | None = 1000.0  # None: the true one
        settings = config.load({"model_dirs": [str(folder)]}, {})
        self.librarian = CatalogPublisher(settings, self.registry, Headers(), self.told.append, self._clock)
        self.librarian.publish_first()

    def _clock(self) -> float:
        return monotonic() if self.now_s is None else self.now_s

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.registry.catalog.models]

    @property
    def reasons(self) -> dict[str, str]:
        return {entry.name: entry.reason for entry in self.registry.catalog.rejected}

    async def look(self, times: int = 1, every_s: float = 2 * SETTLE_S) -> list[bool]:
        """What each look says whose last one was `every_s` ago."""
        said = []
        for _ in range(times):
            assert self.now_s is not None
            self.now_s += every_s
            said.append(await self.librarian.look())
        return said


@on_loop
async def test_the_log_says_what_is_computed_otherwise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def write(name: str) -> None:
        folder = write_folder("gpt-oss", tmp_path / name, "5")
        settings = json.loads((folder / "config.json").read_text())
        settings["rope_parameters" if "rope_parameters" in settings else "rope_scaling"]["truncate"] = False
        (folder / "config.json").write_text(json.dumps(settings))

    caplog.set_level(logging.INFO)
    write("early")
    house = House(tmp_path)
    write("late")
    await house.look(3)
    for model in house.registry.catalog.models:
        (notice,) = model.notices
        assert "rotary positions" in notice
        assert [model.name in text for text in caplog.messages if notice in text].count(True) == 1
    assert house.names == ["early", "late"]


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
async def test_looks_in_quick_succession_do_not_settle_anything(tmp_path: Path) -> None:
    house = House(tmp_path)
    write_tiny_model(tmp_path, "new")
    assert await house.look(5, every_s=SETTLE_S / 10) == [False] * 5
    assert house.names == []
    assert await house.look() == [True]
    assert house.names == ["new"]


@on_loop
async def test_what_changes_and_changes_back_has_not_settled(tmp_path: Path) -> None:
    house = House(tmp_path)
    path = write_tiny_model(tmp_path, "new")
    times = path.stat()
    await house.look()
    os.utime(path, ns=(1, 1))
    await house.look()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert await house.look(2) == [False, True]


@on_loop
async def test_a_broken_file_leaves_what_was_there_and_says_why_once_it_has_settled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tiny_model(tmp_path, "model")
    house = House(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    await house.look()
    assert house.reasons == {}
    assert house.told == []
    await house.look(3)
    assert house.names == ["model"]
    assert house.reasons["model"].startswith("it is cut off")
    (told,) = house.told
    assert (told.added, told.changed, told.removed) == ((), (), ())
    assert [entry.name for entry in told.rejected] == ["model"]
    assert caplog.text.count(f"`{path}` is not listed: it is cut off") == 1
    path.unlink()
    await house.look()
    assert house.names == []
    assert house.reasons == {}
    assert [model.name for model in house.told[1].removed] == ["model"]


@on_loop
async def test_a_broken_file_that_goes_is_told(tmp_path: Path) -> None:
    house = House(tmp_path)
    path = tmp_path / "half.gguf"
    path.write_bytes(b"GGUF")
    await house.look(3)
    path.unlink()
    await house.look(3)
    first, second = house.told
    assert [entry.name for entry in first.rejected] == ["half"]
    assert (second.rejected, second.mended) == ((), ("half",))


@on_loop
async def test_a_file_that_was_broken_and_is_whole_again_is_served(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, "model")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    house = House(tmp_path)
    assert [*house.reasons] == ["model"]
    path.write_bytes(whole)
    await house.look(2)
    assert (house.names, house.reasons) == (["model"], {})


@on_loop
async def test_a_model_does_not_stay_because_another_has_its_file(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        write_tiny_model(tmp_path / place, "model", seed=ord(place))
    house = House(tmp_path)
    assert house.names == ["model", "model@b"]
    (tmp_path / "a" / "model.gguf").unlink()
    await house.look(2)
    assert house.names == ["model"]
    assert house.registry.catalog.models[0].path == tmp_path / "b" / "model.gguf"


@on_loop
async def test_a_projector_that_comes_is_shown_and_swaps_nothing(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "model")
    house = House(tmp_path)
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(encode_gguf([("general.architecture", STRING, "clip")], [Tensor("weights", (8,), bytes(32))]))
    assert await house.look() == [True]
    assert house.registry.catalog.models[0].projector == path
    assert house.told == []


@on_loop
async def test_a_manifest_that_changes_holds_from_the_first_look_and_swaps_nothing(tmp_path: Path) -> None:
    name = "registry.ollama.ai/library/tiny/latest"
    put_in_ollama(tmp_path, name, params=b'{"num_predict": 3}', system=b"Be brief.")
    house = House(tmp_path)
    assert house.registry.resolve("tiny").defaults == ModelDefaults(n_predict=3, system="Be brief.")
    put_in_ollama(tmp_path, name, params=b'{"num_predict": 5}')
    assert await house.look() == [True]
    assert house.registry.resolve("tiny").defaults == ModelDefaults(n_predict=5)
    assert house.told == []


@on_loop
async def test_a_manifest_that_gets_an_adapter_is_another_model(tmp_path: Path) -> None:
    name = "registry.ollama.ai/library/tiny/latest"
    put_in_ollama(tmp_path, name)
    house = House(tmp_path)
    adapter = write_tiny_adapter(tmp_path).read_bytes()
    put_in_ollama(tmp_path, name, adapter=adapter, params=b'{"num_predict": 5}')
    assert await house.look(2) == [False, True]
    assert [model.defaults.n_predict for change in house.told for model in change.changed] == [5]
    assert house.registry.resolve("tiny").needs_adapters


@on_loop
async def test_what_is_passed_over_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "link.gguf").symlink_to("nowhere")
    house = House(tmp_path)
    await house.look(3)
    assert caplog.text.count("is passed over") == 1
    (tmp_path / "link.gguf").unlink()
    await house.look()
    (tmp_path / "link.gguf").symlink_to("nowhere")
    await house.look(3)
    assert caplog.text.count("is passed over") == 2


@on_loop
async def test_it_looks_when_it_is_asked_to_until_everything_has_settled(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.now_s = None
    task = asyncio.create_task(house.librarian.run())
    write_tiny_model(tmp_path, "new")
    house.librarian.look_again()
    await until(lambda: house.names == ["new"])
    (tmp_path / "new.gguf").unlink()
    house.librarian.look_again()
    await until(lambda: house.names == [])
    task.cancel()


@on_loop
async def test_a_look_that_fails_is_logged_and_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path)
    house.now_s = None

    def fail(*_: object) -> NoReturn:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Discovery, "look", fail)
        task = asyncio.create_task(house.librarian.run())
        house.librarian.look_again()
        await until(lambda: "ZeroDivisionError" in caplog.text)
    write_tiny_model(tmp_path, "new")
    house.librarian.look_again()
    await until(lambda: house.names == ["new"])
    task.cancel()


class Looks:
    """Stands in for `Librarian.look`: each look begins, and ends when the test says so."""

    def __init__(self) -> None:
        self.n_begun = 0
        self.may_end = asyncio.Semaphore(0)

    async def __call__(self) -> bool:
        self.n_begun += 1
        await self.may_end.acquire()
        return True


@on_loop
async def test_those_who_ask_while_others_are_looked_for_share_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    librarian, looks = House(tmp_path).librarian, Looks()
    monkeypatch.setattr(librarian, "look", looks)
    first = asyncio.create_task(librarian.discover())
    await until(lambda: looks.n_begun == 1)
    others = [asyncio.create_task(librarian.discover()) for _ in range(100)]
    await asyncio.sleep(0)
    looks.may_end.release()
    await first
    await until(lambda: looks.n_begun == 2)
    assert not any(other.done() for other in others)
    looks.may_end.release()
    await asyncio.gather(*others)
    assert looks.n_begun == 2


@on_loop
async def test_who_leaves_neither_ends_the_look_of_others_nor_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    librarian, looks = House(tmp_path).librarian, Looks()
    monkeypatch.setattr(librarian, "look", looks)
    leaving, staying = (asyncio.create_task(librarian.discover()) for _ in range(2))
    await until(lambda: looks.n_begun == 1)
    leaving.cancel()
    looks.may_end.release()
    await staying
    before = asyncio.create_task(librarian.discover())
    await until(lambda: looks.n_begun == 2)
    behind = asyncio.create_task(librarian.discover())
    await asyncio.sleep(0)
    before.cancel()
    behind.cancel()
    await asyncio.gather(before, behind, return_exceptions=True)
    looks.may_end.release()
    looks.may_end.release()
    await librarian.discover()
    assert looks.n_begun == 3, "and not for the one that left before its turn"


@on_loop
async def test_no_more_than_the_queue_holds_wait_for_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.load({"model_dirs": [str(tmp_path)], "max_queue": "1"}, {})
    librarian, looks = CatalogPublisher(settings, Registry(), Headers(), lambda _: None), Looks()
    monkeypatch.setattr(librarian, "look", looks)
    waiting = [asyncio.create_task(librarian.discover()) for _ in range(2)]
    await until(lambda: looks.n_begun == 1)
    with pytest.raises(Overloaded, match="2 wait for a look"):
        await librarian.discover()
    looks.may_end.release()
    await asyncio.gather(*waiting)
    looks.may_end.release()
    await librarian.discover()


@on_loop
async def test_a_file_that_grows_is_told_once_when_it_rests_and_disturbs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = write_tiny_model(tmp_path, "model").read_bytes()
    house = House(tmp_path)
    path = tmp_path / "growing.gguf"
    for end in range(1000, 1010):
        path.write_bytes(content[:end])
        assert await house.look() == [False]
        assert (house.names, house.reasons, house.told) == (["model"], {}, [])
    await house.look(3)
    assert house.reasons["growing"].startswith("it is cut off")
    assert caplog.text.count("is not listed") == 1
    write_tiny_model(tmp_path, "other", seed=1)
    path.write_bytes(content)
    assert (await house.look(2))[-1]
    assert house.names == ["growing", "model", "other"]


@on_loop
async def test_of_shards_one_that_grows_is_not_told_as_broken(tmp_path: Path) -> None:
    house = House(tmp_path)
    write_tiny_model(tmp_path, "model", n_shards=2)
    path = tmp_path / "model-00002-of-00002.gguf"
    content = path.read_bytes()
    for end in range(len(content) - 5, len(content)):
        path.write_bytes(content[:end])
        assert await house.look() == [False]
        assert (house.names, house.reasons) == ([], {})
    path.write_bytes(content)
    await house.look(2)
    assert (house.names, house.reasons) == (["model"], {})


@on_loop
async def test_what_is_told_of_is_looked_at_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    house = House(tmp_path)
    house.now_s = None
    for name in ("a", "b"):
        write_tiny_model(tmp_path / name, name, seed=ord(name))
    task = asyncio.create_task(house.librarian.run())
    house.librarian.look_again({tmp_path / "b" / "b.gguf"})
    await until(lambda: house.names == ["b"])
    house.librarian.look_again()
    await until(lambda: house.names == ["a", "b"])
    task.cancel()


@on_loop
async def test_more_places_than_can_be_told_apart_are_all_of_them(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.now_s = None
    write_tiny_model(tmp_path, "new")
    task = asyncio.create_task(house.librarian.run())
    for start in range(0, 6_000, 1_000):
        house.librarian.look_again({tmp_path / "nowhere" / str(number) for number in range(start, start + 1_000)})
    await until(lambda: house.names == ["new"])
    task.cancel()


def test_looks_that_go_on_wait_for_their_allowance() -> None:
    now_s = 0.0
    allowance = LookAllowance(lambda: now_s)
    pauses = []
    for _ in range(4):
        allowance.spend(0.6)
        pauses.append(allowance.wait_s)
        now_s += allowance.wait_s
    assert pauses == pytest.approx([0.0, 2.0, 6.0, 6.0])
    now_s += 3600.0
    allowance.spend(0.9)
    assert allowance.wait_s == 0.0


@on_loop
async def test_many_models_at_once_are_logged_in_bounds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    house = House(tmp_path)
    source = write_tiny_model(tmp_path.parent, "source-of-many").read_bytes()
    for number in range(module.MAX_TOLD + 7):
        (tmp_path / f"{number}.gguf").write_bytes(source)
    with caplog.at_level("INFO"):
        await house.look(2)
    assert len(house.told[0].added) == module.MAX_TOLD + 7
    assert caplog.text.count("found: `") == module.MAX_TOLD
    assert "found: 7 more" in caplog.text


@on_loop
async def test_folders_are_told_to_whoever_watches_them(tmp_path: Path) -> None:
    told: list[Watched] = []
    settings = config.load({"model_dirs": [str(tmp_path)]}, {})
    librarian = CatalogPublisher(settings, Registry(), Headers(), lambda _: None, watch=told.append)
    librarian.publish_first()
    assert [{*watched} for watched in told] == [{tmp_path}]
    await librarian.look()
    (tmp_path / "a").mkdir()
    await librarian.look({tmp_path / "a"})
    assert {*told[-1]} == {tmp_path, tmp_path / "a"}
    n_told = len(told)
    await librarian.look({tmp_path / "a"})
    assert len(told) == n_told
