"""What to delete so that a model is gone: its files in all its places, and nothing that something else needs.

Knows plain folders, the hub's cache (links to blobs) and Ollama's store (manifests of blobs). Refuses what lies outside
of the folders that are searched for models.
"""

import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shimmy.catalog.catalog import Model, shown
from shimmy.errors import BadRequest, RemovalFailed
from shimmy.formats import ollama_store
from shimmy.formats.safetensors import checkpoint, huggingface

_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf", re.IGNORECASE)
# What comes with weights in SafeTensors; other files in the folder are not ours to delete.
_BESIDE_WEIGHTS = re.compile(
    r"(config|generation_config|special_tokens_map|added_tokens|vocab|quantize_config|quant_config|hf_quant_config"
    r"|modules|sentence_bert_config|config_sentence_transformers|chat_template|adapter_config"
    r"|tokenizer(_config)?|(image_|video_)?(pre)?processor_config|.+\.safetensors\.index)\.json"
    r"|(vocab|merges)\.txt|chat_template\.jinja|(tokenizer|tiktoken|spiece|sentencepiece\.bpe)\.model|hy\.tiktoken"
    r"|adapter_model\.safetensors"
)
_WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".ckpt")


@dataclass(frozen=True, slots=True)
class Removal:
    """Files and links to delete, and then folders that are left empty: single ones, and trees of them."""

    files: tuple[Path, ...]
    trees: tuple[Path, ...]
    empty: tuple[Path, ...]
    stores: tuple[Path, ...] = ()  # Ollama's that files are in

    @property
    def size_bytes(self) -> int:
        """What the disk gets back."""
        return sum(path.lstat().st_size for path in self.files if not path.is_symlink() and path.exists())

    def carry_out(self) -> None:
        """Raises RemovalFailed: before the first file, where that can be known, else at the first one that stays."""
        for path in self.files:
            _check_may_go(path)
        with ExitStack() as stack:
            for store in self.stores:
                stack.enter_context(_alone(store))
            self._delete()

    def _delete(self) -> None:
        gone = frozenset(self.files)
        needed = {blob for store in self.stores for blob in _needed(store, gone)}  # also since this was made
        for path in self.files:
            if path in needed:
                continue
            try:
                path.unlink(missing_ok=True)
            except OSError as exc:
                raise RemovalFailed(f"`{shown(path)}` cannot be deleted: {exc.strerror}") from exc
        inner = (Path(folder) for tree in self.trees for folder, _, _ in os.walk(tree, topdown=False))
        for folder in (*inner, *self.empty):
            with suppress(OSError):
                folder.rmdir()


def _check_may_go(path: Path) -> None:
    try:
        folder, own = path.parent.stat(), path.lstat()
    except OSError:
        return  # it is gone
    user = os.geteuid()
    is_anothers = folder.st_mode & stat.S_ISVTX and user not in {0, folder.st_uid, own.st_uid}
    if is_anothers or not os.access(path.parent, os.W_OK | os.X_OK):
        raise RemovalFailed(
            f"`{shown(path)}` cannot be deleted: `{shown(path.parent)}` may not be changed by this server's user; "
            "nothing was deleted"
        )


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    try:
        with ollama_store.not_pulling(store):
            yield
    except BlockingIOError as exc:
        raise RemovalFailed(
            f"a model is being pulled into `{shown(store)}`, and may need the same files; nothing was deleted"
        ) from exc
    except OSError as exc:
        raise RemovalFailed(f"`{shown(store)}` cannot be locked: {exc.strerror}; nothing was deleted") from exc


def removal(model: Model, roots: Sequence[Path], others: Iterable[Model] = ()) -> Removal:
    """All of `model`, but for what `others` of the catalog load. Raises BadRequest for files outside of `roots`, and
    RemovalFailed where it cannot be known what else needs them."""
    files: list[Path] = []
    manifests: list[Path] = []
    empty: list[Path] = []
    links: dict[Path, list[Path]] = {}  # of each repository in the hub's cache
    for place in model.places:
        manifest = Path(place.key)
        if manifest != place.path and manifest.parts[-5:-4] == ("manifests",):
            manifests.append(manifest)
            continue
        own, folder = _of_place(place.path)
        snapshot = huggingface.snapshot(folder)
        files += own
        if snapshot is not None:
            links.setdefault(snapshot.repository, []).extend(own)
        if snapshot is not None or place.path == folder:
            empty.append(folder)
    trees: list[Path] = []
    for repository, own in links.items():
        blobs, is_last = _of_snapshots(repository, own)
        files += blobs
        if is_last:
            files += _all_files(repository)
            trees.append(repository)
    stores = tuple(dict.fromkeys(manifest.parents[4] for manifest in manifests))
    for store in stores:
        own = [manifest for manifest in manifests if manifest.parents[4] == store]
        needed = _needed(store, own)
        files += own
        files += [blob for manifest in own for blob in _blobs(store, manifest) if blob not in needed]
    kept = _loaded(other for other in others if other.name != model.name)
    unique = tuple(path for path in dict.fromkeys(files) if _identity(path) not in kept)
    for path in (*unique, *trees):
        _check(path, roots)
    return Removal(unique, tuple(trees), tuple(dict.fromkeys(empty)), stores)


