"""All connections of a server: accepting them, limiting their number, and closing one to make room for another.

Knows sockets, and what each connection waits for. A connection without a request in progress may be closed at any time,
the one that has been idle the longest first. All of this runs on the event loop's thread.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic

from shimmy.api.http_exchange import ASGIApp
from shimmy.http.connection import Connection, Shared, open_connection
from shimmy.http.http1 import LOOK_EVERY_S

logger = logging.getLogger(__name__)

# Connections beyond the limit, for refusals and for asking whether the server is alive.
N_SPARE = 8
_ACCEPTS_AT_ONCE = 16
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_S, _SHORT_PAUSE_S = 1.0, 0.02  # until the next accept; short where a connection is about to end
_TELL_EVERY_S = 60.0
_END_S = 1.0  # at the end of the server, for connections that are almost finished


class Connections:
    """All connections of a server that runs `app`: at most `n_most`, and a few spare ones."""

    def __init__(self, app: ASGIApp, n_most: int) -> None:
        self.app = app
        self.loop = asyncio.get_running_loop()
        self._shared = Shared()
        self._n_most = n_most
        self._tasks: set[asyncio.Task[None]] = set()
        self._counted: set[asyncio.Task[None] | None] = set()  # of these, the ones that are not about to end
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # the one that has been idle the longest comes first
        self._told_s = -_TELL_EVERY_S
        self._looks: asyncio.TimerHandle | None = None

    async def serve(self, listeners: Sequence[socket.socket], until: Callable[[], Awaitable[None]]) -> None:
        """Serve connections to `listeners` until `until` returns; closes them."""
        for listener in listeners:
            listener.setblocking(False)
            self._listen(listener)
        try:
            await until()
        finally:
            for listener in listeners:
                self.loop.remove_reader(listener)
                listener.close()
            await self._shared.end()
            for connection in tuple(self._idle):
                connection.close()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_END_S)
            for connection in tuple(self._open):
                connection.drop()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def note(self, connection: Connection, *, is_busy: bool) -> None:
        """A request has begun on `connection`, or the last one has ended."""
        self._idle.pop(connection, None)
        if not is_busy:
            self._idle[connection] = None

    def forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)
        self._counted.discard(connection.task)

    # -- accepting -------------------------------------------------------------------------------------------------

    def _listen(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # it may have been closed meanwhile
            self.loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            if len(self._counted) >= self._n_most + N_SPARE and not self._make_room():
                self._rest(listener, _SHORT_PAUSE_S)  # a refused connection ends soon
                return
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                self._pause(listener, exc)
                return
            self._take(sock)

    def _pause(self, listener: socket.socket, reason: OSError) -> None:
        """The system has no descriptor or no memory left: try again later."""
        has_room = reason.errno in _NO_ROOM and self._make_room()
        self._rest(listener, _SHORT_PAUSE_S if has_room else _PAUSE_S)
        self._tell("cannot take a new connection: %s; see `ulimit -n` and `--max-connections`", reason.strerror)

    def _rest(self, listener: socket.socket, pause_s: float) -> None:
        """Leave new connections in the system's queue for a while."""
        self.loop.remove_reader(listener)
        self.loop.call_later(pause_s, self._listen, listener)

    def _take(self, sock: socket.socket) -> None:
        while len(self._counted) >= self._n_most and self._make_room():
            pass
        is_spare = len(self._counted) >= self._n_most
        task = self.loop.create_task(self._run(sock, is_spare=is_spare))
        for tasks in (self._tasks, self._counted):
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if is_spare:
            self._tell("all %d connections have requests in progress; others are refused", self._n_most)

    def _make_room(self) -> bool:
        """Close the connection that has waited the longest for a request or for the end of one; False if none does."""
        connection = next((one for one in self._idle if not (one.n_unsent or one.is_unread())), None) or self._slowest()
        if connection is None:
            return False
        self.forget(connection)
        connection.drop()
        return True

    def _slowest(self) -> Connection | None:
        """The connection whose body has been arriving the longest; otherwise an idle one with unsent bytes."""
        now_s = self.loop.time()
        begun = [(began_s, one) for one in self._open if (began_s := one.began_s(now_s)) is not None]
        if begun:
            return min(begun, key=lambda pair: pair[0])[1]
        return next((one for one in self._idle if not one.is_unread()), None)

    def _tell(self, text: str, argument: object) -> None:
        """Warn, at most once a minute."""
        now_s = monotonic()
        if now_s - self._told_s >= _TELL_EVERY_S:
            self._told_s = now_s
            logger.warning(text, argument)

    async def _run(self, sock: socket.socket, *, is_spare: bool) -> None:
        try:
            connection = await open_connection(self, self._shared, sock, is_spare=is_spare)
        except OSError:
            return
        self._open.add(connection)
        self._idle[connection] = None
        if self._looks is None:
            self._looks = self.loop.call_later(LOOK_EVERY_S, self._look)
        try:
            await connection.run()
        except Exception:
            logger.exception("a connection broke off")

    def _look(self) -> None:
        now_s = self.loop.time()
        for connection in tuple(self._open):
            connection.look(now_s)
        self._looks = self.loop.call_later(LOOK_EVERY_S, self._look) if self._open else None
