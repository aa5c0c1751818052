"""Puts the catalog of one look together: which files make a model, with its adapters and projector, and which paths
lead to the same model.

Knows shards, manifests, adapters and projectors; nothing of how files are found, read or named. A file that cannot be
served becomes an entry with the reason.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shimmy.catalog.assign_names import Given, ModelLocation, Names, model_name, qualified, stem_of
from shimmy.catalog.catalog import BROKEN, Catalog, Model, Rejected, shown
from shimmy.catalog.file_versions import SAFETENSORS, AdapterFolder, Broken, Found, ModelFile, ModelFiles
from shimmy.catalog.walk import Folder
from shimmy.errors import BadRequest
from shimmy.formats.gguf.header import GgufHeader, GgufKind
from shimmy.formats.gguf.reader import InvalidGguf, shard_paths
from shimmy.formats.ollama_store import Manifest
from shimmy.messages import sampling_limits
from shimmy.messages.model_info import ModelDefaults
from shimmy.messages.request import SamplingParams

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)

Warn = Callable[[Path, str], None]


def whole_of(path: Path) -> Path:
    """A path that is the same for all shards of a model: without the part that differs."""
    match = _SHARD.search(path.name)
    return path.with_name(path.name[: match.start()]) if match else path


@dataclass(slots=True)
class ModelCandidate:
    """A model, or a file that cannot be one, before it has a name."""

    places: list[ModelLocation]
    files: tuple[ModelFile, ...] = ()  # its shards
    rejected: Rejected | None = None  # why it is not a model
    manifest: Manifest | None = None
    adapters: dict[Path, ModelFile] = field(default_factory=dict)  # of the manifest


@dataclass(frozen=True, slots=True)
class _Sources:
    """Everything that a Model is made of."""

    given: Given
    places: tuple[ModelLocation, ...]
    files: tuple[ModelFile, ...]
    manifest: Manifest | None
    adapters: tuple[tuple[Path, ModelFile], ...]
    projector: Path | None


class Models:
    """The models of the last look: a model made from the same sources again is the same object."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[_Sources, Model]] = {}

    def take(self, sources: list[_Sources]) -> list[Model]:
        before, self._made = self._made, {}
        for source in sources:
            name = source.given.name
            old = before.get(name)
            self._made[name] = old if old is not None and old[0] == source else (source, _model(source))
        return [model for _, model in self._made.values()]


class Places:
    """What models are called where they lie, told once while nothing is different."""

    def __init__(self, current: Callable[[Path], str]) -> None:
        """`current` is the current revision of a repository in the hub's cache."""
        self._current = current
        self._known: dict[Path, tuple[Folder | None, str, ModelLocation]] = {}
        self._told: dict[Path, tuple[Folder | None, str, ModelLocation]] = {}  # since others were forgotten

    def forget_others(self) -> None:
        """Forget what was not asked for since the last time."""
        self._known, self._told = self._told, {}

    def place(self, path: Path, stem: str, folder: Folder | None) -> ModelLocation:
        """Where `path` is, which was found in `folder`, or is that."""
        snapshot = folder.snapshot if folder is not None else None
        current = self._current(snapshot.repository) if snapshot is not None else ""
        known = self._known.get(path)
        if known is None or known[0] is not folder or known[1] != current or known[2].stem != stem:
            known = (folder, current, _place(path, stem, folder, current))
        self._told[path] = known
        return known[2]


def _place(path: Path, stem: str, folder: Folder | None, current: str) -> ModelLocation:
    is_link = folder is not None and (path in folder.links or (path == folder.path and folder.is_linked_model))
    file_name = path.name if folder is None or path != folder.path else ""
    key, qualifier, repository, is_aside = str(path), path.parent.name, "", False
    if folder is not None and (snapshot := folder.snapshot) is not None:
        is_aside = current not in ("", snapshot.revision)
        if is_aside:
            key = f"{key} aside"  # it never was the current one under this key
        else:
            repository = snapshot.owner_and_name
        if current == snapshot.revision:
            inner = path.relative_to(snapshot.repository / "snapshots" / current)
            key = str(snapshot.repository / "refs" / "main" / inner)
        qualifier, is_link = snapshot.revision, False
    return ModelLocation(path, stem, key, qualifier, model_name(stem), file_name, repository, is_link, is_aside)


