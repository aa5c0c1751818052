"""The program in a terminal of a test's own, with what it wrote there and a hand that types."""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import IO

from tests.e2e.harness import PROGRAM, environment
from tests.e2e.processes import DEADLINE_S

CTRL_C, CTRL_D, ENTER, UP = "\x03", "\x04", "\r", "\x1b[A"
_REWRITTEN = re.compile(r"[^\n]*\r\x1b\[K")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A pseudo-terminal with the program as its only job; made by `in_terminal`."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str | Path],
        size: tuple[int, int],
        variables: dict[str, str],
        stdout: IO[bytes] | None,
    ) -> None:
        self.output = ""  # all that was written, escape sequences included
        self._seen = 0
        self._master, slave = os.openpty()
        self._slave = slave
        self.resize(size)
        self.before = termios.tcgetattr(slave)

        def own_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        # A size in the environment, which pytest's processes side by side have, goes before that of the terminal.
        kept = {name: value for name, value in environment(folder).items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=folder, env=kept | {"TERM": "xterm", **variables},
            stdin=slave, stdout=stdout or slave, stderr=slave, start_new_session=True,
            preexec_fn=own_terminal,  # noqa: PLW1509 - one system call
        )  # fmt: skip

    def resize(self, size: tuple[int, int]) -> None:
        columns, lines = size
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> str:
        """Wait until `text` comes, behind what was expected before; returns what came up to it."""
        end_s = monotonic() + DEADLINE_S
        while (at := self.output.find(text, self._seen)) < 0:
            assert monotonic() < end_s, f"no {text!r} in {self.output[self._seen :][-500:]!r}"
            self._read(0.1)
        before = self.output[self._seen : at]
        self._seen = at + len(text)
        return before

    def read_for(self, seconds: float) -> str:
        """What comes in this time."""
        end_s, start = monotonic() + seconds, len(self.output)
        while monotonic() < end_s:
            self._read(0.05)
        return self.output[start:]

    def wait(self) -> int:
        """Read to the program's end; returns its exit code."""
        end_s = monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert monotonic() < end_s, f"it does not end: {self.output[-500:]!r}"
            self._read(0.05)
        self._read(0)
        return self.process.returncode

    @property
    def mode_now(self) -> list[object]:
        return termios.tcgetattr(self._slave)

    def hang_up(self) -> None:
        """The window is closed."""
        os.close(self._slave)
        os.close(self._master)
        self._master = self._slave = -1

    def destroy(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self._master >= 0:
            self.hang_up()

    def _read(self, within_s: float) -> None:
        while select.select([self._master], [], [], within_s)[0]:
            self.output += os.read(self._master, 1 << 16).decode(errors="replace")
            within_s = 0


def plain(text: str) -> str:
    """What is left of what was written, without escape sequences, and with newlines for those of a terminal."""
    return _ESCAPES.sub("", _REWRITTEN.sub("", text)).replace("\r\n", "\n")


@contextmanager
def in_terminal(
    folder: Path,
    *arguments: str | Path,
    size: tuple[int, int] = (80, 24),
    variables: dict[str, str] | None = None,
    stdout: IO[bytes] | None = None,
) -> Iterator[Terminal]:
    """The program in a terminal of `size` (columns, lines) for the length of the block. `stdout` takes what it writes
    there, and the terminal the rest."""
    terminal = Terminal(folder, arguments, size, variables or {}, stdout)
    try:
        yield terminal
    finally:
        terminal.destroy()
