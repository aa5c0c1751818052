"""The listening side: strangers, however many, are a handful at once, and hold nobody up."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from shimmy.rpc import front
from shimmy.rpc.channel import connect
from shimmy.rpc.engine_process import EngineSettings
from shimmy.rpc.framing import PROTOCOL
from shimmy.rpc.front import MAX_STRANGERS, Front, FrontOptions
from shimmy.rpc.networks import Network
from shimmy.rpc.offer import OfferedDevice
from tests.fakes import on_loop

KEY = b"a key of sixteen bytes or more"


@contextlib.asynccontextmanager
async def served(*networks: Network) -> AsyncIterator[tuple[Front, socket.socket]]:
    """A front, with one device and a listener that has 300 connections waiting, of which none says a word."""
    devices = (OfferedDevice("CPU", "a processor", 2, 1),)
    options = FrontOptions(KEY, 10, 1, None, networks, lambda: devices, EngineSettings(("CPU",), 1, None, None), None)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        for _ in range(300):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        there = Front(options)
        serving = asyncio.create_task(there.serve([listener]))
        try:
            yield there, listener
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@on_loop
async def test_strangers_who_say_nothing_are_a_handful_at_once() -> None:
    async with served() as (there, listener):
        n_most = n_tasks = 0
        for _ in range(1000):
            await asyncio.sleep(0)
            n_most, n_tasks = max(n_most, len(there._strangers)), max(n_tasks, len(there._tasks))
        assert n_most == MAX_STRANGERS
        assert n_tasks < 2 * MAX_STRANGERS, "those who are sent away go at once"
        channel = await connect("127.0.0.1", listener.getsockname()[1], KEY, 10)
        await channel.say({"protocol": PROTOCOL, "want": "look"})
        assert "devices" in await channel.hear()
        channel.abort()


@on_loop
async def test_who_is_not_allowed_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    n_looks, all_looked_at = 0, asyncio.Event()

    def is_allowed(_host: str, _networks: tuple[Network, ...]) -> bool:
        nonlocal n_looks
        n_looks += 1
        if n_looks == 300:
            all_looked_at.set()
        return False

    monkeypatch.setattr(front, "is_allowed", is_allowed)
    async with served() as (there, _):
        for n_steps in range(1, 20):
            await asyncio.sleep(0)
            assert n_looks <= n_steps, "the others wait their turn"
        async with asyncio.timeout(10):
            await all_looked_at.wait()
        assert not there._strangers
