"""Model file headers and plans of folders, each made once: those of an earlier start are remembered in a file of the
cache folder.

Knows files and their identity, and nothing of what a header means. What is remembered only describes: the worker reads
and checks the file itself before it loads it. A cache that cannot be read or written costs time and nothing else.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from shimmy import __version__
from shimmy.formats.gguf.header import GgufHeader, GgufKind
from shimmy.formats.gguf.reader import InvalidGguf, read_header
from shimmy.system.files import write_atomically

MAX_REMEMBERED = 20_000
MAX_CACHE_BYTES = 64 * 2**20
_AT_ONCE = 500

_FIELDS = {field.name: str if field.type is GgufKind else field.type for field in fields(GgufHeader)}
# Another one reads all files again. To be raised with whatever changes what is read out of the same file, or refused.
_READING = 3
_FORM = [f"{__version__} {_READING}", *_FIELDS]
_KINDS = frozenset(GgufKind)
_values = attrgetter(*_FIELDS)

Planned = tuple[GgufHeader, tuple[str, ...]]  # with notices for a person

logger = logging.getLogger(__name__)


class Headers:
    """Reads headers, and remembers them by the file's device, inode, size and times."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is where to remember them; None: only in memory."""
        self._cache = folder / "headers.json" if folder else None
        self._known: dict[str, Any] | None = None  # a header's fields, or why there is none; None: not looked yet
        self._latest: dict[str, str] = {}  # the key of the state of a file that was read last
        self._is_changed = False

    def read(self, path: Path, status: os.stat_result) -> GgufHeader:
        """The header of `path`, whose `status` is given; raises InvalidGguf or OSError."""
        file = f"{status.st_dev}:{status.st_ino}"
        key = f"{file}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        return self._remembered(file, key, lambda: (read_header(path), ()))[0]

    def plan(self, version: tuple[int | str, ...], make: Callable[[], Planned]) -> Planned:
        """What `make` says of the folder of this `version`; raises what it raises, InvalidGguf again each time."""
        return self._remembered(f"folder:{version[:2]}", f"folder:{version}", make)

    def _remembered(self, file: str, key: str, make: Callable[[], Planned]) -> Planned:
        if self._known is None:
            self._known = self._load()
        known = self._known.get(key)
        if known is not None:
            # The ones in use move to the end; the others are forgotten first.
            self._known[key] = self._known.pop(key)
            return _recall(known)
        self._is_changed = True
        self._known.pop(self._latest.get(file, ""), None)  # how it was, it will hardly be again
        self._latest[file] = key
        try:
            header, notices = make()
        except InvalidGguf as exc:
            self._known[key] = str(exc)
            raise
        self._known[key] = [*_values(header), *notices]
        return header, notices

    def save(self) -> None:
        """Write what is new."""
        if self._cache is None or not self._is_changed or self._known is None:
            return
        self._is_changed = False
        latest = list(self._known.items())[-MAX_REMEMBERED:]
        # In parts, as one call of the encoder lets no other thread run.
        parts = (json.dumps(dict(latest[i : i + _AT_ONCE])) for i in range(0, len(latest), _AT_ONCE))
        files = ",".join(part[1:-1] for part in parts)
        try:
            write_atomically(self._cache, f'{{"form":{json.dumps(_FORM)},"files":{{{files}}}}}'.encode())
        except OSError as exc:
            logger.debug("the header cache `%s` cannot be written: %s", self._cache, exc.strerror)

    def _load(self) -> dict[str, Any]:
        if self._cache is None:
            return {}
        try:
            with self._cache.open("rb") as file:
                stored = json.loads(file.read(MAX_CACHE_BYTES))
            if stored["form"] == _FORM:
                return {key: known for key, known in stored["files"].items() if _is_sound(known)}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            logger.debug("the header cache `%s` is of no use: %s", self._cache, exc)
        return {}


def _is_sound(known: object) -> bool:
    if isinstance(known, list):
        types, n_fields = [type(value) for value in known], len(_FIELDS)
        are_fields = types[:n_fields] == list(_FIELDS.values()) and known[0] in _KINDS
        return are_fields and set(types[n_fields:]) <= {str}
    return isinstance(known, str)


def _recall(known: Any) -> Planned:
    if isinstance(known, str):
        raise InvalidGguf(known)
    kind, *others = known[: len(_FIELDS)]
    return GgufHeader(GgufKind(kind), *others), tuple(known[len(_FIELDS) :])
