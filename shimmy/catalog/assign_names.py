"""Which names models get: each its own, the same from look to look and from one start to the next.

Knows places, which are a name and who may have it, and remembers who had it; nothing of files, folders or headers. A
name belongs to a place: the file there may be replaced, but no file elsewhere takes the name away while there is one.
What is remembered across starts lies in the cache folder, one file for each list of folders that are searched. Without
it names go by the order of these folders and of what is in them.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from shimmy.system.files import write_atomically

if TYPE_CHECKING:
    from shimmy.catalog.catalog import Model

MAX_REMEMBERED = 20_000
MAX_BYTES = 16 * 2**20
MAX_FILES = 32

_SUFFIX = ".gguf"
# The last part of a name that says how the weights are stored: '.q4-1', '-ud-q4-k-xl', '-bf16'.
_QUANTIZATION = re.compile(r"[.-]((?:ud-)?(?:i?q\d(?:-[a-z0-9]+)*|tq\d-\d|b?f16|f32|fp16|fp32|mxfp4(?:-moe)?|nvfp4))$")

logger = logging.getLogger(__name__)


def composed(text: str) -> str:
    """`text` in NFC: other systems hand out names in NFD, which look the same."""
    if text.isascii():
        return text
    import unicodedata  # only who has such names pays for it

    return unicodedata.normalize("NFC", text)


def model_name(stem: str) -> str:
    """The name of the file `stem`: lower case, NFC, with '-' for '_', for a space and for what cannot be printed."""
    name = composed(composed(stem).lower()).replace("_", "-").replace(" ", "-")
    return name if name.isprintable() else "".join(char if char.isprintable() else "-" for char in name)


def spellings(name: str) -> Iterator[str]:
    """The names of models that `name` may stand for, the closest first."""
    for tidy in dict.fromkeys((model_name(name), model_name(without_suffix(name)))):
        yield tidy
        yield f"{tidy}:latest"


def without_suffix(name: str) -> str:
    return name[: -len(_SUFFIX)] if name.lower().endswith(_SUFFIX) else name


def base_and_tag(name: str) -> tuple[str, str]:
    """Ollama's form of a model's name: the tag is its own, or says how the weights are stored; '' where none is."""
    if ":" in name:
        base, _, tag = name.partition(":")
        return base, tag
    match = _QUANTIZATION.search(name)
    return (name[: match.start()], match[1]) if match else (name, "")


@dataclass(frozen=True, slots=True)
class ModelLocation:
    """One of the ways in which a model lies on the disk, and what it is called there."""

    path: Path  # of what a worker would load
    stem: str  # as written
    key: str  # the same for as long as it is this place, whatever lies there
    qualifier: str  # what tells it from others of its name
    name: str  # `model_name` of the stem
    file_name: str = ""  # as written; '' where the stem is all
    repository: str = ""  # OWNER/NAME of the Hugging Face hub, where a model is its current one
    is_link: bool = False
    is_aside: bool = False  # a revision that is not the current one

    @classmethod
    def of_file(cls, path: Path, *, is_link: bool = False) -> "ModelLocation":
        stem = stem_of(path.name)
        return cls(path, stem, str(path), path.parent.name, model_name(stem), path.name, is_link=is_link)


def stem_of(file_name: str) -> str:
    """The name without `.gguf`; another suffix is rather a part of the name, as in `llama.q4_0`."""
    stem = without_suffix(file_name)
    return stem or file_name


@dataclass(frozen=True, slots=True)
class Given:
    """The names of one model."""

    name: str
    others: tuple[str, ...]
    place: ModelLocation  # that the name comes from


class Names:
    """Gives names to models. Used by one thread at a time."""

    def __init__(self, folder: Path | None = None, roots: Iterable[Path] = ()) -> None:
        """`folder` is where to remember them, for those who search `roots`; None: only in memory."""
        searched = "\0".join(os.fspath(root.absolute()) for root in roots)
        digest = hashlib.sha256(os.fsencode(searched)).hexdigest()[:12]
        self._file = folder / f"names-{digest}.json" if folder else None
        self._keys: dict[str, str] = {}  # of the place that has a name
        self._others: set[str] = set()  # names that are not what a model is listed under first
        self._by_key: dict[str, list[str]] = {}  # the names that a place has
        self._is_loaded = False
        self._is_changed = False

    def give(self, drafts: Sequence[Sequence[ModelLocation]]) -> list[Given]:
        """The names of models that lie in these places each, no name for two of them.

        A name goes to the place that had it, then to a current revision, then to what is written just so, then to the
        first. A model that gets none of its places' names is called `name@folder`, or `name@folder-2` and so on.
        """
        self._load()
        holders = self._holders(drafts)
        given = []
        for number, places in enumerate(drafts):
            known = [name for place in places for name in self._by_key.get(place.key, ())]
            held = [name for name in (*(place.name for place in places), *known) if holders.get(name) == number]
            name, place = self._main(places, held) or _new(places, holders)
            holders[name] = number
            given.append(Given(name, tuple(other for other in dict.fromkeys(held) if other != name), place))
        return given

    def _holders(self, drafts: Sequence[Sequence[ModelLocation]]) -> dict[str, int]:
        """Which draft has each name of a place, and each name that a place had."""
        claims: dict[str, list[tuple[int, ModelLocation]]] = {}
        for number, places in enumerate(drafts):
            for place in places:
                claims.setdefault(place.name, []).append((number, place))

        def rank(claim: tuple[int, ModelLocation]) -> tuple[bool, bool, bool]:
            place = claim[1]
            return self._keys.get(place.name) != place.key, place.is_aside, place.stem != place.name

        holders = {name: (min(some, key=rank) if len(some) > 1 else some[0])[0] for name, some in claims.items()}
        for number, places in enumerate(drafts):
            for place in places:
                for name in self._by_key.get(place.key, ()):
                    if name != place.name:
                        holders[name] = number
        return holders

    def _main(self, places: Sequence[ModelLocation], held: Sequence[str]) -> tuple[str, ModelLocation] | None:
        """The name to be listed under, of those that are `held`: what it was, else that of a file before a link's."""
        for place in places:
            known = next((name for name in self._by_key.get(place.key, ()) if name not in self._others), None)
            if known is not None and known in held:
                return (place.name if place.name in held else known), place
        having = [place for place in places if place.name in held]
        return next(((place.name, place) for place in sorted(having, key=lambda place: place.is_link)), None)

    def remember(self, models: "Iterable[Model]") -> None:
        """The names that are in service now; those of files that are away for a while are kept."""
        self._load()
        keys: dict[str, str] = {}
        others: set[str] = set()
        for model in models:
            own = {place.name: place.key for place in model.places}
            main = next((place.key for place in model.places if place.path == model.path), None)
            if main is not None:
                keys[model.name] = own.get(model.name, main)
                others |= {*model.other_names}
                keys |= {other: own.get(other) or self._keys.get(other, main) for other in model.other_names}
        others |= self._others - keys.keys()
        keys = {name: key for name, key in self._keys.items() if name not in keys} | keys
        if (keys, others) != (self._keys, self._others):
            self._is_changed = True
            self._take(keys, others)

    def save(self) -> None:
        """Write what is new."""
        if self._file is None or not self._is_changed:
            return
        self._is_changed = False
        try:
            write_atomically(self._file, json.dumps({"names": self._keys, "others": sorted(self._others)}).encode())
            files = sorted(self._file.parent.glob("names-*.json"), key=lambda file: file.stat().st_mtime_ns)
            for file in files[:-MAX_FILES]:
                file.unlink()
        except OSError as exc:
            logger.debug("the names in `%s` cannot be written: %s", self._file, exc.strerror)

    def _take(self, keys: dict[str, str], others: set[str]) -> None:
        self._keys, self._others = dict(list(keys.items())[-MAX_REMEMBERED:]), others
        self._by_key = {}
        for name, key in self._keys.items():
            self._by_key.setdefault(key, []).append(name)

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        if self._file is None:
            return
        try:
            with self._file.open("rb") as file:
                stored = json.loads(file.read(MAX_BYTES))
            keys, others = stored["names"], stored["others"]
            if all(isinstance(text, str) for text in chain(keys.keys(), keys.values(), others)):
                self._take(keys, set(others))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            logger.debug("the names in `%s` are of no use: %s", self._file, exc)


def _new(places: Sequence[ModelLocation], taken: Mapping[str, int]) -> tuple[str, ModelLocation]:
    place = min(places, key=lambda place: place.is_link)
    return qualified(place.name, place.qualifier, taken), place


def qualified(name: str, qualifier: str, taken: Mapping[str, int]) -> str:
    """`name@qualifier`, with a number where that is taken as well."""
    first = f"{name}@{model_name(qualifier)}"
    return next(free for free in chain([first], (f"{first}-{number}" for number in count(2))) if free not in taken)
