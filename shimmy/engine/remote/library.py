"""The library of the RPC backend, opened: its functions. It is small, and is unpacked in memory where it is used."""

import ctypes
from functools import cache

from shimmy.engine import backend_library
from shimmy.errors import ModelUnavailable
from shimmy.system.backends import NO_RPC, RPC


@cache
def opened() -> ctypes.CDLL:
    """Raises ModelUnavailable where this build has none, or where it cannot be opened."""
    if not RPC.is_there():
        raise ModelUnavailable(NO_RPC)
    try:
        with backend_library.path(RPC, None) as path:
            return ctypes.CDLL(path)
    except OSError as exc:
        raise ModelUnavailable(f"the engine's part for several machines cannot be opened: {exc}") from exc


def endpoint(descriptor: int) -> bytes:
    """The name of a socket, for the library: its transport knows no others."""
    return b"fd:%d" % descriptor
