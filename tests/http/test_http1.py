"""Connections over real sockets, with an application of the test's own: deadlines, numbers, and odd requests."""

import asyncio
import errno
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from functools import wraps
from typing import Any

import pytest

from shimmy.api.http_exchange import CROWDED, ASGIMessage, Receive, Scope, Send
from shimmy.http import connections, http1
from shimmy.http.connections import N_SPARE, Connections

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


class House:
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
async def serving(n_most: int = 100) -> AsyncIterator[House]:
    app, stop = App(), asyncio.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    house_of = Connections(app, n_most)

    async def until_stopped() -> None:
        await stop.wait()

    server = asyncio.create_task(house_of.serve([listener], until_stopped))
    house = House(listener.getsockname()[1], app, house_of)
    await asyncio.sleep(0)
    try:
        yield house
        for client in house.clients:
            if not client.writer.is_closing():
                client.writer.transport.abort()
        app.go_on.set()
        await house.until(house.is_empty)  # nothing is left of any connection
    finally:
        stop.set()
        await server


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines as short as a test."""
    for name, seconds in {"_HEAD_S": 0.3, "_KEEP_ALIVE_S": 0.3, "_BODY_S": 0.3}.items():
        monkeypatch.setattr(http1, name, seconds)
    monkeypatch.setattr(http1, "_LINGER_S", 0.3)
    for module in (http1, connections):
        monkeypatch.setattr(module, "LOOK_EVERY_S", 0.02)


# -- requests ---------------------------------------------------------------------------------------------------------


@on_loop
async def test_requests_of_a_connection_are_answered_one_after_the_other() -> None:
    async with serving() as house:
        client = await house.client()
        assert await client.ask(GET) == (200, b"0")
        assert await client.ask(POST % 5 + b"hello") == (200, b"5")
        client.send(b"\r\n")
        await asyncio.sleep(0.05)
        client.send(GET + POST % 2 + b"hi" + GET)
        assert [await client.reply() for _ in range(3)] == [(200, b"0"), (200, b"2"), (200, b"0")]


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://host.example/v1/models", "/v1/models", b"host.example"),
        (b"HTTPS://host.example:8/v1/a%20b?q=1", "/v1/a b", b"host.example:8"),
        (b"http://host.example", "/", b"host.example"),
        (b"http://[::1]:8?q=1", "/", b"[::1]:8"),
        (b"/http://host.example/x", "/http://host.example/x", b"x"),
        (b"*", "*", b"x"),
    ],
)
@on_loop
async def test_a_target_in_absolute_form_is_its_path_and_its_host(target: bytes, path: str, host: bytes) -> None:
    async with serving() as house:
        client = await house.client()
        assert (await client.ask(GET.replace(b"/a", target)))[0] == 200
        (scope,) = house.app.scopes
        assert scope["path"] == path
        assert [value for name, value in scope["headers"] if name == b"host"] == [host]
        assert scope["query_string"] == (b"q=1" if b"q=1" in target else b"")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nNo colon\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a HTTP/3.7\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000,
        b" \r\n" * 20_000,
    ],
    ids=lambda data: repr(data[:40]),
)
@on_loop
async def test_what_is_no_request_is_an_error_in_shape_and_no_traceback(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as house:
        client = await house.client()
        status, body = await client.ask(request_bytes)
        assert status in (400, 431, 501)
        assert list(json.loads(body)["error"]) == ["message", "type", "param", "code"]
        assert await client.is_closed()
    assert caplog.records == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /a HTTP/1.0\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX-Folded: one\r\n two\r\n\r\n",
        b"\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n2;x=1\r\nhi\r\n0\r\nTrailer: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\nhi",
        b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"HEAD /rude HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
    ids=lambda data: repr(data[:60]),
)
@on_loop
async def test_what_is_only_odd_is_answered(request_bytes: bytes) -> None:
    async with serving() as house:
        client = await house.client()
        client.send(request_bytes)
        assert (await client.reader.readuntil(b"\r\n")).split()[1] in (b"200", b"413")


@on_loop
async def test_a_body_is_asked_for_when_it_is_wanted() -> None:
    expecting = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") % 5
    async with serving() as house:
        client = await house.client()
        assert await client.ask(expecting) == (100, b"")
        assert await client.ask(b"hello") == (200, b"5")
        assert await client.ask(expecting.replace(b"/a", b"/rude")) == (413, b"too large")
        assert await client.is_closed()


@pytest.mark.parametrize("n_chunks", [200_000])
@on_loop
async def test_a_body_of_single_bytes_leaves_the_loop_to_others(n_chunks: int) -> None:
    async with serving() as house:
        client, other = await house.client(), await house.client()
        client.send(b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"1\r\nx\r\n" * n_chunks + b"0\r\n\r\n")
        slow = asyncio.create_task(client.reply())
        n_quick = 0
        while not slow.done():
            assert await other.ask(GET) == (200, b"0")
            n_quick += 1
        assert await slow == (200, b"%d" % n_chunks)
        assert n_quick > 20


# -- clients that leave, and replies that are not read -----------------------------------------------------------------


@on_loop
async def test_a_reply_before_the_end_of_a_large_body_is_seen_and_leaves_nothing_behind() -> None:
    async with serving() as house:
        for _ in range(3):
            client = await house.client()
            client.send(POST.replace(b"/a", b"/rude") % 20_000_000)
            body = asyncio.create_task(_send_all(client, 20_000_000))
            assert await client.reply() == (413, b"too large")
            await body
            client.writer.close()
        await house.until(house.is_empty)


async def _send_all(client: Client, n_bytes: int) -> None:
    with suppress(ConnectionError):
        for _ in range(n_bytes // 100_000):
            client.send(bytes(100_000))
            await client.writer.drain()


@on_loop
async def test_a_client_that_leaves_in_its_body_is_told_to_the_application() -> None:
    async with serving() as house:
        client = await house.client()
        client.send(POST % 100 + b"half")
        await house.until(lambda: house.app.n_running)
        client.writer.transport.abort()
        await house.until(house.is_empty)
        assert house.app.n_left == 1


@pytest.mark.parametrize(
    "behind",
    [GET, POST % 300_000 + bytes(300_000), POST % 9_000_000 + bytes(9_000_000)],
    ids=["little", "more", "much"],
)
@pytest.mark.parametrize("how", ["abort", "close"])
@on_loop
async def test_a_client_that_leaves_with_another_request_behind_leaves_nothing_behind(behind: bytes, how: str) -> None:
    async with serving() as house:
        client = await house.client()
        client.send(GET.replace(b"/a", b"/watch") + behind)
        await house.until(lambda: house.app.n_running)
        await asyncio.sleep(0.1)
        if how == "abort":
            client.writer.transport.abort()
        else:
            client.writer.write_eof()
        await house.until(house.is_empty)
        assert house.app.n_left == 1


@pytest.mark.usefixtures("_quick")
@on_loop
async def test_a_reply_that_nobody_reads_is_given_up() -> None:
    async with serving() as house:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(http1, "_UNREAD_S", 0.5)
            with socket.create_connection(("127.0.0.1", house.port)) as sock:
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_sendall(sock, GET.replace(b"/a", b"/huge"))
                await house.until(lambda: house.connections._open)
                await house.until(house.is_empty)


@pytest.mark.usefixtures("_quick")
@on_loop
async def test_a_reply_that_is_read_slowly_arrives_whole() -> None:
    async with serving() as house:
        client = await house.client()
        client.send(GET.replace(b"/a", b"/huge").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await asyncio.sleep(1)  # longer than all deadlines for what is not a reply
        status, body = await client.reply()
        assert (status, len(body)) == (200, 50_000_001)


@on_loop
async def test_a_bug_of_the_application_cuts_its_reply_only(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as house:
        client = await house.client()
        assert (await client.ask(GET.replace(b"/a", b"/broken")))[0] == 500
        assert await (await house.client()).ask(GET) == (200, b"0")
    assert "ZeroDivisionError" in caplog.text


# -- deadlines ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    ("begun", "status"),
    [
        (b"", 0),
        (b"GET /a HT", 408),
        (b"GET /a HTTP/1.1\r\nHost: x\r\n", 408),
        (POST % 100 + b"half", 408),
        (POST.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") + b"5\r\nhe", 408),
    ],
    ids=["silent", "line", "head", "body", "chunked"],
)
@pytest.mark.parametrize("before", [b"", GET], ids=["new", "kept-alive"])
@on_loop
async def test_what_does_not_come_to_its_end_is_ended(begun: bytes, status: int, before: bytes) -> None:
    async with serving() as house:
        client = await house.client()
        if before:
            assert await client.ask(before) == (200, b"0")
        answered, body = await client.ask(begun)
        assert answered == status
        if status:
            assert json.loads(body)["error"]["code"] == "request_timeout"
        assert await client.is_closed()
        await house.until(house.is_empty)


@pytest.mark.usefixtures("_quick")
@on_loop
async def test_a_head_of_a_byte_now_and_then_is_ended() -> None:
    async with serving() as house:
        client = await house.client()

        async def trickle() -> None:
            with suppress(ConnectionError):
                while True:
                    client.send(b"x")
                    await client.writer.drain()
                    await asyncio.sleep(0.02)

        task = asyncio.create_task(trickle())
        assert (await client.reply())[0] == 408
        task.cancel()


@pytest.mark.usefixtures("_quick")
@on_loop
async def test_a_slow_body_that_gets_on_is_waited_for() -> None:
    async with serving() as house:
        client = await house.client()
        client.send(POST % 20_000)
        for _ in range(10):
            await asyncio.sleep(0.1)  # all of it takes three times the deadline
            client.send(bytes(2000))
        assert await client.reply() == (200, b"20000")


@pytest.mark.usefixtures("_quick")
@on_loop
async def test_a_reply_may_take_longer_than_any_deadline() -> None:
    async with serving() as house:
        client = await house.client()
        client.send(GET.replace(b"/a", b"/wait"))
        await asyncio.sleep(1)
        house.app.go_on.set()
        assert await client.reply() == (200, b"0")


# -- how many ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_the_one_that_waited_longest_makes_room_for_another() -> None:
    async with serving(n_most=3) as house:
        oldest, second, third = [await house.client() for _ in range(3)]
        await house.until(lambda: len(house.connections._idle) == 3)
        assert await oldest.ask(GET) == (200, b"0")  # now the second has waited the longest
        fourth = await house.client()
        assert await fourth.ask(GET) == (200, b"0")
        assert await second.is_closed()
        assert [await one.ask(GET) for one in (oldest, third)] == [(200, b"0")] * 2


@on_loop
async def test_a_flood_of_silent_connections_keeps_nobody_out(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(n_most=10) as house:
        for _ in range(300):
            await house.client()
        assert await (await house.client()).ask(GET) == (200, b"0")
        assert len(house.connections._counted) <= 10
    assert caplog.records == []


@on_loop
async def test_when_all_are_busy_a_few_more_are_marked_and_the_rest_waits(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(n_most=2) as house:
        for _ in range(2):
            (await house.client()).send(GET.replace(b"/a", b"/wait"))
        await house.until(lambda: house.app.n_running == 2)
        spare = await house.client()
        assert await spare.ask(GET) == (200, b"0")
        assert await spare.is_closed()
        assert CROWDED in house.app.scopes[-1]["extensions"]
        assert all(CROWDED not in scope["extensions"] for scope in house.app.scopes[:2])
        for number in range(N_SPARE):
            (await house.client()).send(GET.replace(b"/a", b"/wait"))
            await house.until(lambda n_busy=3 + number: house.app.n_running == n_busy)  # type: ignore[misc]
        late = asyncio.create_task((await house.client()).ask(GET))
        await asyncio.sleep(0.1)
        assert not late.done()
        house.app.go_on.set()
        assert await late == (200, b"0")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "all 2 connections" in caplog.text


@on_loop
async def test_a_connection_whose_request_has_come_and_was_not_looked_at_makes_no_room() -> None:
    async with serving(n_most=2) as house:
        address = ("127.0.0.1", house.port)
        with closing(socket.create_connection(address)) as first, closing(socket.create_connection(address)) as second:
            await house.until(lambda: len(house.connections._idle) == 2)
            for client in (first, second):  # these and the third come while the server is at something else
                client.sendall(GET.replace(b"/a", b"/wait"))
            with closing(socket.create_connection(address)) as third:
                third.sendall(GET)
                await house.until(lambda: len(house.app.scopes) == 3)
            assert house.app.n_running == 2
            assert [CROWDED in scope["extensions"] for scope in house.app.scopes] == [False, False, True]


@on_loop
async def test_slow_bodies_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "_PATIENCE_S", 0.1)
    async with serving(n_most=2) as house:
        first, second = await house.client(), await house.client()
        for client in (first, second):
            client.send(POST % 100 + b"half")
            await house.until(lambda: house.app.n_running)
            await asyncio.sleep(0.15)
        assert await (await house.client()).ask(GET) == (200, b"0")
        assert await first.is_closed()


class Refusing:
    """A listener whose `accept` fails, as the system's does when no descriptor is left."""

    def __init__(self, listener: socket.socket, number: int) -> None:
        self._listener, self._number = listener, number
        self.n_tried = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def accept(self) -> tuple[socket.socket, object]:
        self.n_tried += 1
        if self._number:
            raise OSError(self._number, "Too many open files")
        return self._listener.accept()

    def relent(self) -> None:
        self._number = 0


@on_loop
async def test_a_system_without_descriptors_is_told_once_and_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "_PAUSE_S", 0.05)
    app, stop = App(), asyncio.Event()
    listener = Refusing(socket.create_server(("127.0.0.1", 0)), errno.EMFILE)

    async def until() -> None:
        await stop.wait()

    listeners: Any = [listener]
    server = asyncio.create_task(Connections(app, 10).serve(listeners, until))
    client = Client(*await asyncio.open_connection("127.0.0.1", listener.getsockname()[1]))
    answer: Awaitable[tuple[int, bytes]] = asyncio.create_task(client.ask(GET))
    await asyncio.sleep(0.5)
    assert 2 <= listener.n_tried <= 20
    listener.relent()
    assert await answer == (200, b"0")
    client.writer.close()
    stop.set()
    await server
    assert len(caplog.records) == 1
    assert "Too many open files" in caplog.text
