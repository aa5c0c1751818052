"""The models known now: an immutable catalog, how a name finds its model, and what changed between two catalogs.

Knows names. Knows nothing of the disk, of workers or of requests.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from shimmy.errors import ModelNotFound
from shimmy.messages import ModelDefaults

MAX_CLOSE_NAMES = 3
MAX_NAME_CHARACTERS = 256  # a longer request is not compared with anything

# The last part of a name that says how the weights are stored: '.q4-1', '-ud-q4-k-xl', '-bf16'.
_QUANTIZATION = re.compile(r"[.-]((?:ud-)?(?:i?q\d(?:-[a-z0-9]+)*|tq\d-\d|b?f16|f32|fp16|fp32|mxfp4(?:-moe)?|nvfp4))$")


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
    n_vocab: int  # this and the next four as GgufHeader has them: what the model's memory is reckoned from
    n_embd: int
    n_ff: int
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


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that lies where models lie and cannot be served."""

    name: str  # the one it would have as a model; a known model may still serve under it
    path: Path
    kind: str  # BROKEN, or what it is instead of a model
    reason: str  # a sentence without its end, for a person: 'it is cut off: ...'
    version: tuple[int, ...]  # another one when the content may be another
    architecture: str = ""  # '' when unknown


BROKEN = "gguf"
Entry = Model | Rejected


