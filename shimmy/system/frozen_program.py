"""What a server does as the one-file program: it lives in a folder that was unpacked for it, and goes with it.

PyInstaller's outer process unpacks into a temporary folder, starts the program as its child, and removes the folder
when the child ends. Knows what happens when one of the two is killed, and looks after the folder meanwhile; in a source
tree everything here does nothing.
"""

import logging
import os
import time
from pathlib import Path

from shimmy.system import unpacked_folder

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_LOOK_AFTER_EVERY_S = 5.0  # imports and new workers put back what they need at once
_FRESHEN_EVERY_S = 3600.0  # the most eager tidiers remove what is a day old


class UnpackedFolder:
    """Our claim to the unpacked folder, for as long as this process lives (the lock ends with it)."""

    def __init__(self) -> None:
        self._folder = unpacked_folder.folder()
        self._outer_pid = os.getppid()
        self._looked_after_s = self._freshened_s = time.monotonic()
        self._is_lost = False
        self._n_told = unpacked_folder.n_removals()
        unpacked_folder.claim()

    async def until_orphaned(self) -> None:
        """Return when the outer process has been killed, which leaves the folder, looked after until then, to us."""
        import asyncio

        from shimmy.background import in_thread

        while self._folder is None or os.getppid() == self._outer_pid:
            await asyncio.sleep(_LOOK_EVERY_S)  # no event tells a process that its parent has died
            if self._folder is not None and time.monotonic() - self._looked_after_s > _LOOK_AFTER_EVERY_S:
                await in_thread(self.look_after)
                self._looked_after_s = time.monotonic()

    def look_after(self) -> None:
        """Put back what has been removed from the folder, and keep it from looking old."""
        try:
            unpacked_folder.restore()
            if unpacked_folder.n_removals() != self._n_told:
                self._n_told = unpacked_folder.n_removals()
                logger.warning("`%s` is where this program lives: what was removed there is back", self._folder)
            self._is_lost = False
        except OSError as exc:
            if not self._is_lost:
                logger.error("%s; models cannot be loaded until that is possible", exc.strerror)
            self._is_lost = True
        if time.monotonic() - self._freshened_s > _FRESHEN_EVERY_S:
            self._freshened_s = time.monotonic()
            unpacked_folder.freshen()

    def leave(self) -> None:
        """Remove the folder if the outer process no longer can. The last act of this process."""
        if self._folder is not None and os.getppid() != self._outer_pid:
            _remove(self._folder)

    def sweep(self) -> None:
        """Remove the folders of programs that were killed with their outer process, or while they unpacked."""
        if self._folder is None:
            return
        for path in self._folder.parent.glob("_MEI*"):
            if path != self._folder and unpacked_folder.is_abandoned(path):
                logger.info("removing `%s`, left behind by a killed server", path)
                _remove(path)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
