"""Programs of Debian's that tests run and the system may lack: packages, unpacked in the cache and not installed.

Knows apt. Nothing of them goes into the program.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tools.steps import CACHE, BuildError, NotFetched, locked, run, say

_FOLDER = CACHE / "debian"


def unpacked(package: str) -> Path:
    """A folder with what a package installs, and with what it depends on and this system lacks; made once.

    Raises BuildError where there is no apt, or where apt cannot fetch it.
    """
    folder = _FOLDER / package
    with locked(CACHE / "debian-lock"):
        if not folder.exists():
            if not shutil.which("apt-get"):
                raise BuildError(f"there is no apt-get: install your system's package of `{package}`")
            say(f"tools: fetching Debian's package `{package}`")
            _FOLDER.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=_FOLDER) as scratch:
                for archive in _downloaded(package, Path(scratch)):
                    run(["dpkg-deb", "--extract", archive, f"{scratch}/root"])
                Path(scratch, "root").rename(folder)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """What lets the programs of an unpacked package find each other, their libraries and modules of Perl."""
    found = {
        "PATH": [str(folder / "usr" / "bin"), os.environ["PATH"]],
        "LD_LIBRARY_PATH": [str(path) for path in folder.glob("usr/lib/*-linux-*")],
        "PERL5LIB": [f"{folder}/usr/share/perl5", *map(str, folder.glob("usr/lib/*/perl5/*"))],
    }
    return {name: os.pathsep.join(paths) for name, paths in found.items()}


def _downloaded(package: str, folder: Path) -> list[Path]:
    """The packages as files; a new machine knows no packages before it has asked for their list, which takes root."""
    (folder / "partial").mkdir()
    settings = ("Debug::NoLocking=1", f"Dir::Cache::archives={folder}", "APT::Sandbox::User=root")
    options = [word for setting in settings for word in ("-o", setting)]
    command = ["apt-get", "--yes", "--download-only", "--no-install-recommends", *options, "install", package]
    for preparation in ([], ["apt-get", "update"]):
        if preparation:
            subprocess.run(preparation, capture_output=True, check=False)  # where that fails, there is no package
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if found := sorted(folder.glob("*.deb")):
            return found
    raise NotFetched(f"`{package}` cannot be fetched; install your system's package of it:\n{ended.stderr}")
