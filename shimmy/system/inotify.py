"""The inotify of Linux: folders are watched one by one, and it says in which of them something happened.

The only importer of watchdog, and of its binding of inotify alone: watchdog's observers watch whole trees, and hide the
folders that the system would not watch and those behind links. Knows the names of entries; nothing of which folders
matter, nor of what is in them.
"""

import errno
import os
from itertools import count
from pathlib import Path
from typing import NamedTuple

from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyEvent, InotifyFD, Mask, WatchDescriptor

# Not that something was opened or read: our own looks do that.
_WANTED = Mask(
    InotifyConstants.IN_MODIFY
    | InotifyConstants.IN_ATTRIB
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_MOVE
    | InotifyConstants.IN_CREATE
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_MOVE_SELF
    | InotifyConstants.IN_ONLYDIR
)
_GONE = InotifyConstants.IN_DELETE_SELF | InotifyConstants.IN_MOVE_SELF | InotifyConstants.IN_UNMOUNT


class Happened(NamedTuple):
    """Something in the folder of `watch`, to its entry `name` or, where that is empty, to the folder itself."""

    watch: int
    name: str
    is_gone: bool  # the folder is not at its path any more, or is not watched any more


class Inotify:
    """One instance of it, with as many watches as the system lets it have. One thread reads."""

    def __init__(self) -> None:
        """Raises OSError, with EMFILE at the limit of instances of a user."""
        # A thread that could read by itself, and is not started: events are read when it suits the event loop.
        self._binding = InotifyFD()
        self._binding._is_reading = False  # so that closing it does not wait for that thread
        self.descriptor: int = self._binding._inotify_fd
        self._ids = map(CallbackId, count())
        self._ids_of: dict[int, list[CallbackId]] = {}  # of the paths to a watch
        self._found: set[Happened] = set()

    def add(self, folder: Path) -> int:
        """Watch `folder`: its watch, which is the same for all paths to it. Raises OSError, ENOSPC at the limit."""
        number = next(self._ids)
        watch = self._binding.add_callback(os.fsencode(folder), _WANTED, self, number)
        if watch < 0:  # watchdog passes over a folder that may not be read
            self._binding.remove_callbacks([(watch, number)])
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._ids_of.setdefault(watch, []).append(number)
        return watch

    def remove(self, watch: int) -> None:
        """Let go of a watch; one that ended by itself is no error."""
        numbers = self._ids_of.pop(watch, [])
        self._binding.remove_callbacks([(WatchDescriptor(watch), number) for number in numbers])

    def read(self) -> set[Happened] | None:
        """What has happened, when the descriptor can be read; None when too much has to know what."""
        self._found = set()
        for event in self._binding.read_events():
            if event.is_queue_overflow:
                return None
            self._binding.handle_event(event)
        return self._found

    def close(self) -> None:
        self._binding.close()

    # -- what watchdog calls for an event

    def on_event(self, event: InotifyEvent) -> None:
        self._found.add(Happened(event.wd, os.fsdecode(event.name), bool(event.mask & _GONE)))

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        self._found.add(Happened(wd, "", is_gone=True))

    def on_queue_overflow(self) -> None:
        pass  # `read` tells
