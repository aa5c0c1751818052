"""`python -m tools.packages.release` lays out a release in dist/release/: the files, their packages and SHA256SUMS.

Takes what `make dist` has left in dist/. Knows what belongs to a release, and nothing of where it is published.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

from tools.packages.__main__ import NO_MAINTAINER, package
from tools.packages.machines import MACHINES
from tools.papers import LICENSES, SBOM, SIZES, beside
from tools.steps import DIST, ROOT, BuildError, say

SUMS = "SHA256SUMS"
# What lies beside a file and is handed on with it, as far as it was made.
PAPERS = (LICENSES, SBOM, SIZES)


def release(dist: Path, *, maintainer: str = NO_MAINTAINER, wheel_name: str = "shimmy") -> Path:
    """The folder of the release of all files that `dist` has, made anew. Raises BuildError where there is none."""
    files = {name: dist / f"shimmy-linux-{name}" for name in MACHINES if (dist / f"shimmy-linux-{name}").exists()}
    if not files:
        raise BuildError(f"there is no shimmy-linux-* in {dist}: run `make dist` first")
    folder = dist / "release"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for machine, file in files.items():
        shutil.copy(file, folder)
        package(file, machine, folder, wheel_name=wheel_name, maintainer=maintainer)
        for paper in (beside(file, name) for name in PAPERS):
            if paper.exists():
                shutil.copy(paper, folder)
    shutil.copy(ROOT / "install.sh", folder)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(sums))
    return folder


def main() -> None:
    """Make the release of what is in dist/; prints the names of its files."""
    parser = argparse.ArgumentParser(prog="python -m tools.packages.release", description="Lays out a release.")
    parser.add_argument("--wheel-name", default="shimmy", help="name on PyPI (default: shimmy)")
    parser.add_argument("--maintainer", default=NO_MAINTAINER, help="`Name <address>` for the Debian package")
    arguments = parser.parse_args()
    try:
        folder = release(DIST, maintainer=arguments.maintainer, wheel_name=arguments.wheel_name)
    except BuildError as error:
        parser.exit(1, f"release: {error}\n")
    for path in sorted(folder.iterdir()):
        say(f"release: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
