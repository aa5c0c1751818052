"""What commands share: arguments, their error, how signals end them, tables, hints, and progress in a terminal."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shimmy.config import Config
from shimmy.errors import ShimmyError
from shimmy.system.frozen_program import UnpackedFolder
from shimmy.system.signals import ignore

# What draws is imported by those who draw: a server imports this module, too.
if TYPE_CHECKING:
    from shimmy.commands.terminal.style import Style


EXIT_INTERRUPTED = 130  # 128 and SIGINT, as shells have it

# What a person may do who has none.
NO_MODEL = "There is no model. `shimmy pull OWNER/NAME` fetches one, --model-path names a file or a folder."


@dataclass(frozen=True, slots=True)
class CommandCall:
    """One run of a command: what the person typed, and what it means."""

    config: Config
    options: argparse.Namespace
    home: UnpackedFolder
    arguments: Sequence[str]  # as they were typed


class CommandFailed(ShimmyError):
    """A command cannot do what it was asked for; the message is for the person."""


def print_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    spare: Sequence[str] = (),
    remark: str = "",
    colour: "Callable[[Style, str, str], str]" = lambda _style, _column, text: text,
) -> None:
    """Print rows below the names of their columns. `numbers` are columns that end at their right edge; `colour` may
    put a cell of a column in a colour. A column whose cells are all empty is left out.

    Where a terminal is too narrow, `remark` stands below its row, and the columns of `spare` are left out one by one.
    """
    from shimmy.commands.terminal.style import Style, is_terminal, line_columns
    from shimmy.commands.terminal.table import Table, drawn

    style = Style(sys.stdout)
    n_columns = line_columns(sys.stdout) if is_terminal(sys.stdout) else None
    lines, left_out = drawn(
        Table(head, rows, numbers, spare, remark),
        n_columns,
        lambda _column, text: style.bold(text),
        lambda column, text: colour(style, column, text),
    )
    print("\n".join(lines))
    if names := ", ".join(filter(None, left_out)):
        hint(f"There is no room for {names}: a wider terminal and --json show all columns.")


def print_facts(facts: Mapping[str, str]) -> None:
    """Print what is known under a few headings, a line each; those without a text are left out."""
    from shimmy.commands.terminal.screen_text import safe_line
    from shimmy.commands.terminal.style import Style

    style = Style(sys.stdout)
    told = {name: text for name, text in facts.items() if text}
    column = max(map(len, told)) + 2
    for name, text in told.items():
        print(style.bold(name) + " " * (column - len(name)) + safe_line(text))


def hint(text: str) -> None:
    """Tell a person what may come next; programs that read our output are not told."""
    from shimmy.commands.terminal.style import Style, is_terminal

    if is_terminal(sys.stdout) and is_terminal(sys.stderr):
        print(Style(sys.stderr).dim(text), file=sys.stderr)


def is_agreed(question: str, if_nobody: str, about: Sequence[str] = ()) -> bool:
    """Whether the person at the terminal says yes, to whom the lines `about` are shown first.

    Raises CommandFailed with `if_nobody` where there is no terminal to ask.
    """
    from shimmy.commands.terminal.screen_text import safe_line
    from shimmy.commands.terminal.style import is_terminal

    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise CommandFailed(if_nobody)
    for line in about:
        print(safe_line(line), file=sys.stderr)
    print(f"{safe_line(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGTERM, and SIGHUP of a terminal that is closed, end what was begun, as the end of the block does.

    What is ignored, as SIGHUP is below `nohup`, stays so.
    """

    def leave(number: int, _frame: object) -> None:
        ignore(*numbers)  # the frozen file's outer process passes them on to one that has them
        raise SystemExit(128 + number)

    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            if signal.getsignal(number) is leave:
                signal.signal(number, handler)


class ProgressBar:
    """A line on stderr that grows; nothing where stderr is not a terminal."""

    WIDTH, LEAST_WIDTH = 40, 8

    def __init__(self, label: str) -> None:
        from shimmy.commands.terminal.live_line import LiveLine
        from shimmy.commands.terminal.screen_text import safe_line, width

        self._label = safe_line(label)
        self._n_beside = width(self._label) + len(" [] 100 %")
        self._line = LiveLine(sys.stderr)
        self._percent = -1

    def show(self, share: float) -> None:
        if not self._line.is_on or int(100 * share) == self._percent:
            return
        self._percent = int(100 * share)
        n_columns = max(self.LEAST_WIDTH, min(self.WIDTH, self._line.n_columns - self._n_beside))
        bar = "#" * int(n_columns * share)
        self._line.show(f"{self._label} [{bar:<{n_columns}}] {self._percent:3} %")

    def end(self) -> None:
        self._line.keep()
