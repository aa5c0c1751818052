"""Bodies that a client compressed (`Content-Encoding`, RFC 9110, 8.4). Knows bytes and limits, and nothing of JSON.

A body of a few kilobytes can inflate to gigabytes: it is inflated in pieces, the event loop gets its turn between them,
and what grows over the limit is refused as soon as it does.
"""

import asyncio

from shimmy.api.http_exchange import ACCEPTED_ENCODINGS
from shimmy.errors import BadRequest, PayloadTooLarge, UnsupportedEncoding

_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's `wbits` for each container
_ENCODINGS = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": _ZLIB}
_INPUT_BYTES = 1 << 16
_OUTPUT_BYTES = 1 << 18  # takes about a millisecond


def container_of(encoding: bytes) -> int | None:
    """What a `Content-Encoding` says of its body; None where the body is as it is. Raises UnsupportedEncoding."""
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return None
    if name not in _ENCODINGS:
        shown, known = encoding.decode("latin-1")[:60], ACCEPTED_ENCODINGS.decode()
        raise UnsupportedEncoding(f"`Content-Encoding: {shown}` is not known here: send the body plain, or as {known}")
    return _ENCODINGS[name]


async def inflate(body: bytes | bytearray, container: int, limit_bytes: int) -> bytearray:
    """What `body` holds, at most `limit_bytes`; raises PayloadTooLarge, or BadRequest for what is damaged."""
    import zlib  # few clients compress what they send

    if container == _ZLIB and not _is_zlib(body):
        container = _RAW  # what some clients mean by `deflate`
    inflated = bytearray()
    waiting = memoryview(body)
    try:
        while waiting:  # gzip may have several members, one after the other
            stream = zlib.decompressobj(container)
            while not stream.eof:
                given = waiting[:_INPUT_BYTES]
                piece = stream.decompress(given, _OUTPUT_BYTES)
                if not given and not piece:
                    raise BadRequest("the compressed body is cut off")
                waiting = waiting[len(given) - len(stream.unconsumed_tail) - len(stream.unused_data) :]
                inflated += piece
                if len(inflated) > limit_bytes:
                    raise PayloadTooLarge(f"the body inflates to more than {limit_bytes} bytes, the limit here")
                await asyncio.sleep(0)
    except zlib.error as exc:
        raise BadRequest(f"the compressed body is damaged: {exc}") from exc
    return inflated


def _is_zlib(body: bytes | bytearray) -> bool:
    """Whether it begins with a header of RFC 1950."""
    return len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0
