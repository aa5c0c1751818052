"""The library of the RPC backend, opened: its functions. It is small, and is unpacked in memory where it is used."""

import contextlib
import ctypes
import hashlib
import lzma
from functools import cache

from shimmy.engine.llama.unpack_libraries import in_memory
from shimmy.errors import ModelUnavailable
from shimmy.system import rpc_archive, unpacked_folder


@cache
def opened() -> ctypes.CDLL:
    """Raises ModelUnavailable where this build has none, or where it cannot be opened."""
    try:
        with contextlib.ExitStack() as stack:
            if (built := rpc_archive.built()) is not None:
                path = str(built)
            elif rpc_archive.is_there():
                archive, digest = rpc_archive.packed()
                path = stack.enter_context(in_memory(rpc_archive.LIBRARY, _content(archive.read_bytes(), digest)))
            else:
                raise ModelUnavailable(
                    "this build cannot use several machines: `python3 build.py rpc` makes what it lacks"
                )
            return ctypes.CDLL(path)
    except OSError as exc:
        raise ModelUnavailable(f"the engine's part for several machines cannot be opened: {exc}") from exc


def endpoint(descriptor: int) -> bytes:
    """The name of a socket, for the library: its transport knows no others."""
    return b"fd:%d" % descriptor


def _content(archive: bytes, digest: str) -> bytes:
    try:
        data = lzma.decompress(archive)
    except (lzma.LZMAError, EOFError):
        data = b""
    if hashlib.sha256(data).hexdigest() != digest:
        raise ModelUnavailable(unpacked_folder.DAMAGED)
    return data
