"""Draws a line that is being typed: where its rows break on a terminal of some width, and where the cursor stands."""

from collections.abc import Callable
from dataclasses import dataclass
from os import terminal_size
from typing import TextIO

from shimmy.commands.terminal.screen_text import character_width, safe, width

_TAB = "    "


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of a text on the screen, and the cursor's row and column."""

    rows: tuple[str, ...]
    row: int
    column: int


def lay_out(prompt: str, continuation: str, text: str, cursor: int, n_columns: int) -> Layout:
    """`prompt` stands before the first line of `text`, `continuation` before the others. No row is longer than
    `n_columns`; the cursor never stands behind the last column."""
    rows, column = [prompt], width(prompt)
    place = None
    for index, character in enumerate(text):
        if index == cursor:
            place = (len(rows) - 1, column)
        if character == "\n":
            rows.append(continuation)
            column = width(continuation)
            continue
        shown = _TAB if character == "\t" else safe(character)
        n = len(_TAB) if character == "\t" else sum(map(character_width, shown))
        if column + n > n_columns:
            rows.append("")
            column = 0
            place = (len(rows) - 1, 0) if index == cursor else place
        rows[-1] += shown
        column += n
    row, column = place or (len(rows) - 1, column)
    if column >= n_columns:
        row, column = row + 1, 0
        if row == len(rows):
            rows.append("")
    return Layout(tuple(rows), row, column)


class LineScreen:
    """The rows that were drawn last; whatever stood above them stays."""

    def __init__(self, out: TextIO, size: Callable[[], terminal_size]) -> None:
        self._out = out
        self._size = size
        self._row = 0  # of the cursor, from the first drawn row
        self._below = 0  # rows below it

    def draw(self, prompt: str, continuation: str, text: str, cursor: int) -> None:
        """Draw in place of what was drawn before. Of a text that is higher than the screen the part with the cursor."""
        n_columns, n_lines = self._size()
        layout = lay_out(prompt, continuation, text, cursor, max(n_columns, 2))
        first = max(0, min(layout.row - n_lines // 2, len(layout.rows) - n_lines)) if len(layout.rows) > n_lines else 0
        rows = layout.rows[first : first + max(n_lines, 1)]
        row = layout.row - first
        below = len(rows) - 1 - row
        parts = ["\r", _up(self._row), "\x1b[J", "\r\n".join(rows), _up(below), "\r", _right(layout.column)]
        self._write("".join(parts))
        self._row, self._below = row, below

    def leave(self) -> None:
        """Go to a new line below; what was drawn stays."""
        self._write(_down(self._below) + "\r\n")
        self._row = self._below = 0

    def clear(self) -> None:
        """Clear the whole screen."""
        self._write("\x1b[H\x1b[2J")
        self._row = self._below = 0

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _up(n_rows: int) -> str:
    return f"\x1b[{n_rows}A" if n_rows else ""


def _down(n_rows: int) -> str:
    return f"\x1b[{n_rows}B" if n_rows else ""


def _right(n_columns: int) -> str:
    return f"\x1b[{n_columns}C" if n_columns else ""
