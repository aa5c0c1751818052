"""A shared library that is not a file: for what the frozen file carries compressed, and unpacks when it is needed."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

GRAMMAR_ARCHIVE = "llguidance.xz"


@contextlib.contextmanager
def in_memory(name: str, data: bytes) -> Iterator[str]:
    """A path the dynamic loader can open. No file is left behind, and a full or read-only disk is no obstacle."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create(name), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(data)
            file.flush()
            yield file.name
