"""The engine's backends that are libraries of their own, and where this build has them: in the frozen file, built in a
source tree, nowhere.

Knows names and places; nothing of how a backend is opened, or what it computes.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from shimmy.system import unpacked_folder

_BUILDS = Path(__file__).parents[2] / ".cache"


@dataclass(frozen=True)
class Backend:
    """One of them. In the frozen file lies the library, and a line with its SHA-256 (hexadecimal) and its size in
    bytes."""

    name: str  # of GPUs: what its devices' names begin with
    library: str
    archive: str  # in the frozen file: one xz stream, or, where that would save nothing, the library itself
    digest: str

    @property
    def folder(self) -> str:
        """The name of its folder in the cache of the build, and in that of the user."""
        return self.name.lower()

    def built(self) -> Path | None:
        """The library that `build.py` has made; None in the frozen file, and where it was not made."""
        if unpacked_folder.folder() is not None:
            return None
        library = _BUILDS / self.folder / os.uname().machine / self.library
        return library if library.is_file() else None

    def is_there(self) -> bool:
        return self.built() is not None or unpacked_folder.has(self.archive)


CUDA = Backend("CUDA", "libggml-cuda.so", "cuda.so", "cuda.sha256")
VULKAN = Backend("Vulkan", "libggml-vulkan.so", "vulkan.xz", "vulkan.sha256")
# In the order of their worth: a GPU that two of them could use is used by the first.
FOR_GPUS = (CUDA, VULKAN)
RPC = Backend("RPC", "libggml-rpc.so", "rpc.xz", "rpc.sha256")

NONE_FOR_GPUS = "this build has no backend for GPUs"
NO_RPC = "this build cannot use several machines: `python3 build.py rpc` makes what it lacks"


def of_device(name: str) -> Backend:
    """The backend of a device, by its name."""
    return next(backend for backend in FOR_GPUS if name.startswith(backend.name))


def has_one_for_gpus() -> bool:
    return any(backend.is_there() for backend in FOR_GPUS)
