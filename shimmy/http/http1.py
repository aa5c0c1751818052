"""One HTTP/1.1 connection: its requests, its deadlines, and what of a request is wrong before it is one.

The only importer of hypercorn, whose reading and writing of HTTP/1.1 it uses. Knows an ASGI application and no route;
which connections there are is the business of `connections`.
"""

import asyncio
import contextlib
import logging
import re
import select
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Protocol, cast

import h11
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from shimmy.api.http_exchange import CROWDED, JSON_TYPE, ASGIApp, ASGIMessage, Scope, error_body
from shimmy.errors import BadRequest, RequestTimeout, ShimmyError

logger = logging.getLogger(__name__)

_HEAD_S = 30.0  # from a connection, or the first byte of a request, to the end of its head
_KEEP_ALIVE_S = 75.0  # between two requests
_BODY_S = 30.0  # for a body, and beyond that a second for each of these bytes
_SLOWEST_BODY = 1000
_UNREAD_S = 300.0  # a client that takes in nothing of its reply for so long has left
_LINGER_S = 5.0  # a client that is refused while it still sends has so long to end, and to see why
_PATIENCE_S = 5.0  # a body that takes longer may have to make room for another connection
LOOK_EVERY_S = 1.0

_MOST_WAITING = 10  # parts of a body, each as long as what was read at once
_EVENTS_AT_ONCE = 200
_NO_HOST = re.compile(rb"https?://([/?]|$)", re.IGNORECASE)
_AUTHORITY_END = re.compile(rb"(?=[/?])")


class _Inbox:
    """What the application will receive. A body waits while there is enough of it, but not for an application that has
    ended, and the word that the client has left waits for nothing."""

    def __init__(self) -> None:
        self._messages: deque[ASGIMessage] = deque()
        self._has_some, self._has_room = asyncio.Event(), asyncio.Event()
        self._is_closed = False

    async def put(self, message: ASGIMessage) -> None:
        while len(self._messages) >= _MOST_WAITING and message["type"] == "http.request" and not self._is_closed:
            self._has_room.clear()
            await self._has_room.wait()
        if not self._is_closed:
            self._messages.append(message)
            self._has_some.set()

    async def get(self) -> ASGIMessage:
        while not self._messages:
            self._has_some.clear()
            await self._has_some.wait()
        self._has_room.set()
        return self._messages.popleft()

    def close(self) -> None:
        self._is_closed = True
        self._messages.clear()
        self._has_room.set()


def _mistake_in(request: h11.Request) -> str:
    """What is wrong with a request that is well-formed; empty where nothing is."""
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" in names and b"content-length" in names:
        # What comes next would be read differently by others on the way (RFC 9112, 6.1).
        return "a request has a Content-Length or a Transfer-Encoding, not both"
    if not request.http_version.startswith(b"1."):
        return f"HTTP/{request.http_version.decode()} is not spoken here, HTTP/1.1 is"
    if request.method == b"CONNECT":
        return "this server is no proxy"
    return "the target has no host" if _NO_HOST.match(request.target) else ""


class _Http1(H11Protocol):
    """The requests of one connection, one after the other.

    HTTP/1.1 and nothing else: an offer to change to HTTP/2 or to a websocket is passed over (RFC 9110, 7.8).
    """

    connection: h11.Connection
    stream: HTTPStream | None
    has_left: Callable[[], bool]  # whether nothing will come of the client any more
    _is_over = False  # nothing will be answered any more

    async def handle(self, event: Event) -> None:
        """Take in what the client sent, or that it has left."""
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
                await asyncio.sleep(0)  # a body may come in pieces of a byte
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                await self.refuse(BadRequest(f"this is no HTTP/1.1: {error}"), error.error_status_hint)
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
        """Wait with the next request until the last one is answered; whether anybody is left who waits for it."""
        await self.can_read.clear()
        while not self._is_over:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self.can_read.wait()
                    return not self._is_over
            if self.has_left():  # nothing is read meanwhile, so that nothing else would tell
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


class ConnectionOwner(Protocol):
    """What a connection belongs to."""

    app: ASGIApp
    loop: asyncio.AbstractEventLoop

    def note(self, connection: "Connection", *, is_busy: bool) -> None:
        """A request has begun on `connection`, or the last one has ended."""

    def forget(self, connection: "Connection") -> None:
        """`connection` is at its end."""


