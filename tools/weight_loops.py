"""The library of loops over quantised weights: compiled for any processor of a machine, and some of it for newer ones.

Knows how it is compiled. What the loops do stands in tools/kernels/weight_loops.c and wide_loops.c, and who calls them
in shimmy/engine/layouts/loops.py.
"""

import lzma
import platform
import tempfile
from pathlib import Path

from shimmy.engine.llama.unpack_libraries import LOOPS_LIBRARY
from tools.portable.compiler import compiler, zig_version
from tools.portable.target import Target, this_machine
from tools.steps import VENV, Stamp, key_of, key_of_files, run

_FOLDER = Path(__file__).with_name("kernels")
_LOOPS, _WIDE_LOOPS = _FOLDER / "weight_loops.c", _FOLDER / "wide_loops.c"
# Without the last one, a processor that can would round a sum of a product once, where the layouts' own libraries round
# twice. The fourth lets compilers use vectors for comparisons.
_OPTIONS = ("-std=c99", "-O3", "-g0", "-fno-trapping-math", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")
_LINK_OPTIONS = ("-shared", "-s")
# By machine: what the second file is compiled for as well. Its functions end in SUFFIX then, which loops.py knows.
_WIDER = {"x86_64": ("-mavx2", "-mf16c", "-DSUFFIX=_avx2")}


def loops_key() -> str:
    """Names what the library is made of."""
    return key_of(*_OPTIONS, *_LINK_OPTIONS, repr(_WIDER), key_of_files([_LOOPS, _WIDE_LOOPS]), zig_version())


def compile_loops(target: Path, cc: str | Path, machine: str = platform.machine(), **environment: str) -> Path:
    """Compile the library for `machine` to `target`, with any C compiler; takes two seconds."""
    compiled: list[tuple[Path, tuple[str, ...]]] = [(_LOOPS, ()), (_WIDE_LOOPS, ())]
    if machine in _WIDER:
        compiled.append((_WIDE_LOOPS, _WIDER[machine]))
    with tempfile.TemporaryDirectory() as folder:
        objects: list[Path] = []
        for source, options in compiled:
            objects.append(Path(folder, f"{len(objects)}.o"))
            names = f"-ffile-prefix-map={_FOLDER}=."
            run([cc, *_OPTIONS, *options, names, "-c", source, "-o", objects[-1]], **environment)
        run([cc, *_LINK_OPTIONS, "-o", target, *objects], **environment)
    return target


def install_loops(venv: Path = VENV) -> None:
    """Put the library into an environment, where the source tree looks for it."""
    place = venv / "lib" / LOOPS_LIBRARY
    stamp = Stamp(venv / "weight-loops-stamp", loops_key())
    if not stamp.holds() or not place.exists():
        chosen = compiler(this_machine().glibc_triple)
        compile_loops(place, chosen.cc, **chosen.environment)
        stamp.write()


def packed_loops(target: Target) -> bytes:
    """The library for a machine as it lies in the frozen file."""
    chosen = compiler(target.glibc_triple)
    with tempfile.TemporaryDirectory() as folder:
        library = compile_loops(Path(folder, LOOPS_LIBRARY), chosen.cc, target.machine, **chosen.environment)
        return lzma.compress(library.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
