"""An emulator of other x86-64 processors for the tests: the system's own, or Debian's package, unpacked in the cache.

Knows where to find one. Nothing of it goes into the program.
"""

import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from tools.steps import CACHE, BuildError, run, say

PACKAGE = "qemu-user-static"
NAMES = ("qemu-x86_64-static", "qemu-x86_64")


def emulator() -> Path:
    """The program that runs another one as on the processor which `-cpu` names."""
    if platform.machine() != "x86_64":
        raise BuildError("the emulated processors are x86-64; on other machines there is nothing to emulate")
    if (found := next(filter(None, map(shutil.which, NAMES)), None)) is not None:
        return Path(found)
    cached = CACHE / "emulator" / NAMES[0]
    if not cached.exists():
        _unpack(cached)
    return cached


def _unpack(target: Path) -> None:
    if not shutil.which("apt-get"):
        raise BuildError(f"there is no `{NAMES[1]}`: install your system's package of QEMU's user-mode emulation")
    say(f"emulator: fetching `{PACKAGE}` (60 MB)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        archive = _downloaded(Path(folder))
        run(["dpkg-deb", "--extract", archive, folder])
        unfinished = target.with_suffix(".part")
        shutil.copy(Path(folder, "usr", "bin", target.name), unfinished)
        unfinished.rename(target)


def _downloaded(folder: Path) -> Path:
    """The package as a file; a new machine knows no packages before it has asked for their list, which takes root."""
    for command in ([], ["apt-get", "update"]):
        if command:
            run(command)
        subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, check=False)
        if (archive := next(folder.glob("*.deb"), None)) is not None:
            return archive
    raise BuildError(f"`{PACKAGE}` cannot be fetched: install it, or your system's package of `{NAMES[1]}`")
