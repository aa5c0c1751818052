"""The models known now: an immutable catalog, how a name finds its model, and what changed between two catalogs.

Knows names. Knows nothing of the disk, of workers or of requests.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
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
    has_chat_template: bool
    is_embedding: bool = False
    adapters: tuple[Path, ...] = ()  # LoRA files of its architecture that lie beside it
    projector: Path | None = field(default=None, compare=False)  # no worker loads it, so another one changes nothing
    defaults: ModelDefaults = field(default=ModelDefaults(), compare=False)  # nor do these
    needs_adapters: bool = False  # they are a part of it, and not just an offer


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
        """Like `find`, for somebody who wants to use the model: raises ModelNotFound for one that cannot be served."""
        found = self.find(name)
        if isinstance(found, Rejected):
            raise ModelNotFound(f"`{found.name}` cannot be served: {found.reason}", param="model")
        return found

    def find(self, name: str) -> Entry:
        """The entry `name` means: its name or its file's stem in any case, or Ollama's `base[:tag]`.

        The tag is the quantisation; `latest` and no tag mean the only one there is. Raises ModelNotFound with the
        candidates when several fit, and with close names when none does.
        """
        if len(name) > MAX_NAME_CHARACTERS:
            raise ModelNotFound(f"no model `{name[:32]}…`; {self._how_to_list()}", param="model")
        wanted = model_name(name).removesuffix(".gguf")
        if model := _named(wanted, self._by_name):
            return model
        rejected = _named(wanted, self._rejected_by_name)
        # Its very name: no other model may answer for it. What never was one stands in nobody's way.
        if rejected is not None and rejected.kind == BROKEN:
            return rejected
        base, _, tag = wanted.partition(":")
        candidates = [model for model in self.models if _fits(model.name, model.quantization, base, tag)]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = _enumerate([model.name for model in candidates], "and")
            raise ModelNotFound(f"`{name}` could be any of {names}; use one of these names", param="model")
        rejected = rejected or next((entry for entry in self.rejected if _fits(entry.name, "", base, tag)), None)
        if rejected is not None:
            return rejected
        raise ModelNotFound(f"no model `{name}`; {self._did_you_mean(wanted)}", param="model")

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
    """The current catalog. One task publishes, everyone reads `catalog` once per request and keeps what they read."""

    __slots__ = ("catalog",)

    def __init__(self) -> None:
        self.catalog = Catalog()

    def publish(self, catalog: Catalog) -> None:
        self.catalog = catalog


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