def printable(text: str) -> str:
    """`text` for a log or a reply: what cannot be printed is written as Python would, as in `\\n`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown(path: Path) -> str:
    return printable(str(path))


def model_name(stem: str) -> str:
    """The name of the file `stem`: lower case, with '-' for '_', for a space and for what cannot be printed."""
    name = stem.lower().replace("_", "-").replace(" ", "-")
    return name if name.isprintable() else "".join(char if char.isprintable() else "-" for char in name)


class Catalog:
    """All models, and what cannot be served, each sorted by name. Never changes."""

    __slots__ = ("_by_name", "_rejected_by_name", "models", "rejected")

    def __init__(self, models: Iterable[Model] = (), rejected: Iterable[Rejected] = ()) -> None:
        self.models = tuple(sorted(models, key=lambda model: model.name))
        self.rejected = tuple(sorted(rejected, key=lambda entry: entry.name))
        self._by_name = {model.name: model for model in self.models}
        self._rejected_by_name = {entry.name: entry for entry in self.rejected}

    @property
    def unavailable(self) -> tuple[Rejected, ...]:
        """What cannot be served and has no older model serving in its place."""
        return tuple(entry for entry in self.rejected if entry.name not in self._by_name)

    def rejected_reason(self, name: str) -> str | None:
        """Why what lies on the disk under the name of an entry cannot be served; None when it can."""
        entry = self._rejected_by_name.get(name)
        return entry.reason if entry else None

    def resolve(self, name: str) -> Model:
        """Like `entry`, for somebody who wants to use the model: raises ModelNotFound for one that cannot be served."""
        return _servable(self.entry(name))

    def entry(self, name: str) -> Entry:
        """What `name` means: its name or its file's stem in any case, or Ollama's `base[:tag]`.

        The tag is the quantisation; `latest` and no tag mean the only one there is. Raises ModelNotFound with the
        candidates when several fit, and with close names when none does.
        """
        if (own := self.find(name)) is not None:
            return own
        candidates = self.candidates(name)
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = _enumerate([model.name for model in candidates], "and")
            raise ModelNotFound(f"`{name}` could be any of {names}; use one of these names", param="model")
        if (rejected := self.rejected_like(name)) is not None:
            return rejected
        if len(name) > MAX_NAME_CHARACTERS:
            raise ModelNotFound(f"no model `{name[:32]}…`; {self._how_to_list()}", param="model")
        raise ModelNotFound(f"no model `{name}`; {self._did_you_mean(_wanted(name))}", param="model")

    def find(self, name: str) -> Entry | None:
        """The entry whose own name this is, in any case and with or without `.gguf`.

        No other model may answer for a broken one. What never was a model stands in nobody's way.
        """
        wanted = _wanted(name)
        if (model := _named(wanted, self._by_name)) is not None:
            return model
        rejected = _named(wanted, self._rejected_by_name)
        return rejected if rejected is not None and rejected.kind == BROKEN else None

    def candidates(self, name: str) -> list[Model]:
        """The models that `base[:tag]` fits."""
        if len(name) > MAX_NAME_CHARACTERS:
            return []
        base, _, tag = _wanted(name).partition(":")
        return [model for model in self.models if _fits(model.name, model.quantization, base, tag)]

    def rejected_like(self, name: str) -> Rejected | None:
        """What cannot be served and has this name, or one that `base[:tag]` fits."""
        if len(name) > MAX_NAME_CHARACTERS:
            return None
        wanted = _wanted(name)
        base, _, tag = wanted.partition(":")
        fitting = (entry for entry in self.rejected if _fits(entry.name, "", base, tag))
        return _named(wanted, self._rejected_by_name) or next(fitting, None)

    def _did_you_mean(self, wanted: str) -> str:
        import difflib  # only mistakes pay for it

        close = difflib.get_close_matches(wanted, self._by_name, MAX_CLOSE_NAMES)
        return f"did you mean {_enumerate(close, 'or')}?" if close else self._how_to_list()

    def _how_to_list(self) -> str:
        if not self.models and self.rejected:
            return "nothing that was found can be served, `GET /api/models` says why"
        if not self.models:
            return "no models were found; put a GGUF file into a model folder"
        count = "there is 1 model" if len(self.models) == 1 else f"there are {len(self.models)} models"
        return f"{count}, `GET /v1/models` lists them"


class Registry:
    """The current catalog, and the names that a person gave to models in it.

    One task publishes, everyone reads `catalog` once per request and keeps what they read.
    """

    __slots__ = ("_aliases", "_default", "catalog")

    def __init__(self, aliases: Iterable[tuple[str, str]] = (), default: str | None = None) -> None:
        """`aliases` are pairs of another name, a shell pattern if need be, and a model's. `default` answers for
        every name that means nothing."""
        self.catalog = Catalog()
        self._aliases = tuple((alias.lower(), target) for alias, target in aliases)
        self._default = default

    def publish(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def resolve(self, name: str) -> Model:
        """Like `entry`, for somebody who wants to use the model: raises ModelNotFound for one that cannot be served."""
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
                if fnmatchcase(name.lower(), alias):
                    return catalog.entry(target)
        if self._default is not None and not catalog.candidates(name) and catalog.rejected_like(name) is None:
            return catalog.entry(self._default)
        return catalog.entry(name)

    def aliases(self) -> list[tuple[str, Model]]:
        """The aliases that are plain names and mean a model now."""
        catalog = self.catalog
        found = []
        for alias, target in self._aliases:
            if not set(alias) & set("*?[") and catalog.find(alias) is None:
                with suppress(ModelNotFound):
                    found.append((alias, catalog.resolve(target)))
        return found


@dataclass(frozen=True, slots=True)
class CatalogDiff:
    """What the pool has to act on; a changed model stands as it is in the new catalog."""

    added: tuple[Model, ...]
    changed: tuple[Model, ...]
    removed: tuple[Model, ...]
    rejected: tuple[Rejected, ...] = ()  # those that are new, or broken in another way

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.changed or self.removed or self.rejected)


def diff(old: Catalog, new: Catalog) -> CatalogDiff:
    """Models are the same when all their facts are: a file replaced under its name has another time, size or header."""
    before = {model.name: model for model in old.models}
    after = {model.name: model for model in new.models}
    old_rejected = set(old.rejected)
    return CatalogDiff(
        added=tuple(model for model in new.models if model.name not in before),
        changed=tuple(model for model in new.models if before.get(model.name, model) != model),
        removed=tuple(model for model in old.models if model.name not in after),
        rejected=tuple(entry for entry in new.rejected if entry not in old_rejected),
    )


def _servable(entry: Entry) -> Model:
    if isinstance(entry, Rejected):
        raise ModelNotFound(f"`{entry.name}` cannot be served: {entry.reason}", param="model")
    return entry


def _wanted(name: str) -> str:
    return model_name(name[: MAX_NAME_CHARACTERS + 1]).removesuffix(".gguf")


_AnEntry = TypeVar("_AnEntry", Model, Rejected)


def _named(wanted: str, by_name: dict[str, _AnEntry]) -> _AnEntry | None:
    return by_name.get(wanted) or by_name.get(f"{wanted}:latest")


def _fits(name: str, quantization: str, base: str, tag: str) -> bool:
    stem, _, _ = name.partition("@")  # the folder of a name that was taken
    if ":" in stem:
        own_base, _, own_tag = stem.partition(":")
        return base == own_base and tag in ("", "latest", own_tag)
    match = _QUANTIZATION.search(stem)
    tags = {match[1] if match else "", model_name(quantization)}
    return base == (stem[: match.start()] if match else stem) and (tag in ("", "latest") or tag in tags)


def _enumerate(names: list[str], conjunction: str) -> str:
    quoted = [f"`{name}`" for name in names]
    *first, last = quoted
    return f"{', '.join(first)} {conjunction} {last}" if first else last
