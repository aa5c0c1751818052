"""What a stream is: whether a person reads it, how long its lines may be, whether it wants colours; and the few colours
that there are."""

import os
from typing import TextIO

_BOLD, _DIM, _ITALIC, _RED, _GREEN, _YELLOW, _CYAN = 1, 2, 3, 31, 32, 33, 36
_COLUMNS, _LEAST_COLUMNS = 80, 2  # where the terminal does not say; whatever it says


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person reads this stream (or types into it)."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def line_columns(stream: TextIO) -> int:
    """How long a line on this terminal may be: a column less than there are, as terminals differ in what they do at the
    last."""
    try:
        n_columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # none, in memory, closed
        n_columns = 0
    return max(n_columns or _COLUMNS, _LEAST_COLUMNS) - 1


class Style:
    """Puts text into colours where `stream` is a terminal that has them, and the person did not set NO_COLOR."""

    def __init__(self, stream: TextIO | None) -> None:
        is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
        self.is_on = is_terminal(stream) and not is_plain

    def bold(self, text: str) -> str:
        return self._in(_BOLD, text)

    def dim(self, text: str) -> str:
        return self._in(_DIM, text)

    def italic(self, text: str) -> str:
        return self._in(_ITALIC, text)

    def code(self, text: str) -> str:
        return self._in(_CYAN, text)

    def good(self, text: str) -> str:
        return self._in(_GREEN, text)

    def warning(self, text: str) -> str:
        return self._in(_YELLOW, text)

    def bad(self, text: str) -> str:
        return self._in(_RED, text)

    def _in(self, code: int, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.is_on and text else text
