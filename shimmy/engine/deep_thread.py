"""Runs a call on a thread of its own whose stack was made for it: what recurses in C would end the process otherwise.

Knows nothing of what is called. Such calls are long and without the lock of Python's, so they yield the processor to
the threads that decode.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from shimmy.errors import OutOfMemory

# Of memory a stack takes only what is used of it; the rest is a range of addresses.
_NICENESS = 10

Result = TypeVar("Result")

_stack_size_lock = threading.Lock()  # the size is a setting of the whole process, for threads started from then on


def start(target: Callable[[], object], stack_bytes: int) -> threading.Thread:
    """A running thread with a stack of `stack_bytes`; raises OutOfMemory where the system gives none."""
    thread = threading.Thread(target=target, daemon=True)
    with _stack_size_lock:
        previous = threading.stack_size(stack_bytes)
        try:
            thread.start()
        except RuntimeError as exc:
            raise OutOfMemory(f"no thread with a stack of {stack_bytes >> 20} MiB could be started: {exc}") from exc
        finally:
            threading.stack_size(previous)
    return thread


def call(function: Callable[[], Result], stack_bytes: int) -> Result:
    """What `function` returns or raises; raises OutOfMemory where there is no room for its stack."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        with contextlib.suppress(OSError, AttributeError):  # a thread has a priority of its own on Linux alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            results.append(function())
        except BaseException as exc:  # noqa: BLE001 - the caller raises it
            errors.append(exc)

    start(run, stack_bytes).join()
    if errors:
        raise errors[0]
    return results[0]
