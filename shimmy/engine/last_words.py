"""The last message of a worker that cannot go on: the reason, which the parent gives to the waiting requests.

Works from the program's first line on, and imports next to nothing before that is needed: an import may have failed.
"""

import os
from errno import ENOMEM
from typing import TYPE_CHECKING

from shimmy.wire import frames

if TYPE_CHECKING:
    from shimmy.errors import ShimmyError


def say(socket_fd: int, error: BaseException) -> None:
    """Send why this process ends, where it has no ParentConnection yet."""
    from shimmy.wire import reports

    data = frames.frame(reports.dying_frame(reason(error)))
    while data:
        try:
            data = data[os.write(socket_fd, data) :]
        except OSError:  # the parent has gone
            return


def reason(error: BaseException) -> "ShimmyError":
    """`error` as a message for the requests that wait for the worker."""
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
