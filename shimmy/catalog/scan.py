"""Finds the models on the disk. The first look goes through everything; later ones may be told what has changed.

Knows what was there at the last look; `walk` goes through folders, `file_versions` reads, `assembly` puts together,
`assign_names` names. The header says what a file is, never its name; only the shards of a model are found by name, as
in llama.cpp. A file that cannot be served becomes an entry with the reason, and never ends a look.
"""

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from shimmy.catalog.assembly import Assembly, Models, Places, Warn, whole_of
from shimmy.catalog.assign_names import Names
from shimmy.catalog.catalog import BROKEN, Catalog, Rejected, shown
from shimmy.catalog.file_versions import ModelFiles
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.walk import Folder, look_into, marked, targets, walk
from shimmy.formats import ollama_store
from shimmy.formats.safetensors import huggingface
from shimmy.text.printable import printable

if TYPE_CHECKING:
    from shimmy.config import Config

logger = logging.getLogger(__name__)

Identity = tuple[int, int]  # device and inode
Watched = dict[Path, Identity | None]
Warnings = list[tuple[Path, str]]


def warn_of(path: Path, reason: str) -> None:
    """Log that `path` is passed over, and why."""
    logger.warning("`%s` is passed over: %s", shown(path), printable(reason))


def is_wanted(entry: Rejected, named: Collection[Path]) -> bool:
    """Whether a person expects `entry` to be served: it seems a GGUF, or is one of the paths that were `named`."""
    return entry.kind == BROKEN or entry.path in named


def report(rejected: Iterable[Rejected], named: Collection[Path]) -> None:
    """Log why files cannot be served: as a warning where a person has to do something about it."""
    for entry in rejected:
        level = logging.WARNING if is_wanted(entry, named) else logging.INFO
        logger.log(level, "`%s` is not listed: %s", shown(entry.path), entry.reason)


