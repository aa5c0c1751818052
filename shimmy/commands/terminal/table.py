"""Rows below the names of their columns; where a line has no room for all of them, those that matter least make way.

Knows the columns that a text takes; nothing of what stands in the rows.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shimmy.commands.terminal.screen_text import safe_line, width

_GAP, _INDENT = "  ", "  "

Paint = Callable[[str, str], str]  # a column and the text of a cell, to that text in its colour


@dataclass(frozen=True, slots=True)
class Table:
    """What it shows, and what of that matters least."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = ()  # columns that end at their right edge
    spare: Sequence[str] = ()  # columns that may be left out, the first one first
    remark: str = ""  # the last column, of sentences: they may stand below their rows


def drawn(table: Table, n_columns: int | None, paint_head: Paint, paint: Paint) -> tuple[list[str], list[str]]:
    """Its lines, and which columns have no room in lines of `n_columns` (None: of any length). Columns whose cells are
    all empty are in neither. Lines are longer where the columns that stay need more."""
    cells = [[safe_line(cell) for cell in row] for row in table.rows]
    shown = [index for index in range(len(table.head)) if not cells or any(row[index] for row in cells)]
    widths = [max(width(row[index]) for row in [table.head, *cells]) for index in range(len(table.head))]

    def is_too_wide() -> bool:
        n_taken = sum(widths[index] for index in shown) + len(_GAP) * (len(shown) - 1)
        return n_columns is not None and n_taken > n_columns

    def line(row: Sequence[str], paint: Paint) -> str:
        parts = []
        for index in shown:
            name, text = table.head[index], row[index]
            blank = " " * (widths[index] - width(text))
            text = paint(name, text)
            parts.append(blank + text if name in table.numbers else text + ("" if index == shown[-1] else blank))
        return _GAP.join(parts).rstrip()

    below = None
    if is_too_wide() and table.remark in (table.head[index] for index in shown):
        below = shown.pop()
    left_out = []
    for name in table.spare:
        index = table.head.index(name)
        if is_too_wide() and index in shown:
            shown.remove(index)
            left_out.append(name)
    lines = [line(table.head, paint_head)]
    for row in cells:
        lines.append(line(row, paint))
        if below is not None and n_columns is not None:
            room = max(n_columns - len(_INDENT), 1)
            lines += [_INDENT + paint(table.remark, part) for part in textwrap.wrap(row[below], room)]
    return lines, left_out
