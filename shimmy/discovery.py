"""What models the disk holds: one pass over files and folders, a pure function of what lies there.

Knows shards, manifests and names; `folders` walks. What a file is, its header says (`formats.gguf`), never its name;
only the shards of a model are found by name, as llama.cpp does. A file that cannot be served becomes an entry with the
reason, and never ends a scan.
"""

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shimmy.config import SAFETENSORS_TYPES
from shimmy.engine import sampling
from shimmy.errors import BadRequest
from shimmy.folders import Folder, Warn, walk
from shimmy.formats import huggingface, ollama
from shimmy.formats.gguf import InvalidGguf, shard_paths
from shimmy.formats.gguf_header import GgufHeader, Kind
from shimmy.headers import Headers
from shimmy.messages import ModelDefaults, SamplingParams
from shimmy.registry import BROKEN, Catalog, Model, Rejected, model_name, printable, shown

if TYPE_CHECKING:
    from shimmy.config import Config
    from shimmy.formats.peft import Adapter

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)

logger = logging.getLogger(__name__)


def warn_of(path: Path, reason: str) -> None:
    """Log that nothing is known of `path`, and why."""
    logger.warning("`%s` is passed over: %s", shown(path), printable(reason))


def scan(config: "Config", headers: Headers, warn: Warn = warn_of) -> Catalog:
    """All that lies under `config.roots` and is a model or seems one; in a folder its files come before its folders.

    The first path to a file names it; further paths to the same file are passed over. When a name is already taken by
    another file, the later one is called `name@folder`, then `name@folder-2` and so on; a broken file has a name too,
    so that no name depends on whether another file is whole. `warn` is told what is passed over without an entry.
    """
    found = _Found(headers, warn, config.safetensors_type)
    for root in config.roots:
        path = root.absolute()
        is_folder = os.path.isdir(path)  # noqa: PTH112 - never raises
        if not is_folder and root in config.usual_dirs:
            continue
        if ollama.is_store(path):
            for manifest in ollama.manifests(path, warn):
                found.add_manifest(manifest)
        elif not is_folder and os.path.exists(path):  # noqa: PTH110 - never raises
            found.add(path)
        else:
            for folder in walk(path, warn):
                found.add_folder(folder)
    return found.catalog()


def report(rejected: Iterable[Rejected]) -> None:
    """Log why something cannot be served: loudly where somebody has to do something about it."""
    for entry in rejected:
        level = logging.WARNING if entry.kind == BROKEN else logging.INFO
        logger.log(level, "`%s` is not listed: %s", shown(entry.path), entry.reason)


@dataclass(frozen=True, slots=True)
class _Broken:
    reason: str
    version: tuple[int, ...]  # device, inode, size, mtime


@dataclass(frozen=True, slots=True)
class _File:
    header: GgufHeader
    version: tuple[int, ...]

    @property
    def identity(self) -> tuple[int, ...]:
        """The same for all paths to one file."""
        return self.version[:2]


@dataclass(frozen=True, slots=True)
class _Draft:
    """A model that has no name yet."""

    stem: str
    path: Path
    shards: list[_File]
    manifest: ollama.Manifest | None = None
    adapters: dict[Path, _File] = field(default_factory=dict)  # of the manifest
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _AdapterFolder(_File):
    """A LoRA adapter in SafeTensors. It does not say what architecture it is for."""

    adapter: "Adapter"


