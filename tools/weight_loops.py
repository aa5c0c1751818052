"""The library of loops over quantised weights: one C file, compiled once for any processor of a machine.

Knows how it is compiled. What the loops do stands in
tools/kernels/weight_loops.c, and who calls them in shimmy/engine/layouts/loops.py.
"""

import lzma
import tempfile
from pathlib import Path

from shimmy.engine.llama.unpack_libraries import LOOPS_LIBRARY
from tools.portable.compiler import compiler, zig_version
from tools.portable.target import Target, this_machine
from tools.steps import VENV, Stamp, key_of, key_of_files, run

SOURCE = Path(__file__).with_name("kernels") / "weight_loops.c"
# Without the sixth, a processor that can would round a sum of a product once, where the layouts' own libraries round
# twice. The fifth lets compilers use vectors for comparisons.
OPTIONS = (
    *("-std=c99", "-O3", "-g0", "-fPIC", "-fno-trapping-math", "-ffp-contract=off", "-fvisibility=hidden"),
    *("-shared", "-s"),
)


def loops_key() -> str:
    """Names what the library is made of."""
    return key_of(*OPTIONS, key_of_files([SOURCE]), zig_version())


def compile_loops(target: Path, cc: str | Path, **environment: str) -> Path:
    """Compile the library to `target`, with any C compiler; takes a second."""
    run([cc, *OPTIONS, f"-ffile-prefix-map={SOURCE.parent}=.", "-o", target, SOURCE], **environment)
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
        library = compile_loops(Path(folder, LOOPS_LIBRARY), chosen.cc, **chosen.environment)
        return lzma.compress(library.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
