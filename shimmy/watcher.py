"""Says "look again" when something under a folder may have changed. The only importer of watchdog.

Knows folders and the events of operating systems, and nothing of models: what is there, a scan says. Folders may be
missing, appear, vanish and return. Where events are not to be had (the system's limits, network folders), the time says
it: a poll comes around anyway.
"""

import asyncio
import contextlib
import logging
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent

# How often the folders themselves are looked at: a missing one has no events.
CHECK_EVERY_S = 0.5
# Network folders have no events of what others do to them.
POLL_EVERY_S = 30.0
# Folders that the system would not watch.
POLL_UNWATCHED_EVERY_S = 2.0

logger = logging.getLogger(__name__)

_Identity = tuple[int, int]  # device and inode


class Watcher:
    """Watches `roots`, folders with all that is below them and files, and calls `on_change` on the event loop."""

    def __init__(self, roots: Sequence[Path], on_change: Callable[[], None]) -> None:
        self._roots = tuple(dict.fromkeys(root.absolute() for root in roots))
        self._on_change = on_change
        self._watched: dict[Path, tuple[_Identity, Any]] = {}  # folder -> its identity, and watchdog's watch
        self._unwatched: dict[Path, _Identity] = {}  # those that the system refused
        self._deleted: set[Path] = set()  # roots whose folder went; one that comes back may have its identity

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        observer = await asyncio.to_thread(_start_observer)

        try:
            last_poll_s = loop.time()
            while True:
                if await asyncio.to_thread(self._check, observer, loop):
                    self._on_change()
                poll_every_s = POLL_UNWATCHED_EVERY_S if self._unwatched else POLL_EVERY_S
                if loop.time() - last_poll_s >= poll_every_s:
                    last_poll_s = loop.time()
                    self._on_change()
                await asyncio.sleep(CHECK_EVERY_S)
        finally:
            observer.stop()

    def _on_event(self, loop: asyncio.AbstractEventLoop, root: Path, folder: str, event: "FileSystemEvent") -> None:
        """On watchdog's thread."""
        if event.event_type == "deleted" and event.src_path == folder:
            self._deleted.add(root)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._on_change)

    def _check(self, observer: Any, loop: asyncio.AbstractEventLoop) -> bool:
        """Watch what has appeared, let go of what has vanished; whether there was any of it."""
        is_changed = False
        for root in self._roots:
            folder, identity, recursive = _place(root)
            known = self._watched.get(root, (None, None))[0] or self._unwatched.get(root)
            if known == identity and root not in self._deleted:
                continue
            is_changed = True
            self._deleted.discard(root)
            self._unwatched.pop(root, None)
            if (entry := self._watched.pop(root, None)) is not None:
                _unschedule(observer, entry[1])
            if identity is None:
                continue
            try:
                handler = partial(self._on_event, loop, root, os.fspath(folder))
                watch = _schedule(observer, folder, handler, recursive=recursive)
            except OSError as exc:  # the limit of inotify watches or instances, a file system without events
                self._unwatched[root] = identity
                logger.warning(
                    "`%s` cannot be watched (%s) and is looked at every %g s; on Linux, raise "
                    "fs.inotify.max_user_watches", folder, exc.strerror or exc, POLL_UNWATCHED_EVERY_S,
                )  # fmt: skip
            else:
                self._watched[root] = (identity, watch)
        return is_changed


def _place(root: Path) -> tuple[Path, _Identity | None, bool]:
    """The folder to watch for `root`, its identity (None while it is missing), and whether with what is below it."""
    try:
        status = root.stat()
        is_folder = stat.S_ISDIR(status.st_mode)
        folder = root if is_folder else root.parent
        if not is_folder:
            status = folder.stat()
    except OSError:
        return root, None, False
    return folder, (status.st_dev, status.st_ino), is_folder


def _start_observer() -> Any:
    from watchdog.observers import Observer  # after the start, which does not wait for it

    # It says so of a folder that appears within another new one and is told of twice, and watches it once.
    warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
    observer = Observer()
    observer.daemon = True
    observer.start()
    return observer


def _schedule(observer: Any, folder: Path, on_event: Callable[["FileSystemEvent"], None], *, recursive: bool) -> Any:
    from watchdog import events

    class Handler(events.FileSystemEventHandler):
        """Any event of the kinds below."""

        def on_any_event(self, event: "FileSystemEvent") -> None:
            on_event(event)

    # Not that a file was opened or closed unchanged: our own scans do that.
    kinds = [
        *(events.FileCreatedEvent, events.FileModifiedEvent, events.FileMovedEvent, events.FileDeletedEvent),
        *(events.FileClosedEvent, events.DirCreatedEvent, events.DirMovedEvent, events.DirDeletedEvent),
    ]
    return observer.schedule(Handler(), os.fspath(folder), recursive=recursive, event_filter=kinds)


def _unschedule(observer: Any, watch: Any) -> None:
    with contextlib.suppress(KeyError):  # watchdog let go of it when the folder vanished
        observer.unschedule(watch)
