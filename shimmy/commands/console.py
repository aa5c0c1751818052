"""What commands share: their arguments, their error, tables, and progress in a terminal."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from shimmy.config import Config
from shimmy.errors import ShimmyError
from shimmy.system.frozen_program import UnpackedFolder


@dataclass(frozen=True, slots=True)
class CommandCall:
    """One run of a command: what the person typed, and what it means."""

    config: Config
    options: argparse.Namespace
    home: UnpackedFolder
    arguments: Sequence[str]  # as they were typed


class CommandFailed(ShimmyError):
    """A command cannot do what it was asked for; the message is for the person."""


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class ProgressBar:
    """A line on stderr that grows; nothing where stderr is not a terminal."""

    WIDTH = 40

    def __init__(self, label: str) -> None:
        self._label = label
        self._is_shown = sys.stderr.isatty()
        self._percent = -1

    def show(self, share: float) -> None:
        if self._is_shown and int(100 * share) != self._percent:
            self._percent = int(100 * share)
            bar = "#" * int(self.WIDTH * share)
            print(f"\r{self._label} [{bar:<{self.WIDTH}}] {self._percent:3} %", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._percent >= 0:
            print(file=sys.stderr)
