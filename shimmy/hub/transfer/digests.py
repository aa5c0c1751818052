"""Digests of what was fetched: SHA-256, and the SHA-1 that git names its blobs by.

The frozen file's hashlib has no OpenSSL and takes four times as long; libcrypto is there once `ssl` is, so SHA-256 is
asked of it.
"""

import ctypes
import hashlib
import re
from typing import Protocol

SHA256 = re.compile(r"[0-9a-f]{64}")
GIT = re.compile(r"[0-9a-f]{40}")


class Digest(Protocol):
    """As in hashlib."""

    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def digest_for(expected: str, size_bytes: int | None) -> Digest | None:
    """What computes a digest of the kind of `expected`: SHA-256, or git's of a blob of this size; None for ''."""
    if SHA256.fullmatch(expected):
        return sha256()
    if GIT.fullmatch(expected) and size_bytes is not None:
        return hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    return None


def sha256() -> Digest:
    """The quickest there is."""
    if hashlib.sha256.__module__ == "_hashlib" or hashlib.sha256.__name__.startswith("openssl"):
        return hashlib.sha256()
    return openssl_sha256() or hashlib.sha256()


def openssl_sha256() -> Digest | None:
    """OpenSSL's, by way of the library that `ssl` has loaded; None where its functions cannot be found there."""
    import ssl
    from importlib import import_module

    try:
        if not ssl.OPENSSL_VERSION:  # which has the frozen file's `ssl` become the real one
            return None
        return _OpenSsl(ctypes.CDLL(import_module("_ssl").__file__))
    except (AttributeError, ImportError, OSError):
        return None


class _OpenSsl:
    """EVP_Digest* (openssl.org/docs/man3.0/man3/EVP_DigestInit.html). Calls release Python's lock."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, result, *arguments in (
            ("EVP_MD_CTX_new", ctypes.c_void_p),
            ("EVP_MD_CTX_free", None, ctypes.c_void_p),
            ("EVP_sha256", ctypes.c_void_p),
            ("EVP_DigestInit_ex", ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
            ("EVP_DigestUpdate", ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
            ("EVP_DigestFinal_ex", ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._library = library
        self._context = library.EVP_MD_CTX_new()
        if not self._context or not library.EVP_DigestInit_ex(self._context, library.EVP_sha256(), None):
            raise OSError("OpenSSL has no SHA-256")

    def update(self, data: memoryview, /) -> None:
        """`data` is writable, as buffers are."""
        address = (ctypes.c_char * len(data)).from_buffer(data)
        if not self._library.EVP_DigestUpdate(self._context, address, len(data)):
            raise OSError("OpenSSL failed")

    def hexdigest(self) -> str:
        result = ctypes.create_string_buffer(32)
        if not self._library.EVP_DigestFinal_ex(self._context, result, None):
            raise OSError("OpenSSL failed")
        return result.raw.hex()

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self._library.EVP_MD_CTX_free(self._context)
