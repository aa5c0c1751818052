"""Numpy without what the frozen file leaves out of it."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy._core

from tests.numpy_package import installed_library, installed_package, lay_out, results
from tools.numpy_core import modules
from tools.steps import ROOT


def test_the_modules_that_are_left_are_enough(tmp_path: Path) -> None:
    found = results(lay_out(tmp_path, installed_library()))
    assert found == results()
    assert len(found) > 40


def test_what_is_left_out_is_not_there(tmp_path: Path) -> None:
    code = "import sys, numpy; print(*(name for name in sys.modules if name.startswith('numpy'))); numpy.linalg"
    settings = os.environ | {"PYTHONPATH": str(lay_out(tmp_path, installed_library()))}
    run = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False)
    assert "module 'numpy' has no attribute 'linalg'" in run.stderr
    assert {*run.stdout.split()} <= modules(installed_package()).keys()


def uses_of_numpy(sources: Iterable[Path]) -> Iterator[str]:
    """The names of numpy that the modules in these files ask for."""
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(ast.Name("np" | "numpy"), name):
                    yield f"numpy.{name}"
                case ast.ImportFrom(str(module), names) if module.partition(".")[0] == "numpy":
                    yield from (f"{module}.{alias.name}" for alias in names)
                case ast.Import(names):
                    yield from (alias.name for alias in names if alias.name.startswith("numpy."))


def test_nothing_is_used_that_is_left_out() -> None:
    there = {f"numpy.{name}" for name in numpy._core.__all__} | {"numpy.packbits", "numpy.unpackbits"}
    there |= {"numpy.typing.NDArray", *modules(installed_package())}
    assert {*uses_of_numpy((ROOT / "shimmy").rglob("*.py"))} - there == set()


def test_what_is_left_asks_for_little_that_is_left_out(tmp_path: Path) -> None:
    """Functions of numpy ask for the rest of it while they run: `ravel` for matrices, to name one."""
    code = "import sys, numpy; print(*(name for name in sys.argv[1:] if not hasattr(numpy, name)))"
    own = [path for path in modules(installed_package()).values() if path.is_relative_to(installed_package())]
    names = sorted({name.removeprefix("numpy.") for name in uses_of_numpy(own) if name.count(".") == 1})
    assert {"matrix", "ndim"} <= {*names}
    settings = os.environ | {"PYTHONPATH": str(lay_out(tmp_path, installed_library()))}
    command = [sys.executable, "-c", code, *names]
    run = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    # For `logspace` of bases in an array, `identity`, arrays of over 1,000 numbers in print, the mean of some numbers.
    assert run.stdout.split() == ["expand_dims", "eye", "index_exp", "lib"]
