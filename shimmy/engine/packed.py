"""A shared library that is not a file: for what the frozen file carries compressed, and unpacks when it is needed."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from itertools import count

GRAMMAR_ARCHIVE = "llguidance.xz"

_n_loaded = count()


@contextlib.contextmanager
def in_memory(name: str, data: bytes) -> Iterator[str]:
    """A path the dynamic loader can open. No file is left behind, and a full or read-only disk is no obstacle."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create(name), "wb") as file:
            file.write(data)
            file.flush()
            # The loader knows a library that it has loaded by its path, and descriptors are used again.
            yield f"/proc/self/fd/{'./' * next(_n_loaded)}{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(data)
            file.flush()
            yield file.name
