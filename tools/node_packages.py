"""Packages for Node, installed as a package.json of the tests pins them.

Knows npm. Nothing of them goes into the program.
"""

import platform
import shutil
from pathlib import Path

from tools.steps import Stamp, key_of, run


def install_node_packages(pins: Path, folder: Path) -> bool:
    """Have what `pins`, a package.json, names in `folder`; says False where there is no npm."""
    if not shutil.which("npm"):
        return False
    stamp = Stamp(folder / "shimmy-stamp", key_of(pins.read_bytes(), platform.machine()))
    if not stamp.holds():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(pins, folder)
        # No lock file: it would hold the addresses that this machine downloads from.
        run(["npm", "install", "--prefix", folder, "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"])
        stamp.write()
    return True
