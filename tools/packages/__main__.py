"""`python -m tools.packages FILE MACHINE` writes a wheel and a Debian package of the frozen file FILE, beside it.

Needs nothing but Python; the licence texts and the list of parts, where there is one, are those beside FILE.
"""

import argparse
from pathlib import Path

from tools.packages.deb import deb
from tools.packages.machines import MACHINES
from tools.packages.wheel import wheel
from tools.papers import LICENSES, SBOM, beside
from tools.steps import ROOT, BuildError, say

THIRD_PARTY = "THIRD_PARTY_LICENSES.txt"
# A package has to name who answers for it; who publishes Shimmy gives a real address.
NO_MAINTAINER = "Shimmy contributors <nobody@localhost>"


def package(file: Path, machine_name: str, folder: Path, *, wheel_name: str, maintainer: str) -> list[Path]:
    """Write all packages of `file` into `folder`; returns their paths. Raises BuildError."""
    try:
        program, notices = file.read_bytes(), beside(file, LICENSES).read_bytes()
    except OSError as exc:
        raise BuildError(f"cannot read `{exc.filename}`, which is part of the packages: {exc.strerror}") from exc
    machine = MACHINES[machine_name]
    licenses = {"LICENSE": (ROOT / "LICENSE").read_bytes(), THIRD_PARTY: notices}
    sbom = beside(file, SBOM)
    sboms = {f"shimmy{SBOM}": sbom.read_bytes()} if sbom.exists() else {}
    paths = []
    for name, content in (
        wheel(program, machine, licenses, sboms, wheel_name),
        deb(program, machine, licenses, sboms, maintainer),
    ):
        path = folder / name
        path.write_bytes(content)
        paths.append(path)
    return paths


def main() -> None:
    """Read the command line and write the packages; prints their paths."""
    parser = argparse.ArgumentParser(prog="python -m tools.packages", description="Packages the frozen file.")
    parser.add_argument("file", type=Path, help="the frozen file")
    parser.add_argument("machine", choices=[*MACHINES], help="what it runs on")
    parser.add_argument("--out", type=Path, help="folder for the packages (default: the file's)")
    parser.add_argument("--wheel-name", default="shimmy", help="name on PyPI (default: shimmy)")
    parser.add_argument("--maintainer", default=NO_MAINTAINER, help="`Name <address>` for the Debian package")
    arguments = parser.parse_args()
    folder = arguments.out or arguments.file.parent
    folder.mkdir(parents=True, exist_ok=True)
    names = {"wheel_name": arguments.wheel_name, "maintainer": arguments.maintainer}
    try:
        for path in package(arguments.file, arguments.machine, folder, **names):
            say(f"packages: {path}")
    except BuildError as error:
        parser.exit(1, f"packages: {error}\n")


if __name__ == "__main__":
    main()
