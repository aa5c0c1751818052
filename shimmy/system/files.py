"""Writing files whole: who reads one sees what it was or what it is, whatever happens meanwhile."""

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Let `path`, in a folder that is made where there is none, have `data`; raises OSError, and leaves nothing behind.

    Of two processes that write it at once one is heard.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
