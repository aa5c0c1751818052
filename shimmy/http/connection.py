"""One connection of a client: reading, writing, running the application, and the deadlines of each.

Knows one socket and an ASGI application. `http1` finds the requests in its bytes; `connections` has all connections.
"""

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

import h11
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from shimmy.api.http_exchange import CROWDED, ASGIApp, ASGIMessage, Scope
from shimmy.errors import RequestTimeout
from shimmy.http.http1 import Http1
from shimmy.http.inbox import Inbox

logger = logging.getLogger(__name__)

_HEAD_S = 30.0  # from a connection, or the first byte of a request, to the end of its head
_KEEP_ALIVE_S = 75.0  # between two requests
_BODY_S = 30.0  # for a body, and one more second for each `_SLOWEST_BODY` bytes of it
_SLOWEST_BODY = 1000
_UNREAD_S = 300.0  # a client that reads nothing of its reply for this long has left
_LINGER_S = 5.0  # for a refused client that still sends to stop, and to read why it was refused
_PATIENCE_S = 5.0  # a body that takes longer may have to make room for another connection


class ConnectionOwner(Protocol):
    """What a connection belongs to."""

    app: ASGIApp
    loop: asyncio.AbstractEventLoop

    def note(self, connection: "Connection", *, is_busy: bool) -> None:
        """A request has begun on `connection`, or the last one has ended."""

    def forget(self, connection: "Connection") -> None:
        """`connection` is at its end."""


class Shared:
    """Hypercorn's configuration and context, which all connections of a server share."""

    def __init__(self) -> None:
        self.config = HypercornConfig()
        self.config.include_server_header = False
        self.config.keep_alive_max_requests = 2**31
        self.context = WorkerContext(None)

    async def end(self) -> None:
        """From here on each connection ends after the request that is in progress on it."""
        await self.context.terminated.set()


class Connection(TCPServer):
    """One client's connection, from its first byte to its last."""

    protocol: Http1  # type: ignore[assignment] # made here, without the wrapper that may change to HTTP/2

    def __init__(
        self,
        owner: ConnectionOwner,
        shared: Shared,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        is_spare: bool,
    ) -> None:
        super().__init__(
            cast("Any", owner.app), owner.loop, shared.config, shared.context, ConnectionState({}), reader, writer
        )
        self.task = asyncio.current_task()
        self._owner = owner
        self._is_spare = is_spare
        self._is_busy = False  # there is a request in progress
        self._is_reading = False
        self._is_ending = False  # no more will be written
        self._deadline_s = owner.loop.time() + _HEAD_S
        self._has_begun = False  # part of a head is here
        self._n_received = 0  # bytes of a body
        self._n_written = 0
        self._n_taken = 0  # of these, by the client or our system, at the last look
        self._taken_s = 0.0  # when that changed last

    async def run(self) -> None:
        """Serve the connection until it ends."""
        sock = self.writer.get_extra_info("socket")
        try:
            client, server = (parse_socket_addr(sock.family, name()) for name in (sock.getpeername, sock.getsockname))
            async with TaskGroup(self.loop) as self._task_group:
                self.protocol = Http1(
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
            self._owner.forget(self)
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
        """Whether the client has left, even where bytes of it are still unread.

        Where reading is paused, an end behind unread bytes is not visible: bytes that wait count as a client that has
        left, since no client sends so much before it has its reply.
        """
        transport = cast("asyncio.ReadTransport", self.writer.transport)
        if transport.is_closing():
            return True
        return bool(self._polled(select.POLLRDHUP | (0 if transport.is_reading() else select.POLLIN)))

    def _polled(self, events: int) -> int:
        """Which of these events of `select.poll` the socket has now, and POLLERR and POLLHUP, which need no asking."""
        poll = select.poll()
        poll.register(self.writer.get_extra_info("socket"), events)
        return next((found for _, found in poll.poll(0)), 0)

    async def spawn_app(
        self,
        app: Any,
        _config: HypercornConfig,
        scope: Scope,
        send: Callable[[ASGIMessage | None], Awaitable[None]],
    ) -> Callable[[ASGIMessage], Awaitable[None]]:
        """Run the application on a request; returns the function that takes its further messages. Called by Hypercorn's
        stream."""
        inbox = Inbox()
        if self._is_spare:
            scope["extensions"][CROWDED] = {}
        self._task_group.spawn(self._run_app, app, scope, inbox, send)
        return inbox.put

    async def _run_app(
        self, app: ASGIApp, scope: Scope, inbox: Inbox, send: Callable[[ASGIMessage | None], Awaitable[None]]
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
        """Called by the protocol. Waits for the client only when the socket is full, which is rare for a token."""
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
            self._owner.note(self, is_busy=self._is_busy)

    async def _until_taken(self) -> None:
        try:
            async with self.send_lock:
                await self.writer.drain()
        except (ConnectionError, RuntimeError):
            await self.protocol.handle(Closed())

    def _end(self) -> None:
        """Close the connection; where the client still sends, only our side: a full close could lose it the reply."""
        if self._is_ending:
            return
        self._is_ending = True
        self._deadline_s = self.loop.time() + _LINGER_S
        self._owner.note(self, is_busy=False)
        if self.protocol.is_in_body or self.protocol.connection.their_state is h11.ERROR:
            with contextlib.suppress(OSError, RuntimeError):
                self.writer.write_eof()
                return
        self.writer.close()

    # -- deadlines -------------------------------------------------------------------------------------------------

    @property
    def n_unsent(self) -> int:
        """Bytes of a reply that neither the client nor our system has taken."""
        return self.writer.transport.get_write_buffer_size()

    def look(self, now_s: float) -> None:
        """Called every second: end what has taken too long."""
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
        """When the request began whose body is still arriving; None where no such body is slow enough to make room."""
        began_s = self._deadline_s - _BODY_S
        is_late = self._is_busy and self._is_reading and self.protocol.is_in_body and now_s - began_s > _PATIENCE_S
        return began_s if is_late else None

    def is_unread(self) -> bool:
        """Whether the client has sent bytes that were not read yet: they may be a request."""
        if self.writer.get_extra_info("socket").fileno() < 0:
            return False
        if cast("_Reader", self.reader).n_unread:
            return True
        return self._polled(select.POLLIN | select.POLLRDHUP) == select.POLLIN  # with more, the client has left

    def close(self) -> None:
        """End an idle connection, once the client has taken what was written."""
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


async def open_connection(owner: ConnectionOwner, shared: Shared, sock: socket.socket, *, is_spare: bool) -> Connection:
    """A connection over `sock`, which was accepted, to be `run`. Raises OSError for a client that has left.

    A spare connection is for refusing one request, or for answering whether the server is alive.
    """
    sock.setblocking(False)
    reader = _Reader(limit=MAX_RECV, loop=owner.loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=owner.loop)
    try:
        transport, _ = await owner.loop.connect_accepted_socket(lambda: protocol, sock)
    except OSError:
        sock.close()
        raise
    writer = asyncio.StreamWriter(transport, protocol, reader, owner.loop)
    return Connection(owner, shared, reader, writer, is_spare=is_spare)
