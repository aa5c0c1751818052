"""The library of one of the engine's backends, as a file that the dynamic loader can open.

In a source tree it is a file of the build cache. The frozen file has it inside, and it is unpacked into the user's
cache folder once a machine, where later workers find it and verify it. Without a place for that it lies in memory.
Knows files; nothing of what a backend does.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from shimmy.engine.llama.unpack_libraries import decompressed, in_memory
from shimmy.errors import ModelUnavailable
from shimmy.system import files, unpacked_folder
from shimmy.system.backends import Backend
from shimmy.system.private_folder import Worthless, make_private, open_own

_XZ = ".xz"

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def path(backend: Backend, cache_dir: Path | None) -> Iterator[str]:
    """What the loader can open, in this block. Raises ModelUnavailable."""
    if (built := backend.built()) is not None:
        yield str(built)
        return
    with _verified(backend, _digest(backend), cache_dir) as name:
        yield name


@contextlib.contextmanager
def _verified(backend: Backend, digest: str, cache_dir: Path | None) -> Iterator[str]:
    """The library with this SHA-256 (hexadecimal), from the cache folder or out of the program's file."""
    name = f"{Path(backend.library).stem}-{digest[:16]}"
    place = None if cache_dir is None else cache_dir / backend.folder / f"{name}.so"
    descriptor = None if place is None else _opened(place, digest)
    if descriptor is None:
        logger.info("unpacking the engine's %s", backend.name)
        data = _content(backend)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ModelUnavailable(unpacked_folder.DAMAGED)
        if place is not None and _is_kept(place, data):
            descriptor = _opened(place, digest)
    if descriptor is not None:
        try:
            yield f"{files.OPEN_FILES}/{descriptor}"  # the very file that was verified, which others may remove
        finally:
            os.close(descriptor)
        return
    try:
        with in_memory(name, data) as in_memory_path:
            yield in_memory_path
    except OSError as exc:
        raise ModelUnavailable(f"the engine's {backend.name} cannot be unpacked: {exc.strerror}") from exc


def _digest(backend: Backend) -> str:
    text = _part(backend, backend.digest).split()
    return text[0].decode(errors="replace") if text else ""


def _content(backend: Backend) -> bytes:
    packed = _part(backend, backend.archive)
    if not backend.archive.endswith(_XZ):
        return packed
    return decompressed(packed)


def _part(backend: Backend, name: str) -> bytes:
    """Not by way of the folder of the unpacked program, which may lie in memory."""
    try:
        return unpacked_folder.content(name)
    except OSError as exc:
        raise ModelUnavailable(f"the engine's {backend.name} cannot be unpacked: {exc.strerror}") from exc


def _opened(place: Path, digest: str) -> int | None:
    """A descriptor of the file, where it is this user's and has this digest."""
    with contextlib.suppress(OSError, Worthless), open_own(place) as file:
        is_usable = files.OPEN_FILES.is_dir() and not _is_noexec(place.parent)
        if is_usable and hashlib.file_digest(file, "sha256").hexdigest() == digest:
            return os.dup(file.fileno())
    return None


def _is_kept(place: Path, data: bytes) -> bool:
    """Write the library to `place`, and remove those of other versions; False where that cannot be."""
    try:
        make_private(place.parent)
        if not files.OPEN_FILES.is_dir() or _is_noexec(place.parent):
            return False
        files.write_atomically(place, data)
        place.chmod(0o700)
    except OSError as exc:
        logger.debug("`%s` is not kept in `%s`: %s", place.name, place.parent, exc.strerror)
        return False
    for other in place.parent.glob("libggml-*.so"):
        if other != place:
            with contextlib.suppress(OSError):
                other.unlink()
    return True


def _is_noexec(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