class _Found:
    """What one scan has seen so far."""

    def __init__(self, headers: Headers, warn: Warn, safetensors_type: str | None) -> None:
        self._headers = headers
        self._safetensors_type = safetensors_type
        self._warn = warn
        self._drafts: list[_Draft | Rejected] = []  # a rejected one has its stem for a name
        self._others: dict[Path, dict[Path, _File]] = {}  # what is no model, by its folder
        self._safetensors: list[Rejected] = []  # with the folder's name
        self._files: dict[tuple[int, ...], _File | _Broken] = {}  # by identity
        self._done: set[object] = set()  # files by identity, shards by their first path, Ollama's models by contents
        self._names: set[str] = set()

    def add(self, path: Path) -> None:
        """Take in the model that `path` is, or is a shard of."""
        file = self._read(path)
        if file is None or file.version[:2] in self._done:
            return
        if isinstance(file, _File) and file.header.kind is Kind.MODEL and file.header.n_shards > 1:
            self._add_shards(path, file.header)
            return
        self._done.add(file.version[:2])
        stem = _stem(path)
        if isinstance(file, _Broken):
            self._add_broken(path, stem, file)
        elif file.header.kind is Kind.MODEL:
            self._drafts.append(_Draft(stem, path, [file]))
        else:
            self._others.setdefault(path.parent, {})[path] = file

    def add_folder(self, folder: Folder) -> None:
        """Take in the models in `folder`."""
        for path in folder.files:
            self.add(path)
        identity = (folder.status.st_dev, folder.status.st_ino)
        if folder.is_safetensors and identity not in self._done:
            self._done.add(identity)
            self._add_checkpoint(folder.path, identity)
        if folder.is_adapter and (*identity, Kind.ADAPTER) not in self._done:
            self._done.add((*identity, Kind.ADAPTER))
            self._add_adapter(folder.path, identity)

    def _add_checkpoint(self, folder: Path, identity: tuple[int, int]) -> None:
        """Take in the model in SafeTensors that `folder` is, as the GGUF it will become."""
        # Only who has such a folder pays for these.
        from shimmy.formats import convert, converted
        from shimmy.formats.safetensors import InvalidSafetensors
        from shimmy.formats.unconvertible import Unconvertible

        name = huggingface.name(folder)
        try:
            version = (*identity, *converted.version(folder))
            plan = convert.plan(folder)
        except (InvalidSafetensors, Unconvertible) as exc:
            reason = printable(str(exc))
        except OSError as exc:
            reason = f"it cannot be read: {exc.strerror}"
        else:
            header = plan.header()
            if self._safetensors_type is not None:
                bits = SAFETENSORS_TYPES[self._safetensors_type]
                n_bytes = int(header.n_params * bits / 8)
                header = replace(header, quantization=self._safetensors_type.upper(), size_bytes=n_bytes)
            self._drafts.append(_Draft(name, folder, [_File(header, version)], notices=plan.notices))
            return
        rejected_version = (*identity, folder.stat().st_mtime_ns)
        architecture = huggingface.architecture(folder)
        self._safetensors.append(Rejected(name, folder, "safetensors", reason, rejected_version, architecture))

    def _add_adapter(self, folder: Path, identity: tuple[int, int]) -> None:
        """Take in the LoRA adapter in SafeTensors that `folder` is."""
        # Only who has such a folder pays for these.
        from shimmy.formats import peft
        from shimmy.formats.safetensors import InvalidSafetensors
        from shimmy.formats.unconvertible import Unconvertible

        try:
            adapter = peft.read(folder)
            file = _AdapterFolder(adapter.header(), (*identity, *peft.version(folder)), adapter)
        except (InvalidSafetensors, Unconvertible) as exc:
            reason = printable(str(exc))
        except OSError as exc:
            reason = f"it cannot be read: {exc.strerror}"
        else:
            self._others.setdefault(folder.parent, {})[folder] = file
            return
        version = (*identity, folder.stat().st_mtime_ns)
        self._safetensors.append(Rejected(folder.name, folder, Kind.ADAPTER.value, reason, version, ""))

    def add_manifest(self, manifest: ollama.Manifest) -> None:
        """Take in a model of Ollama's; the same file with other adapters or defaults is another model."""
        file = self._read(manifest.model)
        if file is None:
            self._warn(manifest.model, f"`{manifest.name}` is not listed: this file of it is missing")
            return
        key = (file.version[:2], manifest.adapters, manifest.defaults)
        if key in self._done or (manifest.is_plain and file.version[:2] in self._done):
            return
        self._done |= {key, file.version[:2]}
        adapters = {path: self._read(path) for path in manifest.adapters}
        reason = _against_model(file) or next(filter(None, map(_against_adapter, adapters.values())), "")
        if reason:
            self._drafts.append(Rejected(manifest.name, manifest.model, BROKEN, reason, file.version))
        elif isinstance(file, _File):
            whole = {path: adapter for path, adapter in adapters.items() if isinstance(adapter, _File)}
            checked = replace(manifest, defaults=self._checked(manifest))
            self._drafts.append(_Draft(manifest.name, manifest.model, [file], checked, whole))

    def _checked(self, manifest: ollama.Manifest) -> ModelDefaults:
        """Its defaults, without those that the engine would refuse in every request."""
        sound = []
        for name, value in manifest.defaults.sampling:
            values: dict[str, Any] = {name: value}
            try:
                sampling.check(SamplingParams(**values), n_vocab=1)
            except BadRequest as exc:
                self._warn(manifest.model, f"a default of `{manifest.name}`: {exc}")
            else:
                sound.append((name, value))
        return replace(manifest.defaults, sampling=tuple(sound))

    def _add_broken(self, path: Path, stem: str, file: _Broken) -> None:
        if match := _SHARD.search(path.name):  # most likely one, and the others have nothing to add
            first = path.with_name(f"{path.name[: match.start()]}-00001{path.name[match.start() + 6 :]}")
            if first in self._done:
                return
            self._done.add(first)
            stem = path.name[: match.start()]
        self._drafts.append(Rejected(stem, path, BROKEN, file.reason, file.version))

    def _add_shards(self, path: Path, header: GgufHeader) -> None:
        try:
            paths = shard_paths(path, header)
        except InvalidGguf as exc:
            self._drafts.append(Rejected(_stem(path), path, BROKEN, str(exc), ()))
            return
        if paths[0] in self._done:
            return
        self._done.add(paths[0])
        stem = paths[0].name.removesuffix(f"-00001-of-{header.n_shards:05d}.gguf")
        files = [self._read(shard_path) for shard_path in paths]
        for index, file in enumerate(files):
            reason = _against_shard(file, index, header.n_shards)
            if reason:
                version = tuple(number for file in files if file for number in file.version)
                path = paths[0] if files[0] else path
                reason = f"its shard `{shown(Path(paths[index].name))}` {reason}"
                self._drafts.append(Rejected(stem, path, BROKEN, reason, version, header.architecture))
                return
        shards = [file for file in files if isinstance(file, _File)]
        if shards[0].identity not in self._done:
            self._done.add(shards[0].identity)
            self._drafts.append(_Draft(stem, paths[0], shards))

    def _read(self, path: Path) -> _File | _Broken | None:
        """The file at `path`, looked into once per scan; None when there is none."""
        try:
            status = path.stat()
        except OSError as exc:
            if not isinstance(exc, FileNotFoundError) or os.path.islink(path):  # noqa: PTH114 - never raises
                self._warn(path, str(exc.strerror))
            return None
        identity = (status.st_dev, status.st_ino)
        file = self._files.get(identity)
        if file is None:
            version = (*identity, status.st_size, status.st_mtime_ns)
            try:
                file = _File(self._headers.read(path, status), version)
            except InvalidGguf as exc:
                file = _Broken(printable(str(exc)), version)  # it may quote the file
            except OSError as exc:
                file = _Broken(f"it cannot be read: {exc.strerror}", version)
            self._files[identity] = file
        return file

    def catalog(self) -> Catalog:
        """All of it under names. What is no model takes one that no model wants."""
        models: list[Model] = []
        rejected: list[Rejected] = []
        for draft in self._drafts:
            if isinstance(draft, Rejected):
                rejected.append(replace(draft, name=self._take_name(draft.name, draft.path)))
            else:
                models.append(self._model(self._take_name(draft.stem, draft.path), draft))
        attached = {path for model in models for path in (*model.adapters, model.projector)}
        for path, file in chain.from_iterable(others.items() for others in self._others.values()):
            if path not in attached:
                name, kind = self._take_name(_stem(path), path), file.header.kind.value
                reason = f"it is no model but this: {kind}"
                rejected.append(Rejected(name, path, kind, reason, file.version, file.header.architecture))
        rejected += [replace(entry, name=self._take_name(entry.name, entry.path)) for entry in self._safetensors]
        return Catalog(models, rejected)

    def _take_name(self, stem: str, path: Path) -> str:
        name = model_name(stem)
        if name in self._names:
            in_folder = f"{name}@{model_name(path.parent.name)}"
            numbered = (f"{in_folder}-{number}" for number in count(2))
            name = next(free for free in chain([in_folder], numbered) if free not in self._names)
        self._names.add(name)
        return name

    def _model(self, name: str, draft: _Draft) -> Model:
        """With what lies in its folder and belongs to it; of several projectors the first by name."""
        shards, header, manifest = draft.shards, draft.shards[0].header, draft.manifest
        if manifest is None:
            beside = self._others.get(draft.path.parent, {})
            projectors = (path for path, file in beside.items() if file.header.kind is Kind.PROJECTOR)
            projector = next(projectors, None)
            adapters = {
                path: file for path, file in beside.items() if file.header.kind is Kind.ADAPTER and _suits(file, header)
            }
        else:
            projector, adapters = manifest.projector, draft.adapters
        return Model(
            name=name,
            path=draft.path,
            files=tuple(file.version for file in (*shards, *adapters.values())),
            size_bytes=sum(shard.header.size_bytes for shard in shards),
            mtime_ns=max(shard.version[3] for shard in shards),
            architecture=header.architecture,
            quantization=header.quantization,
            n_params=sum(shard.header.n_params for shard in shards),
            n_ctx_train=header.n_ctx_train,
            n_vocab=header.n_vocab,
            n_embd=header.n_embd,
            n_ff=header.n_ff,
            n_kv=header.n_kv,
            n_state=header.n_state,
            has_chat_template=header.has_chat_template,
            is_embedding=header.is_embedding,
            is_causal=header.is_causal,
            pooling=header.pooling,
            adapters=tuple(adapters),
            projector=projector,
            defaults=manifest.defaults if manifest else ModelDefaults(),
            needs_adapters=manifest is not None and bool(adapters),
            notices=draft.notices,
        )


