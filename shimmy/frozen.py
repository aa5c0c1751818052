"""What is special about running as the one-file program: it lives in a folder that was unpacked for it.

PyInstaller's outer process unpacks into a temporary folder, starts the program as its child, and removes the folder
when the child ends. Knows what happens when one of the two is killed; in a source tree everything here does nothing.
"""

import fcntl
import logging
import os
import sys
import time
from pathlib import Path

logger = logging.getLogger(__name__)

_LOCK_NAME = "shimmy.lock"
_MARKER = Path("llama_cpp")  # a folder without a lock is ours if it has this
_UNLOCKED_FOR_S = 600.0  # unpacking until the lock is taken never lasts this long
_LOOK_EVERY_S = 1.0


def folder() -> Path | None:
    """Where this program was unpacked; None in a source tree."""
    path = getattr(sys, "_MEIPASS", None)
    return Path(path) if path else None


class Home:
    """Our claim to the unpacked folder, for as long as this process lives (the lock ends with it)."""

    def __init__(self) -> None:
        self._folder = folder()
        self._outer_pid = os.getppid()
        if self._folder is not None:
            self._lock = (self._folder / _LOCK_NAME).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    async def until_orphaned(self) -> None:
        """Return when the outer process has been killed, which would leave the folder and this server behind."""
        import asyncio  # a worker asks this module for its folder, and has neither this nor `shutil`

        while self._folder is None or os.getppid() == self._outer_pid:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_EVERY_S)  # no event tells a process that its parent has died

    def leave(self) -> None:
        """Remove the folder if the outer process no longer can. The last act of this process."""
        if self._folder is not None and os.getppid() != self._outer_pid:
            import shutil

            shutil.rmtree(self._folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove the folders of programs that were killed with their outer process."""
        if self._folder is None:
            return
        import shutil

        for path in self._folder.parent.glob("_MEI*"):
            if path != self._folder and _is_abandoned(path):
                logger.info("removing `%s`, left behind by a killed server", path)
                shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    """Whether a folder is ours and nobody lives in it. Other users' folders, links and other programs are not ours."""
    try:
        status = path.lstat()
        if status.st_uid != os.getuid() or path.is_symlink():
            return False
        try:
            with (path / _LOCK_NAME).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except FileNotFoundError:
            return (path / _MARKER).is_dir() and time.time() - status.st_mtime > _UNLOCKED_FOR_S
    except OSError:
        return False  # locked: somebody lives there
