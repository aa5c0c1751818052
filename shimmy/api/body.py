"""The JSON of a request body, within bounds, and without a call of C code that holds Python's lock for long.

Before a body is decoded, the brackets, colons and commas outside of its strings are counted: they bound what decoding
costs. Small bodies are decoded on the event loop, others on a thread. Knows nothing of fields.
"""

import codecs
import json
from json.decoder import JSONDecodeError
from typing import TYPE_CHECKING, Any

from shimmy.errors import BadRequest

if TYPE_CHECKING:
    from shimmy.api.request_fields.field_kinds import Json

# A body may begin with one of these marks. Those of UTF-32 begin like those of UTF-16.
_UTF_8_MARK = codecs.BOM_UTF8
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF_32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)

# A body up to here is read on the event loop: a few milliseconds at most, whatever is in it.
SMALL_BODY_BYTES = 1 << 15

MAX_DEPTH = 128
MAX_FIELDS = 1 << 18  # members of objects, objects and arrays; 10,000 messages of parts have 70,000
MAX_VALUES = 1 << 20  # the items of arrays are counted here too, such as token ids
MAX_NUMBER_CHARACTERS = 400  # a number of 64 bits has 24, and the largest of them 309 without an exponent

_STEP = 1 << 16  # bytes or characters of one call of C code
# What the decoder in C gets in one call: a few milliseconds.
_PLAIN_BYTES, _PLAIN_VALUES = 1 << 20, 1 << 14

_NUMBERS = bytes(0x30 if byte in b"-+.0123456789Ee" else 0x20 for byte in range(256))
_TOO_LONG = b"0" * (MAX_NUMBER_CHARACTERS + 1)
_ALL_BUT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_OPENING = b"[{"


class Size:
    """The counts that bound what decoding a body costs."""

    __slots__ = ("n_bytes", "n_fields", "n_values")

    def __init__(self, n_bytes: int, n_fields: int, n_values: int) -> None:
        self.n_bytes, self.n_fields, self.n_values = n_bytes, n_fields, n_values

    @property
    def is_plain(self) -> bool:
        return self.n_bytes <= _PLAIN_BYTES and self.n_values <= _PLAIN_VALUES


def decode_object(body: bytes | bytearray) -> "Json":
    """The JSON object in `body`; raises BadRequest for anything else, and for too much of it."""
    value = decode(body)
    if not isinstance(value, dict):
        from shimmy.api.request_fields.field_kinds import kind_of  # not needed for a start

        raise BadRequest(f"the body: expected an object, got {kind_of(value)}")
    return value


def decode(body: bytes | bytearray) -> Any:
    """The JSON value in `body`; raises BadRequest for invalid JSON, and for too much of it."""
    body = _in_utf_8(body)
    size = measure(body)
    try:
        if size.is_plain:
            return _plain.decode(body.decode())
        from shimmy.text.json_decoder import LargeJson, Unreadable  # few bodies are

        try:
            return LargeJson(body.decode("latin-1"), _plain, is_utf8=not body.isascii()).value()
        except Unreadable as exc:
            raise BadRequest(f"the body {exc}") from exc
    except JSONDecodeError as exc:
        raise BadRequest(f"the body is not valid JSON: {exc}") from exc
    except UnicodeDecodeError as exc:
        raise BadRequest(f"the body is not UTF-8 text: byte {exc.start} is wrong") from exc


def measure(body: bytes | bytearray) -> Size:
    """The size of `body`; raises BadRequest where it exceeds a limit. Where it is not JSON, the counts mean nothing."""
    n_fields = n_values = depth = 0
    is_string, rest = False, b""
    for start in range(0, len(body), _STEP):
        piece = rest + body[start : start + _STEP]
        rest = piece[len(piece) - (len(piece) - len(piece.rstrip(b"\\"))) % 2 :]  # an escape that goes on
        piece = piece[: len(piece) - len(rest)]
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        outside = b'"'.join(parts[is_string::2])
        is_string ^= len(parts) % 2 == 0
        if _TOO_LONG in outside.translate(_NUMBERS):
            raise BadRequest(f"the body has a number of more than {MAX_NUMBER_CHARACTERS} characters")
        n_opened = outside.count(b"{") + outside.count(b"[")
        n_fields += n_opened + outside.count(b":")
        n_values += n_opened + outside.count(b",")
        depth = _depth(outside, depth, n_opened)
        if n_fields > MAX_FIELDS:
            raise BadRequest(f"the body has more than {MAX_FIELDS} fields, objects and arrays")
        if n_values > MAX_VALUES:
            raise BadRequest(f"the body has more than {MAX_VALUES} values")
    return Size(len(body), n_fields, n_values)


def _depth(outside: bytes, depth: int, n_opened: int) -> int:
    """How deep it is nested behind `outside`; raises BadRequest where that is too deep anywhere in it."""
    brackets = outside.translate(None, _ALL_BUT_BRACKETS)
    if depth + n_opened <= MAX_DEPTH:
        return depth + 2 * n_opened - len(brackets)
    for bracket in brackets:
        depth += 1 if bracket in _OPENING else -1
        if depth > MAX_DEPTH:
            raise BadRequest(f"the body is nested too deeply: more than {MAX_DEPTH} arrays and objects in each other")
    return depth


def _in_utf_8(body: bytes | bytearray) -> bytes | bytearray:
    """The form of JSON (RFC 8259, 8.1), unless a byte order mark names another: Windows' programs write one."""
    if body.startswith(_UTF_32_MARKS):
        return _recoded(body, "utf-32")
    if body.startswith(_UTF_16_MARKS):
        return _recoded(body, "utf-16")
    return body[len(_UTF_8_MARK) :] if body.startswith(_UTF_8_MARK) else body  # noqa: FURB188 - which copies always


def _recoded(body: bytes | bytearray, encoding: str) -> bytes:
    decoder = codecs.getincrementaldecoder(encoding)()
    parts, start = [], 0
    try:
        for start in range(0, len(body), _STEP):
            parts.append(decoder.decode(body[start : start + _STEP], start + _STEP >= len(body)).encode())
    except UnicodeDecodeError as exc:
        # The decoder may have bytes of the step before in front of those of this one.
        n_before = len(exc.object) - len(body[start : start + _STEP])
        place = start - n_before + exc.start
        raise BadRequest(f"the body is not {encoding.upper()} text: byte {place} is wrong") from exc
    return b"".join(parts)


def _refuse_constant(name: str) -> object:
    raise BadRequest(f"the body is not valid JSON: {name} is not a JSON number")


_plain = json.JSONDecoder(parse_constant=_refuse_constant)
