"""The page that shows the description of the API to people.

It is made when it is asked for, and nothing of it is kept: nearly every server is never asked.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimmy.api.http_exchange import Exchange

# The page is all there is: it loads nothing, and speaks with its own server only.
_POLICY = (
    b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


async def page(exchange: "Exchange") -> None:
    from shimmy.api.openapi.docs_page import PAGE

    await exchange.reply_text(PAGE, b"text/html; charset=utf-8", PAGE_HEADERS)
