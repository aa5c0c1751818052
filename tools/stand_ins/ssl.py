"""Stands in for `ssl` in the frozen file until something speaks TLS: then it becomes the real one, in the same module.

asyncio, Hypercorn and http.client look names up in it that plain HTTP never uses. The real one with OpenSSL costs a
start 5 ms and an idle server 4 MB. OpenSSL lies packed in the file, as each start would copy its 6 MB; unpacking it
takes 0.3 s, once for a server.
"""

import sys
from _thread import RLock
from typing import Any

ARCHIVE = "ssl.xz"

OP_NO_COMPRESSION = 0x20000

_lock = RLock()
_has_begun = False  # to become the real one


class SSLError(OSError):
    """Named by hypercorn.asyncio.tcp_server."""


class SSLWantReadError(SSLError):
    """Named by asyncio.sslproto."""


class SSLSyscallError(SSLError):
    """Named by asyncio.sslproto."""


class SSLSocket:
    """asyncio asks of every socket whether it is one of these: none is."""


class SSLContext:
    """asyncio asks of every `ssl` option whether it is one of these."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        return __getattr__("SSLContext")(*arguments, **options)


class Purpose:
    """Named by hypercorn.config."""


class TLSVersion:
    """Named by hypercorn.config."""


class VerifyFlags:
    """Named by hypercorn.config."""


class VerifyMode:
    """Named by hypercorn.config."""


def create_default_context(*arguments: Any, **options: Any) -> Any:
    """As the real one."""
    return __getattr__("create_default_context")(*arguments, **options)


def __getattr__(name: str) -> Any:
    """Called for what is not here. Raises OSError where OpenSSL cannot be unpacked."""
    global _has_begun  # noqa: PLW0603 - it is about the module
    if name.startswith("__"):
        raise AttributeError(name)
    with _lock:
        if not _has_begun:
            _has_begun = True
            try:
                _become_the_real_one()
            except BaseException:
                _has_begun = False
                raise
    try:
        return globals()[name]
    except KeyError:
        raise AttributeError(f"module 'ssl' has no attribute {name!r}") from None


def _become_the_real_one() -> None:
    from importlib.util import find_spec

    spec: Any = find_spec("ssl_in_full")  # what shimmy.spec calls it
    _load_openssl()
    own = globals()
    exec(spec.loader.get_code(spec.name), own)
    if sslproto := sys.modules.get("asyncio.sslproto"):  # it keeps what it has looked up
        sslproto.SSLAgainErrors = own["SSLWantReadError"], own["SSLSyscallError"]  # type: ignore[attr-defined]


def _load_openssl() -> None:
    """Import `_ssl`. Its libraries come first, so that the dynamic loader finds them by their names."""
    import ctypes
    import errno
    import lzma
    import marshal
    from importlib.machinery import ExtensionFileLoader
    from importlib.util import module_from_spec, spec_from_file_location
    from itertools import groupby
    from operator import itemgetter

    from shimmy.system import unpacked_folder

    archive = unpacked_folder.part(ARCHIVE)
    paths = []
    try:
        with lzma.open(archive) as stream:  # a piece after the other, as a file as a whole would take megabytes
            for name, pieces in groupby(_pieces(marshal.load, stream), itemgetter(0)):
                paths.append(archive.with_name(name))
                if not paths[-1].exists():
                    unpacked_folder.put(paths[-1], (data for _, data in pieces))
    except lzma.LZMAError as exc:
        raise OSError(errno.EIO, unpacked_folder.DAMAGED) from exc
    for path in paths:
        if path.name.startswith("lib"):
            ctypes.CDLL(str(path))
            continue
        spec = spec_from_file_location("_ssl", path, loader=ExtensionFileLoader("_ssl", str(path)))
        assert spec is not None
        assert spec.loader is not None
        sys.modules["_ssl"] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules["_ssl"])


def _pieces(load: Any, stream: Any) -> Any:
    """As tools/openssl.py packs them."""
    while True:
        try:
            yield load(stream)
        except EOFError:
            return
