"""What to delete so that a model is gone: its files in all its places, and nothing that something else needs.

Knows plain folders, the hub's cache (links to blobs) and Ollama's store (manifests of blobs). Refuses what lies outside
of the folders that are searched for models.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shimmy.catalog.catalog import Model, shown
from shimmy.errors import BadRequest, ShimmyError
from shimmy.formats import ollama_store
from shimmy.formats.safetensors import huggingface

_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf", re.IGNORECASE)
# What comes with weights in SafeTensors; other files in the folder are not ours to delete.
_OF_CHECKPOINT = re.compile(r".+\.(safetensors|json|jinja|model|txt)", re.IGNORECASE)


class RemovalFailed(ShimmyError):
    """A file could not be deleted."""


@dataclass(frozen=True, slots=True)
class Removal:
    """Files and links to delete, and then folders: those that are left empty, and repositories of the hub's cache with
    what is left in them."""

    files: tuple[Path, ...]
    repositories: tuple[Path, ...]
    empty: tuple[Path, ...]  # if they are

    @property
    def size_bytes(self) -> int:
        """What the disk gets back."""
        return sum(path.lstat().st_size for path in self.files if not path.is_symlink() and path.exists())

    def carry_out(self) -> None:
        """Raises RemovalFailed at the first file that stays."""
        for path in self.files:
            try:
                path.unlink(missing_ok=True)
            except OSError as exc:
                raise RemovalFailed(f"`{shown(path)}` cannot be deleted: {exc.strerror}") from exc
        for folder in self.repositories:
            shutil.rmtree(folder, ignore_errors=True)
        for folder in self.empty:
            with suppress(OSError):
                folder.rmdir()


def removal(model: Model, roots: Sequence[Path]) -> Removal:
    """All of `model`. Raises BadRequest for files outside of `roots`."""
    files: list[Path] = []
    empty: list[Path] = []
    links: dict[Path, list[Path]] = {}  # of each repository in the hub's cache
    for place in model.places:
        manifest = Path(place.key)
        if manifest != place.path and manifest.parts[-5:-4] == ("manifests",):
            files += _of_manifest(manifest, files)
            continue
        own, folder = _of_place(place.path)
        snapshot = huggingface.snapshot(folder)
        files += own
        if snapshot is not None:
            links.setdefault(snapshot.repository, []).extend(own)
        if snapshot is not None or place.path == folder:
            empty.append(folder)
    repositories: list[Path] = []
    for repository, own in links.items():
        blobs, is_last = _of_snapshots(repository, own)
        files += blobs
        repositories += [repository] if is_last else []
    unique = tuple(dict.fromkeys(files))
    for path in (*unique, *repositories):
        _check(path, roots)
    return Removal(unique, tuple(repositories), tuple(dict.fromkeys(empty)))


def _of_place(path: Path) -> tuple[list[Path], Path]:
    """The files of a GGUF model, all parts of it, or of a SafeTensors folder; and the folder they lie in."""
    if path.is_dir():
        return [entry for entry in sorted(path.iterdir()) if _OF_CHECKPOINT.fullmatch(entry.name)], path
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path], path.parent
    with suppress(OSError):
        others = ((entry, _PART.fullmatch(entry.name)) for entry in sorted(path.parent.iterdir()))
        return [entry for entry, other in others if other and other.groups() == part.groups()], path.parent
    return [path], path.parent


def _of_snapshots(repository: Path, links: Iterable[Path]) -> tuple[list[Path], bool]:
    """The blobs that only these links need, and whether no weights are left in the repository without them."""
    gone = set(links)
    snapshots = [path for path in (repository / "snapshots").rglob("*") if not path.is_dir()]
    left = [path for path in snapshots if path not in gone]
    needed = {os.path.realpath(path) for path in left}
    blobs = dict.fromkeys(Path(os.path.realpath(path)) for path in gone)
    own = [blob for blob in blobs if blob.parent == (repository / "blobs").resolve() and str(blob) not in needed]
    weights = [path for path in left if path.name.lower().endswith((".gguf", ".safetensors"))]
    return own, all("mmproj" in path.name.lower() for path in weights)


def _of_manifest(manifest: Path, gone: Sequence[Path]) -> list[Path]:
    """A manifest of Ollama's, and the blobs that no other one needs."""
    store = manifest.parents[4]
    needed: set[Path] = set()
    for other in (store / "manifests").glob("*/*/*/*"):
        if other != manifest and other not in gone:
            needed.update(_blobs(store, other))
    return [manifest, *(blob for blob in _blobs(store, manifest) if blob not in needed)]


def _blobs(store: Path, manifest: Path) -> list[Path]:
    try:
        content = json.loads(manifest.read_bytes()[: ollama_store.MAX_MANIFEST_BYTES])
        rows = [*content["layers"], content.get("config") or {}]
        digests = [ollama_store.DIGEST.fullmatch(str(row.get("digest"))) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return [store / "blobs" / f"sha256-{digest[1]}" for digest in digests if digest]


def _check(path: Path, roots: Sequence[Path]) -> None:
    """A link is deleted, and never what it leads to: so it is its own place that counts."""
    place = Path(os.path.realpath(path.parent)) / path.name
    for root in roots:
        whole = Path(os.path.realpath(root))
        if path == root or (place.is_relative_to(whole) and place != whole):
            return
    raise BadRequest(f"`{shown(path)}` is not in a folder that is searched for models: delete it yourself")
