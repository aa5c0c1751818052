"""Starts worker processes. Knows how the program starts itself once more; nothing of what a worker is told.

A command that is sure to need a worker starts it with `ahead`, before its own imports and look-ups: the worker imports
the engine while the command finds out which model to load.
"""

import contextlib
import socket
import subprocess
from collections.abc import Iterator

from shimmy.system import unpacked_folder
from shimmy.system.self_command import environment, executable, own_program

_MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4194304"

# The process that was started ahead, until `start` takes it, with our end of its socket.
_ahead: "list[tuple[subprocess.Popen[bytes], socket.socket]]" = []


def worker_command(socket_fd: int, name: str) -> list[str]:
    """The program itself with its hidden sub-command; `name` is only for a person who reads `ps`."""
    return [*own_program(), "worker", str(socket_fd), name]


@contextlib.contextmanager
def ahead() -> Iterator[None]:
    """Start a worker for the first model that is loaded inside the block; an unused worker ends with the block."""
    with contextlib.suppress(OSError):  # `start` tries again, and its caller reports the error
        _ahead.append(_start("ahead"))
    try:
        yield
    finally:
        for process, ours in _ahead:
            process.kill()
            process.wait()
            ours.close()
            assert process.stderr is not None
            process.stderr.close()
        _ahead.clear()


def start(name: str) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """A worker that waits to be told what to load, and our end of its socket; raises OSError."""
    return _ahead.pop() if _ahead else _start(name)


def _start(name: str) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """A child that inherits the other end of the socket, and no input; its stderr is a pipe that the caller reads.

    Its malloc asks for huge pages, where the system gives them to those who ask: the engine's buffers and the KV pool
    are walked from end to end for every token, and a decode is up to 7 % faster. Buffers of 4 MB and more are mapped
    and not taken from the heap, which would keep holes of the pools that there were (40 MB after a hundred that grew
    and shrank); what a sampler allocates for each token is smaller. The C library reads the settings only when a
    program starts; those that the user has made stay.
    """
    unpacked_folder.restore()
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                worker_command(theirs.fileno(), name),
                executable=executable(),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env={"GLIBC_TUNABLES": _MALLOC, **environment()},
            )
        except OSError:
            ours.close()
            raise
    return process, ours
