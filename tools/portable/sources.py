"""Sources of the C libraries and of Python, and packages, as Debian keeps them, each pinned by the hash of its archive.

Knows apt. Where the packages come from is what apt of this system is told; nothing of that system is changed, since the
lists of source packages are kept apart.
"""

import hashlib
import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.portable.target import PORTABLE
from tools.steps import CACHE, BuildError, Stamp, key_of, run, say, unpack_once

_DOWNLOADS = CACHE / "sources"
_APT = PORTABLE / "apt"
_SUITES = ("bookworm", "trixie", "bullseye")
# Debian's present release, and the one to come, whose packages change from day to day.
RELEASED, TO_COME = "trixie", "forky"


@dataclass(frozen=True)
class Source:
    """An archive of sources as its authors released it; Debian's own changes are not used."""

    package: str
    archive: str
    sha256: str


PYTHON = Source(
    "python3.13", "python3.13_3.13.5.orig.tar.xz", "93e583f243454e6e9e4588ca2c2662206ad961659863277afcdb96801647d640"
)
ZLIB = Source(
    "zlib",
    "zlib_1.3.dfsg+really1.3.1.orig.tar.gz",
    "60dd315c07f616887caa029408308a018ace66e3d142726a97db164b3b8f69fb",
)
XZ = Source(
    "xz-utils", "xz-utils_5.8.1.orig.tar.xz", "0b54f79df85912504de0b14aec7971e3f964491af1812d83447005807513cd9e"
)
LIBFFI = Source(
    "libffi", "libffi_3.4.8.orig.tar.gz", "cbb7f0b3b095dc506387ec1e35b891bfb4891d05b90a495bc69a10f2293f80ff"
)
OPENSSL = Source(
    "openssl", "openssl_3.5.7.orig.tar.gz", "a8c0d28a529ca480f9f36cf5792e2cd21984552a3c8e4aa11a24aa31aeac98e8"
)


def unpacked(source: Source) -> Path:
    """The folder of the sources, fetched and unpacked once."""
    folder = PORTABLE / "sources" / source.archive.partition(".orig.")[0]
    if folder.exists():
        return folder
    return unpack_once(_fetched(source), folder)


def binary_package(name: str, architecture: str, version: str) -> Path:
    """One of Debian's packages for a machine, fetched once. Who asks for it checks its hash."""
    found = _DOWNLOADS / f"{name}_{version}_{architecture}.deb"
    if not found.exists():
        say(f"portable: fetching {found.name}")
        of_machine = "" if architecture == "all" else f":{architecture}"
        _apt_get(_DOWNLOADS, "download", f"{name}{of_machine}={version}")
    return found


def newest_packages(names: Iterable[str], suite: str, folder: Path) -> list[Path]:
    """Those of Debian's packages for this machine as a suite has them now, fetched into a folder.

    They are what Debian has signed, but any version of them: for what is not part of the program.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _apt_get(folder, "download", *(f"{name}/{suite}" for name in names))
    return sorted(folder.glob("*.deb"))


def files_of(package: Path) -> tarfile.TarFile:
    """What one of Debian's packages installs."""
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True).stdout
    return tarfile.open(fileobj=io.BytesIO(content))


def _fetched(source: Source) -> Path:
    archive = _DOWNLOADS / source.archive
    if not archive.exists():
        say(f"portable: fetching {source.archive}")
        version = _version_with(source)
        _apt_get(_DOWNLOADS, "source", "--download-only", f"{source.package}={version}")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != source.sha256:
        archive.unlink()
        raise BuildError(f"{source.archive} has the hash {digest}, and {source.sha256} is expected")
    return archive


def _version_with(source: Source) -> str:
    """A version of Debian's package that is made from this archive: they come and go, the archive stays."""
    _update_lists()
    shown = run(["apt-cache", *_options(), "showsrc", source.package])
    for entry in shown.split("\n\n"):
        if f"{source.sha256} " in entry and (version := re.search(r"^Version: (.*)$", entry, re.MULTILINE)):
            return version[1]
    raise BuildError(f"Debian has no {source.archive} any more: choose another version in `{Path(__file__).name}`")


def _apt_get(folder: Path, *words: str) -> None:
    """Run apt-get in a folder; where that fails, once more with new lists, whose packages Debian still has."""
    folder.mkdir(parents=True, exist_ok=True)
    _update_lists()
    command = ["env", f"--chdir={folder}", "apt-get", "--quiet", *_options(), *words]
    try:
        run(command)
    except BuildError:
        shutil.rmtree(_APT / "lists")
        _update_lists()
        run(command)


def _update_lists() -> None:
    mirror = _mirror()
    keyring = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
    lines = [f"deb-src [{keyring}] {mirror} {name} main" for name in _SUITES]
    lines.append(f"deb [arch=amd64,arm64 {keyring}] {mirror} {_SUITES[-1]} main")
    lines.append(f"deb [arch=amd64 {keyring}] {mirror} {RELEASED} main")
    to_come = f"deb [arch=amd64 {keyring}] {mirror} {TO_COME} main"
    stamp = Stamp(_APT / "lists-stamp", key_of(*lines, to_come))
    if stamp.holds() and (_APT / "lists").exists():
        return
    try:
        _fetch_lists([*lines, to_come])
    except BuildError as error:
        say(f"portable: {error}")
        say(f"portable: trying again without `{TO_COME}`, which not every mirror has")
        _fetch_lists(lines)
    stamp.write()


def _fetch_lists(lines: list[str]) -> None:
    """Have the lists of these sources, and of no others."""
    shutil.rmtree(_APT / "lists", ignore_errors=True)
    (_APT / "lists" / "partial").mkdir(parents=True)
    (_APT / "sources.list").write_text("\n".join(lines) + "\n")
    run(["apt-get", "--quiet", *_options(), "update"])


def _mirror() -> str:
    if shutil.which("apt-get") is None:
        raise BuildError("frozen files are built on Debian: there is no apt here")
    targets = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"])
    for line in targets.splitlines():
        address, _, suite = line.partition(" ")
        if suite in _SUITES and address.rstrip("/").endswith("/debian"):
            return address
    raise BuildError("frozen files are built on Debian: apt of this system has no source of Debian's packages")


def _options() -> list[str]:
    settings = {
        "Dir::Etc::sourcelist": _APT / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": _APT / "lists",
        "APT::Sandbox::User": "root",  # else a warning: the folder is not apt's
        "Dir::State::status": "/dev/null",  # what is installed here does not matter
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Architectures::": "arm64",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
