"""The models known now: an immutable catalog, how a name finds its model, and what changed between two catalogs.

Knows names. Knows nothing of the disk, of workers or of requests.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from shimmy.errors import ModelNotFound

MAX_CLOSE_NAMES = 3
MAX_NAME_CHARACTERS = 256  # a longer request is not compared with anything

# The last part of a name that says how the weights are stored: '.q4-1', '-ud-q4-k-xl', '-bf16'.
_QUANTIZATION = re.compile(r"[.-]((?:ud-)?(?:i?q\d(?:-[a-z0-9]+)*|tq\d-\d|b?f16|f32|fp16|fp32|mxfp4(?:-moe)?|nvfp4))$")


@dataclass(frozen=True, slots=True)
class Model:
    """An entry of the catalog: one GGUF file, or all shards of one."""

    name: str  # as `model_name` writes it; unique in a catalog
    path: Path  # of the first shard
    files: tuple[tuple[int, int], ...]  # device and inode of each shard
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
    adapters: tuple[Path, ...] = ()  # LoRA files of its architecture that lie beside it


def model_name(stem: str) -> str:
    """The name of the file `stem`: lower case, with '-' for '_', for a space and for what cannot be printed."""
    name = stem.lower().replace("_", "-").replace(" ", "-")
    return name if name.isprintable() else "".join(char if char.isprintable() else "-" for char in name)


class Catalog:
    """All models, sorted by name. Never changes."""

    __slots__ = ("_by_name", "models")

    def __init__(self, models: Iterable[Model] = ()) -> None:
        self.models = tuple(sorted(models, key=lambda model: model.name))
        self._by_name = {model.name: model for model in self.models}

    def resolve(self, name: str) -> Model:
        """The model `name` means: its name or its file's stem in any case, or Ollama's `base[:tag]`.

        The tag is the quantisation; `latest` and no tag mean the only one there is. Raises ModelNotFound with the
        candidates when several fit, and with close names when none does.
        """
        if (model := self.find(name)) is not None:
            return model
        wanted = _wanted(name)
        candidates = self.candidates(name)
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = _enumerate([model.name for model in candidates], "and")
            raise ModelNotFound(f"`{name}` could be any of {names}; use one of these names", param="model")
        if len(name) > MAX_NAME_CHARACTERS:
            raise ModelNotFound(f"no model `{name[:32]}…`; {self._how_to_list()}", param="model")
        raise ModelNotFound(f"no model `{name}`; {self._did_you_mean(wanted)}", param="model")

    def find(self, name: str) -> Model | None:
        """The model whose own name this is, in any case and with or without `.gguf`."""
        wanted = _wanted(name)
        return self._by_name.get(wanted) or self._by_name.get(f"{wanted}:latest")

    def candidates(self, name: str) -> list[Model]:
        """The models that `base[:tag]` fits."""
        if len(name) > MAX_NAME_CHARACTERS:
            return []
        base, _, tag = _wanted(name).partition(":")
        return [model for model in self.models if _fits(model, base, tag)]

    def _did_you_mean(self, wanted: str) -> str:
        import difflib  # only mistakes pay for it

        close = difflib.get_close_matches(wanted, self._by_name, MAX_CLOSE_NAMES)
        return f"did you mean {_enumerate(close, 'or')}?" if close else self._how_to_list()

    def _how_to_list(self) -> str:
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
        """The model `name` means: by its own name, by an alias, by Ollama's form of it, or the default one.

        Raises ModelNotFound as `Catalog.resolve` does.
        """
        catalog = self.catalog
        if (model := catalog.find(name)) is not None:
            return model
        if len(name) <= MAX_NAME_CHARACTERS:
            for alias, target in self._aliases:
                if fnmatchcase(name.lower(), alias):
                    return catalog.resolve(target)
        if self._default is not None and not catalog.candidates(name):
            return catalog.resolve(self._default)
        return catalog.resolve(name)

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

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.changed or self.removed)


def diff(old: Catalog, new: Catalog) -> CatalogDiff:
    """Models are the same when all their facts are: a file replaced under its name has another time, size or header."""
    before = {model.name: model for model in old.models}
    after = {model.name: model for model in new.models}
    return CatalogDiff(
        added=tuple(model for model in new.models if model.name not in before),
        changed=tuple(model for model in new.models if before.get(model.name, model) != model),
        removed=tuple(model for model in old.models if model.name not in after),
    )


def _wanted(name: str) -> str:
    return model_name(name[: MAX_NAME_CHARACTERS + 1]).removesuffix(".gguf")


def _fits(model: Model, base: str, tag: str) -> bool:
    stem, _, _ = model.name.partition("@")  # the folder of a name that was taken
    if ":" in stem:
        own_base, _, own_tag = stem.partition(":")
        return base == own_base and tag in ("", "latest", own_tag)
    match = _QUANTIZATION.search(stem)
    tags = {match[1] if match else "", model_name(model.quantization)}
    return base == (stem[: match.start()] if match else stem) and (tag in ("", "latest") or tag in tags)


def _enumerate(names: list[str], conjunction: str) -> str:
    quoted = [f"`{name}`" for name in names]
    *first, last = quoted
    return f"{', '.join(first)} {conjunction} {last}" if first else last
