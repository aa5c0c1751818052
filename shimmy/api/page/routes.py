"""The handler of the page. It is put together when it is asked for: nearly every server is never asked.

Knows what a browser may keep of it. The page itself asks for a key where the server has one.
"""

import hashlib
import zlib
from functools import cache
from typing import TYPE_CHECKING

from shimmy.api.http_exchange import header

if TYPE_CHECKING:
    from shimmy.api.http_exchange import Exchange

_TYPE = b"text/html; charset=utf-8"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


@cache
def _page() -> tuple[bytes, bytes, bytes]:
    """The page in gzip, its Content-Security-Policy, and a name for this version of it."""
    from shimmy.api.page.assembled import page

    packed, policy = page()
    return packed, policy, hashlib.sha256(packed).hexdigest()[:16].encode()


async def page(exchange: "Exchange") -> None:
    """The page, as it is or in gzip; a browser that has this version gets a 304."""
    packed, policy, version = _page()
    is_packed = _takes_gzip(header(exchange.scope, b"accept-encoding"))
    tag = b'"%b%b"' % (version, b"-gzip" if is_packed else b"")
    headers = [
        (b"etag", tag),
        (b"cache-control", b"no-cache"),
        (b"vary", b"Accept, Accept-Encoding"),
        (b"content-security-policy", policy),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
    ]
    known = header(exchange.scope, b"if-none-match").replace(b"W/", b"")
    if tag in [each.strip() for each in known.split(b",")]:
        await exchange.not_modified(headers)
    elif is_packed:
        await exchange.reply_bytes(packed, _TYPE, [*headers, (b"content-encoding", b"gzip")])
    else:
        await exchange.reply_bytes(zlib.decompress(packed, _GZIP_WINDOW), _TYPE, headers)


def _takes_gzip(accepted: bytes) -> bool:
    """Whether an `Accept-Encoding` names gzip, and not to refuse it."""
    for each in accepted.lower().split(b","):
        name, _, parameter = each.partition(b";")
        if name.strip() == b"gzip":
            return parameter.replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000")
    return False
