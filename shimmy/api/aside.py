"""Work that would hold up the event loop, on threads beside it.

Python's lock passes between the threads every half millisecond, so the loop goes on, unless a single call of C code
holds the lock for longer: work here makes no such call of more than a few milliseconds. There are two threads: one
large body does not hold up all others, and only two bodies take memory at once. Knows nothing of the work but its size.
"""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

# The default of 5 ms would hold up each step of a stream by that much.
_SWITCH_INTERVAL_S = 0.0005

# A reply of at most this many characters is encoded on the event loop; the log-probabilities of a token count as the
# second number.
_N_CHARACTERS_HERE, _LOGPROB_CHARACTERS = 1 << 16, 1 << 10

Result = TypeVar("Result")


def is_large(n_characters: int, n_logprobs: int) -> bool:
    """Whether a reply takes more than a few milliseconds to encode; `n_logprobs` are tokens with log-probabilities."""
    return n_characters + _LOGPROB_CHARACTERS * n_logprobs > _N_CHARACTERS_HERE


async def aside(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises. Where the system has no thread for it, it runs on the loop after all."""
    try:
        done = asyncio.get_running_loop().run_in_executor(_threads(), work)
    except RuntimeError:  # the system has no more threads for us
        return work()
    return await done


@cache
def _threads() -> ThreadPoolExecutor:
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    return ThreadPoolExecutor(2, "aside")
