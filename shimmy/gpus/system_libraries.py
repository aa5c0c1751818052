"""Where a library of the system lies, looked for as the dynamic linker does, and the state of a file.

Knows names and dates of files; nothing of what is in them.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from shimmy.system import files

LINKER_CACHE = "etc/ld.so.cache"

_MAX_LINKER_CACHE_BYTES = 2**24
_MULTIARCH = f"{os.uname().machine}-linux-gnu"  # Debian's
_FOLDERS = (f"lib/{_MULTIARCH}", f"usr/lib/{_MULTIARCH}", "lib64", "usr/lib64", "lib", "usr/lib")

# What stands for the state of a file: its path, when it was changed, its size and number.
FileState = tuple[str, int, int, int]


def find(name: str, environment: Mapping[str, str], root: Path = Path("/")) -> Path | None:
    """The library of this name, where the dynamic linker would find it; None where it would not."""
    preloads = re.split("[: ]", environment.get("LD_PRELOAD", ""))
    preloaded = [Path(text) for text in preloads if text.endswith(f"/{name}")]
    folders = [Path(text) for text in re.split("[:;]", environment.get("LD_LIBRARY_PATH", "")) if text]
    folders += [root / folder for folder in _FOLDERS]
    candidates = [*preloaded, *(folder / name for folder in folders), *_in_linker_cache(name, root)]
    return next(filter(is_file, candidates), None)


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that this user may not look into, as one
        return False


def state(path: Path) -> FileState:
    """Raises OSError."""
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size, status.st_ino


def _in_linker_cache(name: str, root: Path) -> list[Path]:
    try:
        cache = files.read_start(root / LINKER_CACHE, _MAX_LINKER_CACHE_BYTES)
    except OSError:
        return []
    ending = f"/{name}".encode()
    found = [text[text.index(b"/") :] for text in cache.split(b"\0") if text.endswith(ending)]
    return [root / each.decode(errors="surrogateescape").lstrip("/") for each in found]
