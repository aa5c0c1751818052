"""Files that others may change meanwhile: written so that a reader sees the old or the new content, never a part, and
opened only where they are regular files. Also: locks between processes, and files in memory, which have no name on a
disk.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

# Where a process finds what it has open by the number of its descriptor.
OPEN_FILES = Path("/proc/self/fd")


class NotRegular(OSError):
    """The path leads to a folder, a FIFO, a device or the like."""


def open_regular(path: Path) -> FileIO:
    """`path`, opened for reading; raises NotRegular, and OSError when it cannot be opened.

    Opening a FIFO would wait for its writer: the file is looked at first, and one that is exchanged in that moment for
    a FIFO reads as empty.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise NotRegular("it is not a regular file")
    return FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_start(path: Path, max_bytes: int) -> bytes:
    """At most the first `max_bytes` of a regular file; raises what `open_regular` does."""
    with open_regular(path) as file:
        return file.read(max_bytes)


@contextlib.contextmanager
def locked(path: Path, operation: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold the lock `path`, which is made with its folder if there is none; `operation` is flock's. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def in_memory(name: str) -> int | None:
    """The descriptor of an empty file that is in memory alone, and in OPEN_FILES. None where there is no such thing:
    on kernels before 3.17, or without /proc. `name` is for a person who looks at the process.
    """
    if hasattr(os, "memfd_create") and OPEN_FILES.is_dir():
        with contextlib.suppress(OSError):
            return os.memfd_create(name)
    return None


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data`, or its pieces, to `path`, whose folder is made if there is none; raises OSError, and then leaves
    nothing behind.

    Of two processes that write at once, one wins.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.writelines((data,) if isinstance(data, bytes) else data)
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
