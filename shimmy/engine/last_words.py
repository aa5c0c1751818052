"""What a worker says when it cannot go on: why, as its last act. The parent tells it to those who wait.

Works from the program's first line on, and imports next to nothing before it is needed: an import may be what failed.
"""

import os
from errno import ENOMEM
from typing import TYPE_CHECKING

from shimmy.wire import frames

if TYPE_CHECKING:
    from shimmy.errors import ShimmyError


def say(socket_fd: int, error: BaseException) -> None:
    """Send why this process ends, before there is anything that speaks for it."""
    from shimmy.wire import reports

    data = frames.frame(reports.dying_frame(reason(error)))
    while data:
        try:
            data = data[os.write(socket_fd, data) :]
        except OSError:  # nobody is left to hear it
            return


def reason(error: BaseException) -> "ShimmyError":
    """`error` as those who wait for the worker may be told it."""
    from shimmy.errors import NO_MORE_THREADS, Internal, ModelUnavailable, OutOfMemory, ShimmyError

    match error:
        case ShimmyError():
            return error
        case MemoryError():
            return OutOfMemory("Cannot allocate memory")
        case OSError(errno=int(), strerror=str()):
            place = f": `{os.fsdecode(error.filename)}`" if isinstance(error.filename, str | bytes) else ""
            kind = OutOfMemory if error.errno == ENOMEM else ModelUnavailable
            return kind(f"{error.strerror}{place}")
        case ImportError():
            return ModelUnavailable(str(error))
        case RuntimeError() if "new thread" in str(error):  # Python has nothing else that tells it
            return ModelUnavailable(NO_MORE_THREADS)
        case _:
            return Internal(f"{type(error).__name__}, which is a bug; the log has more")
