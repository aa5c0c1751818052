"""A look at what has changed finds what a look at everything would find."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from shimmy import config
from shimmy.catalog import file_versions, walk
from shimmy.catalog.assign_names import Names
from shimmy.catalog.catalog import Catalog, Entry
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.scan import Discovery, scan
from shimmy.formats.convert import convert
from tests.ollama_store import put_in_ollama
from tests.tiny_checkpoints import write_tiny_llama
from tests.tiny_models import write_tiny_adapter, write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable


class Disk:
    """Folders in which things happen at random, each told as a kernel tells it: in which folder, to which entry."""

    def __init__(self, folder: Path, outside: Path, seed: int) -> None:
        self.folder, self.outside = folder, outside
        self.random = Random(seed)
        self.happened: set[tuple[tuple[int, int], str]] = set()
        source = folder.parent / "source"
        source.mkdir()
        self.model = write_tiny_model(source, "model").read_bytes()
        self.other = write_tiny_model(source, "other", seed=1).read_bytes()
        self.adapter = write_tiny_adapter(source).read_bytes()
        write_tiny_model(source, "shards", n_shards=2)
        self.shards = {path.name: path.read_bytes() for path in source.glob("shards-*")}
        self.checkpoint = write_tiny_llama(source / "checkpoint")
        for path in (folder, outside):
            (path / "a" / "b").mkdir(parents=True)

    def tell(self, *paths: Path) -> None:
        for path in paths:
            status = path.parent.stat()
            self.happened.add(((status.st_dev, status.st_ino), path.name))

    def happen(self) -> None:
        acts: list[Callable[[], None]] = [
            *([self.write] * 5), self.remove, self.rename, self.link, self.make_folder, self.copy_checkpoint, self.mark,
            self.hub, self.touch,
        ]  # fmt: skip
        self.random.choice(acts)()

    def everything(self) -> list[Path]:
        return sorted([*self.folder.rglob("*"), *self.outside.rglob("*")])

    def a_folder(self) -> Path:
        return self.random.choice([*filter(Path.is_dir, self.everything()), self.folder])

    def a_file(self) -> Path | None:
        found = [path for path in self.everything() if not path.is_dir()]
        return self.random.choice(found) if found else None

    def a_name(self) -> str:
        return self.random.choice(("a.gguf", "A.gguf", "b_c.GGUF", "x.txt", "a", *self.shards))

    def write(self) -> None:
        name = self.a_name()
        path = self.a_folder() / name
        contents = (self.model, self.other, self.adapter, self.model[:1000], b"", self.shards.get(name, b"x"))
        if not path.is_dir():
            path.unlink(missing_ok=True)
            path.write_bytes(self.random.choice(contents))
            self.tell(path)

    def remove(self) -> None:
        if (path := self.a_file()) is not None:
            path.unlink()
            self.tell(path)

    def rename(self) -> None:
        path, to = self.a_folder() if self.random.random() < 0.3 else self.a_file(), self.a_folder() / self.a_name()
        if path is not None and not os.path.lexists(to) and path != self.folder:
            self.tell(path, to)
            with suppress(OSError):  # a folder into itself
                path.rename(to)

    def link(self) -> None:
        path, to = self.a_folder() / self.a_name(), self.random.choice((self.a_file(), self.a_folder()))
        if to is not None and not path.exists() and not path.is_symlink():
            path.symlink_to(to if self.random.random() < 0.5 else os.path.relpath(to, os.path.realpath(path.parent)))
            self.tell(path)

    def make_folder(self) -> None:
        path = self.a_folder() / self.random.choice(("a", "b", "more", ".Trash-1000"))
        if not path.exists() and not path.is_symlink():
            path.mkdir()
            self.tell(path)

    def copy_checkpoint(self) -> None:
        path = self.a_folder() / self.random.choice(("whole", "Whole"))
        if not path.exists() and not path.is_symlink():
            shutil.copytree(self.checkpoint, path)
            self.tell(path, *path.iterdir())

    def mark(self) -> None:
        if (path := self.a_file()) is not None:
            mark = path.with_name(f"{path.name}.aria2")
            mark.touch()
            self.tell(mark)

    def hub(self) -> None:
        repository = self.folder / "models--org--repo"
        blob = repository / "blobs" / str(self.random.randrange(2))
        for path in (blob.parent, repository / "refs"):
            path.mkdir(parents=True, exist_ok=True)
            self.tell(path, repository)
        revision = self.random.choice("rs")
        link = repository / "snapshots" / revision / "a.gguf"
        if not blob.exists():
            blob.write_bytes(self.random.choice((self.model, self.other)))
        if not link.parent.exists():
            link.parent.mkdir(parents=True)
            self.tell(link.parent.parent, link.parent)
        if not link.is_symlink() and not link.exists():
            link.symlink_to(f"../../blobs/{blob.name}")
        (repository / "refs" / "main").write_text(revision)
        self.tell(blob, link, repository / "refs" / "main")

    def touch(self) -> None:
        if (path := self.a_file()) is not None and path.exists():
            os.utime(path, ns=(1, self.random.randrange(10**18)))
            self.tell(path, Path(os.path.realpath(path)))


Identified = tuple[Path, tuple[int, int] | None]


def watched_by(discovery: Discovery, roots: list[Path]) -> set[Identified]:
    """The watched folders and what is watched of them, and what the roots are now."""
    found: set[Identified] = set()
    for path in (*discovery.watched, *roots):
        status = path.stat() if path.exists() else None
        found.add((path, (status.st_dev, status.st_ino) if status is not None else None))
    return found


def facts(catalog: Catalog) -> list[object]:
    entries: list[Entry] = [*catalog.models, *catalog.rejected]
    others = [(model.other_names, model.projector, model.adapters) for model in catalog.models]
    return [*entries, *others]


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_a_look_there_sees_what_a_scan_sees(tmp_path: Path, seed: int) -> None:
    disk = Disk(tmp_path / "models", tmp_path / "outside", seed)
    (tmp_path / "second").symlink_to(disk.folder / "a")
    roots = [tmp_path / "second", disk.folder, disk.folder / "a.gguf"]
    settings = config.load({"model_path": [str(root) for root in roots]}, {})
    discovery = Discovery(settings, Headers(), Names())
    discovery.look()
    for _ in range(40):
        disk.happened.clear()
        watched = watched_by(discovery, roots)
        for _ in range(disk.random.randint(1, 3)):
            disk.happen()
        changed = {path / name for identity, name in disk.happened for path, own in watched if own == identity}
        changed |= {path for path, _ in watched_by(discovery, roots) - watched}
        while changed:
            discovery.look(changed)
            while discovery.is_arriving:
                discovery.look(changed)
            before, watched = watched, watched_by(discovery, roots)
            changed = {path for path, _ in watched - before}
        warnings: list[tuple[Path, str]] = []
        whole = scan(settings, Headers(), lambda path, reason: warnings.append((path, reason)))  # noqa: B023
        assert facts(discovery.look(set())) == facts(whole)
        assert sorted(discovery.warnings) == sorted(warnings)
        assert disk.folder in discovery.watched


def looking_at(folder: Path) -> Discovery:
    discovery = Discovery(config.load({"model_dirs": [str(folder)]}, {}), Headers(), Names())
    discovery.look()
    return discovery


def test_only_what_changed_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        write_tiny_model(tmp_path / name, name, seed=ord(name))
    discovery = looking_at(tmp_path)
    looked: list[Path] = []
    real_look, real_stat = walk.look_into, Path.stat

    def look_into(path: Path) -> walk.Folder:
        looked.append(path)
        return real_look(path)

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        looked.append(path)
        return real_stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr("shimmy.catalog.scan.look_into", look_into)
    monkeypatch.setattr(Path, "stat", stat)
    (tmp_path / "b" / "growing.part").write_bytes(b"x")
    before = discovery.look(set())
    looked.clear()
    assert discovery.look({tmp_path / "b" / "growing.part"}) is before
    assert {path for path in looked if path.is_relative_to(tmp_path)} == {tmp_path / "b", tmp_path / "b" / "b.gguf"}


def test_the_same_models_are_the_same_objects(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiny_model(tmp_path, name, seed=ord(name))
    write_tiny_llama(tmp_path / "c")
    discovery = looking_at(tmp_path)
    before = {model.name: model for model in discovery.look().models}
    write_tiny_model(tmp_path, "b", seed=9)
    for changed in ({tmp_path / "b.gguf"}, None):
        after = {model.name: model for model in discovery.look(changed).models}
        assert [after[name] is before[name] for name in ("a", "b", "c")] == [True, False, True]


def test_a_folder_in_safetensors_is_planned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_tiny_llama(tmp_path / "whole")
    planned: list[Path] = []
    plan = convert.plan

    def counted(folder: Path) -> convert.ConversionPlan:
        planned.append(folder)
        return plan(folder)

    monkeypatch.setattr(convert, "plan", counted)
    discovery = looking_at(tmp_path)
    for _ in range(3):
        discovery.look()
        discovery.look({whole})
    assert planned == [whole]
    write_tiny_llama(whole, seed=1)
    discovery.look({whole / "model.safetensors"})
    assert planned == [whole, whole]


def test_a_file_that_grows_makes_no_new_catalog_before_it_rests_or_is_whole(tmp_path: Path) -> None:
    content = write_tiny_model(tmp_path, "model").read_bytes()
    path = tmp_path / "growing.gguf"
    path.write_bytes(content[:1000])
    discovery = looking_at(tmp_path)
    before = discovery.look({path})
    for end in (1100, 1200, 1300):
        path.write_bytes(content[:end])
        assert discovery.look({path}) is before
        assert discovery.is_arriving
    rested = discovery.look({path})
    assert (rested is before, discovery.is_arriving) == (False, False)
    assert rested.rejected[0].version[2] == 1300
    path.write_bytes(content)
    assert [model.name for model in discovery.look({path}).models] == ["growing", "model"]


def test_a_new_manifest_and_a_new_blob_are_seen(tmp_path: Path) -> None:
    put_in_ollama(tmp_path, "registry.ollama.ai/library/a/latest")
    discovery = looking_at(tmp_path)
    manifests = tmp_path / "manifests" / "registry.ollama.ai" / "library"
    assert {manifests / "a", tmp_path / "blobs"} <= discovery.watched.keys()
    put_in_ollama(tmp_path, "registry.ollama.ai/library/b/latest", 1)
    assert [model.name for model in discovery.look({manifests / "b"}).models] == ["a:latest", "b:latest"]
    assert manifests / "b" in discovery.watched
    (blob,) = (model.path for model in discovery.look(set()).models if model.name == "b:latest")
    blob.unlink()
    assert [model.name for model in discovery.look({blob}).models] == ["a:latest"]


def test_what_a_link_leads_to_is_watched_and_looked_at(tmp_path: Path) -> None:
    models, elsewhere, further = (tmp_path / name for name in ("models", "elsewhere", "further"))
    for folder in (models, elsewhere, further):
        folder.mkdir()
    target = write_tiny_model(further, "target")
    (elsewhere / "second").symlink_to(target)
    (models / "first.gguf").symlink_to(elsewhere / "second")
    (models / "linked").symlink_to(further)
    discovery = looking_at(models)
    assert {models, models / "linked", elsewhere, further} <= discovery.watched.keys()
    write_tiny_model(further, "target", seed=5)
    before = discovery.look(set()).models
    assert discovery.look({target}).models != before
    (elsewhere / "second").unlink()
    names = [model.name for model in discovery.look({elsewhere / "second"}).models]
    assert names == ["target"]
    assert discovery.look({further}).models


def test_what_the_link_of_a_single_file_leads_to_is_looked_at(tmp_path: Path) -> None:
    for name in ("models", "elsewhere"):
        (tmp_path / name).mkdir()
    target, link = write_tiny_model(tmp_path / "elsewhere", "target"), tmp_path / "models" / "link.gguf"
    link.symlink_to(target)
    discovery = Discovery(config.load({"model_path": [str(link)]}, {}), Headers(), Names())
    before = discovery.look().models
    assert {link.parent, target.parent} <= discovery.watched.keys()
    write_tiny_model(tmp_path / "elsewhere", "target", seed=1)
    assert discovery.look({target}).models != before
    target.rename(tmp_path / "elsewhere" / "other")
    assert discovery.look({target}).models == ()
    target.with_name("other").rename(target)
    assert len(discovery.look({link}).models) == 1, "of a root the watcher tells"
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    assert discovery.look({tmp_path / "elsewhere"}).models == ()


def test_a_mark_beside_a_single_file_and_beside_what_a_link_leads_to_is_seen(tmp_path: Path) -> None:
    for name in ("models", "elsewhere"):
        (tmp_path / name).mkdir()
    target = write_tiny_model(tmp_path / "elsewhere", "target")
    (tmp_path / "models" / "link.gguf").symlink_to(target)
    mark = target.with_name("target.gguf.aria2")
    for roots in ([target], [tmp_path / "models"], [tmp_path / "models" / "link.gguf"]):
        discovery = Discovery(config.load({"model_path": [*map(str, roots)]}, {}), Headers(), Names())
        assert len(discovery.look().models) == 1
        mark.touch()
        assert [entry.reason for entry in discovery.look({mark}).rejected] == [file_versions.unfinished(mark.name)]
        assert discovery.look(None).models == ()
        mark.unlink()
        assert len(discovery.look({mark}).models) == 1


def test_a_file_that_may_be_read_again_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_model(tmp_path, "secret")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Headers, "read", refuse)
        discovery = looking_at(tmp_path)
        assert [entry.reason for entry in discovery.look().rejected] == ["it cannot be read: Permission denied"]
    assert [model.path for model in discovery.look({path}).models] == [path]
    assert file_versions.unfinished("x.aria2").startswith("it is still being downloaded")
