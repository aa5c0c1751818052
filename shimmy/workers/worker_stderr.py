"""What a worker process writes to its stderr: passed on to our log line by line, and the last of it kept.

A process that is ended by its C library, the dynamic linker or the engine says why there and nowhere else. Reading it
here also means that no worker ever waits for who reads our own log. Knows lines and pipes; nothing of workers.
"""

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, cast

from shimmy import log

if TYPE_CHECKING:
    import subprocess

_MAX_LINE_BYTES = 16 * 1024
_MAX_LINES_AT_ONCE = 200  # of more than that, those in the middle are dropped
_MUCH_BYTES = 32 * 1024  # after so many at once the writer has to wait for a moment
_PAUSE_S = 0.05
_N_KEPT = 3
_LAST_LINES_S = 0.5


class WorkerStderr(asyncio.Protocol):
    """Reads until the writer has ended, or `close`."""

    def __init__(self) -> None:
        self._unfinished = b""
        self._last: deque[str] = deque(maxlen=_N_KEPT)
        self._transport: asyncio.ReadTransport | None = None
        self._ended = asyncio.Event()

    @classmethod
    async def of(cls, child: "subprocess.Popen[bytes]") -> "WorkerStderr":
        """That of `child`, whose pipe it closes in the end."""
        stderr = cls()
        await asyncio.get_running_loop().connect_read_pipe(lambda: stderr, child.stderr)
        return stderr

    async def last_words(self) -> str:
        """The last lines that are no records of a log, once the writer has ended or took too long; may be empty."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), _LAST_LINES_S)
        return "; ".join(self._last)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.ReadTransport", transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        if len(self._unfinished) > _MAX_LINE_BYTES:
            lines.append(self._unfinished)
            self._unfinished = b""
        if len(lines) > _MAX_LINES_AT_ONCE:
            half = _MAX_LINES_AT_ONCE // 2
            log.note_dropped(len(lines) - 2 * half)
            lines = lines[:half] + lines[-half:]
        for line in lines:
            self._take(line)
        if len(data) > _MUCH_BYTES and self._transport is not None:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(_PAUSE_S, self._go_on)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._take(self._unfinished)
        self._transport = None
        self._ended.set()

    def _go_on(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def _take(self, line: bytes) -> None:
        text = line[:_MAX_LINE_BYTES].decode("utf-8", "replace").rstrip()
        if text and not log.pass_on(text) and not text.startswith(" "):  # what is indented explains a line before it
            self._last.append(text)
