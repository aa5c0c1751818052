"""An emulator of other x86-64 processors for the tests: the system's own, or Debian's package, unpacked in the cache.

Knows where to find one. Nothing of it goes into the program.
"""

import platform
import shutil
from pathlib import Path

from tools import debian_tools
from tools.steps import BuildError

PACKAGE = "qemu-user-static"
NAMES = ("qemu-x86_64-static", "qemu-x86_64")


def emulator() -> Path:
    """The program that runs another one as on the processor which `-cpu` names."""
    if platform.machine() != "x86_64":
        raise BuildError("the emulated processors are x86-64; on other machines there is nothing to emulate")
    if (found := next(filter(None, map(shutil.which, NAMES)), None)) is not None:
        return Path(found)
    return debian_tools.unpacked(PACKAGE) / "usr" / "bin" / NAMES[0]
