"""Says where to look again when something may have changed in a folder with models.

Knows folders and the events of the operating system, and nothing of models: which folders there are, and what is in
them, a look says. Roots may be missing, appear, vanish and return. Where events are not to be had (the system's limits,
network folders), the time says it: a poll comes around anyway.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shimmy.background import in_thread
from shimmy.catalog.catalog import shown

if TYPE_CHECKING:
    from shimmy.system.inotify import Inotify

# How often the roots themselves are looked at: a missing one has no events.
CHECK_EVERY_S = 0.5
# Network folders have no events of what others do to them.
POLL_EVERY_S = 30.0
# Folders that the system would not watch.
POLL_UNWATCHED_EVERY_S = 2.0
# Events wait for each other in the kernel, where those of one file are one.
READ_EVERY_S = 0.1

logger = logging.getLogger(__name__)

Identity = tuple[int, int]  # device and inode


class Watcher:
    """Watches the folders it is told to `follow`, and looks whether one of `roots` is there or another now.

    `on_change` is called on the event loop with the files and folders that may have changed; None: anything may have.
    """

    def __init__(self, roots: Sequence[Path], on_change: Callable[[Collection[Path] | None], None]) -> None:
        self._roots: dict[Path, Identity | None] = {root.absolute(): None for root in roots}
        self._on_change = on_change
        self._wanted: Mapping[Path, Identity | None] = {}
        self._woken = asyncio.Event()
        self._inotify: Inotify | None = None
        # Written by one check at a time, on another thread; values never change.
        self._watches: dict[Path, tuple[Identity | None, int]] = {}
        self._paths: dict[int, tuple[Path, ...]] = {}  # of a watch
        self._unwatched: set[Path] = set()  # those that the system refused
        self._has_warned = False
        self._gone: set[Path] = set()  # what was moved or deleted; what comes back may have its identity

    def follow(self, folders: Mapping[Path, Identity | None]) -> None:
        """Watch these `folders` from now on, each of this identity, where it is known, and no others."""
        self._wanted = folders
        self._woken.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        self._watches, self._paths, self._unwatched, self._has_warned = {}, {}, set(), False  # after another run, too
        await in_thread(self._open)
        self._listen(loop)
        last_poll_s = last_full_poll_s = loop.time()
        try:
            while True:
                gone, self._gone = self._gone, set()
                changed = await in_thread(self._check, gone)
                now_s = loop.time()
                if now_s - last_full_poll_s >= POLL_EVERY_S:
                    last_full_poll_s = last_poll_s = now_s
                    self._unwatched.clear()  # perhaps there are watches to be had now
                    self._on_change(None)
                elif self._unwatched and now_s - last_poll_s >= POLL_UNWATCHED_EVERY_S:
                    last_poll_s = now_s
                    changed |= self._unwatched
                if changed:
                    self._on_change(changed)
                await self._rest()
        finally:
            self._has_warned = True  # a check that still runs finds nothing to watch with
            if self._inotify is not None:
                loop.remove_reader(self._inotify.descriptor)
                self._inotify.close()
                self._inotify = None

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(CHECK_EVERY_S):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._inotify is not None:
            loop.add_reader(self._inotify.descriptor, self._on_events, loop, self._inotify)

    def _on_events(self, loop: asyncio.AbstractEventLoop, inotify: "Inotify") -> None:
        loop.remove_reader(inotify.descriptor)
        loop.call_later(READ_EVERY_S, self._listen, loop)
        happened = inotify.read()
        if happened is None:
            logger.debug("more happens in the model folders than can be followed; looking at all of them")
            self._on_change(None)
            return
        changed = set()
        for watch, name, is_gone in happened:
            for path in self._paths.get(watch, ()):
                changed.add(path / name if name else path)
                if is_gone:
                    self._gone.add(path)
        if changed:
            self._on_change(changed)
        if self._gone:
            self._woken.set()

    def _open(self) -> None:
        from shimmy.system.inotify import Inotify  # after the start, which does not wait for it

        try:
            self._inotify = Inotify()
        except (OSError, AttributeError) as exc:  # the limit of instances; a system that has none
            logger.warning(
                "model folders cannot be watched (%s) and are looked at every %g s; on Linux, raise "
                "fs.inotify.max_user_instances", exc, POLL_UNWATCHED_EVERY_S,
            )  # fmt: skip
            self._has_warned = True

    def _check(self, gone: Collection[Path]) -> set[Path]:
        """Watch what has to be and let go of the rest; the folders of which something may have been missed."""
        changed = self._roots_that_changed()
        wanted = self._wanted
        for path, (identity, _) in [*self._watches.items()]:
            if path in gone or path not in wanted or wanted[path] != identity:
                self._let_go(path)
        self._unwatched &= wanted.keys()
        for path, identity in wanted.items():
            if path not in self._watches and path not in self._unwatched and self._watch(path, identity):
                changed.add(path)  # what happened to it between the look and now, no event tells
        return changed

    def _roots_that_changed(self) -> set[Path]:
        changed = set()
        for root, known in self._roots.items():
            try:
                status = root.stat()
                identity = (status.st_dev, status.st_ino)
            except OSError:
                identity = None
            if identity != known:
                self._roots[root] = identity
                changed.add(root)
        return changed

    def _watch(self, path: Path, identity: Identity | None) -> bool:
        try:
            if self._inotify is None:
                raise OSError(errno.EMFILE, "no inotify instance")
            watch = self._inotify.add(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as exc:
            self._unwatched.add(path)
            self._warn(path, exc)
            return True
        self._watches[path] = (identity, watch)
        self._paths[watch] = (*(other for other in self._paths.get(watch, ()) if other != path), path)
        return True

    def _let_go(self, path: Path) -> None:
        _, watch = self._watches.pop(path)
        others = tuple(other for other in self._paths.pop(watch, ()) if other != path)
        if others:
            self._paths[watch] = others
        elif self._inotify is not None:
            self._inotify.remove(watch)

    def _warn(self, path: Path, exc: OSError) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        reason = "there are no more inotify watches to be had" if exc.errno == errno.ENOSPC else exc.strerror
        logger.warning(
            "`%s` and perhaps other model folders cannot be watched (%s) and are looked at every %g s; on Linux, raise "
            "fs.inotify.max_user_watches", shown(path), reason, POLL_UNWATCHED_EVERY_S,
        )  # fmt: skip
