"""The library of the Vulkan backend, as a file that the dynamic loader can open.

In a source tree it is a file of the build cache. The frozen file has it packed, and it is unpacked into the user's
cache folder once a machine, where later workers find it and verify it. Without a place for 46 MB of code it lies in
memory. Knows files; nothing of Vulkan.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from shimmy.engine.llama.unpack_libraries import decompressed, in_memory
from shimmy.errors import ModelUnavailable
from shimmy.system import files, vulkan_archive
from shimmy.system.private_folder import Worthless, make_private, open_own
from shimmy.system.unpacked_folder import DAMAGED

FOLDER = "vulkan"  # in the cache folder
_STEM = "libggml-vulkan-"

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def path(cache_dir: Path | None) -> Iterator[str]:
    """What the loader can open, in this block. Raises ModelUnavailable."""
    if (built := vulkan_archive.built()) is not None:
        yield str(built)
        return
    try:
        archive, digest = vulkan_archive.packed()
    except OSError as exc:
        raise ModelUnavailable(f"the engine's Vulkan cannot be unpacked: {exc.strerror}") from exc
    with _verified(archive, digest, cache_dir) as name:
        yield name


@contextlib.contextmanager
def _verified(archive: Path, digest: str, cache_dir: Path | None) -> Iterator[str]:
    """The library with this SHA-256 (hexadecimal), from the cache folder or out of the `archive`."""
    place = None if cache_dir is None else cache_dir / FOLDER / f"{_STEM}{digest[:16]}.so"
    descriptor = None if place is None else _opened(place, digest)
    if descriptor is None:
        data = decompressed(archive)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ModelUnavailable(DAMAGED)
        if place is not None and _is_kept(place, data):
            descriptor = _opened(place, digest)
    if descriptor is not None:
        try:
            yield f"{files.OPEN_FILES}/{descriptor}"  # the very file that was verified, which others may remove
        finally:
            os.close(descriptor)
        return
    try:
        with in_memory(f"{_STEM}{digest[:16]}", data) as name:
            yield name
    except OSError as exc:
        raise ModelUnavailable(f"the engine's Vulkan cannot be unpacked: {exc.strerror}") from exc


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
        logger.debug("the library of Vulkan is not kept in `%s`: %s", place.parent, exc.strerror)
        return False
    for other in place.parent.glob(f"{_STEM}*.so"):
        if other != place:
            with contextlib.suppress(OSError):
                other.unlink()
    return True


def _is_noexec(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