class Assembly:
    """What one look has seen so far. Where nothing else decides, what is added first wins."""

    def __init__(self, files: ModelFiles, places: "Places", warn: Warn) -> None:
        self._files = files
        self._place = places.place
        self._warn = warn
        self._drafts: list[ModelCandidate] = []
        self._by_contents: dict[object, ModelCandidate | None] = {}  # None: what is no model
        self._others: dict[Path, dict[Path, ModelFile]] = {}  # that, by its folder
        self._rejected: list[Rejected] = []  # folders that are no models; with the folder's name
        self._shards: set[Path] = set()  # the first ones of those that were looked at

    def add(self, path: Path, folder: Folder | None = None) -> None:
        """Add the model that the file `path` is, or is a shard of; `folder` where it was found in one."""
        file = self._files.read(path)
        if file is None:
            return
        if isinstance(file, ModelFile) and file.header.kind is GgufKind.MODEL and file.header.n_shards > 1:
            self._add_shards(path, file.header, folder)
        elif isinstance(file, ModelFile) and file.header.kind is not GgufKind.MODEL:
            self._others.setdefault(path.parent, {})[path] = file
        elif isinstance(file, ModelFile):
            self._add(file.identity, self._place(path, stem_of(path.name), folder), (file,))
        else:
            self._add_broken(path, file, folder)

    def add_folder(self, folder: Folder) -> None:
        """Add the models in `folder`, as it was at the last look."""
        for path in folder.files:
            self.add(path, folder)
        if folder.is_safetensors:
            self._add_checkpoint(folder)
        if folder.is_adapter:
            found = self._files.adapter(folder.path)
            if isinstance(found, ModelFile):
                self._others.setdefault(folder.path.parent, {})[folder.path] = found
            elif found is not None and found.identity not in self._by_contents:
                self._by_contents[found.identity] = None
                self._rejected.append(_rejected(folder.path.name, folder.path, found))

    def add_manifest(self, manifest: Manifest) -> None:
        """Add a model of Ollama's; the same file with other adapters or defaults is another model."""
        file = self._files.read(manifest.model)
        if file is None:
            self._warn(manifest.model, f"`{manifest.name}` is not listed: this file of it is missing")
            return
        contents = file.identity if manifest.is_plain else (file.identity, manifest.adapters, manifest.defaults)
        name, path = manifest.name, manifest.model
        place = ModelLocation(path, name, str(manifest.path), path.parent.name, model_name(name))
        adapters = {path: self._files.read(path) for path in manifest.adapters}
        reason = _against_model(file) or next(filter(None, map(_against_adapter, adapters.values())), "")
        if reason:
            self._add(contents, place, rejected=Rejected(name, path, BROKEN, reason, file.version))
        elif isinstance(file, ModelFile):
            checked = replace(manifest, defaults=self._checked(manifest))
            whole = {path: adapter for path, adapter in adapters.items() if isinstance(adapter, ModelFile)}
            self._add(contents, place, (file,), manifest=checked, adapters=whole)

    def _add(self, contents: object, place: ModelLocation, files: tuple[ModelFile, ...] = (), **what: Any) -> None:
        """Add a model, or another place of a model that is there already."""
        draft = self._by_contents.get(contents)
        if draft is not None:
            draft.places.append(place)
        else:
            draft = self._by_contents[contents] = ModelCandidate([place], files, **what)
            self._drafts.append(draft)

    def _add_checkpoint(self, folder: Folder) -> None:
        found = self._files.checkpoint(folder.path)
        snapshot = folder.snapshot
        stem = snapshot.name if snapshot is not None and not snapshot.inner else folder.path.name
        if isinstance(found, ModelFile):
            self._add((found.identity, SAFETENSORS), self._place(folder.path, stem, folder), (found,))
        elif found is not None and found.identity not in self._by_contents:
            self._by_contents[found.identity] = None
            self._rejected.append(_rejected(stem, folder.path, found))

    def _add_broken(self, path: Path, file: Broken, folder: Folder | None) -> None:
        stem = stem_of(path.name)
        if match := _SHARD.search(path.name):  # most likely one, and the others have nothing to add
            first = path.with_name(f"{path.name[: match.start()]}-00001{path.name[match.start() + 6 :]}")
            if first in self._shards:
                return
            self._shards.add(first)
            stem = path.name[: match.start()]
        place = self._place(path, stem, folder)
        self._add(file.identity, place, rejected=_rejected(stem, path, file))

    def _add_shards(self, path: Path, header: GgufHeader, folder: Folder | None) -> None:
        try:
            paths = shard_paths(path, header)
        except InvalidGguf as exc:
            stem = stem_of(path.name)
            rejected = Rejected(stem, path, BROKEN, str(exc), ())
            self._add(path, self._place(path, stem, folder), rejected=rejected)
            return
        if paths[0] in self._shards:
            return
        self._shards.add(paths[0])
        stem = paths[0].name.removesuffix(f"-00001-of-{header.n_shards:05d}.gguf")
        found = [self._files.read(shard_path) for shard_path in paths]
        for index, file in enumerate(found):
            reason = _against_shard(file, index, header.n_shards)
            if reason:
                version = tuple(number for file in found if file for number in file.version)
                path = paths[0] if found[0] else path
                reason = f"its shard `{shown(Path(paths[index].name))}` {reason}"
                rejected = Rejected(stem, path, BROKEN, reason, version, header.architecture)
                self._add(path, self._place(path, stem, folder), rejected=rejected)
                return
        shards = tuple(file for file in found if isinstance(file, ModelFile))
        self._add(shards[0].identity, self._place(paths[0], stem, folder), shards)

    def _checked(self, manifest: Manifest) -> ModelDefaults:
        """Its defaults, without those that the engine would refuse in every request."""
        sound = []
        for name, value in manifest.defaults.sampling:
            values: dict[str, Any] = {name: value}
            try:
                sampling_limits.check(SamplingParams(**values), n_vocab=1)
            except BadRequest as exc:
                self._warn(manifest.model, f"a default of `{manifest.name}`: {exc}")
            else:
                sound.append((name, value))
        return replace(manifest.defaults, sampling=tuple(sound))

    def catalog(self, names: Names, models: Models) -> Catalog:
        """The catalog, with names. Files that are not models get names that no model needs."""
        given = names.give([draft.places for draft in self._drafts])
        taken = {name: number for number, some in enumerate(given) for name in (some.name, *some.others)}
        sources: list[_Sources] = []
        rejected: list[Rejected] = []
        for draft, some in zip(self._drafts, given, strict=True):
            if draft.rejected is None:
                sources.append(self._sources(draft, some))
            else:
                path = draft.rejected.path if len(draft.places) == 1 else some.place.path
                rejected.append(replace(draft.rejected, name=some.name, path=path, places=tuple(draft.places)))
        attached = {path for source in sources for path in (source.projector, *dict(source.adapters))}
        for entry in (*self._unattached(attached), *self._rejected):
            name = model_name(entry.name)
            if name in taken:
                name = qualified(name, entry.path.parent.name, taken)
            taken[name] = -1
            rejected.append(replace(entry, name=name))
        return Catalog(models.take(sources), rejected)

    def _unattached(self, attached: set[Path | None]) -> list[Rejected]:
        """Entries for files that are not models and belong to no model, each file once."""
        files = [(path, file) for some in self._others.values() for path, file in some.items()]
        listed = {file.identity for path, file in files if path in attached}
        found = []
        for path, file in files:
            if file.identity not in listed:
                listed.add(file.identity)
                kind = file.header.kind
                reason = f"it is {kind.noun}, not a model"
                found.append(
                    Rejected(stem_of(path.name), path, kind.value, reason, file.version, file.header.architecture)
                )
        return found

    def _sources(self, draft: ModelCandidate, given: Given) -> _Sources:
        """The sources of a model, with its adapters and projector; of several projectors the first by name."""
        manifest = draft.manifest
        if manifest is not None:
            adapters, projector = draft.adapters, manifest.projector
        else:
            beside: Mapping[Path, ModelFile] = self._others.get(given.place.path.parent, {})
            projectors = (path for path, file in beside.items() if file.header.kind is GgufKind.PROJECTOR)
            projector = next(projectors, None)
            adapters = {
                path: file
                for path, file in beside.items()
                if file.header.kind is GgufKind.ADAPTER and _suits(file, draft.files[0].header)
            }
        return _Sources(given, tuple(draft.places), draft.files, manifest, tuple(adapters.items()), projector)


