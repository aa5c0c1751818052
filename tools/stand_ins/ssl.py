"""Stands in for `ssl` in the frozen file: the names that hypercorn, asyncio and http.client look up without using TLS.

Shimmy speaks plain HTTP; TLS belongs to the proxy before it. Without OpenSSL the file, a start and an idle process are
smaller. Whoever configures TLS nevertheless is told so by `create_default_context`.
"""

from typing import NoReturn

OP_NO_COMPRESSION = 0


class SSLError(OSError):
    """Never raised by a connection, as none speaks TLS."""


class SSLWantReadError(SSLError):
    """Named by asyncio.sslproto."""


class SSLSyscallError(SSLError):
    """Named by asyncio.sslproto."""


class CertificateError(SSLError):
    """Named by asyncio.base_events."""


class SSLSocket:
    """asyncio asks of every socket whether it is one of these: none is."""


class SSLContext:
    """asyncio asks of every `ssl` option whether it is one of these: none is."""


class Purpose:
    """Named by hypercorn.config."""


class TLSVersion:
    """Named by hypercorn.config."""


class VerifyFlags:
    """Named by hypercorn.config."""


class VerifyMode:
    """Named by hypercorn.config."""


def create_default_context(*_arguments: object, **_options: object) -> NoReturn:
    """Refuse, because there is no TLS here."""
    raise SSLError("this program speaks plain HTTP: put a proxy before it for TLS")
