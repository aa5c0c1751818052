"""Not to outlive the process that started this one, however that ends. Knows Linux; nothing of what either does."""

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `number` to this process when `parent`, which started it, has ended; end at once if it
    has."""
    ending_with(parent, number)()


def ending_with(parent: int, number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """`end_with` as something to call in a child before it becomes another program: nothing is looked up there."""
    prctl = ctypes.CDLL(None).prctl

    def ask_the_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it has ended meanwhile
            os._exit(1)

    return ask_the_kernel
