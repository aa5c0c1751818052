"""The models known now: an immutable catalog, how a name finds its model, and what changed between two catalogs.

Knows names. Knows nothing of the disk, of workers or of requests.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from shimmy.catalog.alias_file import AliasFile, Pairs
from shimmy.catalog.assign_names import ModelLocation, base_and_tag, composed, model_name, spellings, without_suffix
from shimmy.errors import ModelNotFound
from shimmy.messages.model_info import ModelDefaults
from shimmy.text.near_names import did_you_mean, enumerated
from shimmy.text.plural import plural
from shimmy.text.printable import printable

MAX_COMPARED_NAMES = 500  # to find close ones; comparing many would hold up everybody else
MAX_NAME_CHARACTERS = 256  # a longer request is not compared with anything


@dataclass(frozen=True, slots=True)
class Model:
    """An entry of the catalog: one GGUF file, or all shards of one, with what lies beside it and belongs to it."""

    name: str  # as `model_name` writes it; unique in a catalog
    path: Path  # of the first shard
    files: tuple[tuple[int, ...], ...]  # device, inode, size and mtime of each file a worker loads: shards, adapters
    size_bytes: int  # all shards
    mtime_ns: int  # the newest shard
    architecture: str
    quantization: str  # 'Q4_1', '' when the file does not say
    n_params: int
    n_ctx_train: int
    n_vocab: int  # this and the next seven as GgufHeader has them: what the model's memory is reckoned from
    n_layers: int
    n_embd: int
    n_ff: int
    n_expert_params: int
    n_heads: int
    n_kv: int
    n_state: int
    has_chat_template: bool
    is_embedding: bool = False
    is_causal: bool = True  # this and the next as GgufHeader has them
    pooling: str = ""
    adapters: tuple[Path, ...] = ()  # LoRA files of its architecture that lie beside it
    projector: Path | None = field(default=None, compare=False)  # no worker loads it, so another one changes nothing
    defaults: ModelDefaults = field(default=ModelDefaults(), compare=False)  # nor these: requests read them
    needs_adapters: bool = False  # they are a part of it, and not just an offer
    notices: tuple[str, ...] = ()  # what is different from what its folder says, for a person
    places: tuple[ModelLocation, ...] = field(default=(), compare=False)  # all that lead to it
    other_names: tuple[str, ...] = field(default=(), compare=False)  # of links and copies of it; each its alone


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that lies where models lie and cannot be served."""

    name: str  # the one it would have as a model; a known model may still serve under it
    path: Path
    kind: str  # BROKEN, or what it is instead of a model
    reason: str  # a sentence without its end, for a person: 'it is cut off: ...'
    version: tuple[int, ...]  # another one when the content may be another
    architecture: str = ""  # '' when unknown
    places: tuple[ModelLocation, ...] = field(default=(), compare=False)


BROKEN = "gguf"
Entry = Model | Rejected


def shown(path: Path) -> str:
    return printable(str(path))


