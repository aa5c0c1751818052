"""The cache of what was converted: one file for each state of its sources, made once, whoever wants it first.

Knows files, locks and disks, and nothing of what is in them. What is half done is never seen: a file is written as
`*.part` and renamed. That file is also the lock, so that of several processes that want the same one makes it and the
others wait for it, and a killed one leaves nothing that looks finished.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf.reader import InvalidGguf, read_header
from shimmy.system import files

_POLL_S = 0.1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

LOSSLESS = ".lossless"  # behind the name of a file in the making: what it is made of; the lock of one is that of both
UNFINISHED = "shimmy-convert-"  # how a folder begins in which a file becomes whole beside its place; not searched

Progress = Callable[[float], None]  # called with the share that is done, 0 to 1
Write = Callable[[Path], None]  # fills the empty file of this path
Source = tuple[str, int, int, int]  # name, size and times


@dataclass(frozen=True, slots=True)
class Converted:
    """A finished GGUF, in the cache or, where nothing can be written, in memory."""

    path: Path
    descriptor: int | None = (
        None  # of the memory behind `path`; open for as long as `path` is needed, the caller closes it
    )


def sources(folder: Path, paths: Iterable[Path]) -> list[Source]:
    """What tells one state of these files of `folder` from another. A link to nothing is no file."""
    found = []
    for path in sorted(paths):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        # The time of the last change of the inode tells apart what was unpacked with one time for all.
        found.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return found


def version(found: list[Source]) -> tuple[int, int]:
    """A number that is another one when a source has changed, and the time of the newest source in nanoseconds."""
    digest = hashlib.sha256(json.dumps(found).encode()).digest()
    return int.from_bytes(digest[:8], "little"), max((modified_ns for _, _, modified_ns, _ in found), default=0)


def name(folder: Path, kind: str, *key: Any) -> str:
    """The file's name: of the folder's place, of what is made of it, then of all that it depends on.

    `kind` has no hyphen. A new file of one place and kind takes the place of the old one.
    """
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    return f"{place}-{kind}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]}.gguf"


def is_finished(target: Path) -> bool:
    """Whether the file is there and whole: after a power failure a renamed file may have lost its end."""
    try:
        read_header(target)
    except (OSError, InvalidGguf):
        return False
    return True


def make(target: Path | None, size_bytes: int, write: Write, on_progress: Progress) -> Converted:
    """The file `target` of about `size_bytes`, made now, or by another process meanwhile.

    Where it cannot be written, or is None, the file is made in memory (Linux only). Raises what `write` raises, and
    Unconvertible when there is no room.
    """
    if target is None or not _is_writable(target.parent):
        made = in_memory(write)
    else:
        _forget_unfinished(target.parent)
        with part_of(target, size_bytes, on_progress, lambda: is_finished(target)) as part:
            if part is not None:
                write(part)
        _forget_others(target)
        made = Converted(target)
    on_progress(1.0)
    return made


@contextlib.contextmanager
def part_of(
    target: Path, size_bytes: int, on_progress: Progress, is_done: Callable[[], bool] = lambda: False
) -> Iterator[Path | None]:
    """An empty file that becomes `target`, for this process alone; None when another one has done it meanwhile."""
    part = target.with_name(f"{target.name}.part")
    lock = _lock(part, size_bytes, on_progress, is_done)
    if lock is None:
        yield None
        return
    with lock:
        try:
            if shutil.disk_usage(part.parent).free < size_bytes:
                raise _no_room(part.parent, size_bytes)
            yield part
            part.replace(target)
        except BaseException as exc:
            part.unlink(missing_ok=True)
            if isinstance(exc, OSError) and exc.errno in _NO_ROOM:
                raise _no_room(part.parent, size_bytes) from exc
            raise


def in_memory(write: Write) -> Converted:
    """A file that is nowhere; raises Unconvertible where the system has none."""
    descriptor = files.in_memory("shimmy")
    if descriptor is None:
        raise Unconvertible("its GGUF has no place: the cache folder cannot be written")
    path = files.OPEN_FILES / str(descriptor)
    try:
        write(path)
    except BaseException:
        os.close(descriptor)
        raise
    return Converted(path, descriptor)


def is_in_memory(path: Path) -> bool:
    """Whether `path` is one of those that `in_memory` fills."""
    return path.parent == files.OPEN_FILES


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _forget_others(target: Path) -> None:
    """Remove what was made of the same folder before it changed; who has it open keeps it."""
    place, kind, _ = target.name.split("-", 2)
    for other in target.parent.glob(f"{place}-{kind}-*.gguf"):
        if other != target:
            with contextlib.suppress(OSError):
                other.unlink()


def _forget_unfinished(folder: Path) -> None:
    """Remove what killed processes have left: it may be as large as the models, and is never gone on with."""
    for part in folder.glob("*-*-*.gguf.part"):
        with contextlib.suppress(OSError), FileIO(part, "r+") as file:
            if _try_lock(file) and _is_at(part, file):
                part.with_name(f"{part.name}{LOSSLESS}").unlink(missing_ok=True)
                part.unlink()


def _lock(part: Path, size_bytes: int, on_progress: Progress, is_done: Callable[[], bool]) -> FileIO | None:
    """`part`, emptied and locked until it is closed. While another process has it, its size tells how far it is."""
    while not is_done():
        file = FileIO(part, "a")
        try:
            while not _try_lock(file):
                on_progress(min(0.99, os.fstat(file.fileno()).st_size / max(1, size_bytes)))
                time.sleep(_POLL_S)
            if _is_at(part, file):
                if is_done():
                    part.unlink()
                else:
                    file.truncate(0)  # what a killed process has left
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # it was renamed or removed by the one that had it before
    return None


def _try_lock(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _no_room(folder: Path, size_bytes: int) -> Unconvertible:
    if folder.name.startswith(UNFINISHED):  # is gone when the message is read
        folder = folder.parent
    return Unconvertible(
        f"its GGUF needs {size_bytes / 1e9:.1f} GB in `{folder}`, and there is no room for it: "
        "make room there, or choose a folder on a larger disk"
    )
