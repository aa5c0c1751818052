"""Ends what a request has begun when its client leaves."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shimmy.api.http_exchange import ClientGone, Exchange

PING_S = 5.0  # proxies close connections on which they see nothing for long, the shortest after 15 s or so

Result = TypeVar("Result")


async def unless_gone(
    exchange: Exchange, work: Awaitable[Result], on_quiet: Callable[[], Awaitable[None]] | None = None
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
