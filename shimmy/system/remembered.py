"""A small table in a file of the cache folder: what was found out once about a model or this machine.

Knows JSON and files; nothing of what the values mean, so readers have to check them. A table that cannot be read is
empty, and one that cannot be written costs time and nothing else.
"""

import json
import logging
from pathlib import Path
from typing import Any

from shimmy.system import files

MAX_ENTRIES = 1000
MAX_BYTES = 2**20

logger = logging.getLogger(__name__)


class Remembered:
    """The table in `name` of `folder`; without a folder nothing is remembered."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self._file = None if folder is None else folder / name

    @property
    def is_possible(self) -> bool:
        return self._file is not None

    def get(self, key: str) -> Any:
        """The value of `key`, whatever somebody wrote there; None where there is none."""
        return self._read().get(key)

    def put(self, key: str, value: object) -> None:
        """Set one value. Of two processes that do so at once one is heard."""
        if self._file is None:
            return
        table = self._read()
        table.pop(key, None)  # the newest stand last, and stay
        entries = [*table.items(), (key, value)][-MAX_ENTRIES:]
        try:
            files.write_atomically(self._file, json.dumps(dict(entries)).encode())
        except OSError as exc:
            logger.debug("`%s` cannot be written: %s", self._file, exc.strerror)

    def _read(self) -> dict[str, Any]:
        if self._file is None:
            return {}
        try:
            with self._file.open("rb") as file:
                table = json.loads(file.read(MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return table if isinstance(table, dict) else {}