def scan(config: "Config", headers: Headers, warn: Warn = warn_of, names: Names | None = None) -> Catalog:
    """The models under `config.roots`, and the files that seem models. `warn` gets each path that is passed over."""
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
        self._files = ModelFiles(headers, config.safetensors_type)
        self._models = Models()
        self._places = Places(self._current_revision)
        self._folders: dict[Path, Folder] = {}
        self._order: list[tuple[int, Folder]] = []  # of all folders, each with the number of its root
        self._single: dict[int, Path] = {}  # roots that are files
        self._walked: dict[int, Path] = {}  # roots that are folders, or are missing
        self._manifests: dict[int, tuple[list[ollama_store.Manifest], Warnings]] = {}  # of stores, with warnings
        self._current: dict[Path, str] = {}  # revisions of repositories in the hub's cache
        self._linked_from: dict[Path, set[Path]] = {}  # the folders and roots with links to a file, or into a folder
        self._walk_warnings: Warnings = []
        self._catalog: Catalog | None = None
        self.warnings: Warnings = []  # what the last look passed over, and why
        self.watched: Watched = {}  # folders in which something may change, with their identity where it is known

    def look(self, changed: Collection[Path] | None = None) -> Catalog:
        """The catalog now; the same object as at the last look where nothing is different.

        `changed`: files and folders that may be different, or whose folder's list may be, since the last look. What is
        not among them is as it was. None: anything may be.
        """
        is_new = self._catalog is None or changed is None
        if changed is not None:
            changed = {*changed, *filter(None, map(marked, changed))}
        self._files.begin_look(is_whole=changed is None)
        if changed is None:
            self._current.clear()
        is_new |= self._look_at_roots(changed)
        is_new |= self._look_at_folders(changed)
        if changed is not None:
            linked = (self._linked_from.get(path, ()) for path in changed)
            is_new |= self._files.renew({*changed, *chain.from_iterable(linked)})
        if is_new or self._catalog is None:
            self._catalog = self._assemble()
            self._files.end_look()
        return self._catalog

    @property
    def is_arriving(self) -> bool:
        """Whether the last look held something back that is broken, and in another way than at the look before."""
        return bool(self._files.arriving)

    def arrives(self, entry: Rejected) -> bool:
        """Whether that is it, or a part of it."""
        if not self._files.arriving:
            return False
        return whole_of(entry.path) in {whole_of(path) for path in self._files.arriving}

    def _look_at_roots(self, changed: Collection[Path] | None) -> bool:
        """What each root is, and what is in Ollama's stores; whether something is different."""
        single: dict[int, Path] = {}
        manifests: dict[int, tuple[list[ollama_store.Manifest], Warnings]] = {}
        for number, path in enumerate(self._roots):
            if ollama_store.is_store(path):
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
        """Look into those that are no stores; whether something is different."""
        fresh = None if changed is None else {path: self._again(path) for path in self._folders_of(changed)}
        before, self._walked = self._walked, self._roots_to_walk()
        if (
            fresh is None
            or before != self._walked
            or any(new.shape != self._folders[new.path].shape for new in fresh.values())
        ):
            is_new = self._walk(fresh)
        else:
            is_new = self._replace(fresh)
        return self._look_at_revisions(changed or ()) or is_new

    def _again(self, path: Path) -> Folder:
        return replace(look_into(path), above=self._folders[path].above)

    def _walk(self, fresh: Mapping[Path, Folder] | None) -> bool:
        """Find all folders; whether something is different."""
        order, warnings = walk(self._walked, self._folders, fresh)
        folders = {folder.path: folder for _, folder in reversed(order)}
        is_new = (order, warnings) != (self._order, self._walk_warnings)
        for path, old in self._folders.items():
            if (new := folders.get(path)) is not old:
                self._files.drop(set(old.files).difference(new.files if new else ()))
        for path, folder in folders.items():
            if fresh is None or path in fresh or folder is not self._folders.get(path):
                is_new |= self._files.look_into(folder)
        self._order, self._folders, self._walk_warnings = order, folders, warnings
        return is_new

    def _replace(self, fresh: Mapping[Path, Folder]) -> bool:
        """Have these folders in place of what they were, with the same folders in them; whether one is different."""
        is_new = False
        others: dict[Path, Folder] = {}
        for path, folder in fresh.items():
            old = self._folders[path]
            self._files.drop(set(old.files).difference(folder.files))
            is_new |= self._files.look_into(folder)
            if folder != old:
                others[path] = self._folders[path] = folder
        if others:
            self._order = [(number, others.get(folder.path, folder)) for number, folder in self._order]
        return is_new or bool(others)

    def _roots_to_walk(self) -> dict[int, Path]:
        """Those that are no files and no stores; a usual one only where there is something."""
        others = ((n, root) for n, root in enumerate(self._roots) if n not in self._single and n not in self._manifests)
        return {n: root for n, root in others if root not in self._usual or os.path.isdir(root)}  # noqa: PTH112

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
        found = Assembly(self._files, self._places, lambda path, reason: warnings.append((path, reason)))
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
        self._places.forget_others()
        self.warnings = [*warnings, *self._files.warnings.items()]
        self._follow_links()
        return catalog

    def _follow_links(self) -> None:
        """Find all in which something may change: the folders, those that links lead to, and those of single files."""
        sources: dict[Path, set[Path]] = {}  # of links to a file
        for folder in self._folders.values():
            for target in folder.targets:
                sources.setdefault(target, set()).add(folder.path)
        for path in self._single.values():
            for target in targets(path):
                sources.setdefault(target, set()).add(path)
        self.watched = {folder.path: folder.identity for _, folder in self._order if folder.identity is not None}
        for path in (*sources, *self._single.values()):
            self.watched.setdefault(path.parent, None)
        for number in self._manifests:
            for folder_path, _, _ in os.walk(self._roots[number]):
                self.watched.setdefault(Path(folder_path), None)
        parents: dict[Path, set[Path]] = {}
        for target, some in sources.items():
            parents.setdefault(target.parent, set()).update(some)
        for parent, some in parents.items():  # moving a folder moves what is in it
            for above in (parent, *parent.parents):
                sources.setdefault(above, set()).update(some)
        self._linked_from = sources


def _manifests(store: Path) -> tuple[list[ollama_store.Manifest], Warnings]:
    warnings: Warnings = []
    return [*ollama_store.manifests(store, lambda path, reason: warnings.append((path, reason)))], warnings
