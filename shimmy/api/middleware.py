"""What happens to every request around its handler: errors become replies, counts, the API key. Pure ASGI."""

from collections.abc import Awaitable

from shimmy.api.http_exchange import (
    CROWDED,
    ASGIApp,
    ASGIMessage,
    ClientGone,
    Receive,
    Scope,
    Send,
    error_of,
    send_error,
)
from shimmy.errors import Overloaded
from shimmy.metrics import Metrics

CLIENT_GONE_STATUS = "499"  # nginx's number for a client that left before its reply began


class Replies:
    """Answers with the error that a handler raised, and counts replies.

    The label is the route that matched and not the path, which bounds the number of series.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = ""

        def watched_send(message: ASGIMessage) -> Awaitable[None]:
            nonlocal status
            status = status or str(message["status"])  # the first message starts the reply
            return send(message)

        try:
            await self._app(scope, receive, watched_send)
        except ClientGone:
            pass
        except Exception as exc:
            if status:
                raise  # too late for a reply: the server logs it and cuts the connection
            await send_error(watched_send, error_of(exc))
        finally:
            route = scope.get("route")
            self._metrics.requests.add(1, route.path if route else "other", status or CLIENT_GONE_STATUS)


class Crowd:
    """Refuses requests of connections beyond the limit. `open_paths`, such as /health, are answered all the same."""

    def __init__(self, app: ASGIApp, limit: int, open_paths: frozenset[str]) -> None:
        self._app = app
        self._limit = limit
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if CROWDED in scope.get("extensions", ()) and scope["path"] not in self._open_paths:
            raise Overloaded(
                "all connections of this server are in use: try again later, or raise "
                f"`--max-connections` ({self._limit}) and `ulimit -n`"
            )
        await self._app(scope, receive, send)
