"""The requests of one HTTP/1.1 connection, and the refusal of bytes that are no valid request.

Hypercorn and h11 read and write HTTP/1.1. Knows events of the protocol; nothing of sockets, deadlines or routes.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from itertools import count

import h11
from hypercorn.events import Closed, Event, Updated
from hypercorn.protocol.events import Body, EndBody, Request
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

from shimmy.api.http_exchange import JSON_TYPE, error_body
from shimmy.errors import BadRequest, ShimmyError

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0

_EVENTS_AT_ONCE = 200
_NO_HOST = re.compile(rb"https?://([/?]|$)", re.IGNORECASE)
_AUTHORITY_END = re.compile(rb"(?=[/?])")


def _mistake_in(request: h11.Request) -> str:
    """Why a well-formed request is refused; empty where it is not."""
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" in names and b"content-length" in names:
        # Proxies would disagree on where this request ends and the next begins (RFC 9112, 6.1).
        return "a request has a Content-Length or a Transfer-Encoding, not both"
    if not request.http_version.startswith(b"1."):
        return f"this server speaks HTTP/1.1, not HTTP/{request.http_version.decode()}"
    if request.method == b"CONNECT":
        return "this server is not a proxy"
    return "the target has no host" if _NO_HOST.match(request.target) else ""


class Http1(H11Protocol):
    """The requests of one connection, one after the other.

    HTTP/1.1 and nothing else: an offer to upgrade to HTTP/2 or a websocket is ignored (RFC 9110, 7.8).
    """

    connection: h11.Connection
    stream: HTTPStream | None
    has_left: Callable[[], bool]  # whether the client has closed the connection
    _is_over = False  # no more will be answered

    async def handle(self, event: Event) -> None:
        """Called with bytes of the client, and when it has left."""
        if isinstance(event, Closed):
            self._is_over = True
            await self.can_read.set()
        elif self._is_over:
            return
        await super().handle(event)

    async def stream_send(self, event: StreamEvent) -> None:
        """Called by the stream with what the application says."""
        if not self._is_over:
            await super().stream_send(event)

    async def _handle_events(self) -> None:
        for n_events in count(1):
            if not n_events % _EVENTS_AT_ONCE:
                await asyncio.sleep(0)  # a body may come in chunks of one byte
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                await self.refuse(BadRequest(f"this is not HTTP/1.1: {error}"), error.error_status_hint)
                return
            if isinstance(event, h11.Request):
                await self.send(Updated(idle=False))
                await self._create_stream(event)
            elif event is h11.PAUSED:
                if not await self._until_recycled():
                    return
            elif event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed) or self.stream is None:
                return
            elif isinstance(event, h11.Data):
                await self.stream.handle(Body(stream_id=STREAM_ID, data=bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                await self.stream.handle(EndBody(stream_id=STREAM_ID))

    async def _until_recycled(self) -> bool:
        """Wait with the next request until the last one is answered; False when the client has left."""
        await self.can_read.clear()
        while not self._is_over:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self.can_read.wait()
                    return not self._is_over
            if self.has_left():  # reading is paused, so nothing else would tell
                await self.handle(Closed())
        return False

    async def _create_stream(self, request: h11.Request) -> None:
        target, headers = request.target, [pair for pair in request.headers if pair[0] != b"upgrade"]
        if mistake := _mistake_in(request):
            await self.refuse(BadRequest(mistake))
            return
        scheme, is_absolute, rest = target.partition(b"://")
        if is_absolute and scheme.lower() in {b"http", b"https"}:  # RFC 9112, 3.2.2
            authority, *paths = _AUTHORITY_END.split(rest, 1)
            target = b"/" + b"".join(paths).removeprefix(b"/")
            headers = [(b"host", authority), *(pair for pair in headers if pair[0] != b"host")]
        self.stream = HTTPStream(
            self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server, self.stream_send,
            STREAM_ID,
        )  # fmt: skip
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    @property
    def is_in_body(self) -> bool:
        """Whether the client has not come to the end of its request."""
        return self.connection.their_state is h11.SEND_BODY

    async def ask_for_body(self) -> None:
        """Tell a client that waits for this that its body is wanted (RFC 9110, 10.1.1)."""
        if self.connection.they_are_waiting_for_100_continue:
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))

    async def refuse(self, error: ShimmyError, status: int | None = None) -> None:
        """Answer with `error` where nothing has been answered yet, and end the connection."""
        await self._close_stream()
        self._is_over = True
        if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            body = error_body(error)
            headers = [
                (b"content-type", JSON_TYPE), (b"content-length", b"%d" % len(body)), (b"connection", b"close"),
                *self.config.response_headers("h11"),
            ]  # fmt: skip
            response = h11.Response(status_code=status or error.status, headers=headers)
            with contextlib.suppress(h11.LocalProtocolError):  # the reply to a HEAD has no body
                for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                    await self._send_h11_event(event)
        await self.send(Closed())
