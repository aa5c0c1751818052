"""Where this build has the engine's RPC backend: packed in the frozen file, built in a source tree, or nowhere."""

import os
from pathlib import Path

from shimmy.system import unpacked_folder

# In the frozen file: the library in one xz stream, and a line with its SHA-256 (hexadecimal) and its size in bytes.
ARCHIVE, DIGEST = "rpc.xz", "rpc.sha256"
LIBRARY = "libggml-rpc.so"
_BUILDS = Path(__file__).parents[2] / ".cache" / "rpc"


def built() -> Path | None:
    """The library that `build.py rpc` has made; None in the frozen file, and where it was not made."""
    if unpacked_folder.folder() is not None:
        return None
    library = _BUILDS / os.uname().machine / LIBRARY
    return library if library.is_file() else None


def is_there() -> bool:
    return built() is not None or unpacked_folder.has(ARCHIVE)


def packed() -> tuple[Path, str]:
    """The archive, brought to the folder of the unpacked program, and the SHA-256 of what is in it. Raises OSError."""
    return unpacked_folder.part(ARCHIVE), unpacked_folder.part(DIGEST).read_text().split()[0]
