"""What happens to every request around its handler: counting, errors as replies, the API key. Pure ASGI."""

from hmac import compare_digest

from shimmy.api.exchange import ASGIApp, ASGIMessage, ClientGone, Receive, Scope, Send, error_of, header, send_error
from shimmy.errors import Unauthorized
from shimmy.metrics import Metrics

CLIENT_GONE_STATUS = "499"  # nginx's number for a client that left before its reply began


class RequestCounter:
    """Counts requests by the route that was found, which bounds how many series there are."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = CLIENT_GONE_STATUS

        async def watched_send(message: ASGIMessage) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            route = scope.get("route")
            self._metrics.requests.add(1, route.path if route else "other", status)


class ErrorReplies:
    """Answers with the error that a handler raised."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_started = False

        async def watched_send(message: ASGIMessage) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except ClientGone:
            pass
        except Exception as exc:
            if is_started:
                raise  # too late for a reply: the server logs it and cuts the connection
            await send_error(send, error_of(exc))


class ApiKey:
    """Lets a request pass that carries one of `keys`, or whose path is in `open_paths`."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], open_paths: frozenset[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in self._open_paths and not self._is_known(header(scope, b"authorization")):
            raise Unauthorized("this server needs an API key: send `Authorization: Bearer KEY`")
        await self._app(scope, receive, send)

    def _is_known(self, authorization: bytes) -> bool:
        scheme, _, key = authorization.partition(b" ")
        # Every key is compared, each in constant time: how long it takes tells nothing.
        matches = [compare_digest(key.strip(), known) for known in self._keys]
        return scheme.lower() == b"bearer" and any(matches)
