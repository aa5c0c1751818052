"""Names that `shimmy cp` has given to models: a small JSON file, read again when it has changed. Knows no models."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shimmy.system.files import locked, read_start, write_atomically

MAX_ALIASES = 10_000
MAX_CHARACTERS = 256
_MAX_BYTES = 1 << 22

Pairs = tuple[tuple[str, str], ...]


class AliasFile:
    """An object of aliases and the models' names that they stand for. Where it is broken, there are none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, ...] | None = None
        self._pairs: Pairs = ()

    def pairs(self) -> Pairs:
        """As the file is now."""
        if self._path is None:
            return ()
        try:
            status = self._path.stat()
        except OSError:
            self._stamp, self._pairs = None, ()
            return ()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if stamp != self._stamp:
            self._stamp, self._pairs = stamp, self._read(self._path)
        return self._pairs

    def put(self, alias: str, target: str) -> None:
        """Raises OSError, and ValueError where there are too many, or where the file is broken."""
        with self._locked() as path:
            content = _content(path) | {alias: target}
            if len(content) > MAX_ALIASES:
                raise ValueError(f"there are {MAX_ALIASES} aliases already")
            _write(path, content)

    def drop(self, alias: str) -> bool:
        """Whether there was one. Raises OSError, and ValueError where the file is broken."""
        if self._path is None or alias not in _content(self._path):
            return False
        with self._locked() as path:
            content = _content(path)
            if content.pop(alias, None) is None:
                return False
            _write(path, content)
            return True

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        """The file's path, while no other process changes the file."""
        if self._path is None:
            raise FileNotFoundError(2, "there is no home folder to keep aliases in")
        with locked(self._path.with_name(f".{self._path.name}.lock")):
            yield self._path

    @staticmethod
    def _read(path: Path) -> Pairs:
        try:
            content = _content(path)
        except ValueError:
            return ()
        pairs = [(alias, target) for alias, target in content.items() if is_name(alias) and is_name(target)]
        return tuple(pairs[:MAX_ALIASES])


def _content(path: Path) -> dict[str, Any]:
    """All that stands in the file, also what is no alias; nothing where there is no file. Raises ValueError."""
    try:
        text = read_start(path, _MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ValueError(f"`{path}` cannot be used ({reason}): mend it first, or remove it") from exc
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True).encode())


def is_name(text: object) -> bool:
    """Whether a text may be an alias, or the name of a model."""
    return isinstance(text, str) and 0 < len(text) <= MAX_CHARACTERS and text.isprintable()
