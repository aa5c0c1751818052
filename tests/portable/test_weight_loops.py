"""The loops of portable files give what numpy gives, wherever their compiler, and for ARM64 an emulator, are there."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from shimmy.engine.layouts.loops import Library
from tests.loop_operations import results
from tests.numpy_package import lay_out
from tools.portable.compiler import Compiler
from tools.portable.python import Python
from tools.portable.target import BUILD_MACHINE, TARGETS
from tools.steps import ROOT
from tools.weight_loops import compile_loops

QEMU = "qemu-aarch64-static"
# What is emulated takes seconds.
MACHINES = [
    pytest.param(name, marks=() if target == BUILD_MACHINE else pytest.mark.thorough)
    for name, target in TARGETS.items()
]


@pytest.mark.parametrize("machine", MACHINES)
def test_the_library_gives_what_numpy_gives(tmp_path: Path, machine: str) -> None:
    target = TARGETS[machine]
    chosen, python, numpy = Compiler(target.glibc_triple), Python(target.folder / "python"), target.folder / "numpy.so"
    if not (chosen.cc.exists() and numpy.exists() and python.library.exists()):
        pytest.skip("`make dist` builds it")
    library = compile_loops(tmp_path / "library.so", chosen.cc, target.machine, **chosen.environment)
    if target == BUILD_MACHINE:
        for is_plain in (False, True):
            assert results(Library(library, is_plain=is_plain)) == results(None)
        return
    if not shutil.which(QEMU):
        pytest.skip(f"there is no {QEMU}")
    loader = Path(shutil.copy(target.folder / "libc" / "ld.so", tmp_path))
    loader.chmod(0o700)
    folders = os.pathsep.join(map(str, (target.folder / "libc", python.library.parent)))
    command: list[str | Path] = [
        QEMU,
        loader,
        "--library-path",
        folders,
        python.program,
        "-m",
        "tests.loop_operations",
        library,
    ]
    path = f"{lay_out(tmp_path / 'package', numpy)}{os.pathsep}{ROOT}"
    settings = os.environ | python.environment | {"PYTHONHOME": str(python.prefix), "PYTHONPATH": path}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == results(None)