def _suits(file: _File, model: GgufHeader) -> bool:
    """Whether the adapter that lies beside a model with this header may be for it."""
    if isinstance(file, _AdapterFolder):
        return file.adapter.suits(model.architecture, model.n_embd)
    return file.header.architecture == model.architecture


def _against_model(file: _File | _Broken) -> str:
    """Why `file` cannot be Ollama's model; '' when it can."""
    if isinstance(file, _Broken):
        return file.reason
    if file.header.kind is not Kind.MODEL:
        return f"it is no model but this: {file.header.kind}"
    return "it is only a part of a model" if file.header.n_shards > 1 else ""


def _against_adapter(file: _File | _Broken | None) -> str:
    """Why `file` cannot be an adapter; '' when it can."""
    if file is None:
        return "its adapter is missing"
    if isinstance(file, _Broken):
        return f"its adapter is broken: {file.reason}"
    return "" if file.header.kind is Kind.ADAPTER else f"its adapter is none but this: {file.header.kind}"


def _against_shard(file: _File | _Broken | None, index: int, n_shards: int) -> str:
    """Why `file` cannot be this shard of a model; '' when it can."""
    if file is None:
        return "is missing"
    if isinstance(file, _Broken):
        return f"is broken: {file.reason}"
    return "" if (file.header.shard, file.header.n_shards) == (index, n_shards) else "is not what its name says"


def _stem(path: Path) -> str:
    """The file's name without `.gguf`; another suffix is rather a part of the name, as in `llama.q4_0`."""
    return path.stem if path.suffix.lower() == ".gguf" else path.name
