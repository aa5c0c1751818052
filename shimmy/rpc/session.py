"""One client of this machine: what it sends goes to an engine of its own and back, checked in between.

Knows the order of things; nothing of who may be a client.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from shimmy.rpc.channel import MAX_RECORD_BYTES, Channel, ChannelClosed, ChannelError
from shimmy.rpc.engine_process import EngineFailed, EngineProcess, EngineSettings
from shimmy.rpc.framing import Framing, FramingError, ToEngine

_LOOK_S = 0.25  # how often the engine's process is looked at


class ClientSession:
    """`run` returns when the client has left, or was sent away."""

    def __init__(self, channel: Channel, framing: Framing, settings: EngineSettings) -> None:
        self._channel = channel
        self._framing = framing
        self._settings = settings

    @property
    def n_bytes(self) -> int:
        """Memory of the machine that the client has."""
        return self._framing.n_bytes

    async def run(self) -> str:
        """Serve the client to its end; returns why it ended, and nothing for an ordinary end."""
        try:
            engine = await EngineProcess.start(self._settings, 2 * MAX_RECORD_BYTES)
        except EngineFailed as exc:
            await self._channel.say({"refused": str(exc)})
            return str(exc)
        try:
            await self._channel.say({"granted": True})
            return await self._until_end(engine)
        finally:
            try:
                await engine.end()
            finally:
                await self._framing.close()

    async def _until_end(self, engine: EngineProcess) -> str:
        try:
            await first_to_end(self._to_engine(engine), self._to_client(engine), self._watch(engine))
        except ChannelClosed:
            return ""
        except ChannelError as exc:
            return str(exc)
        except (FramingError, EngineFailed) as exc:
            with contextlib.suppress(ChannelError, TimeoutError):
                async with asyncio.timeout(1):
                    await self._channel.say({"ended": str(exc)})
            return str(exc)
        raise AssertionError("each of the three ends with an error")

    async def _to_engine(self, engine: EngineProcess) -> None:
        while True:
            data = await self._channel.receive()
            if not isinstance(data, bytes):
                raise FramingError("the client says something where data are due")
            async with contextlib.aclosing(self._framing.requests(data)) as parts:
                async for part in parts:
                    if isinstance(part, ToEngine):
                        await _write(engine, part.data)
                    else:
                        await self._channel.send(part.data)

    async def _to_client(self, engine: EngineProcess) -> None:
        with contextlib.suppress(OSError):
            while data := await engine.reader.read(MAX_RECORD_BYTES):
                await self._channel.send(self._framing.responses(data))
        raise EngineFailed(f"the engine ended: {await engine.how_ended()}")

    async def _watch(self, engine: EngineProcess) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            engine.check()


async def first_to_end(*work: Coroutine[Any, Any, None]) -> None:
    """Run all until one of them ends, and raise its error; the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:  # the first of those that ended at once
        if task in done:
            task.result()


async def _write(engine: EngineProcess, data: bytes) -> None:
    try:
        engine.writer.write(data)
        await engine.writer.drain()
    except OSError:  # the reader from the engine says how it ended
        await asyncio.Event().wait()
