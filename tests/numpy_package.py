"""Numpy's package as the frozen file has it, laid out around any build of its library; and what it computes."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tools.numpy_core import EXTENSION, modules
from tools.steps import ROOT

OPERATIONS = ROOT / "tests" / "numpy_operations.py"


def installed_library() -> Path:
    spec = find_spec(EXTENSION)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def installed_package() -> Path:
    return installed_library().parent.parent


def lay_out(folder: Path, library: Path) -> Path:
    """The package, in a folder to import from; returns the folder."""
    for name, source in modules(installed_package()).items():
        place = folder.joinpath(*name.split("."))
        place = place / "__init__.py" if source.name == "__init__.py" else place.with_suffix(".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        if name == EXTENSION:
            place.with_suffix(".so").symlink_to(library)
        else:
            shutil.copy(source, place)
    for libraries in installed_package().parent.glob("numpy.libs"):  # the installed one looks for them beside itself
        (folder / libraries.name).symlink_to(libraries)
    return folder


def results(folder: Path | None = None, *python: str | Path, **variables: str) -> dict[str, str]:
    """A digest of what each operation gives with the numpy in `folder`, or with the installed one."""
    settings = os.environ | variables | ({"PYTHONPATH": str(folder)} if folder else {})
    command = [*(python or (sys.executable,)), "-W", "error", OPERATIONS]
    run = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    digests: dict[str, str] = json.loads(run.stdout)
    return digests
