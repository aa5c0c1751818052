"""Tasks beside the requests, none of which ends without a line in the log; and work that is done beside the event loop.

Knows coroutines and threads; nothing of what they do. Imports what only threads take when the first one is wanted.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from shimmy.errors import NO_MORE_THREADS

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# After an error a chore begins anew after the first of these, and the more of them follow each other, the later.
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0
_MAX_THREADS = 4

logger = logging.getLogger(__name__)

_executor: "ThreadPoolExecutor | None" = None
_has_warned = False


async def keep_running(
    what: str,
    chore: Callable[[], Coroutine[Any, Any, None]],
    sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
) -> None:
    """Run `chore` until it returns or is cancelled; an error that nothing in it expects is logged, and it begins anew.

    `what` it does is told in the log: "watching model folders".
    """
    loop = asyncio.get_running_loop()
    wait_s = _FIRST_WAIT_S
    while True:
        began_s = loop.time()
        try:
            return await chore()
        except Exception:
            if loop.time() - began_s > _LONGEST_WAIT_S:
                wait_s = _FIRST_WAIT_S
            logger.exception("%s failed, and begins anew in %g s", what, wait_s)
        await sleep(wait_s)
        wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)


def watch(task: "asyncio.Task[Any]", what: str, on_error: Callable[[Exception], None] = lambda _: None) -> None:
    """Have an error that ends `task` logged, and `on_error` called with it, for those who wait for what it does."""

    def look(done: "asyncio.Task[Any]") -> None:
        error = None if done.cancelled() else done.exception()
        if isinstance(error, Exception):
            logger.error("%s failed", what, exc_info=error)
            on_error(error)

    task.add_done_callback(look)


async def in_thread(
    call: Callable[Parameters, Result], /, *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """What `call` returns, on another thread; where the system allows no more of them, here and now.

    A container with a seccomp profile from before 2021 allows none at all: the C library takes its EPERM for the system
    call clone3 as final. The server serves there nonetheless, and its requests wait for a look at the models.
    """
    global _executor, _has_warned  # noqa: PLW0603 - one for the process, as threads are
    from concurrent.futures import ThreadPoolExecutor

    if _executor is None:
        _executor = ThreadPoolExecutor(_MAX_THREADS, "beside")
    work = partial(call, *args, **kwargs)
    try:
        future = asyncio.get_running_loop().run_in_executor(_executor, work)
    except RuntimeError:  # it has noted the work, but could not start a thread for it
        _executor.shutdown(wait=False, cancel_futures=True)
        _executor = None
        if not _has_warned:
            _has_warned = True
            logger.warning("%s; requests wait while the server looks at its models", NO_MORE_THREADS)
        return work()
    return await future
