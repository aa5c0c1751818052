"""How long a chat template may run: a call on a thread of its own, which is ended at its deadline."""

import ctypes
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from typing import TypeVar

from shimmy.errors import NO_MORE_THREADS, OutOfMemory, TemplateFailed

Result = TypeVar("Result")


class _Expired(SystemExit):
    """Ends a thread at its deadline. No `except Exception` catches it, and the thread ends with it silently."""


def within(deadline_s: float, function: Callable[[], Result]) -> Result:
    """The function's result, computed on a thread of its own, so that ending the thread harms no other work."""
    ended = allocate_lock()
    ended.acquire()
    results: list[Result] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as exc:  # noqa: BLE001 - the caller raises it
            errors.append(exc)
        finally:
            ended.release()

    try:
        thread_id = start_new_thread(run, ())  # `threading.Thread` costs more than most templates take to render
    except RuntimeError as exc:
        raise OutOfMemory(NO_MORE_THREADS) from exc
    if not ended.acquire(timeout=deadline_s):
        _end_thread(thread_id, lambda: ended.acquire(timeout=0.05))
        raise TemplateFailed(f"the chat template did not end within {deadline_s:g} s", param="messages")
    if errors:
        raise errors[0]
    return results[0]


def _end_thread(thread_id: int, has_ended: Callable[[], bool]) -> None:
    """Raises again until the thread has ended, in case the exception was swallowed; gives up after 5 s."""
    for _ in range(100):
        if not ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(_Expired)):
            return
        if has_ended():
            return
