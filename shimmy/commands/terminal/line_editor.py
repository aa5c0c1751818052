"""Reads what a person types: with editing, history and pasting on a terminal that can, line by line elsewhere.

The frozen file has no readline: its library is GNU's, under a licence that would become the file's.
"""

import contextlib
import os
import shutil
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from shimmy.commands.terminal.edited_line import EditedLine
from shimmy.commands.terminal.history import InputHistory
from shimmy.commands.terminal.keys import END, PASTE, TEXT, Key, KeyReader
from shimmy.commands.terminal.line_screen import LineScreen
from shimmy.commands.terminal.style import is_terminal
from shimmy.system.signals import ignore

_CONTINUATION = "... "
_PASTES, _PASTES_NO_MORE = "\x1b[?2004h", "\x1b[?2004l"
_IN, _LOCAL, _CHARACTERS = 0, 3, 6  # places in what termios.tcgetattr returns
Complete = Callable[[str], list[str]]


class LineInput(Protocol):
    """Where lines come from."""

    def used(self) -> contextlib.AbstractContextManager[None]:
        """All reading happens within this block."""
        ...

    def read(self, prompt: str) -> str | None:
        """What was typed, without the newline at its end; None at the end of the input. Raises KeyboardInterrupt for
        Ctrl-C where nothing was typed."""
        ...

    def quiet(self) -> contextlib.AbstractContextManager[None]:
        """While the program writes: what is typed meanwhile is for the next line. Ctrl-C is a KeyboardInterrupt."""
        ...


def line_input(history: InputHistory, complete: Complete) -> LineInput:
    """An editor, if standard input and output are a terminal that can draw one."""
    can_draw = os.environ.get("TERM", "dumb") != "dumb"
    if is_terminal(sys.stdin) and is_terminal(sys.stdout) and can_draw:
        return LineEditor(history, complete)
    return PlainLines()


class PlainLines:
    """Lines as the system hands them over. The prompt goes where a person sees it, and nowhere else."""

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        interrupts = _Interrupts()
        before = signal.signal(signal.SIGINT, interrupts.take)
        try:
            yield
        finally:
            if interrupts.were_taken:  # what may still come belongs to it
                ignore(signal.SIGINT)
            else:
                signal.signal(signal.SIGINT, before)

    def read(self, prompt: str) -> str | None:
        screen = next((stream for stream in (sys.stdout, sys.stderr) if is_terminal(stream)), None)
        if screen is not None and is_terminal(sys.stdin):
            print(prompt, end="", file=screen, flush=True)
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None

    def quiet(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class _Interrupts:
    """Raises KeyboardInterrupt, once for each Ctrl-C: the frozen file's outer process gets the terminal's signal, too,
    and passes it on to the process that has it already."""

    _TWICE_S = 1.0

    def __init__(self) -> None:
        self._last_s = -self._TWICE_S
        self.were_taken = False

    def take(self, _number: int, _frame: object) -> None:
        now_s, last_s = time.monotonic(), self._last_s
        self._last_s, self.were_taken = now_s, True
        if now_s - last_s >= self._TWICE_S:
            raise KeyboardInterrupt


class LineEditor:
    """An editor on the terminal of standard input and output. `complete` lists what a text may be completed to."""

    def __init__(self, history: InputHistory, complete: Complete) -> None:
        self._history = history
        self._complete = complete
        self._descriptor = sys.stdin.fileno()
        self._reader = KeyReader(self._descriptor)
        self._keys = iter(self._reader)
        self._screen = LineScreen(sys.stdout, shutil.get_terminal_size)
        self._cut = ""

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """The terminal hands over bytes as they are typed, shows nothing of them, and makes no signals of them."""
        mode = termios.tcgetattr(self._descriptor)
        mode[_IN] &= ~(termios.ICRNL | termios.INLCR | termios.ISTRIP | termios.IXON)
        mode[_LOCAL] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        mode[_CHARACTERS][termios.VMIN], mode[_CHARACTERS][termios.VTIME] = 1, 0
        self._before = termios.tcgetattr(self._descriptor)
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, mode)
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def read(self, prompt: str) -> str | None:
        line = EditedLine(cut=self._cut)
        recall = _Recall(self._history.entries)
        sys.stdout.write(_PASTES)
        try:
            return self._edited(prompt, line, recall)
        finally:
            self._screen.leave()
            sys.stdout.write(_PASTES_NO_MORE)
            sys.stdout.flush()
            self._cut = line.cut

    def quiet(self) -> contextlib.AbstractContextManager[None]:
        return self._reader.watched()

    def _edited(self, prompt: str, line: EditedLine, recall: "_Recall") -> str | None:
        self._draw(prompt, line)
        for key in self._keys:
            if key.name == "enter":
                break
            if key.name == END or (key.name == "delete or leave" and not line.text):
                return None
            if key.name == "interrupt":
                if not line.text:
                    raise KeyboardInterrupt
                self._screen.leave()
                line.set("")
            elif key.name == "suspend":
                self._suspend()
            else:
                self._press(key, line, recall)
            if not self._reader.is_waiting:
                self._draw(prompt, line)
        line.cursor = len(line.text)
        self._draw(prompt, line)
        self._history.add(line.text)
        return line.text

    def _press(self, key: Key, line: EditedLine, recall: "_Recall") -> None:
        if key.name in (TEXT, PASTE):
            line.insert(key.text)
        elif key.name in ("up", "down"):
            by = -1 if key.name == "up" else 1
            if not line.move_line(by):
                line.set(recall.move(by, line.text))
        elif key.name == "delete or leave":
            line.press("delete")
        elif key.name == "clear screen":
            self._screen.clear()
        elif key.name == "complete":
            found = self._complete(line.text[: line.cursor])
            if found:
                start = _common_start(found)
                line.text = start + line.text[line.cursor :]
                line.cursor = len(start)
        else:
            line.press(key.name)

    def _draw(self, prompt: str, line: EditedLine) -> None:
        self._screen.draw(prompt, _CONTINUATION, line.text, line.cursor)

    def _suspend(self) -> None:
        """Ctrl-Z: hand the terminal back to the shell as it was, until the person comes back."""
        self._screen.leave()
        sys.stdout.write(_PASTES_NO_MORE)
        sys.stdout.flush()
        mine = termios.tcgetattr(self._descriptor)
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)
        os.kill(0, signal.SIGTSTP)  # all of the job, as the terminal would
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, mine)
        sys.stdout.write(_PASTES)


class _Recall:
    """Goes back and forth in the history; what was being typed is its end."""

    def __init__(self, entries: list[str]) -> None:
        self._entries = entries
        self._place = len(entries)
        self._typed = ""

    def move(self, by: int, text: str) -> str:
        if self._place == len(self._entries):
            self._typed = text
        place = self._place + by
        if not 0 <= place <= len(self._entries):
            return text
        self._place = place
        return self._typed if place == len(self._entries) else self._entries[place]


def _common_start(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    n = next((index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:n]
