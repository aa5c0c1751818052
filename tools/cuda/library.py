"""`libggml-cuda.so` for x86-64: needs NVIDIA's driver and nothing else, on any Linux since glibc 2.17.

Knows how the objects become a library: with the runtime library and our own cuBLAS inside. Neither the driver nor the
real cuBLAS is named; both are opened where they are.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from shimmy.system.backends import CUDA
from tools.backend_library import ENGINE, SHARED_FILES, engine_to_link, made_once
from tools.cuda.objects import compiled, key_of_objects, sources
from tools.cuda.toolkit import FOLDER, host_compiler, host_library, toolkit
from tools.portable.compiler import compiler
from tools.portable.elf import ElfFile
from tools.portable.target import BUILD_MACHINE
from tools.portable.weak_versions import newer_versions
from tools.steps import BuildError, key_of, key_of_files, run, say

LIBRARY = CUDA.library

_HERE = Path(__file__).parent
# In CUDA and in C, both ours; the first is compiled for the same GPUs as the backend.
CUBLAS = _HERE / "cublas.cu"
_C_SOURCES = ("driver.c", "old_glibc.c", "unused_kernels.cpp")
_SYSTEM_LIBRARIES = {
    *("libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1", "ld-linux-x86-64.so.2"),
}


def library() -> Path:
    """The library, made once; about two hours of processor time where no object is in the cache."""
    files = [CUBLAS, *sources()]

    def make(work: Path) -> Path:
        made = work / LIBRARY
        link(compiled(files), made)
        check(made)
        return made

    return made_once(FOLDER / BUILD_MACHINE.machine / LIBRARY, key_of(key_of_objects(files), link_key()), make)


def link(objects: Sequence[Path], made: Path, *more: str | Path) -> None:
    """Make a library of the backend's objects, in a folder that is emptied for it."""
    work = made.parent
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    chosen = compiler(BUILD_MACHINE.glibc_triple)
    ours = [work / f"{name}.o" for name in _C_SOURCES]
    for name, target in zip(_C_SOURCES, ours, strict=True):
        by = chosen.cxx if name.endswith(".cpp") else chosen.cc
        flags = ["-O2", "-g0", "-fPIC", "-fvisibility=hidden", f"-isystem{toolkit().include}"]
        run([by, *flags, "-c", _HERE / name, "-o", target], **chosen.environment)
    say(f"cuda: linking `{LIBRARY}`")
    options = ["-shared", "-s", "-nostdlib++", "-Wl,-z,undefs", "-Wl,--gc-sections", f"-Wl,-soname,{LIBRARY}"]
    options.append(f"-Wl,--version-script={_HERE / 'symbols.map'}")
    # GCC's library for C++, since the objects are GCC's; it is unwound by the linker's own.
    libraries: list[str | Path] = [toolkit().runtime, host_library(), "-lunwind", "-ldl", "-lrt", "-lpthread", "-lm"]
    libraries += ["-Wl,--no-as-needed", engine_to_link(chosen, work)]
    run([chosen.cxx, *options, "-o", made, *objects, *ours, *more, *libraries], **chosen.environment)


def check(made: Path) -> None:
    """Raise BuildError where the library asks for more than the engine's functions and an old system's libraries."""
    content = made.read_bytes()
    file = ElfFile(content)
    faults = [f"asks for {name}" for name in file.undefined_symbols() if not name.startswith("ggml_")]
    faults += [f"asks for {version}" for version in newer_versions(content)]
    faults += [f"asks for {name}" for name in sorted(set(file.libraries()) - _SYSTEM_LIBRARIES - {ENGINE})]
    if ENGINE not in file.libraries():
        faults.append(f"does not ask for {ENGINE}")
    if faults:
        raise BuildError(f"`{LIBRARY}` {'; '.join(faults)}")


def link_key() -> str:
    """Names what a link depends on beside the objects."""
    own = [_HERE / name for name in ("library.py", "requirements.txt", "symbols.map", *_C_SOURCES)]
    return key_of(key_of_files([*own, *SHARED_FILES]), host_compiler()[1])
