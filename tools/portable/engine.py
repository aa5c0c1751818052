"""llama.cpp with Shimmy's kernels and all CPU variants of a machine, for any Linux since glibc 2.17.

Knows how CMake is told the machine and the compiler; how the engine is configured stands in tools/engine.py.
"""

import shutil
from pathlib import Path

from tools.engine import CMAKE_FLAGS, KERNEL_FILES, engine_sources, engine_version
from tools.portable.compiler import compiler, run_logged
from tools.portable.libraries import N_JOBS
from tools.portable.target import PORTABLE, Target
from tools.steps import BuildError, Stamp, key_of, key_of_files, say

_PARTS = Path(__file__).with_name("engine_parts")
# As their users look them up: libllama by the binding, the others by it.
LIBRARIES = ("libllama.so", "libggml.so.0", "libggml-base.so.0")


def engine(target: Target) -> Path:
    """A folder with libllama, its companions and the CPU variants, built once; objects stay for the next time."""
    place = target.folder / "engine"
    own_files = [
        *KERNEL_FILES,
        *_PARTS.iterdir(),
        *(Path(__file__).with_name(name) for name in ("engine.py", "zig-cc")),
    ]
    stamp = Stamp(target.folder / "engine-stamp", key_of(key_of_files(own_files), engine_version(), repr(CMAKE_FLAGS)))
    if stamp.holds():
        return place
    chosen, work, log = compiler(target.glibc_triple), target.folder / "engine-work", target.folder / "engine.log"
    definitions = {
        **CMAKE_FLAGS,
        **chosen.cmake_definitions,
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": target.machine,
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_PROJECT_llama_cpp_INCLUDE": str(_PARTS / "portable.cmake"),
        "GGML_OPENMP": "OFF",  # the compiler has no runtime library for it: see engine_parts/threads.c
        "SHIMMY_CPU_VARIANT": "",
        # Texts of failed assertions tell where a source lies.
        **{f"CMAKE_{kind}_FLAGS": f"-g0 -ffile-prefix-map={engine_sources()}=." for kind in ("C", "CXX")},
        **{f"CMAKE_{kind}_LINKER_FLAGS": "-s" for kind in ("SHARED", "MODULE")},
        # Where scikit-build-core would put the binding.
        "SKBUILD_PLATLIB_DIR": str(work / "platlib"),
        "SKBUILD_STATE": "wheel",
    }
    say(f"portable: compiling llama.cpp for {target.machine} (log: `{log}`)")
    log.unlink(missing_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    cmake: list[str | Path] = ["cmake", "-G", "Ninja", "-S", engine_sources(), "-B", work]
    arguments = [f"-D{name}={value}" for name, value in definitions.items()]
    run_logged(log, [*cmake, *arguments], PORTABLE, chosen.environment)
    run_logged(log, ["ninja", "-j", N_JOBS], work, chosen.environment)
    _collect(work, place)
    stamp.write()
    return place


def _collect(work: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    found = {path.name: path for path in (work / "bin").iterdir()}
    variants = [name for name in found if name.startswith("libggml-cpu-")]
    if not variants or not found.keys() >= set(LIBRARIES):
        raise BuildError(f"llama.cpp left {sorted(found)}, and {LIBRARIES} and CPU variants are expected")
    for name in (*LIBRARIES, *variants):
        shutil.copy(found[name], place / name)
    (place / "pkgconfig").mkdir()
    shutil.copy(next(work.rglob("llama.pc")), place / "pkgconfig")
