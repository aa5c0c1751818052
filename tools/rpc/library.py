"""`libggml-rpc.so` for one machine, for any Linux since glibc 2.17 and any engine of this version.

Knows how ggml's RPC backend is compiled: its own source unchanged, with our transport in the place of its own, so that
no engine opens a port (transport.cpp). It asks for nothing of C++ beside itself.
"""

import hashlib
import lzma
import shutil
from pathlib import Path

from shimmy.system.rpc_archive import LIBRARY
from tools.engine_sources import engine_sources, engine_version
from tools.portable.compiler import compiler
from tools.portable.elf import ElfFile
from tools.portable.target import Target
from tools.steps import CACHE, BuildError, Stamp, key_of, key_of_files, run, say

FOLDER = CACHE.resolve() / "rpc"
_HERE = Path(__file__).parent
_ENGINE = "libggml-base.so.0"  # what it is opened beside
_DEFINES = (
    *("GGML_BACKEND_BUILD", "GGML_BACKEND_DL", "GGML_BACKEND_SHARED", "GGML_SHARED", "GGML_SCHED_MAX_COPIES=4"),
    *("NDEBUG", "_GNU_SOURCE", "_XOPEN_SOURCE=600"),
)
_FLAGS = ("-std=gnu++17", "-Os", "-g0", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-w")
_LINK = ("-shared", "-s", "-Wl,-z,undefs", "-Wl,--gc-sections", "-lpthread")


def library(target: Target) -> Path:
    """The library for a machine, made once; a quarter of a minute, the first time for a machine one more."""
    made = FOLDER / target.machine / LIBRARY
    stamp = Stamp(made.with_name("stamp"), _key())
    if stamp.holds() and made.exists():
        return made
    say(f"rpc: compiling `{LIBRARY}` for {target.machine}")
    work = made.with_name("work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    linked = _linked(target, work)
    _check(linked.read_bytes())
    linked.replace(made)
    shutil.rmtree(work)
    stamp.write()
    return made


def packed(target: Target) -> tuple[Path, Path]:
    """What lies in the frozen file: the library as xz, and a text of its SHA-256 and its size once it is unpacked."""
    made = library(target)
    content = made.read_bytes()
    archive, text = made.with_suffix(".xz"), made.with_suffix(".sha256")
    archive.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    text.write_text(f"{hashlib.sha256(content).hexdigest()} {len(content)}\n")
    return archive, text


def _key() -> str:
    compiler_files = [_HERE.parent / "portable" / name for name in ("zig-cc", "requirements.txt")]
    own_files = [path for path in _HERE.iterdir() if path.is_file()]
    return key_of(key_of_files([*own_files, *compiler_files]), engine_version())


def _linked(target: Target, work: Path) -> Path:
    chosen = compiler(target.glibc_triple)
    ggml = engine_sources() / "vendor" / "llama.cpp" / "ggml"
    flags = [*_FLAGS, "-ffunction-sections", f"-ffile-prefix-map={engine_sources()}=.", *(f"-D{n}" for n in _DEFINES)]
    flags += [f"-I{folder}" for folder in (ggml / "src", ggml / "include", ggml / "src" / "ggml-rpc")]
    objects = []
    for source in (ggml / "src" / "ggml-rpc" / "ggml-rpc.cpp", _HERE / "transport.cpp"):
        objects.append(work / f"{source.name}.o")
        run([chosen.cxx, *flags, "-c", source, "-o", objects[-1]], **chosen.environment)
    # The library says that it needs the engine's, whose own names are not known before that is made.
    engine = work / _ENGINE
    run([chosen.cc, "-shared", f"-Wl,-soname,{_ENGINE}", "-o", engine, "-xc", "/dev/null"], **chosen.environment)
    link = [*_LINK, f"-Wl,--version-script={_HERE / 'symbols.map'}"]
    run([chosen.cxx, *link, "-o", work / LIBRARY, *objects, "-Wl,--no-as-needed", engine], **chosen.environment)
    return work / LIBRARY


def _check(content: bytes) -> None:
    """Raise BuildError where the library asks for more than the engine's functions and a system's libraries."""
    file = ElfFile(content)
    strange = [name for name in file.undefined_symbols() if not name.startswith(("ggml_", "gguf_"))]
    if strange or _ENGINE not in file.libraries():
        raise BuildError(f"`{LIBRARY}` asks for {strange} of {file.libraries()}")
