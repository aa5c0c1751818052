"""Server-sent events of one generation, and the watch for a client that leaves. It knows no dialect: frames are bytes.

Three tasks take part. The request's own waits for the client to leave and pings while nothing else is written; a
second runs the generation and writes; a third listens for `http.disconnect`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Protocol, TypeVar

from shimmy.api.exchange import ClientGone, Exchange, error_body, error_of
from shimmy.errors import Internal, ShimmyError
from shimmy.messages import Finished

if TYPE_CHECKING:
    from shimmy.generate import Generation

# An error up to here is a plain 4xx or 5xx. Later, while a model still loads, the client gets its 200 and pings.
ACCEPT_WAIT_S = 5.0
PING_S = 5.0  # proxies close connections on which they see nothing for long, the shortest after 15 s or so

PING = b": ping\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
)

Result = TypeVar("Result")


class Frames(Protocol):
    """The bytes of a dialect's events, each of them one or more whole events."""

    opening: bytes  # sent once the worker has accepted the job; may be empty

    def piece(self, text: str) -> bytes: ...

    def last(self, finished: Finished) -> bytes: ...


async def unless_gone(
    exchange: Exchange, work: Coroutine[object, object, Result], on_quiet: Callable[[], Awaitable[None]] | None = None
) -> Result:
    """Run `work`; a client that leaves cancels it and raises ClientGone. `on_quiet` is called every PING_S seconds."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(exchange.gone())
    try:
        while not task.done():
            done, _ = await asyncio.wait(
                {task, gone}, timeout=PING_S if on_quiet else None, return_when=asyncio.FIRST_COMPLETED
            )
            if gone in done and not task.done():
                raise ClientGone
            if not done and on_quiet:
                await on_quiet()
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class EventStream:
    """Writes `generation` to `exchange`. Nothing is sent before the job is accepted or ACCEPT_WAIT_S have passed."""

    def __init__(self, exchange: Exchange, generation: "Generation", frames: Frames) -> None:
        self._exchange = exchange
        self._generation = generation
        self._frames = frames
        self._is_open = False
        self._is_quiet = True
        self._is_writing = False

    async def run(self) -> None:
        """Raises only what fails before the first byte; a later error is the stream's last event."""
        try:
            last = await unless_gone(self._exchange, self._run(), self._ping)
            # Outside of the watch: servers report a disconnect to whoever still listens once the reply is complete.
            await self._exchange.end(last)
        finally:
            await self._generation.aclose()

    async def _run(self) -> bytes:
        """Write all but the end of the stream, and return that."""
        is_accepted = await self._accepted_in_time()
        await self._exchange.start(HEADERS)
        self._is_open = True
        try:
            if not is_accepted:
                await self._write(PING)
                await self._generation.accepted()
            return await self._events()
        except Exception as exc:  # noqa: BLE001 - error_of logs what is a bug
            return error_event(error_of(exc))

    async def _accepted_in_time(self) -> bool:
        try:
            async with asyncio.timeout(ACCEPT_WAIT_S):
                await self._generation.accepted()
        except TimeoutError:
            return False
        return True

    async def _events(self) -> bytes:
        if self._frames.opening:
            await self._write(self._frames.opening)
        finished = None
        async for event in self._generation:
            if isinstance(event, Finished):
                finished = event
            elif event.text:
                await self._write(self._frames.piece(event.text))
        if finished is None:
            raise Internal("the generation ended without a reason")
        return self._frames.last(finished)

    async def _write(self, data: bytes) -> None:
        # Two tasks write, and neither cuts the other's event in two: a write is handed over whole, at once.
        self._is_quiet = False
        self._is_writing = True
        await self._exchange.write(data)
        self._is_writing = False

    async def _ping(self) -> None:
        """Ping if nothing was written since the last call."""
        if self._is_open and self._is_quiet and not self._is_writing:
            percent = self._generation.converted_percent
            await self._write(PING if percent is None else b": the model is being converted, %d %%\n\n" % percent)
        self._is_quiet = True


async def broadcast(exchange: Exchange, frames: AsyncIterator[bytes]) -> None:
    """Write `frames` as they come, until there are no more or the client leaves."""
    await exchange.start(HEADERS)
    is_quiet = True

    async def write_all() -> None:
        nonlocal is_quiet
        async for frame in frames:
            is_quiet = False
            await exchange.write(frame)

    async def ping() -> None:
        nonlocal is_quiet
        if is_quiet:
            await exchange.write(PING)
        is_quiet = True

    await unless_gone(exchange, write_all(), ping)
    await exchange.end(b"")


def error_event(error: ShimmyError) -> bytes:
    return b"data: %b\n\n" % error_body(error)
