"""Server-sent events of the jobs of one request, and the watch for a client that leaves. Knows no dialect: frames
are bytes.

Three tasks take part. The request's own waits for the client to leave and pings while nothing else is written; a
second runs the generation and writes, or one for each generation where there are several; a third listens for
`http.disconnect`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from shimmy.api.aside import aside
from shimmy.api.client_gone import unless_gone
from shimmy.api.http_exchange import Exchange, error_of
from shimmy.errors import Internal, ShimmyError
from shimmy.generation import close, together
from shimmy.messages.event import Accepted, Echo, Finished, JobProgress, Piece

if TYPE_CHECKING:
    from shimmy.generation import Generation

# An error up to here is a plain 4xx or 5xx. Later, while a model still loads, the client gets its 200 and pings.
ACCEPT_WAIT_S = 5.0


PING = b": ping\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx buffers the events
)


class Frames(Protocol):
    """The bytes of a dialect's events: whole ones, or none where there is nothing to say.

    `begin` comes first, once every job is accepted; then what happens to the jobs, by their index; `end` or `failed`
    is the last, and `failed` may be the only one. Where `is_large`, the frames at the end take long to encode.
    """

    @property
    def is_large(self) -> bool: ...

    def begin(self, accepted: Sequence[Accepted]) -> bytes: ...

    def progress(self, index: int, progress: JobProgress) -> bytes: ...

    def event(self, index: int, event: Echo | Piece) -> bytes: ...

    def finished(self, index: int, finished: Finished) -> bytes: ...

    def end(self) -> bytes: ...

    def failed(self, error: ShimmyError) -> bytes: ...

    def ping(self) -> bytes:
        """Keeps the connection open while there is nothing else to send; may come before `begin`."""


class EventStream:
    """Writes `generations` to `exchange`. Nothing is sent before they are accepted or ACCEPT_WAIT_S have passed."""

    def __init__(self, exchange: Exchange, generations: "Sequence[Generation]", frames: Frames) -> None:
        self._exchange = exchange
        self._generations = generations
        self._frames = frames
        self._n_unfinished = len(generations)
        self._is_open = False
        self._is_quiet = True
        self._n_writing = 0

    async def run(self) -> None:
        """Raises only what fails before the first byte; a later error is the stream's last event."""
        try:
            last = await unless_gone(self._exchange, self._run(), self._ping)
            # Outside of the watch: servers report a disconnect to a task that still listens once the reply is complete.
            await self._exchange.end(last)
        finally:
            await close(self._generations)

    async def _run(self) -> bytes:
        """Write all but the end of the stream, and return that."""
        accepted = await self._accepted_in_time()
        await self._exchange.start(HEADERS)
        self._is_open = True
        try:
            if accepted is None:
                await self._write(self._frames.ping())
                accepted = await self._accepted()
            if opening := self._frames.begin(accepted):
                await self._write(opening)
            works = [self._events(index, generation) for index, generation in enumerate(self._generations)]
            last = await together(works)
            return b"".join(last) + await self._made(self._frames.end)
        except Exception as exc:  # noqa: BLE001 - error_of logs what is a bug
            return self._frames.failed(error_of(exc))

    async def _accepted(self) -> list[Accepted]:
        return await together([generation.accepted() for generation in self._generations])

    async def _accepted_in_time(self) -> list[Accepted] | None:
        try:
            async with asyncio.timeout(ACCEPT_WAIT_S):
                return await self._accepted()
        except TimeoutError:
            return None

    async def _events(self, index: int, generation: "Generation") -> bytes:
        """Write what the job says; where it was the last that ran, the end of it is returned and not written."""
        frames = self._frames
        async for event in generation:
            if isinstance(event, Finished):
                last = await self._made(partial(frames.finished, index, event))
                self._n_unfinished -= 1
                if not self._n_unfinished:
                    return last
                await self._write(last)
                return b""
            told = frames.progress(index, event) if isinstance(event, JobProgress) else frames.event(index, event)
            if told:
                await self._write(told)
        raise Internal("the generation ended without a reason")

    async def _made(self, make: Callable[[], bytes]) -> bytes:
        """What `make` returns; nothing else of the stream is written meanwhile."""
        if not self._frames.is_large:
            return make()
        self._n_writing += 1
        made = await aside(make)
        self._n_writing -= 1
        return made

    async def _write(self, data: bytes) -> None:
        # Several tasks write. None can cut the event of another in two: each write is one call.
        self._is_quiet = False
        self._n_writing += 1
        await self._exchange.write(data)
        self._n_writing -= 1

    async def _ping(self) -> None:
        """Ping if nothing was written since the last call."""
        if self._is_open and self._is_quiet and not self._n_writing:
            progress, told = self._generations[0].load_progress, b""
            if progress is not None:
                step = b"converted" if progress.is_conversion else b"read"
                told = b": the model is being %b, %d %%\n\n" % (step, progress.percent)
            ping = self._frames.ping()
            await self._write(told + (b"" if told and ping == PING else ping))
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
