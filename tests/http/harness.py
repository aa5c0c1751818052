"""A server on a real socket with an application of the test's own, and its clients."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any

from shimmy.api.http_exchange import ASGIMessage, Receive, Scope, Send
from shimmy.http.connections import Connections
from shimmy.http.listening import listen
from shimmy.option_kinds import Bind

SOON_S = 20.0
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def on_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**arguments), 50))

    return run


class App:
    """Reads the body and says what it got; `/wait` waits to be told, `/rude` answers without reading."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.scopes: list[Scope] = []
        self.n_running = 0
        self.n_left = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        self.n_running += 1
        try:
            if scope["path"] == "/rude":
                await self._reply(send, 413, b"too large")
                return
            n_bytes, message = 0, await receive()
            while message["type"] == "http.request":
                n_bytes += len(message.get("body", b""))
                if not message.get("more_body"):
                    break
                message = await receive()
            if message["type"] == "http.disconnect":
                self.n_left += 1
                return
            if scope["path"] == "/wait":
                await self.go_on.wait()
            if scope["path"] == "/watch":
                assert (await receive())["type"] == "http.disconnect"
                self.n_left += 1
                return
            if scope["path"] == "/broken":
                raise ZeroDivisionError
            size = 50_000_000 if scope["path"] == "/huge" else 0
            await self._reply(send, 200, b"%d" % n_bytes + bytes(size))
        finally:
            self.n_running -= 1

    @staticmethod
    async def _reply(send: Send, status: int, body: bytes) -> None:
        start: ASGIMessage = {"type": "http.response.start", "status": status}
        await send({**start, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> tuple[int, bytes]:
        """Status and body of the next reply; 0 where the connection ends instead."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            body = await self.reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, b""
        return int(head.split()[1]), body

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self.send(request)
        return await self.reply()

    async def is_closed(self) -> bool:
        """Wait for the end of the connection, whatever comes before."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        return True


class Harness:
    """A running server and its clients."""

    def __init__(self, port: int, app: App, connections: Connections) -> None:
        self.port, self.app, self.connections = port, app, connections
        self.clients: list[Client] = []

    async def client(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def until(self, is_so: Callable[[], object]) -> None:
        async with asyncio.timeout(SOON_S):
            while not is_so():  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # no event tells

    def is_empty(self) -> bool:
        return not (self.connections._open or self.connections._tasks or self.connections._idle or self.app.n_running)


@asynccontextmanager
async def serving(n_most: int = 100) -> AsyncIterator[Harness]:
    app, stop = App(), asyncio.Event()
    (listener,) = listen(Bind("127.0.0.1", 0))  # as in the server, where no write waits for an earlier one
    all_connections = Connections(app, n_most)

    async def until_stopped() -> None:
        await stop.wait()

    server = asyncio.create_task(all_connections.serve([listener], until_stopped))
    harness = Harness(listener.getsockname()[1], app, all_connections)
    await asyncio.sleep(0)
    try:
        yield harness
        for client in harness.clients:
            if not client.writer.is_closing():
                client.writer.transport.abort()
        app.go_on.set()
        await harness.until(harness.is_empty)  # nothing is left of any connection
    finally:
        stop.set()
        await server