def _model(sources: _Sources) -> Model:
    shards, manifest = sources.files, sources.manifest
    header = shards[0].header
    files = (*shards, *(file for _, file in sources.adapters))
    return Model(
        name=sources.given.name,
        path=sources.given.place.path,
        files=tuple(file.version for file in files),
        size_bytes=sum(shard.header.size_bytes for shard in shards),
        mtime_ns=max(shard.version[3] for shard in shards),
        architecture=header.architecture,
        quantization=header.quantization,
        n_params=sum(shard.header.n_params for shard in shards),
        n_ctx_train=header.n_ctx_train,
        n_vocab=header.n_vocab,
        n_layers=header.n_layers,
        n_embd=header.n_embd,
        n_ff=header.n_ff,
        n_expert_params=header.n_expert_params,
        n_heads=header.n_heads,
        n_kv=header.n_kv,
        n_state=header.n_state,
        has_chat_template=header.has_chat_template,
        is_embedding=header.is_embedding,
        is_causal=header.is_causal,
        pooling=header.pooling,
        adapters=tuple(path for path, _ in sources.adapters),
        projector=sources.projector,
        defaults=manifest.defaults if manifest else ModelDefaults(),
        needs_adapters=manifest is not None and bool(sources.adapters),
        notices=shards[0].notices,
        places=sources.places,
        other_names=sources.given.others,
    )


