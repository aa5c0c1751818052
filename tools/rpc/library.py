"""`libggml-rpc.so` for one machine, for any Linux since glibc 2.17 and any engine of this version.

Knows how ggml's RPC backend is compiled: its own source, in which one number is another (of what size on weights are
asked for by their hash before they are sent), with our transport in the place of its own, so that no engine opens a
port (transport.cpp). It asks for nothing of C++ beside itself.
"""

import hashlib
import lzma
from pathlib import Path

from shimmy.system.backends import RPC
from tools.backend_library import check, compile_flags, key_of_sources, linked, made_once
from tools.engine_sources import ggml_sources
from tools.portable.compiler import compiler
from tools.portable.target import Target
from tools.steps import CACHE, BuildError, run, say

FOLDER = CACHE.resolve() / "rpc"
LIBRARY = RPC.library
_HERE = Path(__file__).parent
_SOURCE = Path("src", "ggml-rpc", "ggml-rpc.cpp")
# With ggml's 10 MiB no matrix of a quantised model of a billion weights is asked for: all of it travels at each load.
# To ask takes as long as the way there and back, and 1 MiB as long as four such ways at 100 Mbit/s and 20 ms.
_ASKED_FOR = "const size_t HASH_THRESHOLD = {} * 1024 * 1024;"
_THEIRS, _OURS = _ASKED_FOR.format(10), _ASKED_FOR.format(1)
_FLAGS = ("-std=gnu++17", "-Os", "-g0", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-w")


def library(target: Target) -> Path:
    """The library for a machine, made once; a quarter of a minute, the first time for a machine one more."""

    def make(work: Path) -> Path:
        say(f"rpc: compiling `{LIBRARY}` for {target.machine}")
        return check(_linked(target, work), ("ggml_", "gguf_"))

    return made_once(FOLDER / target.machine / LIBRARY, key_of_sources(_HERE), make)


def packed(target: Target) -> tuple[Path, Path]:
    """What lies in the frozen file: the library as xz, and a text of its SHA-256 and its size once it is unpacked."""
    made = library(target)
    content = made.read_bytes()
    archive, text = made.with_suffix(".xz"), made.with_suffix(".sha256")
    archive.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    text.write_text(f"{hashlib.sha256(content).hexdigest()} {len(content)}\n")
    return archive, text


def _linked(target: Target, work: Path) -> Path:
    chosen, ggml = compiler(target.glibc_triple), ggml_sources()
    flags = [*_FLAGS, "-ffunction-sections", *compile_flags(), f"-ffile-prefix-map={work}=./ggml-rpc"]
    flags += [f"-I{folder}" for folder in (ggml / "src", ggml / "include", ggml / _SOURCE.parent)]
    objects = []
    for source in (_with_our_number(ggml / _SOURCE, work), _HERE / "transport.cpp"):
        objects.append(work / f"{source.name}.o")
        run([chosen.cxx, *flags, "-c", source, "-o", objects[-1]], **chosen.environment)
    return linked(chosen, work / LIBRARY, objects, _HERE / "symbols.map", ("-Wl,--gc-sections", "-lpthread"))


def _with_our_number(source: Path, work: Path) -> Path:
    text = source.read_text()
    if text.count(_THEIRS) != 1:
        raise BuildError(f"`{source.name}` does not say `{_THEIRS}`")
    changed = work / source.name
    changed.write_text(text.replace(_THEIRS, _OURS))
    return changed
