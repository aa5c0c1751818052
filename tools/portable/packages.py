"""The Python packages of a portable build: those that PyInstaller analyses, and the compiled parts of the target's own.

Knows pip, and the wheels that are made for one machine. The versions are those of pyproject.toml.
"""

import shutil
import zipfile
from pathlib import Path

from tools.portable import python as own_python
from tools.portable.target import PORTABLE, Target
from tools.portable.weak_versions import weaken
from tools.steps import CACHE, BuildError, Stamp, key_of, requirements, say, venv_python
from tools.steps import pip as run_pip

# Built from their sources, see engine.py and numpy_core.py; of llguidance only the compiled part is used.
_NOT_INSTALLED = ("llama-cpp-python", "llguidance", "numpy")
# What others are built with, by the Python that runs the build.
_TOOLS = ("cython", "ninja")
_PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_31")


def site() -> Path:
    """A folder of the program's packages and PyInstaller, for the Python of portable builds on this machine."""
    folder = PORTABLE / "site"
    wanted = [name for name in requirements("build") if not name.startswith(_NOT_INSTALLED + _TOOLS)]
    stamp = Stamp(PORTABLE / "site-stamp", key_of(own_python.VERSION, *wanted))
    if not stamp.holds():
        say("portable: installing the Python packages")
        shutil.rmtree(folder, ignore_errors=True)
        pip = ["install", "--no-compile", f"--python-version={own_python.VERSION}", "--only-binary=:all:"]
        run_pip(venv_python(), *pip, "--no-deps", f"--target={folder}", *wanted)
        stamp.write()
    return folder


def not_installed() -> list[tuple[str, str]]:
    """Names and versions of the packages that are in the file and not in `site`."""
    pinned = (requirement.split("==") for requirement in requirements())
    return [(name, version) for name, version in pinned if name in _NOT_INSTALLED]


def speedups(target: Target) -> bytes:
    """MarkupSafe's compiled module."""
    return _from_wheel("markupsafe", target, "markupsafe/_speedups.")


def grammar_library(target: Target) -> bytes:
    """Llguidance's compiled module; its symbols of newer C libraries are all weak, and their versions become so."""
    return weaken(_from_wheel("llguidance", target, "llguidance/_lib."))


def wheel_of(package: str, target: Target) -> Path:
    """The wheel of a package that has a compiled part, fetched once."""
    requirement = next(name for name in requirements() if name.startswith(f"{package}=="))
    folder = CACHE.resolve() / "sources" / f"{requirement}-{target.machine}"
    if not list(folder.glob("*.whl")):
        platforms = [f"--platform={platform}_{target.machine}" for platform in _PLATFORMS]
        arguments = ["--no-deps", "--only-binary=:all:", f"--python-version={own_python.VERSION}", f"--dest={folder}"]
        run_pip(venv_python(), "download", *arguments, *platforms, requirement)
    return next(folder.glob("*.whl"))


def _from_wheel(package: str, target: Target, prefix: str) -> bytes:
    """The shared library in the wheel of `package` whose name begins with `prefix`."""
    path = wheel_of(package, target)
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.startswith(prefix) and name.endswith(".so")]
        if len(names) != 1:
            raise BuildError(f"`{path.name}` has {names}: one is expected")
        return wheel.read(names[0])
