"""How many connections there may be, and which one makes room."""

import asyncio
import errno
import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from shimmy.api.http_exchange import CROWDED
from shimmy.http import connection, connections
from shimmy.http.connections import N_SPARE, Connections
from tests.http.harness import GET, POST, App, Client, on_loop, serving

if TYPE_CHECKING:
    from collections.abc import Awaitable


@on_loop
async def test_the_one_that_waited_longest_makes_room_for_another() -> None:
    async with serving(n_most=3) as harness:
        oldest, second, third = [await harness.client() for _ in range(3)]
        await harness.until(lambda: len(harness.connections._idle) == 3)
        assert await oldest.ask(GET) == (200, b"0")  # now the second has waited the longest
        fourth = await harness.client()
        assert await fourth.ask(GET) == (200, b"0")
        assert await second.is_closed()
        assert [await one.ask(GET) for one in (oldest, third)] == [(200, b"0")] * 2


@on_loop
async def test_a_flood_of_silent_connections_keeps_nobody_out(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(n_most=10) as harness:
        for _ in range(300):
            await harness.client()
        assert await (await harness.client()).ask(GET) == (200, b"0")
        assert len(harness.connections._counted) <= 10
    assert caplog.records == []


@on_loop
async def test_when_all_are_busy_a_few_more_are_marked_and_the_rest_waits(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(n_most=2) as harness:
        for _ in range(2):
            (await harness.client()).send(GET.replace(b"/a", b"/wait"))
        await harness.until(lambda: harness.app.n_running == 2)
        spare = await harness.client()
        assert await spare.ask(GET) == (200, b"0")
        assert await spare.is_closed()
        assert CROWDED in harness.app.scopes[-1]["extensions"]
        assert all(CROWDED not in scope["extensions"] for scope in harness.app.scopes[:2])
        for number in range(N_SPARE):
            (await harness.client()).send(GET.replace(b"/a", b"/wait"))
            await harness.until(lambda n_busy=3 + number: harness.app.n_running == n_busy)  # type: ignore[misc]
        late = asyncio.create_task((await harness.client()).ask(GET))
        await asyncio.sleep(0.1)
        assert not late.done()
        harness.app.go_on.set()
        assert await late == (200, b"0")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "all 2 connections" in caplog.text


@on_loop
async def test_a_connection_whose_request_has_come_and_was_not_looked_at_makes_no_room() -> None:
    async with serving(n_most=2) as harness:
        address = ("127.0.0.1", harness.port)
        with closing(socket.create_connection(address)) as first, closing(socket.create_connection(address)) as second:
            await harness.until(lambda: len(harness.connections._idle) == 2)
            for client in (first, second):  # these and the third come while the server is at something else
                client.sendall(GET.replace(b"/a", b"/wait"))
            with closing(socket.create_connection(address)) as third:
                third.sendall(GET)
                await harness.until(lambda: len(harness.app.scopes) == 3)
            assert harness.app.n_running == 2
            assert [CROWDED in scope["extensions"] for scope in harness.app.scopes] == [False, False, True]


@on_loop
async def test_slow_bodies_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_PATIENCE_S", 0.1)
    async with serving(n_most=2) as harness:
        first, second = await harness.client(), await harness.client()
        for client in (first, second):
            client.send(POST % 100 + b"half")
            await harness.until(lambda: harness.app.n_running)
            await asyncio.sleep(0.15)
        assert await (await harness.client()).ask(GET) == (200, b"0")
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
