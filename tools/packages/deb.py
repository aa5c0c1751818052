"""A package for Debian and its kin that carries the one file, a unit for systemd, a man page and a configuration.

The format is deb(5): an archive of ar with two tar files, one for dpkg and one with what is installed. The files that
are installed as they are lie in packaging/debian/ and packaging/systemd/.
"""

import gzip
import hashlib
import lzma
import textwrap
import tomllib
from collections.abc import Mapping
from email.utils import formatdate

from shimmy import __version__
from tools.packages.archives import PROGRAM_MODE, Entry, in_ar, release_time_s, tarred
from tools.packages.machines import Machine
from tools.steps import ROOT

REVISION = f"{__version__}-1"
MODELS_FOLDER = "var/lib/shimmy/models"
_CONFIGURATION = "etc/shimmy/shimmy.toml"
_DOCS = "usr/share/doc/shimmy"
_SCRIPTS = ("postinst", "prerm", "postrm")
_PRESET = 1  # the program is packed already: the others take three times as long, for 2 %
_COPYRIGHT = """\

The program contains works of others. Their licences and notices are in third-party-notices.gz in this folder. Of the
licences named there, the Apache License 2.0, the GNU GPL and the GNU LGPL are in /usr/share/common-licenses, too.
"""
_UNITS = ("shimmy.service", "shimmy.socket")


def deb(
    program: bytes, machine: Machine, licenses: Mapping[str, bytes], sboms: Mapping[str, bytes], maintainer: str
) -> tuple[str, bytes]:
    """File name and content of the package. `licenses` are texts to hand on, by name, our own first; `sboms` are lists
    of what is inside."""
    installed = _installed(program, licenses, maintainer)
    installed |= {f"{_DOCS}/{name}.gz": Entry(_gzipped(content)) for name, content in sboms.items()}
    for_dpkg = {name: Entry(_ours("debian", name), PROGRAM_MODE) for name in _SCRIPTS}
    for_dpkg["control"] = Entry(_control(machine, installed, maintainer).encode())
    for_dpkg["conffiles"] = Entry(f"/{_CONFIGURATION}\n".encode())
    for_dpkg["md5sums"] = Entry(_sums(installed).encode())
    content = in_ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.xz": lzma.compress(tarred(for_dpkg)),
            "data.tar.xz": lzma.compress(tarred(installed, folders=(MODELS_FOLDER,)), preset=_PRESET),
        }
    )
    return f"shimmy_{REVISION}_{machine.debian}.deb", content


def _installed(program: bytes, licenses: Mapping[str, bytes], maintainer: str) -> dict[str, Entry]:
    """What is installed, by path."""
    own, *others = licenses.values()
    return {
        "usr/bin/shimmy": Entry(program, PROGRAM_MODE),
        **{f"usr/lib/systemd/system/{name}": Entry(_ours("systemd", name)) for name in _UNITS},
        _CONFIGURATION: Entry(_ours("debian", "shimmy.toml")),
        "usr/share/man/man1/shimmy.1.gz": Entry(_gzipped(_ours("debian", "shimmy.1"))),
        "usr/share/lintian/overrides/shimmy": Entry(_ours("debian", "lintian-overrides")),
        f"{_DOCS}/copyright": Entry(own + _COPYRIGHT.encode()),
        f"{_DOCS}/third-party-notices.gz": Entry(_gzipped(b"\n".join(others))),
        f"{_DOCS}/changelog.gz": Entry(_gzipped((ROOT / "CHANGELOG.md").read_bytes())),
        f"{_DOCS}/changelog.Debian.gz": Entry(_gzipped(_changelog(maintainer).encode())),
    }


def _ours(folder: str, name: str) -> bytes:
    return (ROOT / "packaging" / folder / name).read_bytes()


def _gzipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def _changelog(maintainer: str) -> str:
    date = formatdate(release_time_s())
    return f"shimmy ({REVISION}) unstable; urgency=medium\n\n  * Release {__version__}.\n\n -- {maintainer}  {date}\n"


def _control(machine: Machine, installed: Mapping[str, Entry], maintainer: str) -> str:
    summary = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["description"].rstrip(".")
    n_kib = sum(-(-len(entry.content) // 1024) for entry in installed.values())
    description = textwrap.wrap(
        "One executable file that answers chats and completions of any OpenAI client with models on this machine: GGUF "
        "files and SafeTensors folders. It needs no Python and no other package.",
        width=78, initial_indent=" ", subsequent_indent=" ",
    )  # fmt: skip
    fields = [
        "Package: shimmy",
        f"Version: {REVISION}",
        f"Architecture: {machine.debian}",
        f"Maintainer: {maintainer}",
        f"Installed-Size: {n_kib}",
        "Section: net",
        "Priority: optional",
        f"Description: {summary[0].lower()}{summary[1:]}",
        *description,
    ]
    return "\n".join([*fields, ""])


def _sums(installed: Mapping[str, Entry]) -> str:
    """The sums that `dpkg --verify` compares with; those of configurations are kept elsewhere."""
    return "".join(
        f"{hashlib.md5(entry.content, usedforsecurity=False).hexdigest()}  {path}\n"
        for path, entry in sorted(installed.items())
        if path != _CONFIGURATION
    )
