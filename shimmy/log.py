"""How the program logs: lines to stderr, as text for a person or as JSON for a machine. Knows no other
module but `printable`.

Who logs never waits for who reads. Behind stderr may be a pipe that nothing reads, a terminal that was stopped, a disk
that hangs: a thread of its own writes the lines, a bounded queue holds those that it has not come to, and what finds no
room there is dropped, counted, and told once lines get through again. The descriptor is shared with other processes,
so that it stays as it is, blocking or not.
"""

import contextlib
import io
import json
import logging
import os
import re
import select
import sys
import threading
from collections import deque
from time import monotonic
from typing import TextIO

from shimmy.text.plural import plural
from shimmy.text.printable import printable

_ROOM = 1 << 18  # characters that may wait
_LONGEST_LINE = 1 << 14
# The last line of a terminal is rewritten in one piece: it is erased, and does not go on in the next line.
_ERASE, _UNWRAPPED, _WRAPPED = "\r\x1b[K", "\x1b[?7l", "\x1b[?7h"
_LAST_LINES_S = 0.5  # an end waits so long for the reader
_AT_ONCE_BYTES = select.PIPE_BUF  # a pipe that can be written to takes so much without waiting


# The beginning of a line that a process of ours has made of a record, in either style.
_RECORD = re.compile(r'\d\d:\d\d:\d\d [A-Z]+ |\{"time": ')