def _rejected(stem: str, path: Path, file: Broken) -> Rejected:
    reason = file.reason
    if path.name.endswith((".safetensors", ".json")):  # which no folder is searched for: a person has named it
        reason = "it is one of the files of a model in SafeTensors: name the folder in which they are"
    return Rejected(stem, path, file.kind, reason, file.version, file.architecture)


def _suits(file: ModelFile, model: GgufHeader) -> bool:
    """Whether the adapter that lies beside a model with this header may be for it."""
    if isinstance(file, AdapterFolder):
        return file.suits(model.architecture, model.n_embd)
    return file.header.architecture == model.architecture


def _against_model(file: ModelFile | Broken) -> str:
    """Why `file` cannot be Ollama's model; '' when it can."""
    if isinstance(file, Broken):
        return file.reason
    if file.header.kind is not GgufKind.MODEL:
        return f"it is {file.header.kind.noun}, not a model"
    return "it is only a part of a model" if file.header.n_shards > 1 else ""


def _against_adapter(file: Found) -> str:
    """Why `file` cannot be an adapter; '' when it can."""
    if file is None:
        return "its adapter is missing"
    if isinstance(file, Broken):
        return f"its adapter is broken: {file.reason}"
    return "" if file.header.kind is GgufKind.ADAPTER else f"its adapter is {file.header.kind.noun}"


def _against_shard(file: Found, index: int, n_shards: int) -> str:
    """Why `file` cannot be this shard of a model; '' when it can."""
    if file is None:
        return "is missing"
    if isinstance(file, Broken):
        return f"is broken: {file.reason}"
    return "" if (file.header.shard, file.header.n_shards) == (index, n_shards) else "is not what its name says"
