"""A channel between two machines that share a key: encrypted, each end sure of the other, with a heartbeat both ways.

TLS 1.2 with an anonymous key exchange makes the tunnel. Each end then proves that it has the key: an HMAC-SHA256 over
what identifies this very tunnel (`tls-unique`, RFC 5929) and the fresh numbers of both. Somebody in between would have
two tunnels, whose identities differ, so the proofs that pass through do not hold. No certificates, and nothing but the
`ssl` of every Python: TLS with a shared key of its own came with 3.13 only, and TLS 1.3 has no `tls-unique`. The key
says nothing about old tunnels: each has a key exchange of its own.

Knows records and time; nothing of what they carry. Runs on an event loop.
"""

import asyncio
import hmac
import json
import os
import socket
import ssl
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from shimmy.rpc.key import NO_KEY

DEFAULT_LIMIT_S = 10.0
MAX_RECORD_BYTES = 256 * 1024

_CIPHER = "AECDH-AES256-SHA:@SECLEVEL=0"  # anonymous ECDH; level 0 is only about the missing certificate
_HELLO = struct.Struct("!16s32sI")  # magic, a fresh number, after how many ms of silence this end gives up
_MAGIC = b"shimmy-rpc 1\r\n\r\n"
_PROOF_BYTES = 32
_RECORD = struct.Struct("!BI")
_YES, _NO = b"\x01", b"\x00"
_BEATS_IN_LIMIT = 4  # beats that the other end would have to miss
_MOST_OFTEN_S = 0.05  # however impatient the other end is
_MAX_TALK_BYTES = 64 * 1024
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", 18)


class ChannelError(Exception):
    """The channel cannot be opened, or is gone; the message says why, for a person."""


class ChannelClosed(ChannelError):
    """The other end has closed the channel, as it does at its end."""


class RecordKind(IntEnum):
    """What a record is."""

    TALK = 1  # an object of JSON
    DATA = 2
    BEAT = 3


@dataclass(frozen=True, slots=True)
class Streams:
    """The two halves of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


def tls_context(*, is_server: bool) -> ssl.SSLContext:
    """Of one end."""
    # The first look makes the frozen file's stand-in of `ssl` the real one, which has the rest.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET  # a resumed session would have no key exchange of its own
    context.set_ciphers(_CIPHER)
    return context


class Channel:
    """One end, once both have proved that they have the key."""

    def __init__(self, streams: Streams, limit_s: float, beat_s: float) -> None:
        self._reader, self._writer = streams.reader, streams.writer
        self._limit_s, self._beat_s = limit_s, beat_s

    @property
    def peer(self) -> str:
        """The address of the other end."""
        return peer_of(self._writer)

    async def send(self, data: bytes | memoryview) -> None:
        """Send data of any length; raises ChannelError."""
        view = memoryview(data)
        for start in range(0, len(view), MAX_RECORD_BYTES):
            await self._put(RecordKind.DATA, view[start : start + MAX_RECORD_BYTES])

    async def say(self, message: dict[str, Any]) -> None:
        """Send an object; raises ChannelError."""
        await self._put(RecordKind.TALK, json.dumps(message).encode())

    async def receive(self) -> bytes | dict[str, Any]:
        """The next data, or the next object; raises ChannelError when the other end is gone or silent."""
        while True:
            kind, size = _RECORD.unpack(await self._exactly(_RECORD.size))
            if kind == RecordKind.BEAT and size == 0:
                continue
            if kind == RecordKind.DATA and 0 < size <= MAX_RECORD_BYTES:
                return await self._exactly(size)
            if kind == RecordKind.TALK and 0 < size <= _MAX_TALK_BYTES:
                return _object(await self._exactly(size))
            raise ChannelError("the other end does not keep to the protocol")

    async def hear(self) -> dict[str, Any]:
        """The next object, where no data may come; raises ChannelError."""
        heard = await self.receive()
        if isinstance(heard, bytes):
            raise ChannelError("the other end does not keep to the protocol")
        return heard

    async def beat(self) -> None:
        """For ever: let the other end know that we live. Raises ChannelError when the connection is gone."""
        while True:
            await asyncio.sleep(self._beat_s)
            transport = self._writer.transport
            if transport.is_closing():
                raise ChannelError("the connection is lost")
            if not transport.get_write_buffer_size():  # what waits there is a sign of life, too
                self._writer.write(_RECORD.pack(RecordKind.BEAT, 0))

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close when what was written is sent, or after a second."""
        await _close(self._writer)

    async def _put(self, kind: RecordKind, payload: bytes | memoryview) -> None:
        try:
            self._writer.write(b"".join((_RECORD.pack(kind, len(payload)), payload)))
            await self._writer.drain()
        except OSError as exc:
            raise ChannelError("the connection is lost") from exc

    async def _exactly(self, size: int) -> bytes:
        return await _read(self._reader, size, self._limit_s)


