"""What was typed before, kept in a file that only its user can read, one JSON string a line."""

import contextlib
import json
import os
from pathlib import Path

from shimmy.system.files import write_atomically
from shimmy.system.private_folder import Worthless, create_private, make_private, open_own

MOST_ENTRIES = 1000
_MOST_BYTES = 1 << 20
_LONGEST = 1 << 14  # characters; a longer text is not remembered


def history_file() -> Path | None:
    """None where there is no home folder."""
    try:
        state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    except RuntimeError:
        return None
    return state / "shimmy" / "history" if state.is_absolute() else None


class InputHistory:
    """`entries`, the newest last. Without a file, or where it cannot be used, they end with the program."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.entries: list[str] = []
        if path is None:
            return
        try:
            make_private(path.parent)
            with open_own(path) as file:
                data = file.read()
        except FileNotFoundError:
            return
        except (OSError, Worthless):
            self._path = None
            return
        self.entries = [entry for line in data[-_MOST_BYTES:].splitlines() if (entry := _entry(line))][-MOST_ENTRIES:]
        if len(data) > _MOST_BYTES:
            self._shorten()

    def add(self, text: str) -> None:
        """Remember a text; the same one twice in a row is remembered once."""
        if not text.strip() or len(text) > _LONGEST or self.entries[-1:] == [text]:
            return
        self.entries.append(text)
        if self._path is None:
            return
        try:
            with open(self._path, "ab", opener=create_private) as file:
                file.write(_line(text))
        except OSError:
            self._path = None

    def _shorten(self) -> None:
        assert self._path is not None
        with contextlib.suppress(OSError):
            write_atomically(self._path, b"".join(map(_line, self.entries)))
            self._path.chmod(0o600)


def _line(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"


def _entry(line: bytes) -> str:
    """Empty for a line that is none of ours."""
    try:
        text = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return text if isinstance(text, str) else ""