def _loaded(models: Iterable[Model]) -> set[tuple[int, ...]]:
    """The device and inode of each file of these models."""
    found: set[tuple[int, ...]] = set()
    for model in models:
        found.update(file[:2] for file in model.files)
        if model.projector is not None:
            found.add(_identity(model.projector.resolve()))
    return found - {()}


def _identity(path: Path) -> tuple[int, ...]:
    """Device and inode, of a link its own; () where there is nothing."""
    try:
        status = path.lstat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino


def _of_place(path: Path) -> tuple[list[Path], Path]:
    """The files of a GGUF model, all parts of it, or of a SafeTensors folder; and the folder they lie in."""
    if path.is_dir():
        try:
            weights = checkpoint.weight_files(path)
        except (OSError, checkpoint.InvalidSafetensors) as exc:
            raise RemovalFailed(f"`{shown(path)}` has changed: {exc}") from exc
        beside = (entry for entry in sorted(path.iterdir()) if _BESIDE_WEIGHTS.fullmatch(entry.name))
        return [entry for entry in (*weights, *beside) if not entry.is_dir()], path
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path], path.parent
    with suppress(OSError):
        others = ((entry, _PART.fullmatch(entry.name)) for entry in sorted(path.parent.iterdir()))
        return [entry for entry, other in others if other and other.groups() == part.groups()], path.parent
    return [path], path.parent


def _of_snapshots(repository: Path, links: Iterable[Path]) -> tuple[list[Path], bool]:
    """The blobs that only these links need, and whether the rest of the repository is of no use without them: no
    weights are left, and no blob that has no link yet, as a pull has not come to its end."""
    gone = set(links)
    left = [path for path in _all_files(repository / "snapshots") if path not in gone]
    needed = {os.path.realpath(path) for path in left}
    blobs = dict.fromkeys(Path(os.path.realpath(path)) for path in gone)
    folder = (repository / "blobs").resolve()
    own = [blob for blob in blobs if blob.parent == folder and str(blob) not in needed]
    weights = [path.name.lower() for path in left if path.name.lower().endswith(_WEIGHTS)]
    is_pulled = any(blob not in blobs and str(blob) not in needed for blob in _all_files(folder))
    return own, not is_pulled and all("mmproj" in name for name in weights)


def _all_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]


def _needed(store: Path, gone: Collection[Path]) -> set[Path]:
    """The blobs of all manifests but those that go."""
    manifests = (path for path in sorted((store / "manifests").glob("*/*/*/*")) if path not in gone)
    return {blob for path in manifests if not path.is_dir() for blob in _blobs(store, path)}


def _blobs(store: Path, manifest: Path) -> list[Path]:
    """Raises RemovalFailed where that is not known."""
    try:
        content = json.loads(manifest.read_bytes()[: ollama_store.MAX_MANIFEST_BYTES])
        rows = [*content["layers"], content.get("config") or {}]
        digests = [ollama_store.DIGEST.fullmatch(str(row.get("digest"))) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        if manifest.name.startswith("."):  # no name of Ollama's
            return []
        raise RemovalFailed(
            f"`{shown(manifest)}` cannot be read, so what it needs is not known: mend or remove it first; nothing was "
            "deleted"
        ) from exc
    return [store / "blobs" / f"sha256-{digest[1]}" for digest in digests if digest]


def _check(path: Path, roots: Sequence[Path]) -> None:
    """A link is deleted, and never what it leads to: so it is its own place that counts."""
    place = Path(os.path.realpath(path.parent)) / path.name
    for root in roots:
        whole = Path(os.path.realpath(root))
        if path == root or (place.is_relative_to(whole) and place != whole):
            return
    raise BadRequest(f"`{shown(path)}` is not in a folder that is searched for models: delete it yourself")
