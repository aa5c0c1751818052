"""Numpy's core of portable files computes what numpy's wheel does, where it has been built."""

import os
import shutil
from pathlib import Path

import pytest

from tests.numpy_package import lay_out, results
from tools.portable.python import Python
from tools.portable.target import BUILD_MACHINE, TARGETS

QEMU = "qemu-aarch64-static"
# What is emulated takes seconds.
MACHINES = [
    pytest.param(name, marks=() if target == BUILD_MACHINE else pytest.mark.thorough)
    for name, target in TARGETS.items()
]


@pytest.mark.parametrize("machine", MACHINES)
def test_the_library_computes_what_the_wheel_does(tmp_path: Path, machine: str) -> None:
    target = TARGETS[machine]
    python, library = Python(target.folder / "python"), target.folder / "numpy.so"
    if not (python.library.exists() and library.exists()):
        pytest.skip("`make dist` builds it")
    command: list[str | Path] = [python.program]
    if target != BUILD_MACHINE:
        if not shutil.which(QEMU):
            pytest.skip(f"there is no {QEMU}")
        loader = Path(shutil.copy(target.folder / "libc" / "ld.so", tmp_path))
        loader.chmod(0o700)
        libraries = os.pathsep.join(map(str, (target.folder / "libc", python.library.parent)))
        command = [QEMU, loader, "--library-path", libraries, python.program]
    settings = python.environment | {"PYTHONHOME": str(python.prefix)}
    assert results(lay_out(tmp_path / "package", library), *command, **settings) == results()
