"""The compiler of Vulkan's shaders and the headers of Vulkan, as Debian's packages, each pinned by its hash.

Knows the packages, and how a program of a newer Debian runs on an older one. What is compiled stands in shaders.py.
"""

import hashlib
import shutil
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from tools.portable import sources
from tools.steps import CACHE, BuildError, key_of, run, say

FOLDER = CACHE.resolve() / "vulkan"
_HEADERS = ("vulkan", "vk_video", "spirv")


@dataclass(frozen=True)
class Package:
    """One of Debian's packages for the machine that builds."""

    name: str
    version: str
    sha256: str
    architecture: str = "amd64"


@dataclass(frozen=True)
class Edition:
    """A compiler with the headers of its time."""

    compiler: tuple[Package, Package]
    vulkan_headers: Package
    spirv_headers: Package

    @property
    def packages(self) -> tuple[Package, ...]:
        """All of them."""
        return (*self.compiler, self.vulkan_headers, self.spirv_headers)

    @property
    def key(self) -> str:
        """Names what is made with it."""
        return key_of(*(package.sha256 for package in self.packages))


# Debian keeps only the present version of what is not released yet. When the first of these is gone, the second, which
# stays for as long as its release, takes its place: the same shaders but for those in bfloat16, FP8 and FP4.
EDITIONS = (
    Edition(
        compiler=(
            Package("glslc", "2026.4-1", "3726b6bb39346f8cf7f3f309f7d12db8e1d487c960255648e62ead29754bccb5"),
            Package("libshaderc1", "2026.4-1", "8bdf913ccd268b02b57898308f74e48d6723529ee26403d35288c4243e490d47"),
        ),
        vulkan_headers=Package(
            "libvulkan-dev", "1.4.363.0-1", "518e000aa44620ed45e3c842b81488e019b9794e234746366ece31f01221702c"
        ),
        spirv_headers=Package(
            "spirv-headers",
            "1.6.1+1.4.363.0-1",
            "c2f672862dac160e37d27c23b3823733eeafbf4d4d20153e1c42c2e0eba8847e",
            "all",
        ),
    ),
    Edition(
        compiler=(
            Package("glslc", "2025.2-1", "e05374965709159303041b104d4a26022d6ac5eb8296450364d66ae864a20367"),
            Package("libshaderc1", "2025.2-1", "2a67c8f784c65e1aa0d251819c020917405b490fbb543c6a73a52a631e476463"),
        ),
        vulkan_headers=Package(
            "libvulkan-dev", "1.4.309.0-1", "8d329d465e16168afff58b1bd0dd6db46aac2cc3f56054a481b25a04e90b345a"
        ),
        spirv_headers=Package(
            "spirv-headers",
            "1.6.1+1.4.309.0-1",
            "dc18db866d63680351c40ac6b6bece34cb52da64a7799ce1cc4f16f6bff4d064",
            "all",
        ),
    ),
)
# What the compiler runs with, which is newer than this system may be. No version of them changes what it writes.
_BENEATH = ("libc6", "libstdc++6", "libgcc-s1")

_SCRIPT = """\
#!/bin/sh
root=${0%/*}/root/usr
libraries=$root/lib/x86_64-linux-gnu
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$root/bin/glslc" "$@"
"""


@cache
def edition() -> Edition:
    """The first edition that is in the cache or that Debian has; raises BuildError where there is none."""
    for chosen, following in pairwise(EDITIONS):
        try:
            _fetch(chosen)
        except BuildError as error:
            say(f"vulkan: {error}")
            say(f"vulkan: taking glslc {following.compiler[0].version} in its place")
        else:
            return chosen
    _fetch(EDITIONS[-1])
    return EDITIONS[-1]


def glslc(chosen: Edition) -> Path:
    """The compiler, a program that runs on this system."""
    return _unpacked(chosen) / "glslc"


def headers(chosen: Edition) -> Path:
    """A folder with the headers and nothing else: the compiler of the library has those of its own C library."""
    return _unpacked(chosen) / "include"


def _unpacked(chosen: Edition) -> Path:
    folder = FOLDER / "tools" / chosen.key
    if folder.exists():
        return folder
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "include").mkdir(parents=True)
    beneath = sources.newest_packages(_BENEATH, sources.RELEASED, unfinished / "beneath")
    for archive in (*_fetch(chosen), *beneath):
        run(["dpkg-deb", "--extract", archive, unfinished / "root"])
    for name in _HEADERS:
        (unfinished / "root" / "usr" / "include" / name).rename(unfinished / "include" / name)
    shutil.rmtree(unfinished / "beneath")
    # It does not start by itself: the system's C library may be too old for it.
    script = unfinished / "glslc"
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    unfinished.rename(folder)
    return folder


def _fetch(chosen: Edition) -> list[Path]:
    """The packages as files; raises BuildError where one is another than is expected."""
    return [_fetched(package) for package in chosen.packages]


def _fetched(package: Package) -> Path:
    found = sources.binary_package(package.name, package.architecture, package.version)
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    if digest != package.sha256:
        found.unlink()
        raise BuildError(f"{found.name} has the hash {digest}, and {package.sha256} is expected")
    return found
