"""What models the disk holds: one pass over files and folders, a pure function of what lies there.

Knows folders, shards, links and names. What a file is, its header says (`formats.gguf`), never its name; only the
shards of a model are found by name, as llama.cpp does. A file that cannot be served is logged with the reason, once per
scan, and never ends it.
"""

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from shimmy.formats import ollama
from shimmy.formats.gguf import GgufHeader, InvalidGguf, Kind, shard_paths
from shimmy.headers import Headers
from shimmy.registry import Catalog, Model, model_name

if TYPE_CHECKING:
    from shimmy.config import Config

MAX_DEPTH = 8  # folders below a root; the Hugging Face cache needs four

logger = logging.getLogger(__name__)


def scan(config: "Config", headers: Headers) -> Catalog:
    """All models under `config.model_paths`, then `config.model_dirs`; in a folder its files come before its folders.

    The first path to a file names it; further paths to the same file are passed over. When a name is already taken by
    another file, the later one is called `name@folder`, then `name@folder-2` and so on.
    """
    found = _Found(headers)
    usual = (root for root in config.usual_dirs if os.path.isdir(root))  # noqa: PTH112 - never raises
    for root in (*config.model_paths, *config.model_dirs, *usual):
        if ollama.is_store(root):
            for name, path in ollama.models(root.absolute()):
                found.add(path, name)
        else:
            for path in _files(root.absolute()):
                found.add(path)
    return Catalog(found.models.values())


@dataclass(frozen=True, slots=True)
class _File:
    header: GgufHeader
    identity: tuple[int, int]  # device and inode: the same for all paths to one file
    mtime_ns: int


class _Found:
    """What one scan has seen so far."""

    def __init__(self, headers: Headers) -> None:
        self._headers = headers
        self.models: dict[str, Model] = {}
        self._files: dict[tuple[int, int], _File | None] = {}  # by identity; None: broken, and logged
        self._done: set[tuple[int, int] | Path] = set()  # models by their first file, shards by the first one's path

    def add(self, path: Path, name: str = "") -> None:
        """Take in the model that `path` is, or is a shard of; `name` where the file's own says nothing."""
        file = self._read(path)
        if file is None or file.identity in self._done:
            return
        if file.header.kind is not Kind.MODEL:
            logger.info("`%s` is not listed: it is no model but this: %s", path, file.header.kind)
        elif file.header.n_shards == 1:
            self._list(path, name or _stem(path), [file])
        else:
            self._add_shards(path, file.header)

    def _add_shards(self, path: Path, header: GgufHeader) -> None:
        try:
            paths = shard_paths(path, header)
        except InvalidGguf as exc:
            logger.warning("`%s` is not listed: %s", path, exc)
            return
        if paths[0] in self._done:
            return
        self._done.add(paths[0])
        shards: list[_File] = []
        for index, shard_path in enumerate(paths):
            shard = self._read(shard_path)
            if shard is None or (shard.header.shard, shard.header.n_shards) != (index, header.n_shards):
                reason = "missing or broken" if shard is None else "not what its name says"
                logger.warning("`%s` is not listed: its shard `%s` is %s", path, shard_path.name, reason)
                return
            shards.append(shard)
        self._list(paths[0], paths[0].name.removesuffix(f"-00001-of-{header.n_shards:05d}.gguf"), shards)

    def _read(self, path: Path) -> _File | None:
        """The file at `path`, looked into once per scan; None when it is of no use."""
        try:
            status = path.stat()
            identity = (status.st_dev, status.st_ino)
            if identity not in self._files:
                self._files[identity] = None
                self._files[identity] = _File(self._headers.read(path, status), identity, status.st_mtime_ns)
            return self._files[identity]
        except InvalidGguf as exc:
            logger.warning("`%s` is not listed: %s", path, exc)
        except OSError as exc:
            logger.warning("`%s` is not listed: %s", path, exc.strerror)
        return None

    def _list(self, path: Path, stem: str, shards: list[_File]) -> None:
        first = shards[0]
        if first.identity in self._done:
            return
        self._done.add(first.identity)
        name = self._free_name(model_name(stem), model_name(path.parent.name))
        self.models[name] = Model(
            name=name,
            path=path,
            files=tuple(shard.identity for shard in shards),
            size_bytes=sum(shard.header.size_bytes for shard in shards),
            mtime_ns=max(shard.mtime_ns for shard in shards),
            architecture=first.header.architecture,
            quantization=first.header.quantization,
            n_params=sum(shard.header.n_params for shard in shards),
            n_ctx_train=first.header.n_ctx_train,
            n_vocab=first.header.n_vocab,
            n_embd=first.header.n_embd,
            n_ff=first.header.n_ff,
            n_kv=first.header.n_kv,
            n_state=first.header.n_state,
            has_chat_template=first.header.has_chat_template,
        )

    def _free_name(self, name: str, folder: str) -> str:
        if name not in self.models:
            return name
        in_folder = f"{name}@{folder}"
        numbered = (f"{in_folder}-{number}" for number in count(2))
        return next(free for free in chain([in_folder], numbered) if free not in self.models)


def _files(root: Path) -> Iterator[Path]:
    """`root` itself when it is a file, else the `.gguf` files below it; each folder once, whatever links lead to it."""
    seen: set[tuple[int, int]] = set()
    waiting = [(root, 0)]
    while waiting:
        path, depth = waiting.pop()
        try:
            status = path.stat()
            if not stat.S_ISDIR(status.st_mode):
                yield path
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                files, folders = _split(entries)
        except OSError as exc:
            logger.warning("`%s` is passed over: %s", path, exc.strerror)
            continue
        yield from files
        if folders and depth == MAX_DEPTH:
            logger.warning("folders in `%s` are passed over: they lie more than %d deep", path, MAX_DEPTH)
        elif folders:
            waiting.extend((folder, depth + 1) for folder in reversed(folders))


def _split(entries: Iterable[os.DirEntry[str]]) -> tuple[list[Path], list[Path]]:
    """The paths of GGUF files and of folders, each in order of name; which of them are links makes no difference."""
    files: list[Path] = []
    folders: list[Path] = []
    for entry in sorted(entries, key=lambda entry: entry.name):
        try:
            if entry.is_dir():
                folders.append(Path(entry.path))
            elif entry.name.lower().endswith(".gguf"):
                files.append(Path(entry.path))
        except OSError as exc:  # a link that leads nowhere or into a circle
            logger.warning("`%s` is passed over: %s", entry.path, exc.strerror)
    return files, folders


def _stem(path: Path) -> str:
    """The file's name without `.gguf`; another suffix is rather a part of the name, as in `llama.q4_0`."""
    return path.stem if path.suffix.lower() == ".gguf" else path.name
