"""A file that is being fetched in pieces: the bytes that are there, in a part file and a journal of its extents.

Both lie beside the place of the finished file, under names that discovery takes for no model. The journal has a line
for what the file is to be, then one for each extent that was written: `START LENGTH`. Knows no network.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Self

from shimmy.errors import PullFailed
from shimmy.system.files import read_start

PART, JOURNAL = ".shimmy.incomplete", ".shimmy.extents"
_MAX_JOURNAL_BYTES = 1 << 24

Extent = tuple[int, int]  # the first byte, and the one behind the last


class PartFile:
    """Used from any thread but for `finish` and `restart`. Close it, in whatever state it is: what is there is kept."""

    def __init__(self, target: Path, identity: str, size_bytes: int | None) -> None:
        """`identity` is another one where the content may be another: what is there is then of no use. Nor is it
        where the size is None."""
        self.target = target
        self._part = target.with_name(target.name + PART)
        self._journal = target.with_name(target.name + JOURNAL)
        self._head = f"{size_bytes} {identity}\n".encode()
        self._lock = Lock()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.extents: list[Extent] = self._known(size_bytes) if size_bytes else []
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if self.extents else os.O_TRUNC)
        self._fd = os.open(self._part, flags, 0o666)
        self._log = os.open(self._journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        if not self.extents:
            self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        os.close(self._log)

    @property
    def n_there(self) -> int:
        return sum(end - start for start, end in self.extents)

    def missing(self, size_bytes: int) -> Iterator[Extent]:
        """What is still to be fetched, in order."""
        at = 0
        for start, end in self.extents:
            if start > at:
                yield at, start
            at = max(at, end)
        if at < size_bytes:
            yield at, size_bytes

    def write(self, data: memoryview, at: int) -> None:
        """Raises PullFailed where the disk is full."""
        while data:
            try:
                n_written = os.pwrite(self._fd, data, at)
            except OSError as exc:
                raise _failed(self.target, exc) from exc
            data, at = data[n_written:], at + n_written

    def note(self, start: int, end: int) -> None:
        """These bytes are written."""
        if end > start:
            with self._lock:
                os.write(self._log, b"%d %d\n" % (start, end - start))

    def read(self, buffer: memoryview, at: int) -> int:
        return os.preadv(self._fd, [buffer], at)

    def begin_flush(self, start: int, end: int) -> None:
        """Have the disk write these bytes already, so that `finish` waits for less: Linux begins to write pages that it
        is told to forget, and forgets those alone that are written."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._fd, start, end - start, os.POSIX_FADV_DONTNEED)

    def restart(self) -> None:
        """Nothing is there."""
        self.extents = []
        try:
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._log, 0)
            os.write(self._log, self._head)
        except OSError as exc:
            raise _failed(self.target, exc) from exc

    def status(self) -> os.stat_result:
        """Size and time are those of the finished file, once all is written."""
        return os.fstat(self._fd)

    def finish(self) -> None:
        """It is whole: it gets its name."""
        try:
            os.fsync(self._fd)  # after a power cut there is no file of this name with other bytes in it
            self._part.replace(self.target)
        except OSError as exc:
            raise _failed(self.target, exc) from exc
        self._journal.unlink(missing_ok=True)

    def drop(self) -> None:
        self._part.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def _known(self, size_bytes: int) -> list[Extent]:
        """The extents of an earlier pull of the same, merged and in order."""
        try:
            n_bytes = self._part.stat().st_size
            journal = read_start(self._journal, _MAX_JOURNAL_BYTES)
        except OSError:
            return []
        head, *lines = journal.split(b"\n")[:-1]  # the last line is cut off, or empty
        if head + b"\n" != self._head:
            return []
        extents: list[Extent] = []
        for line in lines:
            with contextlib.suppress(ValueError):
                start, length = map(int, line.split())
                if start >= 0 and length > 0 and start + length <= min(size_bytes, n_bytes):
                    extents.append((start, start + length))
        return _merged(sorted(extents))


def _merged(extents: list[Extent]) -> list[Extent]:
    merged: list[Extent] = []
    for start, end in extents:
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def _failed(target: Path, exc: OSError) -> PullFailed:
    if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
        return PullFailed(f"the disk of `{target.parent}` is full: make room and pull again, what was fetched is kept")
    return PullFailed(f"`{target}` cannot be written: {exc.strerror}")
