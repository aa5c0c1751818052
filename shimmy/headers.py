"""Model file headers, each read once: those of an earlier start are remembered in a file of the cache folder.

Knows files and their identity, and nothing of what a header means. What is remembered only describes: the worker reads
and checks the file itself before it loads it. A cache that cannot be read or written costs time and nothing else.
"""

import json
import logging
import os
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from shimmy import __version__, whole
from shimmy.formats.gguf import InvalidGguf, read_header
from shimmy.formats.gguf_header import GgufHeader, Kind

MAX_REMEMBERED = 20_000
MAX_CACHE_BYTES = 64 * 2**20

_FIELDS = {field.name: str if field.type is Kind else field.type for field in fields(GgufHeader)}
_FORM = [__version__, *_FIELDS]  # another version may read other things out of the same file
_KINDS = frozenset(Kind)
_values = attrgetter(*_FIELDS)

logger = logging.getLogger(__name__)


class Headers:
    """Reads headers, and remembers them by the file's device, inode, size and times."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is where to remember them; None: only in memory."""
        self._cache = folder / "headers.json" if folder else None
        self._known: dict[str, Any] | None = None  # a header's fields, or why there is none; None: not looked yet
        self._is_changed = False

    def read(self, path: Path, status: os.stat_result) -> GgufHeader:
        """The header of `path`, whose `status` is given; raises InvalidGguf or OSError."""
        if self._known is None:
            self._known = self._load()
        times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
        key = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{times}"
        known = self._known.get(key)
        if known is not None:
            # The ones in use move to the end; the others are forgotten first.
            self._known[key] = self._known.pop(key)
            return _recall(known)
        self._is_changed = True
        try:
            header = read_header(path)
        except InvalidGguf as exc:
            self._known[key] = str(exc)
            raise
        self._known[key] = _values(header)
        return header

    def save(self) -> None:
        """Write what is new."""
        if self._cache is None or not self._is_changed or self._known is None:
            return
        self._is_changed = False
        latest = dict(list(self._known.items())[-MAX_REMEMBERED:])
        text = json.dumps({"form": _FORM, "files": latest}, separators=(",", ":"))
        try:
            whole.write(self._cache, text.encode())
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
        return [type(value) for value in known] == list(_FIELDS.values()) and known[0] in _KINDS
    return isinstance(known, str)


def _recall(known: Any) -> GgufHeader:
    if isinstance(known, str):
        raise InvalidGguf(known)
    kind, *others = known
    return GgufHeader(Kind(kind), *others)
