"""Keeps tests with the marker `alone` apart from all others while pytest-xdist runs tests in several processes.

Knows two files to lock, which are there in every checkout, and nothing of what a test does.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MACHINE = Path(__file__)  # locked by each test while it runs: shared, or by one that is alone for itself
_DOOR = Path(__file__).with_name("conftest.py")  # locked on the way in: closed behind one that wants to be alone


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Wait until a test may run, and let it run; one that is alone waits for those that run, and the others for it."""
    with _DOOR.open() as door, _MACHINE.open() as machine:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(machine, fcntl.LOCK_UN)  # also in the name of children that have inherited it
