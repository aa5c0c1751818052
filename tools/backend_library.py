"""What llama.cpp's backends have in common that are libraries of their own: how one is linked, checked and made once.

Such a library is opened beside any engine of this version: it asks for the engine's functions, and for nothing of C++
beside itself. Knows nothing of what a backend computes.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.engine_sources import engine_sources, engine_version
from tools.portable.compiler import Compiler
from tools.portable.elf import ElfFile
from tools.steps import BuildError, Stamp, key_of, key_of_files, run

ENGINE = "libggml-base.so.0"  # what it is opened beside
# What a library is made with, beside the files of its own folder.
SHARED_FILES = (
    Path(__file__),
    *(Path(__file__).with_name("portable") / name for name in ("zig-cc", "requirements.txt")),
)
_DEFINES = (
    *("GGML_BACKEND_BUILD", "GGML_BACKEND_DL", "GGML_BACKEND_SHARED", "GGML_SHARED", "GGML_SCHED_MAX_COPIES=4"),
    *("NDEBUG", "_GNU_SOURCE", "_XOPEN_SOURCE=600"),
)


def made_once(made: Path, key: str, make: Callable[[Path], Path]) -> Path:
    """The library `made`, as it was made for this key; else what `make` leaves in the empty folder that it is given."""
    stamp = Stamp(made.with_name("stamp"), key)
    if stamp.holds() and made.exists():
        return made
    work = made.with_name("work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    make(work).replace(made)
    shutil.rmtree(work)
    stamp.write()
    return made


def key_of_sources(folder: Path) -> str:
    """Names what a library is made of: the files of its folder, what it is compiled with, and the engine's version."""
    own_files = [path for path in folder.iterdir() if path.is_file()]
    return key_of(key_of_files([*own_files, *SHARED_FILES]), engine_version())


def compile_flags() -> list[str]:
    """For all sources, the same wherever they lie."""
    return [f"-ffile-prefix-map={engine_sources()}=.", *(f"-D{name}" for name in _DEFINES)]


def engine_to_link(chosen: Compiler, work: Path) -> Path:
    """What stands for the engine in a link: the library says that it needs the engine's, whose own names are not known
    before that is made."""
    engine = work / ENGINE
    run([chosen.cc, "-shared", f"-Wl,-soname,{ENGINE}", "-o", engine, "-xc", "/dev/null"], **chosen.environment)
    return engine


def linked(chosen: Compiler, made: Path, objects: Sequence[Path], symbols: Path, options: Sequence[str]) -> Path:
    """The library `made` of these objects, which shows the functions that the file `symbols` names."""
    link = ["-shared", "-s", "-Wl,-z,undefs", f"-Wl,--version-script={symbols}", *options]
    engine = engine_to_link(chosen, made.parent)
    run([chosen.cxx, *link, "-o", made, *objects, "-Wl,--no-as-needed", engine], **chosen.environment)
    return made


def check(made: Path, prefixes: tuple[str, ...] = ("ggml_",)) -> Path:
    """The library; raises BuildError where it asks for more than the engine's functions and a system's libraries."""
    file = ElfFile(made.read_bytes())
    strange = [name for name in file.undefined_symbols() if not name.startswith(prefixes)]
    if strange or ENGINE not in file.libraries():
        raise BuildError(f"`{made.name}` asks for {strange} of {file.libraries()}")
    return made