class Catalog:
    """All models, and what cannot be served, each sorted by name. Never changes."""

    __slots__ = ("_by_base", "_by_name", "_by_stem", "_rejected_by_name", "models", "rejected")

    def __init__(self, models: Iterable[Model] = (), rejected: Iterable[Rejected] = ()) -> None:
        self.models = tuple(sorted(models, key=lambda model: model.name))
        self.rejected = tuple(sorted(rejected, key=lambda entry: entry.name))
        self._by_name = {other: model for model in self.models for other in model.other_names}
        self._by_name |= {model.name: model for model in self.models}
        self._rejected_by_name = {entry.name: entry for entry in self.rejected}
        self._by_stem: dict[str, tuple[Entry, ...]] | None = None
        self._by_base: dict[str, list[tuple[tuple[str, str], Model]]] | None = None

    def prepare(self) -> None:
        """Make what names are looked up in, so that no request has to wait for that."""
        self._stems()
        self._bases()

    def _stems(self) -> dict[str, tuple[Entry, ...]]:
        if self._by_stem is None:
            self._by_stem = _by_stem([*self.models, *self.unavailable])
        return self._by_stem

    def _bases(self) -> dict[str, list[tuple[tuple[str, str], Model]]]:
        if self._by_base is None:
            self._by_base = _by_base(self.models)
        return self._by_base

    @property
    def unavailable(self) -> tuple[Rejected, ...]:
        """What cannot be served and has no older model serving in its place."""
        return tuple(entry for entry in self.rejected if entry.name not in self._by_name)

    def rejected_reason(self, name: str) -> str | None:
        """Why what lies on the disk under the name of an entry cannot be served; None when it can."""
        entry = self._rejected_by_name.get(name)
        return entry.reason if entry else None

    def resolve(self, name: str) -> Model:
        """Like `entry`, for using the model: raises ModelNotFound also for one that cannot be served."""
        return _servable(self.entry(name))

    def entry(self, name: str) -> Entry:
        """What `name` means: its name as it is listed, its file's as written, either in any case, Ollama's `base[:tag]`
        or the hub's `OWNER/NAME[:tag]`.

        The tag is the quantisation; `latest` and no tag mean the only one there is. Raises ModelNotFound with the
        candidates when several fit, and with close names when none does.
        """
        if (found := self._found(name)) is not None:
            return found
        if candidates := self.candidates(name):
            names = enumerated(sorted(entry.name for entry in candidates), "and")
            raise ModelNotFound(f"`{name}` could be any of {names}; use one of these names", param="model")
        if (rejected := self.rejected_like(name)) is not None:
            return rejected
        if len(name) > MAX_NAME_CHARACTERS:
            raise ModelNotFound(f"no model `{name[:32]}…`; {self._how_to_list()}", param="model")
        raise ModelNotFound(f"no model `{name}`; {self._did_you_mean(model_name(name))}", param="model")

    def _found(self, name: str) -> Entry | None:
        """What has this name, or is the only one that it fits."""
        if (own := self.find(name)) is not None:
            return own
        candidates = self.candidates(name)
        return candidates[0] if len(candidates) == 1 else None

    def model(self, name: str) -> Model | None:
        """What `resolve` returns; None in place of its errors, which take a comparison with all names."""
        found = self._found(name)
        return found if isinstance(found, Model) else None

    def find(self, name: str) -> Entry | None:
        """The entry that is listed as `name`, whose file is called so, or of which either is true in another spelling.

        No other model may answer for a broken one. A file that never was a model does not count. None also when
        several files are called so, and none of them is listed under it.
        """
        if (listed := self._listed(name)) is not None:
            return listed
        if len(name) > MAX_NAME_CHARACTERS:
            return None
        written = self._stems().get(name, ())
        if len(written) == 1:
            return written[0]
        for spelling in spellings(name):
            entry = self._listed(spelling)
            if entry is not None:
                return entry if not written or any(entry is other for other in written) else None
        return None

    def _listed(self, name: str) -> Entry | None:
        """What has exactly this name."""
        if (model := self._by_name.get(name)) is not None:
            return model
        rejected = self._rejected_by_name.get(name)
        return rejected if rejected is not None and rejected.kind == BROKEN else None

    def candidates(self, name: str) -> Sequence[Entry]:
        """Several whose files are called so, or the models that `base[:tag]` fits."""
        if len(name) > MAX_NAME_CHARACTERS:
            return ()
        if len(written := self._stems().get(name, ())) > 1:
            return written
        for base, tag in _bases_and_tags(name):
            found = [model for tags, model in self._bases().get(base, ()) if tag in ("", "latest") or tag in tags]
            if found:
                return list({id(model): model for model in found}.values())
        return ()

    def rejected_like(self, name: str) -> Rejected | None:
        """What cannot be served and has this name, or one that `base[:tag]` fits."""
        if len(name) > MAX_NAME_CHARACTERS:
            return None
        for spelling in spellings(name):
            if (entry := self._rejected_by_name.get(spelling)) is not None:
                return entry
        wanted = dict(_bases_and_tags(name))
        for entry in self.rejected:
            base, own_tag = base_and_tag(entry.name)
            if wanted.get(base) in ("", "latest", own_tag):
                return entry
        return None

    def _did_you_mean(self, wanted: str) -> str:
        names = [model.name for model in self.models]
        if len(names) > MAX_COMPARED_NAMES:
            at = bisect_left(names, wanted)  # of many, those that begin alike
            start = max(0, min(at - MAX_COMPARED_NAMES // 2, len(names) - MAX_COMPARED_NAMES))
            names = names[start : start + MAX_COMPARED_NAMES]
        return did_you_mean(wanted, names) or self._how_to_list()

    def _how_to_list(self) -> str:
        if not self.models and self.rejected:
            return "nothing that was found can be served, `shimmy discover` or `GET /api/models` says why"
        if not self.models:
            return "no models were found; `shimmy pull` fetches one, or put a GGUF file into a model folder"
        verb = "is" if len(self.models) == 1 else "are"
        return f"there {verb} {plural(len(self.models), 'model')}, `shimmy list` or `GET /v1/models` lists them"


class Registry:
    """The current catalog, and the names that a person gave to models in it.

    One task publishes, everyone reads `catalog` once per request and keeps what they read.
    """

    __slots__ = ("_aliases", "_default", "_kept", "_listed_aliases", "catalog")

    def __init__(
        self, aliases: Iterable[tuple[str, str]] = (), default: str | None = None, kept: AliasFile | None = None
    ) -> None:
        """`aliases` are pairs of another name, a shell pattern if need be, and a model's; those of `kept` come after
        them. `default` answers for every name that means nothing."""
        self.catalog = Catalog()
        self._aliases = tuple((composed(alias.lower()), target) for alias, target in aliases)
        self._default = default
        self._kept = kept or AliasFile(None)
        self._listed_aliases: tuple[Catalog, Pairs, list[tuple[str, Model]]] = (self.catalog, (), [])

    def publish(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def resolve(self, name: str) -> Model:
        """Like `entry`, for using the model: raises ModelNotFound also for one that cannot be served."""
        return _servable(self.entry(name))

    def entry(self, name: str) -> Entry:
        """What `name` means: by its own name, by an alias, by Ollama's form of it, or the default model.

        Raises ModelNotFound as `Catalog.entry` does.
        """
        catalog = self.catalog
        if (own := catalog.find(name)) is not None:
            return own
        if len(name) <= MAX_NAME_CHARACTERS:
            for alias, target in self._aliases:
                if fnmatchcase(composed(name.lower()), alias):
                    return catalog.entry(target)
            if (kept := dict(self._kept.pairs()).get(composed(name.lower()))) is not None:
                return catalog.entry(kept)
        if self._default is not None and not catalog.candidates(name) and catalog.rejected_like(name) is None:
            return catalog.entry(self._default)
        return catalog.entry(name)

    def listed(self) -> list[tuple[str, Model]]:
        """Every name that a client may pick from a list, with its model: the models' own, their links', aliases."""
        models = self.catalog.models
        own = [(model.name, model) for model in models]
        return own + [(other, model) for model in models for other in model.other_names] + self.aliases()

    def aliases(self) -> list[tuple[str, Model]]:
        """The aliases that are plain names and mean a model now. The list is found once for each catalog and file of
        aliases."""
        catalog, pairs = self.catalog, self._kept.pairs()
        if self._listed_aliases[0] is not catalog or self._listed_aliases[1] is not pairs:
            names = dict((*pairs, *self._aliases)).items()
            plain = [(alias, target) for alias, target in names if not set(alias) & set("*?[")]
            models = [(alias, catalog.model(target)) for alias, target in plain if catalog.find(alias) is None]
            found = [(alias, model) for alias, model in models if model is not None]
            self._listed_aliases = catalog, pairs, found
        return [*self._listed_aliases[2]]


@dataclass(frozen=True, slots=True)
class CatalogDiff:
    """What the pool has to act on, and what is to be told; a changed model stands as it is in the new catalog."""

    added: tuple[Model, ...]
    changed: tuple[Model, ...]
    removed: tuple[Model, ...]
    rejected: tuple[Rejected, ...] = ()  # those that are new, or broken in another way
    mended: tuple[str, ...] = ()  # other names of what was rejected and is no more: the file is gone, or as it was

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.changed or self.removed or self.rejected or self.mended)


def diff(old: Catalog, new: Catalog) -> CatalogDiff:
    """Models are the same when all their facts are: a file replaced under its name has another time, size or header."""
    before = {model.name: model for model in old.models}
    after = {model.name: model for model in new.models}
    added = tuple(model for model in new.models if model.name not in before)
    changed = tuple(model for model in new.models if _is_another(before.get(model.name, model), model))
    removed = tuple(model for model in old.models if model.name not in after)
    old_rejected = set(old.rejected)
    others: list[Entry] = [*added, *changed, *removed, *new.rejected]
    other_names = {entry.name for entry in others}
    return CatalogDiff(
        added,
        changed,
        removed,
        rejected=tuple(entry for entry in new.rejected if entry not in old_rejected),
        mended=tuple(entry.name for entry in old.rejected if entry.name not in other_names),
    )


def _is_another(old: Model, new: Model) -> bool:
    return old is not new and old != new


def _servable(entry: Entry) -> Model:
    if isinstance(entry, Rejected):
        raise ModelNotFound(f"`{entry.name}` cannot be served: {entry.reason}", param="model")
    return entry


def _by_stem(entries: Iterable[Entry]) -> dict[str, tuple[Entry, ...]]:
    """What is called so on the disk, as written: stems first, then the names of files with their suffix."""
    stems: dict[str, tuple[Entry, ...]] = {}
    files: dict[str, tuple[Entry, ...]] = {}
    for entry in entries:
        for place in entry.places:
            for name, known in ((place.stem, stems), (place.file_name, files)):
                if name and entry not in (some := known.get(name, ())):
                    known[name] = (*some, entry)
    return files | stems


def _by_base(models: Iterable[Model]) -> dict[str, list[tuple[tuple[str, str], Model]]]:
    """The models of each base, with the tags that each has beside it."""
    found: dict[str, list[tuple[tuple[str, str], Model]]] = {}
    for model in models:
        quantization = model_name(model.quantization)
        for name in dict.fromkeys([place.name for place in model.places] or [model.name]):
            base, tag = base_and_tag(name)
            tags = (tag, tag) if ":" in name else (tag, quantization)
            found.setdefault(base, []).append((tags, model))
        for repository in dict.fromkeys(place.repository for place in model.places):
            if repository:
                tag = base_and_tag(model.name)[1]
                found.setdefault(model_name(repository), []).append(((tag, quantization), model))
    return found


def _bases_and_tags(name: str) -> Iterator[tuple[str, str]]:
    """How `name` may be read as `base[:tag]`, the closest first."""
    for spelling in dict.fromkeys((model_name(name), model_name(without_suffix(name)))):
        base, _, tag = spelling.partition(":")
        yield base, tag
