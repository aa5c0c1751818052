"""Frames of JSON behind a length, as parent and worker send them over their socket: never pickle.

A frame is its payload's length (4 bytes, big-endian) and the payload. A large one comes in parts: the highest bit of a
length says that more of the payload follows, behind a length of its own, so that no end has to have all of it at once
before the first byte is written. Reading a malformed frame raises ProtocolError.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from shimmy.text.json_writer import pieces

_LENGTH = struct.Struct(">I")
_MORE = 1 << 31
_PART_BYTES = 1 << 16  # roughly
_LARGE_BYTES = 1 << 20  # is decoded in steps, so that other threads have their turns
MAX_FRAME_BYTES = 256 * 2**20
Frame = dict[str, Any]
# json.dumps and json.loads would set up as much anew for every token.
_encoder = json.JSONEncoder(separators=(",", ":"))
_decoder = json.JSONDecoder()


class ProtocolError(Exception):
    """The other end does not speak this protocol: it is broken or hostile."""


def frame(message: Mapping[str, Any]) -> bytes:
    return packed(_encoder.encode(message))


def parts(message: Frame) -> Iterator[bytes]:
    """The same in parts, each of which takes a millisecond at most to make."""
    text: list[str] = []
    n_bytes = 0
    for piece in pieces(message):
        if n_bytes + len(piece) > _PART_BYTES and text:
            yield _LENGTH.pack(n_bytes | _MORE) + "".join(text).encode("ascii")
            text, n_bytes = [], 0
        text.append(piece)
        n_bytes += len(piece)
    yield packed("".join(text))


def packed(text: str) -> bytes:
    """A frame of `text`, which is the JSON of a message, in ASCII."""
    payload = text.encode("ascii")
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Incremental: feed it what the socket gave, take the whole frames, of which none has more than `max_bytes`."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self.n_bytes = 0  # of the frame that was taken last
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._begun = bytearray()  # the payload of a frame of which more follows

    def feed(self, data: bytes | bytearray) -> Iterator[Frame]:
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while (payload_start := start + _LENGTH.size) <= len(buffer):
                (length,) = _LENGTH.unpack_from(buffer, start)
                n_bytes = length & ~_MORE
                if len(self._begun) + n_bytes > self._max_bytes:
                    raise ProtocolError(f"a frame of {len(self._begun) + n_bytes} bytes")
                end = payload_start + n_bytes
                if end > len(buffer):
                    return
                payload, start = buffer[payload_start:end], end
                if length & _MORE:
                    self._begun += payload
                    continue
                if self._begun:
                    payload, self._begun = self._begun + payload, bytearray()
                self.n_bytes = len(payload)
                yield _parse(payload)
        finally:
            del buffer[:start]


def _parse(payload: bytearray) -> Frame:
    try:
        text = payload.decode("ascii")
        message = _decoder.decode(text) if len(text) <= _LARGE_BYTES else _large(text)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError("a frame that is not JSON") from exc
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise ProtocolError("a frame without an `op`")
    return message


def _large(text: str) -> object:
    from shimmy.text.json_decoder import LargeJson  # few frames need it

    return LargeJson(text).value()
