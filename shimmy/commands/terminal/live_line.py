"""A line of a terminal that is rewritten while something goes on, no longer than the terminal is wide.

Knows its stream; nothing of what the line says.
"""

import os
from collections.abc import Callable
from typing import TextIO

from shimmy.commands.terminal.screen_text import cut, safe_line
from shimmy.commands.terminal.style import is_terminal, line_columns

_ERASE = "\r\x1b[K"


class LiveLine:
    """`is_on` says whether `stream` is a terminal that can rewrite a line: elsewhere nothing is ever written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_on = is_terminal(stream) and os.environ.get("TERM", "dumb") != "dumb"
        self._is_shown = False

    def show(self, text: str, paint: Callable[[str], str] = str) -> None:
        """`text` in place of what is shown, cut to the width there is now. `paint` may add colours."""
        if self.is_on:
            self._is_shown = True
            self._write(_ERASE + paint(cut(safe_line(text), self.n_columns)))

    def clear(self) -> None:
        """Nothing is left of the line."""
        if self._is_shown:
            self._is_shown = False
            self._write(_ERASE)

    def keep(self) -> None:
        """The line stays as it is, and what is written next stands below."""
        if self._is_shown:
            self._is_shown = False
            self._write("\n")

    @property
    def n_columns(self) -> int:
        """How long the line may be."""
        return line_columns(self._stream)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
