"""Runs Python with the stand-ins of the frozen file in place: `python -m tools.with_stand_ins -m pytest ARGUMENT...`.

Processes that it starts have them, too, where they inherit its environment. OpenSSL is not packed here: of what
`ssl` does to become the real one, only the archive is left to `tests/test_stand_ins.py`.
"""

import os
import sys
import sysconfig
from pathlib import Path

from tools.stand_in_files import MODULES, PACKAGES, anyio_with_places, completed, dataclasses_with_compiled_methods
from tools.steps import ROOT, WORK

VARIABLE = "SHIMMY_TEST_STAND_INS"  # set while they are in place; the tests look at it


def put_in_place(folder: Path) -> None:
    """Write to `folder` what puts the stand-ins at their names where it is in PYTHONPATH."""
    folder.mkdir(parents=True, exist_ok=True)
    ssl = folder / "ssl_without_archive.py"
    ssl.write_text(f"{PACKAGES['ssl'].read_text()}\n\ndef _load_openssl() -> None:\n    import _ssl\n")
    files = PACKAGES | MODULES | anyio_with_places(folder) | dataclasses_with_compiled_methods(folder)
    files |= {"ssl": ssl, "ssl_in_full": Path(sysconfig.get_path("stdlib"), "ssl.py")}
    finder = ROOT / "tools" / "finder_of_stand_ins.py"
    completed(finder, {name: str(path) for name, path in files.items()}, folder / "sitecustomize.py")


def main() -> None:
    """Become a Python with the given arguments."""
    folder = WORK / "stand_ins"
    put_in_place(folder)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], os.environ | {"PYTHONPATH": path, VARIABLE: "1"})


if __name__ == "__main__":
    main()
