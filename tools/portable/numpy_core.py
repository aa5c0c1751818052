"""numpy's core for one machine and the Python of portable files.

Knows how that Python is asked about a machine that it does not run on. What is compiled stands in tools/numpy_core.py.
"""

import shutil
from pathlib import Path

from tools import numpy_core
from tools.portable import sources
from tools.portable.compiler import compiler
from tools.portable.python import python
from tools.portable.target import BUILD_MACHINE, Target
from tools.steps import Stamp, key_of, key_of_files


def core(target: Target) -> Path:
    """The library, compiled once."""
    made, work = target.folder / "numpy.so", target.folder / "numpy-work"
    wrapper = Path(__file__).with_name("zig-cc")
    key = key_of(key_of_files([wrapper]), numpy_core.core_key(), sources.PYTHON.sha256)
    stamp = Stamp(target.folder / "numpy-stamp", key)
    if stamp.holds():
        return made
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    chosen = compiler(target.glibc_triple)
    toolchain = numpy_core.Toolchain(
        machine=target.machine,
        cc=chosen.cc,
        cxx=chosen.cxx,  # links its own library, and no other, into what it makes
        python=_python_of(target, work / "python"),
        cxx_link_flags=(),
        environment=chosen.environment,
    )
    made.write_bytes(numpy_core.compile_core(toolchain, work))
    stamp.write()
    return made


def _python_of(target: Target, script: Path) -> Path:
    """The Python that runs here as a script whose `sysconfig` answers for the target, as in CPython's own build."""
    runs, asked = python(BUILD_MACHINE), python(target)
    variables = {
        "LD_LIBRARY_PATH": runs.library.parent,
        "PYTHONHOME": asked.prefix,
        "_PYTHON_HOST_PLATFORM": f"linux-{target.machine}",
        "_PYTHON_SYSCONFIGDATA_NAME": f"_sysconfigdata__linux_{target.machine}-linux-gnu",
    }
    settings = " ".join(f"{name}={value}" for name, value in variables.items())
    script.write_text(f'#!/bin/sh\nexec env {settings} {runs.program} "$@"\n')
    script.chmod(0o755)
    return script
