"""The engine's libraries in the frozen file, which carries them packed and unpacks them when a worker needs them.

The unpacked libraries lie beside the packed ones, for every worker of the server, in the folder that is removed when
the server ends. In a source tree nothing is packed. Also: a shared library that is loaded without a file.
"""

import contextlib
import lzma
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

from shimmy.errors import ModelUnavailable
from shimmy.system import files, unpacked_folder

GRAMMAR_ARCHIVE = "llguidance.xz"
NUMPY_ARCHIVE = "numpy.xz"
LOOPS_ARCHIVE = "weight-loops.xz"
LOOPS_LIBRARY = "libshimmy-weight-loops.so"  # what is packed in it; in a source tree, in the environment's `lib`
ENGINE_FOLDER = Path("llama_cpp", "lib")  # in the folder of the unpacked program
_SUFFIX = ".z"
_XZ = b"\xfd7zXZ\0"  # how an archive of xz begins (xz-file-format.txt, 2.1.1.1)

_n_loaded = count()
_locks: dict[Path, threading.Lock] = {}  # of the files that are being unpacked, or have been


def unpack(folder: Path) -> None:
    """Make `name` of each `name.z` in `folder`; raises ModelUnavailable where that cannot be written."""
    bring_archives(folder)
    for archive in folder.glob(f"*{_SUFFIX}"):
        unpacked(archive.with_suffix(""), partial(_content, archive))


def _content(archive: Path) -> bytes:
    return decompressed(archive.read_bytes())


def bring_archives(folder: Path) -> None:
    """Let the frozen file's archives be in `folder`; raises ModelUnavailable where they cannot be written."""
    try:
        unpacked_folder.parts(f"{ENGINE_FOLDER}/")
    except OSError as exc:
        raise ModelUnavailable(f"the engine cannot be unpacked to `{folder}`: {exc.strerror}") from exc


def unpacked(path: Path, content: Callable[[], bytes]) -> Path:
    """`path`, written with what `content` gives unless it is there; raises ModelUnavailable where that fails.

    Threads wait for each other; of two processes each may write it, and either file will do.
    """
    with _locks.setdefault(path, threading.Lock()):
        if not path.exists():
            try:
                unpacked_folder.put(path, content())
            except OSError as exc:
                raise ModelUnavailable(f"the engine cannot be unpacked to `{path.parent}`: {exc.strerror}") from exc
        return path


def part_content(name: str) -> bytes:
    """What is in an archive among the parts of the frozen file; raises ModelUnavailable."""
    try:
        archive = unpacked_folder.part(name)
    except OSError as exc:
        raise ModelUnavailable(str(exc.strerror)) from exc  # which is told for a person
    try:
        packed = archive.read_bytes()
    except OSError as exc:
        raise ModelUnavailable(f"the program's `{archive}` cannot be read: {exc.strerror}") from exc
    return decompressed(packed)


def decompressed(packed: bytes) -> bytes:
    """What is in an archive of the frozen file, of xz or zlib; raises ModelUnavailable where that is damaged."""
    with telling_damage():
        return lzma.decompress(packed) if packed.startswith(_XZ) else zlib.decompress(packed)


@contextlib.contextmanager
def telling_damage() -> Iterator[None]:
    """Raise ModelUnavailable where what is decompressed in this block proves to be damaged."""
    try:
        yield
    except (lzma.LZMAError, zlib.error, EOFError) as exc:
        raise ModelUnavailable(unpacked_folder.DAMAGED) from exc


@contextlib.contextmanager
def in_memory(name: str, data: bytes) -> Iterator[str]:
    """A path the dynamic loader can open. No file is left behind, and a full or read-only disk is no obstacle, unless
    the system has no files in memory; raises OSError."""
    descriptor = files.in_memory(name)
    if descriptor is not None:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            # The loader knows a library that it has loaded by its path, and descriptors are used again.
            yield f"{files.OPEN_FILES}/{'./' * next(_n_loaded)}{descriptor}"
    else:
        import tempfile

        with tempfile.NamedTemporaryFile(dir=unpacked_folder.folder(), prefix=f"{name}-", suffix=".so") as named:
            named.write(data)
            named.flush()
            yield named.name
