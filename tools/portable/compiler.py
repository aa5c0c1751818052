"""The compiler of portable builds: zig's clang, which brings the headers of each C library and its own linker.

Knows how it is installed and called. Knows nothing of what is compiled.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.portable.target import PORTABLE
from tools.steps import BuildError, Stamp, key_of_files, say

_VENV = PORTABLE / "tools"
_WRAPPERS = PORTABLE / "bin"
_REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_ZIG_CC = Path(__file__).with_name("zig-cc")


@dataclass(frozen=True)
class Compiler:
    """Programs that compile for one machine and one C library."""

    triple: str

    @property
    def cc(self) -> Path:
        """The C compiler, which links as well."""
        return _WRAPPERS / f"{self.triple}-cc"

    @property
    def cxx(self) -> Path:
        """The C++ compiler; it links its own runtime library into what it makes."""
        return _WRAPPERS / f"{self.triple}-c++"

    @property
    def environment(self) -> dict[str, str]:
        """For configure scripts and make. What is built remembers these names: they are the same in each checkout."""
        names = {"CC": self.cc.name, "CXX": self.cxx.name, "AR": "ar", "RANLIB": "ranlib"}
        return tools_environment() | names | {"PATH": f"{_WRAPPERS}{os.pathsep}{tools_environment()['PATH']}"}

    @property
    def cmake_definitions(self) -> dict[str, str]:
        """For CMake, which is told the machine by whoever calls it."""
        return {
            "CMAKE_C_COMPILER": str(self.cc),
            "CMAKE_CXX_COMPILER": str(self.cxx),
            "CMAKE_AR": str(_WRAPPERS / "ar"),
            "CMAKE_RANLIB": str(_WRAPPERS / "ranlib"),
            **{f"CMAKE_FIND_ROOT_PATH_MODE_{kind}": "ONLY" for kind in ("LIBRARY", "INCLUDE", "PACKAGE")},
            "CMAKE_FIND_ROOT_PATH_MODE_PROGRAM": "NEVER",
        }


def compiler(triple: str) -> Compiler:
    """The compiler for a machine and C library in zig's words; installed when first asked for."""
    _install()
    zig = zig_folder() / "zig"
    for name, tool in (("cc", "cc"), ("c++", "c++")):
        command = f'exec "{_ZIG_CC}" "{zig}" {tool} {triple} -ffile-prefix-map={PORTABLE}=. "$@"'
        _write_script(f"{triple}-{name}", command)
    for tool in ("ar", "ranlib"):
        _write_script(tool, f'exec "{zig}" {tool} "$@"')
    return Compiler(triple)


def zig_folder() -> Path:
    """Where zig lies, with the sources of the libraries that it links into what it makes."""
    return next(_VENV.glob("lib/python3*/site-packages/ziglang"))


def zig_version() -> str:
    """The version of the package."""
    lines = _REQUIREMENTS.read_text().splitlines()
    return next(line.split()[0] for line in lines if line.startswith("ziglang==")).partition("==")[2]


def tools_environment() -> dict[str, str]:
    """Where cmake and ninja are found, and what keeps builds the same everywhere."""
    return {
        "PATH": f"{_VENV}/bin{os.pathsep}{os.environ['PATH']}",
        "ZIG_GLOBAL_CACHE_DIR": str(PORTABLE / "zig-cache"),
        "SOURCE_DATE_EPOCH": "0",
        "LC_ALL": "C",
    }


def run_logged(log: Path, command: Sequence[str | Path], folder: Path, environment: dict[str, str]) -> None:
    """Run a long command in `folder`; what it says goes to the end of `log`, and its last lines into the error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        result = subprocess.run(
            command, cwd=folder, env=os.environ | environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
    if result.returncode != 0:
        last_lines = "\n".join(log.read_text(errors="replace")[-3000:].splitlines()[-15:])
        raise BuildError(
            f"`{command[0]}` ended with {result.returncode}; the log is in `{log}`, its end:\n{last_lines}"
        )


def _install() -> None:
    stamp = Stamp(PORTABLE / "tools-stamp", key_of_files([_REQUIREMENTS]))
    if stamp.holds():
        return
    say("portable: fetching the compiler")
    log = PORTABLE / "tools.log"
    run_logged(log, [sys.executable, "-m", "venv", _VENV], Path.cwd(), {})
    pip = [f"{_VENV}/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    run_logged(log, [*pip, "--requirement", _REQUIREMENTS], Path.cwd(), {})
    stamp.write()


def _write_script(name: str, line: str) -> None:
    path = _WRAPPERS / name
    text = f"#!/bin/sh\n{line}\n"
    if path.exists() and path.read_text() == text:
        return
    _WRAPPERS.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
