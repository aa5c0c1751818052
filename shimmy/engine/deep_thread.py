"""Runs a call that recurses in C on a thread of its own, with a stack of the given size: a stack that is too small
would end the process.

Knows nothing of the calls, which run without Python's lock. The thread of a call that takes long gets a low priority;
a call that takes too long is left running, as no call of C can be ended.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from time import monotonic, thread_time
from typing import TypeVar

from shimmy.errors import NO_MORE_THREADS, OutOfMemory, Overloaded

# A call that takes longer gets a low priority.
_PATIENCE_S = 0.02
_NICENESS = 10
_MAX_LEFT_BEHIND = 2

Result = TypeVar("Result")

_stack_size_lock = threading.Lock()  # the size is a setting of the whole process, for all threads started later
_left_behind: list[threading.Thread] = []
_of_calls = threading.local()  # `seconds` of the processor that the calls of a thread took


class TooLong(Exception):
    """The call was not done in time."""


def start(target: Callable[[], object], stack_bytes: int) -> threading.Thread:
    """A running thread with a stack of `stack_bytes`, of which only the used part takes memory. Raises OutOfMemory
    where the system has no room for it."""
    thread = threading.Thread(target=target, daemon=True)
    with _stack_size_lock:
        previous = threading.stack_size(stack_bytes)
        try:
            thread.start()
        except RuntimeError as exc:
            raise OutOfMemory(f"no room for a stack of {stack_bytes >> 20} MiB, or {NO_MORE_THREADS}") from exc
        finally:
            threading.stack_size(previous)
    return thread


def processor_s() -> float:
    """The processor time of the current thread, in seconds, with that of its calls: other load does not count."""
    return thread_time() + _seconds_of_calls()


def _seconds_of_calls() -> float:
    return getattr(_of_calls, "seconds", 0.0)


def call(function: Callable[[], Result], stack_bytes: int, deadline_s: float | None = None) -> Result:
    """What `function` returns or raises. Raises OutOfMemory where there is no room for its stack, TooLong where it is
    not done within `deadline_s`, and Overloaded while several calls of that kind are still running."""
    if deadline_s is not None:
        _left_behind[:] = [thread for thread in _left_behind if thread.is_alive()]
        if len(_left_behind) >= _MAX_LEFT_BEHIND:
            raise Overloaded("what took too long for other requests is still going on; try again later")
    results: list[Result] = []
    errors: list[BaseException] = []
    taken_s = deadline_s or 0.0  # what a call is taken to have used that is left running

    def run() -> None:
        nonlocal taken_s
        try:
            results.append(function())
        except BaseException as exc:  # noqa: BLE001 - the caller raises it
            errors.append(exc)
        taken_s = thread_time()

    begun_s = monotonic()
    thread = start(run, stack_bytes)
    thread.join(_PATIENCE_S)
    if thread.is_alive():
        _yield_to_others(thread)
        thread.join(None if deadline_s is None else max(0.0, begun_s + deadline_s - monotonic()))
    is_left_behind = thread.is_alive()
    _of_calls.seconds = _seconds_of_calls() + taken_s
    if is_left_behind:
        _left_behind.append(thread)
        raise TooLong
    if errors:
        raise errors[0]
    return results[0]


def _yield_to_others(thread: threading.Thread) -> None:
    if thread.native_id is not None:
        with contextlib.suppress(OSError, AttributeError):  # only on Linux a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, thread.native_id, _NICENESS)
