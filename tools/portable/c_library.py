"""The C library that the portable file brings along for systems without glibc: Debian 11's.

Knows the package and which of its files a program needs. It is not the newest one by intent: from 2.34 on glibc starts
threads by a system call that older container runtimes refuse.
"""

import hashlib
import shutil
from pathlib import Path, PurePosixPath

from tools.portable.sources import binary_package, files_of
from tools.portable.target import Target
from tools.steps import BuildError, Stamp, key_of

VERSION = "2.31-13+deb11u11"
HASHES = {
    "amd64": "05f7264da867b37f4c5ce49266b558ea1e81e05a9464f623152fca70f3550282",
    "arm64": "baaa9aa184e2f21738c5819055e6740cc5b22f198e3f416e33f82b40ff6933d8",
}
# What the program and its libraries name, and what glibc itself looks for to find hosts and users.
_LIBRARIES = (
    *("libc.so.6", "libdl.so.2", "libm.so.6", "libnss_dns.so.2", "libnss_files.so.2", "libpthread.so.0"),
    *("libresolv.so.2", "librt.so.1", "libutil.so.1"),
)
LOADER = "ld.so"  # tools/bootloader.c starts it


def package(target: Target) -> Path:
    """Debian's package, fetched once; raises BuildError where it is another than is expected."""
    architecture = target.debian_architecture
    found = binary_package("libc6", architecture, VERSION)
    if (digest := hashlib.sha256(found.read_bytes()).hexdigest()) != HASHES[architecture]:
        raise BuildError(f"`{found}` has the hash {digest}, and {HASHES[architecture]} is expected")
    return found


def c_library(target: Target) -> Path:
    """A folder with the loader and the libraries, by the names they are looked up by."""
    place = target.folder / "libc"
    stamp = Stamp(target.folder / "libc-stamp", key_of(VERSION, HASHES[target.debian_architecture], *_LIBRARIES))
    if stamp.holds():
        return place
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with files_of(package(target)) as archive:
        files = {PurePosixPath(member.name).name: member for member in archive if member.isfile() or member.issym()}
        loader = next(name for name in files if name.startswith("ld-linux-"))
        for name in (loader, *_LIBRARIES):
            member = files[name]
            while member.issym():
                member = files[PurePosixPath(member.linkname).name]
            file = archive.extractfile(member)
            assert file is not None
            (place / (LOADER if name == loader else name)).write_bytes(file.read())
    stamp.write()
    return place