class _TextFormatter(logging.Formatter):
    """A record begins a line; what else its message or its traceback has stands indented on lines of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        first, *others = super().format(record).split("\n")
        return "\n".join([first, *(line if line.startswith(" ") else f"  {line}" for line in others)])


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time (seconds since 1970), level, logger, message, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line).replace("\x7f", "\\u007f")  # all else that cannot be printed is escaped by JSON


class _Lines:
    """Lines on their way to `stream`. Any thread may put them; a stream without a descriptor gets them at once."""

    n_dropped = 0  # by all that there were

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        self._n_untold = 0  # lines that were dropped
        self._stream = stream
        self._formatter = formatter
        descriptor = _descriptor_of(stream)
        self._is_memory = descriptor is None
        self._descriptor = descriptor or 0
        self._waiting: deque[str] = deque()  # the first one is being written
        self._n_characters = 0
        self._changed = threading.Condition()  # of a lock that its holder may take again: a finalizer may log
        self._thread: threading.Thread | None = None
        self.has_last_line = (
            isinstance(formatter, _TextFormatter)
            and not self._is_memory
            and os.isatty(self._descriptor)
            and os.environ.get("TERM", "dumb") != "dumb"
        )
        self._last_line = ""  # below all others
        self._drawn = ""  # what stands there

    def put(self, line: str) -> None:
        """Have `line` written when it can be, with nothing in it that a terminal obeys."""
        line = _shown(line[: _LONGEST_LINE + 1])
        if len(line) > _LONGEST_LINE:
            line = f"{line[:_LONGEST_LINE]}… (cut)"
        if self._is_memory:
            self._stream.write(f"{line}\n")
            return
        with self._changed:
            if not self._has_thread():
                self._write_at_once(line)
            elif self._n_characters + len(line) > _ROOM:
                self._drop()
            else:
                self._waiting.append(line)
                self._n_characters += len(line)
                self._changed.notify_all()

    def show(self, text: str) -> None:
        """Have `text` as the last line of a terminal, below all that is written meanwhile; "" takes it away."""
        if self.has_last_line and text != self._last_line:
            with self._changed:
                if self._has_thread():
                    self._last_line = printable(text)
                    self._changed.notify_all()

    def put_foreign(self, line: str) -> None:
        """The same for a line that is no record of ours."""
        if isinstance(self._formatter, _JsonFormatter):
            line = self._formatter.format(_record(logging.ERROR, "%s", line))
        self.put(line)

    def flush(self, within_s: float) -> None:
        """Return when all is written, or the time is over."""
        end_s = monotonic() + within_s
        with self._changed:
            while (self._waiting or self._drawn != self._last_line) and (left_s := end_s - monotonic()) > 0:
                self._changed.wait(left_s)

    def start_over(self) -> None:
        """In a child that was forked: the thread is not here, and what waits is the parent's to write."""
        self._changed, self._thread, self._n_characters = threading.Condition(), None, 0
        self._waiting.clear()
        self._last_line = self._drawn = ""

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            with contextlib.suppress(RuntimeError):  # there may be no thread left for us; another line will try again
                thread.start()
                self._thread = thread
        return self._thread is not None

    def _write_at_once(self, line: str) -> None:
        if not (_has_room(self._descriptor, 0) and self._write(line[: _AT_ONCE_BYTES // 4])):
            self._drop()

    def note_dropped(self, n_lines: int) -> None:
        _Lines.n_dropped += n_lines
        self._n_untold += n_lines

    def _drop(self) -> None:
        self.note_dropped(1)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and self._drawn == self._last_line:
                    self._changed.wait()
                line, last_line = self._waiting[0] if self._waiting else None, self._last_line
            erase = _ERASE if self._drawn else ""
            if line is None:
                self._write(f"{erase}{_UNWRAPPED}{last_line}{_WRAPPED}" if last_line else erase, end="")
                self._set_drawn(last_line)
                continue
            is_written = self._write(f"{erase}{line}")
            self._set_drawn("")
            if is_written and self._n_untold:
                self._tell()
            with self._changed:
                if not is_written:
                    self._drop()
                self._waiting.popleft()
                self._n_characters -= len(line)
                self._changed.notify_all()

    def _set_drawn(self, text: str) -> None:
        with self._changed:
            self._drawn = text
            self._changed.notify_all()

    def _tell(self) -> None:
        n_untold = self._n_untold
        text = "%s of the log dropped: what reads it was too slow, or its disk was full"
        is_told = self._write(self._formatter.format(_record(logging.WARNING, text, plural(n_untold, "line"))))
        with self._changed:
            self._n_untold -= n_untold if is_told else 0

    def _write(self, line: str, end: str = "\n") -> bool:
        """Whether `line` got out; this is where the thread waits for a reader."""
        data = memoryview(f"{line}{end}".encode(errors="backslashreplace"))
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process made it so
                _has_room(self._descriptor, None)
            except OSError:
                return False
        return True


def _shown(text: str) -> str:
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def _descriptor_of(stream: TextIO) -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a test's, or one that was closed
        return stream.fileno()
    return None


def _has_room(descriptor: int, wait_ms: int | None) -> bool:
    """Whether something can be written; None waits for it."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(wait_ms))


def _record(level: int, text: str, argument: object) -> logging.LogRecord:
    return logging.LogRecord(__name__, level, __file__, 0, text, (argument,), None)


class _Handler(logging.Handler):
    """Puts every record, as a line, to those that are written."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as exc:  # noqa: BLE001 - a mistake in a message must not end what logs it
            line = f"a message of {record.pathname}:{record.lineno} cannot be written: {exc!r}"
        self.lines.put(line)

    def flush(self) -> None:
        """Called at the end of the process, too."""
        self.lines.flush(_LAST_LINES_S)


class _Stderr(io.TextIOBase):
    """What stands for `sys.stderr` in a process that must not wait: tracebacks and warnings join the lines."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        self._unfinished = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in lines:
            self._lines.put_foreign(line)
        return len(text)

    def flush(self) -> None:
        """Nothing: a line is written when it is whole, and none is waited for."""


def set_up(level: str, style: str) -> None:
    """Log from `level` on, in `style` `text` or `json`."""
    formatter = _JsonFormatter() if style == "json" else _TextFormatter()
    handler = _Handler(_Lines(sys.stderr, formatter))
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


def take_stderr() -> None:
    """From here on nothing in this process waits for the reader of stderr, whatever writes to it in Python."""
    for handler in _handlers():
        sys.stderr = _Stderr(handler.lines)


def pass_on(line: str) -> bool:
    """Have a line written that a process of ours has said; whether it is a record, which is written as it is."""
    is_record = _RECORD.match(line) is not None
    for handler in _handlers():
        put = handler.lines.put if is_record else handler.lines.put_foreign
        put(line)
    if not _handlers():
        sys.stderr.write(f"{_shown(line)}\n")
    return is_record


def has_last_line() -> bool:
    """Whether a terminal shows the log, so that its last line can be rewritten again and again."""
    return any(handler.lines.has_last_line for handler in _handlers())


def show(text: str) -> None:
    """Have `text` below the log on a terminal, until another one takes its place; "" takes it away."""
    for handler in _handlers():
        handler.lines.show(text)


def note_dropped(n_lines: int) -> None:
    """So many lines of a process of ours were too many to be passed on."""
    for handler in _handlers():
        handler.lines.note_dropped(n_lines)


def n_dropped() -> int:
    """How many lines this process has dropped."""
    return _Lines.n_dropped


def flush() -> None:
    """Before an end that skips the interpreter's: wait for the last lines, but not for long."""
    for handler in _handlers():
        handler.flush()


def _start_over() -> None:
    for handler in _handlers():
        handler.lines.start_over()


os.register_at_fork(after_in_child=_start_over)


def _handlers() -> list[_Handler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _Handler)]
