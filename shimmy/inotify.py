"""The inotify of Linux: folders are watched one by one, and it says in which of them something happened.

Knows file descriptors and the names of entries; nothing of which folders matter, nor of what is in them. A package
that watches whole trees hides the folders that the system would not watch, and those behind links (inotify(7)).
"""

import ctypes
import os
from pathlib import Path
from struct import Struct
from typing import NamedTuple

_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _UNMOUNT, _Q_OVERFLOW, _IGNORED, _ONLYDIR = 0x400, 0x800, 0x2000, 0x4000, 0x8000, 0x1000000
# Not that something was opened or read: our own looks do that.
_WANTED = (
    _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
) | _ONLYDIR
_GONE = _DELETE_SELF | _MOVE_SELF | _UNMOUNT | _IGNORED

_HEAD = Struct("iIII")  # watch, mask, cookie, length of the name
_READ_BYTES = 1 << 16
_MAX_READS = 8  # before others have their turn


class Happened(NamedTuple):
    """Something in the folder of `watch`, to its entry `name` or, where that is empty, to the folder itself."""

    watch: int
    name: str
    is_gone: bool  # the folder is not at its path any more, or is not watched any more


class Inotify:
    """One instance of it, with as many watches as the system lets it have."""

    def __init__(self) -> None:
        """Raises OSError, with EMFILE at the limit of instances of a user."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self._check(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, folder: Path) -> int:
        """Watch `folder`: its watch, which is the same for all paths to it. Raises OSError, ENOSPC at the limit."""
        return self._check(self._libc.inotify_add_watch(self.descriptor, os.fsencode(folder), _WANTED))

    def remove(self, watch: int) -> None:
        self._libc.inotify_rm_watch(self.descriptor, watch)  # one that ended by itself is no error

    def read(self) -> set[Happened] | None:
        """What has happened, without waiting; None when too much has to know what."""
        found: set[tuple[int, bytes, bool]] = set()
        for _ in range(_MAX_READS):
            try:
                data = os.read(self.descriptor, _READ_BYTES)
            except BlockingIOError:
                break
            position = 0
            while position < len(data):
                watch, mask, _, length = _HEAD.unpack_from(data, position)
                position += _HEAD.size + length
                if mask & _Q_OVERFLOW:
                    return None
                found.add((watch, data[position - length : position].rstrip(b"\0"), bool(mask & _GONE)))
        return {Happened(watch, os.fsdecode(name), is_gone) for watch, name, is_gone in found}

    def close(self) -> None:
        os.close(self.descriptor)

    def _check(self, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result
