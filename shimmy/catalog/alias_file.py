"""Names that `shimmy cp` has given to models: a small JSON file, read again when it has changed. Knows no models."""

import json
from pathlib import Path

from shimmy.system.files import read_start, write_atomically

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
        """Raises OSError, and ValueError where there are too many."""
        pairs = dict(self.pairs()) | {alias: target}
        if len(pairs) > MAX_ALIASES:
            raise ValueError(f"there are {MAX_ALIASES} aliases already")
        self._write(pairs)

    def drop(self, alias: str) -> bool:
        """Whether there was one. Raises OSError."""
        pairs = dict(self.pairs())
        if pairs.pop(alias, None) is None:
            return False
        self._write(pairs)
        return True

    def _write(self, pairs: dict[str, str]) -> None:
        if self._path is None:
            raise FileNotFoundError(2, "there is no home folder to keep aliases in")
        write_atomically(self._path, json.dumps(pairs, indent=2, sort_keys=True).encode())

    @staticmethod
    def _read(path: Path) -> Pairs:
        try:
            content = json.loads(read_start(path, _MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return ()
        if not isinstance(content, dict):
            return ()
        pairs = [(alias, target) for alias, target in content.items() if is_name(alias) and is_name(target)]
        return tuple(pairs[:MAX_ALIASES])


def is_name(text: object) -> bool:
    """Whether a text may be an alias, or the name of a model."""
    return isinstance(text, str) and 0 < len(text) <= MAX_CHARACTERS and text.isprintable()