class Shared:
    """What the connections of a server share of hypercorn's."""

    def __init__(self) -> None:
        self.config = HypercornConfig()
        self.config.include_server_header = False
        self.config.keep_alive_max_requests = 2**31
        self.context = WorkerContext(None)

    async def end(self) -> None:
        """From here on a connection ends after the request that is in progress on it."""
        await self.context.terminated.set()


class Connection(TCPServer):
    """One client's connection, from its first byte to its last."""

    protocol: _Http1  # type: ignore[assignment] # made here, without the wrapper that may change to HTTP/2

    def __init__(
        self,
        house: ConnectionOwner,
        shared: Shared,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        is_spare: bool,
    ) -> None:
        super().__init__(
            cast("Any", house.app), house.loop, shared.config, shared.context, ConnectionState({}), reader, writer
        )
        self.task = asyncio.current_task()
        self._house = house
        self._is_spare = is_spare
        self._is_busy = False  # there is a request in progress
        self._is_reading = False
        self._is_ending = False  # nothing will be written any more
        self._deadline_s = house.loop.time() + _HEAD_S
        self._has_begun = False  # part of a head is here
        self._n_received = 0  # bytes of a body
        self._n_written = 0
        self._n_taken = 0  # of these, by the client or its system, when it was looked last
        self._taken_s = 0.0  # when that had changed last

    async def run(self) -> None:
        """Serve the connection until it ends."""
        sock = self.writer.get_extra_info("socket")
        try:
            client, server = (parse_socket_addr(sock.family, name()) for name in (sock.getpeername, sock.getsockname))
            async with TaskGroup(self.loop) as self._task_group:
                self.protocol = _Http1(
                    self.app, self.config, self.context, cast("TaskGroup", self), ConnectionState({}), False, client,
                    server, self.protocol_send,
                )  # fmt: skip
                self.protocol.has_left = self._has_left
                if self._is_spare:
                    self.protocol.keep_alive_requests = self.config.keep_alive_max_requests
                await self._read_data()
        except OSError:
            pass  # the client has left
        finally:
            self._house.forget(self)
            await self._close()

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _read_data(self) -> None:
        while not self.reader.at_eof():
            self._is_reading = True
            try:
                data = await self.reader.read(MAX_RECV)
            except OSError:
                break
            finally:
                self._is_reading = False
            if self._is_ending or not data:
                continue
            if self._is_busy:
                self._n_received += len(data)
            elif not self._has_begun:
                data = data.lstrip(b"\r\n")  # some clients send these behind a body (RFC 9112, 2.2)
                if not data:
                    continue
                self._has_begun = True
                self._deadline_s = self.loop.time() + _HEAD_S
            await self.protocol.handle(RawData(data))
        await self.protocol.handle(Closed())

    def _has_left(self) -> bool:
        """Whether the client has left, though there may be something to read of it still.

        Behind more than is taken in beforehand an end would not be seen; no client sends so much before a reply.
        """
        transport = cast("asyncio.ReadTransport", self.writer.transport)
        if transport.is_closing():
            return True
        poll = select.poll()
        poll.register(
            transport.get_extra_info("socket"), select.POLLRDHUP | (0 if transport.is_reading() else select.POLLIN)
        )
        return bool(poll.poll(0))

    async def spawn_app(
        self,
        app: Any,
        _config: HypercornConfig,
        scope: Scope,
        send: Callable[[ASGIMessage | None], Awaitable[None]],
    ) -> Callable[[ASGIMessage], Awaitable[None]]:
        """Run the application on a request; returns what takes in the rest of it. Called by Hypercorn's stream."""
        inbox = _Inbox()
        if self._is_spare:
            scope["extensions"][CROWDED] = {}
        self._task_group.spawn(self._run_app, app, scope, inbox, send)
        return inbox.put

    async def _run_app(
        self, app: ASGIApp, scope: Scope, inbox: _Inbox, send: Callable[[ASGIMessage | None], Awaitable[None]]
    ) -> None:
        async def receive() -> ASGIMessage:
            await self.protocol.ask_for_body()
            return await inbox.get()

        try:
            await app(scope, receive, send)
        except Exception:
            logger.exception("a reply broke off")
        finally:
            inbox.close()
            await send(None)

    # -- writing ---------------------------------------------------------------------------------------------------

    async def protocol_send(self, event: Event) -> None:
        """Called by the protocol. It waits for the client only when the socket is full, which is rare for a token."""
        if isinstance(event, RawData):
            if self._is_ending or self.writer.is_closing():
                await self.protocol.handle(Closed())
                return
            self.writer.write(event.data)
            self._n_written += len(event.data)
            if self.writer.transport.get_write_buffer_size():
                await self._until_taken()
        elif isinstance(event, Closed):
            self._end()
        elif isinstance(event, Updated):
            self._is_busy = not event.idle
            self._has_begun = False
            self._n_received = 0
            self._deadline_s = self.loop.time() + (_KEEP_ALIVE_S if event.idle else _BODY_S)
            self._house.note(self, is_busy=self._is_busy)

    async def _until_taken(self) -> None:
        try:
            async with self.send_lock:
                await self.writer.drain()
        except (ConnectionError, RuntimeError):
            await self.protocol.handle(Closed())

    def _end(self) -> None:
        """Close the connection. A client that still sends would lose the reply if that was done at once."""
        if self._is_ending:
            return
        self._is_ending = True
        self._deadline_s = self.loop.time() + _LINGER_S
        self._house.note(self, is_busy=False)
        if self.protocol.is_in_body or self.protocol.connection.their_state is h11.ERROR:
            with contextlib.suppress(OSError, RuntimeError):
                self.writer.write_eof()
                return
        self.writer.close()

    # -- deadlines -------------------------------------------------------------------------------------------------

    @property
    def n_unsent(self) -> int:
        """Bytes of a reply that neither the client nor the system has taken."""
        return self.writer.transport.get_write_buffer_size()

    def look(self, now_s: float) -> None:
        """Called every second: act on what has taken too long."""
        n_unsent = self.n_unsent
        n_taken = self._n_written - n_unsent
        if n_taken != self._n_taken or not n_unsent:
            self._n_taken, self._taken_s = n_taken, now_s
        elif now_s - self._taken_s > _UNREAD_S:
            self.drop()
        if not self._is_reading or now_s < self._deadline_s:
            return
        if self._is_ending or not (self._is_busy or self._has_begun):
            if not n_unsent:
                self.drop()
        elif not self._is_busy or self._is_slow(now_s):
            self._deadline_s = now_s + _LINGER_S
            part = "body" if self._is_busy else "head"
            late = RequestTimeout(f"the {part} of the request did not come in time")
            self._task_group.spawn(self.protocol.refuse, late)

    def _is_slow(self, now_s: float) -> bool:
        return self.protocol.is_in_body and now_s > self._deadline_s + self._n_received / _SLOWEST_BODY

    def began_s(self, now_s: float) -> float | None:
        """When the request began whose body is still on its way; None where there is none that may make room."""
        began_s = self._deadline_s - _BODY_S
        is_late = self._is_busy and self._is_reading and self.protocol.is_in_body and now_s - began_s > _PATIENCE_S
        return began_s if is_late else None

    def is_unread(self) -> bool:
        """Whether the client has said something that was not looked at yet: it may be a request."""
        sock = self.writer.get_extra_info("socket")
        if sock.fileno() < 0:
            return False
        if cast("_Reader", self.reader).n_unread:
            return True
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLRDHUP)
        return any(event == select.POLLIN for _, event in poll.poll(0))  # with more than this, the client has left

    def close(self) -> None:
        """End it when the client has taken all in; for one that nothing is in progress on."""
        self._is_ending = True
        self.writer.close()

    def drop(self) -> None:
        """End it at once."""
        self._is_ending = True
        self.writer.transport.abort()


class _Reader(asyncio.StreamReader):
    """Counts the bytes that came and were not read yet."""

    n_unread = 0

    def feed_data(self, data: Any) -> None:
        self.n_unread += len(data)
        super().feed_data(data)

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        self.n_unread -= len(data)
        return data


async def open_connection(house: ConnectionOwner, shared: Shared, sock: socket.socket, *, is_spare: bool) -> Connection:
    """A connection over `sock`, which was accepted, to be `run`. Raises OSError for a client that has left.

    A spare one is for the refusal of one request, or for the question whether the server is alive.
    """
    sock.setblocking(False)
    reader = _Reader(limit=MAX_RECV, loop=house.loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=house.loop)
    try:
        transport, _ = await house.loop.connect_accepted_socket(lambda: protocol, sock)
    except OSError:
        sock.close()
        raise
    writer = asyncio.StreamWriter(transport, protocol, reader, house.loop)
    return Connection(house, shared, reader, writer, is_spare=is_spare)
