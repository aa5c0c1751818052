"""Signals that have no effect from here on. Knows how Python takes signals, not what they mean to a command."""

import signal


def ignore(*numbers: int) -> None:
    """Ignore these signals in this process. One that came before is handled first, by the handler it has had until now.

    The system holds them back meanwhile: one that comes while its handler changes would find none to call, and Python
    would print a traceback ("ignored due to race condition", in `_PyErr_CheckSignalsTstate`). To be called from the
    main thread, as all of Python's signal handlers are. Threads beside it may still take a signal just then.
    """
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
    finally:  # also where a handler has raised an exception
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
