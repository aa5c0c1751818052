"""What models the disk holds. The first look goes through everything; later ones may be told what has changed.

Knows what was there at the last look; `folders` walks, `model_files` reads, `assembly` puts together, `naming` names.
What a file is, its header says, never its name; only the shards of a model are found by name, as llama.cpp does. A file
that cannot be served becomes an entry with the reason, and never ends a look.
"""

import logging
import os
from collections.abc import Collection, Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from shimmy.assembly import Assembly, Models, Warn
from shimmy.folders import Folder, targets, walk
from shimmy.formats import huggingface, ollama
from shimmy.headers import Headers
from shimmy.model_files import Files
from shimmy.naming import Names
from shimmy.registry import BROKEN, Catalog, Rejected, printable, shown

if TYPE_CHECKING:
    from shimmy.config import Config

logger = logging.getLogger(__name__)

Identity = tuple[int, int]  # device and inode
Watched = dict[Path, Identity | None]
Warnings = list[tuple[Path, str]]


def warn_of(path: Path, reason: str) -> None:
    """Log that nothing is known of `path`, and why."""
    logger.warning("`%s` is passed over: %s", shown(path), printable(reason))


def report(rejected: Iterable[Rejected]) -> None:
    """Log why something cannot be served: loudly where somebody has to do something about it."""
    for entry in rejected:
        level = logging.WARNING if entry.kind == BROKEN else logging.INFO
        logger.log(level, "`%s` is not listed: %s", shown(entry.path), entry.reason)


def scan(config: "Config", headers: Headers, warn: Warn = warn_of, names: Names | None = None) -> Catalog:
    """All that lies under `config.roots` and is a model or seems one. `warn` is told what is passed over."""
    discovery = Discovery(config, headers, names or Names())
    catalog = discovery.look()
    for path, reason in discovery.warnings:
        warn(path, reason)
    return catalog