async def connect(host: str, port: int, key: bytes, limit_s: float = DEFAULT_LIMIT_S) -> Channel:
    """Reach the machine at `host`, a name or an address; raises ChannelError within about `limit_s`."""
    try:
        async with asyncio.timeout(limit_s):
            context = tls_context(is_server=False)
            reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="")
    except TimeoutError:
        raise ChannelError(f"it did not answer within {limit_s:g} s") from None
    except ConnectionRefusedError:
        raise ChannelError("nothing listens there; start `shimmy rpc-worker` on that machine") from None
    except socket.gaierror as exc:
        raise ChannelError(f"its name cannot be found: {exc.strerror}") from exc
    except ssl.SSLError as exc:
        raise ChannelError("what answers there is no `shimmy rpc-worker`") from exc
    except (OSError, UnicodeError) as exc:
        raise ChannelError(f"it cannot be reached: {getattr(exc, 'strerror', None) or exc}") from exc
    return await _agree(Streams(reader, writer), key, limit_s, is_server=False)


async def accept(streams: Streams, key: bytes, limit_s: float = DEFAULT_LIMIT_S) -> Channel:
    """The channel over a connection that speaks TLS already; raises ChannelError within about `limit_s`."""
    return await _agree(streams, key, limit_s, is_server=True)


def peer_of(writer: asyncio.StreamWriter) -> str:
    """The address at the other end, for a person."""
    name = writer.get_extra_info("peername")
    if not isinstance(name, tuple):
        return "a client"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


async def _agree(streams: Streams, key: bytes, limit_s: float, *, is_server: bool) -> Channel:
    try:
        async with asyncio.timeout(limit_s):
            theirs = await _prove(streams, key, limit_s, is_server=is_server)
    except TimeoutError:
        streams.writer.transport.abort()
        raise ChannelError(f"the other end said nothing for {limit_s:g} s") from None
    except BaseException as exc:
        streams.writer.transport.abort()
        if isinstance(exc, OSError):
            raise ChannelError("the connection is lost") from exc
        raise
    connection = streams.writer.get_extra_info("socket")
    if is_server and connection is not None and connection.family != socket.AF_UNIX:
        # So long for what the other end's system does not acknowledge: of a machine that is cut off, nothing is. This
        # end needs it, as it does not listen for beats while its engine computes. For the other one it would be wrong:
        # Linux counts the time of a full window, too, and that is full while this end does not read.
        connection.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(limit_s * 1000))
    return Channel(streams, limit_s, max(_MOST_OFTEN_S, theirs / _BEATS_IN_LIMIT))


async def _prove(streams: Streams, key: bytes, limit_s: float, *, is_server: bool) -> float:
    """Exchange proofs of the key; returns after how much silence the other end gives up, in seconds."""
    reader, writer = streams.reader, streams.writer
    own = _HELLO.pack(_MAGIC, os.urandom(32), max(1, int(limit_s * 1000)))
    writer.write(own)
    other = await _read(reader, _HELLO.size, limit_s)
    magic, _, limit_ms = _HELLO.unpack(other)
    if magic != _MAGIC or not limit_ms:
        raise ChannelError("what answers there is no `shimmy rpc-worker` of this version")
    tunnel: bytes = writer.get_extra_info("ssl_object").get_channel_binding("tls-unique")
    spoken = tunnel + (other + own if is_server else own + other)
    own_proof, other_proof = (_proof(key, label, spoken) for label in (b"server", b"client")[:: 1 if is_server else -1])
    if is_server:  # the one who asks begins: who does not have the key gets to see nothing that was made with it
        heard = await _read(reader, _PROOF_BYTES, limit_s)
        if not hmac.compare_digest(heard, other_proof):
            writer.write(_NO)
            await _close(writer)
            has_none = hmac.compare_digest(heard, _proof(NO_KEY, b"client", spoken))
            raise ChannelError("it has no key (`--rpc-key-file`)" if has_none else "it has another key")
        writer.write(_YES + own_proof)
    else:
        writer.write(own_proof)
        if await _read(reader, 1, limit_s) != _YES:
            raise ChannelError("it has another key: `--rpc-key-file` has to be the same on both machines")
        if not hmac.compare_digest(await _read(reader, _PROOF_BYTES, limit_s), other_proof):
            raise ChannelError("it does not know the key: it is not the machine that you mean")
    return float(limit_ms) / 1000


def _proof(key: bytes, label: bytes, spoken: bytes) -> bytes:
    return hmac.digest(key, b"shimmy rpc, %s\0" % label + spoken, "sha256")


def _object(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ChannelError("the other end does not keep to the protocol")
    return value


async def _read(reader: asyncio.StreamReader, size: int, limit_s: float) -> bytes:
    """`size` bytes, of which some come within each `limit_s`; raises ChannelError."""
    pieces = []
    while size:
        try:
            async with asyncio.timeout(limit_s) as limit:
                piece = await reader.read(size)
        except OSError as exc:  # TimeoutError is one, and so is what TLS says
            if limit.expired():
                raise ChannelError(f"no sign of life for {limit_s:g} s") from None
            raise ChannelError("the connection is lost") from exc
        if not piece:
            raise ChannelClosed("the other end closed the connection")
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _close(writer: asyncio.StreamWriter) -> None:
    try:
        writer.close()
        async with asyncio.timeout(1):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()
