"""Who may use the server: requests without one of its keys are refused, in any form in which clients send a key."""

from collections.abc import Callable
from hmac import compare_digest

from shimmy.api.http_exchange import (
    ASGIApp,
    Receive,
    Scope,
    Send,
    header,
)
from shimmy.errors import Unauthorized

_KEY_HEADERS = (b"x-api-key", b"api-key")  # where clients of Anthropic and Azure send their key


class ApiKey:
    """Lets a request pass that carries one of `keys`, or that `is_open`."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], is_open: Callable[[Scope], bool]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope) and not self._is_known(scope):
            raise Unauthorized("this server needs an API key: send `Authorization: Bearer KEY`, or `X-API-Key: KEY`")
        await self._app(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        scheme, _, bearer = header(scope, b"authorization").partition(b" ")
        given = [bearer.strip()] if scheme.lower() == b"bearer" else []
        given += [header(scope, name) for name in _KEY_HEADERS]
        # Every key is compared, each in constant time: how long it takes tells nothing.
        matches = [compare_digest(key, known) for key in given for known in self._keys]
        return any(matches)
