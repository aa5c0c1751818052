"""Work that would hold up the event loop, on threads beside it.

Python's lock goes back and forth between them every half millisecond, so that the loop goes on, unless a single call of
C's holds it for longer: what runs here makes none that takes more than a few milliseconds. There are two threads, so
that one large body does not hold up all others, and as much memory is taken as two of them need. Knows nothing of what
is done.
"""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

# The default of 5 ms would hold up each step of a stream by that much.
_SWITCH_INTERVAL_S = 0.0005

Result = TypeVar("Result")


async def aside(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises. Where no thread can be had, it holds up the loop after all."""
    try:
        done = asyncio.get_running_loop().run_in_executor(_threads(), work)
    except RuntimeError:  # the system has no more threads for us
        return work()
    return await done


@cache
def _threads() -> ThreadPoolExecutor:
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    return ThreadPoolExecutor(2, "aside")
