"""Weights that clients have sent, kept on the disk by the hash that they gave them, so that they travel once.

Knows files; nothing of connections. The disk is touched on threads alone, and what is large goes in pieces: an event
loop goes on meanwhile, and who is cancelled leaves no more than a piece to be done. A file ends with a BLAKE2b of what
is before it: one that was cut off or damaged is removed, and never used. Those who have the key trust each other: the
hash itself (FNV-1a, ggml's) keeps nobody from making two tensors with one hash.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import BinaryIO, TypeVar

from shimmy.background import in_thread
from shimmy.system.private_folder import make_private

_DIGEST_BYTES = 32
_PIECE_BYTES = 1 << 20
_PART = ".part"

Step = TypeVar("Step")

logger = logging.getLogger(__name__)


class TensorStore:
    """A folder of ours alone, whose files together stay below `max_bytes`. Raises OSError where there can be none."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        make_private(folder)
        self._folder = folder
        self._max_bytes = max_bytes
        for unfinished in folder.glob(f"*{_PART}"):
            unfinished.unlink(missing_ok=True)

    async def find(self, hash_: int, max_bytes: int) -> tuple[int, AsyncIterator[bytes]] | None:
        """The size of what has this hash, and its bytes in pieces; None where there is nothing whole up to `max_bytes`.

        It is read twice, first to verify it: an engine that has begun to take it cannot give it back.
        """
        path, size = self._path(hash_), 0
        async for n_bytes in _on_thread(_verified(path, max_bytes)):
            size += n_bytes
        return (size, _on_thread(_read(path, size))) if size else None

    async def begin(self, hash_: int, size: int) -> "KeptTensor | None":
        """Keep what comes now; None where it has no room, or no file can be made."""
        if size + _DIGEST_BYTES > self._max_bytes:
            return None
        return await in_thread(self._begin, hash_, size)

    def _begin(self, hash_: int, size: int) -> "KeptTensor | None":
        path = self._path(hash_)
        try:
            return KeptTensor(path, path.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}{_PART}"), size, self._trim)
        except OSError as exc:
            logger.warning("weights are not kept in `%s`: %s", self._folder, exc.strerror)
            return None

    def _path(self, hash_: int) -> Path:
        return self._folder / f"{hash_:016x}"

    def _trim(self) -> None:
        """Remove the least recently used, until all that stay have room."""
        files = []
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        left = sum(size for _, size, _ in files) - self._max_bytes
        for _, size, path in sorted(files):
            if left <= 0:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                left -= size


class KeptTensor:
    """A tensor on its way to the disk. A disk that is full costs it and nothing else.

    Whoever is cancelled in the midst of `add` or `finish` still calls `drop`, which waits for the thread of those.
    """

    def __init__(self, path: Path, part: Path, size: int, on_finish: Callable[[], None]) -> None:
        self._path, self._part, self._left = path, part, size
        self._on_finish = on_finish
        self._digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self._file: BinaryIO | None = part.open("xb")
        self._lock = Lock()  # only threads wait for it

    async def add(self, data: bytes) -> None:
        await in_thread(self._add, data)

    async def finish(self) -> None:
        """All of it is here."""
        await in_thread(self._finish)

    async def drop(self) -> None:
        """The rest does not come."""
        await in_thread(self._drop)

    def _add(self, data: bytes) -> None:
        with self._lock:
            if self._file is None:
                return
            self._digest.update(data)
            self._left -= len(data)
            try:
                self._file.write(data)
            except OSError as exc:
                self._fail(exc)

    def _finish(self) -> None:
        with self._lock:
            if self._file is None:
                return
            try:
                if self._left:
                    raise OSError(0, "not all of them came")
                self._file.write(self._digest.digest())
                self._file.close()
                self._part.rename(self._path)
            except OSError as exc:
                self._fail(exc)
                return
            self._file = None
            self._on_finish()

    def _drop(self) -> None:
        with self._lock:
            self._remove()

    def _fail(self, error: OSError) -> None:
        logger.warning("weights are not kept in `%s`: %s", self._path.parent, error.strerror)
        self._remove()

    def _remove(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._part.unlink()
            self._file = None


async def _on_thread(steps: Iterator[Step]) -> AsyncIterator[Step]:
    """What `steps` makes, each on a thread."""
    end = object()
    while (step := await in_thread(next, steps, end)) is not end:
        yield step  # type: ignore[misc]


def _verified(path: Path, max_bytes: int) -> Iterator[int]:
    """Zero for each piece that is looked at, and then the size of what is whole, if it is no more than `max_bytes`."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
            if not 0 < size <= max_bytes:
                return
            digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
            for piece in _pieces(file, size):
                digest.update(piece)
                yield 0
            if file.read(_DIGEST_BYTES + 1) != digest.digest():
                raise OSError(0, "it is damaged")
        os.utime(path)  # the least recently used go first
    except FileNotFoundError:
        return
    except OSError as exc:
        logger.warning("weights in `%s` are not used: %s", path, exc.strerror)
        with contextlib.suppress(OSError):
            path.unlink()
        return
    yield size


def _read(path: Path, size: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from _pieces(file, size)
    except OSError:
        return


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size and (piece := file.read(min(size, _PIECE_BYTES))):
        size -= len(piece)
        yield piece
