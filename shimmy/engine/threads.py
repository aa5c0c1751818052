"""Starts the threads of a worker, and finds out how many the system allows. Knows nothing of what the threads do."""

import threading
from collections.abc import Callable
from contextlib import suppress

from shimmy.errors import NO_MORE_THREADS, ModelUnavailable


def start(target: Callable[..., object], *args: object, name: str) -> None:
    """Raises ModelUnavailable where the system allows no more threads."""
    try:
        threading.Thread(target=target, args=args, name=name, daemon=True).start()
    except RuntimeError as exc:
        raise ModelUnavailable(NO_MORE_THREADS) from exc


def n_startable(n_most: int) -> int:
    """How many of `n_most` threads can run at once beside those that do.

    OpenMP ends the process where it cannot start the threads that it was told to use, so they are tried out before.
    """
    is_over = threading.Event()
    tried: list[threading.Thread] = []
    try:
        with suppress(RuntimeError):
            for _ in range(n_most):
                thread = threading.Thread(target=is_over.wait, daemon=True)
                thread.start()
                tried.append(thread)
        return len(tried)
    finally:
        is_over.set()
        for thread in tried:
            thread.join()
