"""A machine that a portable file is for: its names in the tongues of compilers and packages, and where its parts lie.

Knows no step of the build.
"""

import platform
from dataclasses import dataclass
from pathlib import Path

from tools.steps import CACHE, BuildError

PORTABLE = CACHE.resolve() / "portable"
# The oldest C library that the file starts with: that of CentOS 7, of 2012.
GLIBC = "2.17"


@dataclass(frozen=True)
class Target:
    """One machine."""

    machine: str  # as `uname -m` has it

    @property
    def glibc_triple(self) -> str:
        """What zig calls the machine with the oldest C library."""
        return f"{self.machine}-linux-gnu.{GLIBC}"

    @property
    def static_triple(self) -> str:
        """What zig calls the machine with musl, for programs without any library."""
        return f"{self.machine}-linux-musl"

    @property
    def folder(self) -> Path:
        """Where the parts are built."""
        return PORTABLE / self.machine

    @property
    def debian_architecture(self) -> str:
        """Debian's name of the machine."""
        return {"x86_64": "amd64", "aarch64": "arm64"}[self.machine]

    @property
    def file_name(self) -> str:
        """The finished file's name in dist/."""
        return f"shimmy-linux-{self.machine}"


BUILD_MACHINE = Target("x86_64")
TARGETS = {target.machine: target for target in (BUILD_MACHINE, Target("aarch64"))}


def this_machine() -> Target:
    """The machine that runs the build; raises BuildError where nothing is compiled for it."""
    target = TARGETS.get(platform.machine())
    if target is None or platform.system() != "Linux":
        here = f"{platform.system()} on {platform.machine()}"
        raise BuildError(f"Shimmy is built for Linux on {' and '.join(TARGETS)}, and this is {here}")
    return target