class Discovery:
    """What lies under `config.roots`, in their order; in a folder its files come before its folders, links last.

    Used by one thread at a time.
    """

    def __init__(self, config: "Config", headers: Headers, names: Names) -> None:
        self._roots = tuple(root.absolute() for root in config.roots)
        self._usual = frozenset(root.absolute() for root in config.usual_dirs)
        self._names = names
        self._files = Files(headers, config.safetensors_type)
        self._models = Models()
        self._folders: dict[Path, Folder] = {}
        self._order: list[tuple[int, Folder]] = []  # of all folders, each with the number of its root
        self._single: dict[int, Path] = {}  # roots that are files
        self._manifests: dict[int, tuple[list[ollama.Manifest], Warnings]] = {}  # of stores, with warnings
        self._current: dict[Path, str] = {}  # revisions of repositories in the hub's cache
        self._linked_from: dict[Path, list[Path]] = {}  # the folders with links to a file elsewhere
        self._walk_warnings: Warnings = []
        self._catalog: Catalog | None = None
        self.warnings: Warnings = []  # what the last look passed over, and why
        self.watched: Watched = {}  # folders in which something may change, with their identity where it is known

    def look(self, changed: Collection[Path] | None = None) -> Catalog:
        """What is there now; the very catalog of the last look where nothing is different.

        `changed`: files and folders that may be different, or whose folder's list may be, since the last look. What is
        not among them is as it was. None: anything may be.
        """
        is_new = self._catalog is None or changed is None
        if changed is None:
            self._files.forget()
            self._current.clear()
        is_new |= self._look_at_roots(changed)
        is_new |= self._look_at_folders(changed)
        is_new |= changed is not None and self._files.renew(changed)
        if is_new or self._catalog is None:
            self._catalog = self._assemble()
            self._files.end_look()
        return self._catalog

    def _look_at_roots(self, changed: Collection[Path] | None) -> bool:
        """What each root is, and what is in Ollama's stores; whether something is different."""
        single: dict[int, Path] = {}
        manifests: dict[int, tuple[list[ollama.Manifest], Warnings]] = {}
        for number, path in enumerate(self._roots):
            if ollama.is_store(path):
                known = self._manifests.get(number)
                if known is None or changed is None or any(other.is_relative_to(path) for other in changed):
                    known = _manifests(path)
                manifests[number] = known
            elif not os.path.isdir(path) and os.path.exists(path):  # noqa: PTH110, PTH112 - these never raise
                single[number] = path
        is_new = (single, manifests) != (self._single, self._manifests)
        self._single, self._manifests = single, manifests
        return is_new

    def _look_at_folders(self, changed: Collection[Path] | None) -> bool:
        """Walk through the folders that are no stores; whether something is different."""
        roots = {number: root for number, root in enumerate(self._roots) if self._is_walked(number, root)}
        order, warnings = walk(roots, self._folders, None if changed is None else self._folders_of(changed))
        folders = {folder.path: folder for _, folder in reversed(order)}
        is_new = order != self._order
        for path, old in self._folders.items():
            new = folders.get(path)
            if new is not old:
                self._files.drop(set(old.files).difference(new.files if new else ()))
        for path, folder in folders.items():
            if folder is not self._folders.get(path):
                is_new |= self._files.look_into(folder)
        is_new |= self._look_at_revisions(changed or ())
        self._walk_warnings = warnings
        self._order, self._folders = order, folders
        return is_new

    def _is_walked(self, number: int, root: Path) -> bool:
        if number in self._single or number in self._manifests:
            return False
        return root not in self._usual or os.path.isdir(root)  # noqa: PTH112 - never raises

    def _folders_of(self, changed: Collection[Path]) -> set[Path]:
        """The folders that have to be looked into again."""
        found: set[Path] = set()
        for path in changed:
            for folder in (path, path.parent, *self._linked_from.get(path, ())):
                if folder in self._folders:
                    found.add(folder)
                    above = self._folders.get(folder.parent)
                    if above is not None and above.is_safetensors:  # how to pool lies in a folder of its own
                        found.add(above.path)
        return found

    def _look_at_revisions(self, changed: Iterable[Path]) -> bool:
        """Which revision of a repository is the current one; whether there is another."""
        is_new = False
        for repository in {path.parents[depth] for path in changed for depth in range(min(3, len(path.parents)))}:
            if repository in self._current:
                old = self._current.pop(repository)
                is_new |= self._current_revision(repository) != old
        return is_new

    def _current_revision(self, repository: Path) -> str:
        revision = self._current.get(repository)
        if revision is None:
            revision = self._current[repository] = huggingface.current_revision(repository)
        return revision

    def _assemble(self) -> Catalog:
        warnings: Warnings = [*self._walk_warnings]
        found = Assembly(self._files, self._current_revision, lambda path, reason: warnings.append((path, reason)))
        by_root: dict[int, list[Folder]] = {}
        for number, folder in self._order:
            by_root.setdefault(number, []).append(folder)
        for number in range(len(self._roots)):
            if number in self._single:
                found.add(self._single[number])
            elif number in self._manifests:
                for manifest in self._manifests[number][0]:
                    found.add_manifest(manifest)
                warnings += self._manifests[number][1]
            else:
                for folder in by_root.get(number, ()):
                    found.add_folder(folder)
        catalog = found.catalog(self._names, self._models)
        self.warnings = [*warnings, *self._files.warnings.items()]
        self._follow_links()
        return catalog

    def _follow_links(self) -> None:
        """Which folders hold the files that links lead to, and all in which something may change."""
        self._linked_from = {}
        self.watched = {folder.path: folder.identity for _, folder in self._order if folder.identity is not None}
        for folder in self._folders.values():
            for target in folder.targets:
                self._linked_from.setdefault(target, []).append(folder.path)
        elsewhere = chain.from_iterable((path, *targets(path)) for path in self._single.values())
        for target in chain(self._linked_from, elsewhere):
            self.watched.setdefault(target.parent, None)
        for number in self._manifests:
            for above, _, _ in os.walk(self._roots[number]):
                self.watched.setdefault(Path(above), None)


def _manifests(store: Path) -> tuple[list[ollama.Manifest], Warnings]:
    warnings: Warnings = []
    return [*ollama.manifests(store, lambda path, reason: warnings.append((path, reason)))], warnings
