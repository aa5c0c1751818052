"""llama.cpp with Shimmy's kernels and all CPU variants of a machine, for any Linux since glibc 2.17.

Knows how llama.cpp is configured, and how CMake is told the machine and the compiler. Sources and objects stay, so that
an engine with one variant is completed later and not started over.
"""

import shutil
from pathlib import Path

from tools.engine_sources import engine_sources, engine_version
from tools.portable.compiler import compiler, run_logged
from tools.portable.libraries import N_JOBS
from tools.portable.target import PORTABLE, Target
from tools.progress import compile_with_progress
from tools.steps import BuildError, Stamp, key_of, key_of_files, say

# Read by CMake in the middle of the package's own configuration; it names the kernels that lie beside it.
_KERNELS = Path(__file__).parent.with_name("kernels")
_KERNEL_FILES = [_KERNELS / name for name in ("engine.cmake", "quantized_rows.cpp", "amx_tile_config.h")]
_PARTS = Path(__file__).with_name("engine_parts")
_CMAKE_FLAGS = {
    "LLAVA_BUILD": "OFF",
    "LLAMA_BUILD_IS_DEV": "OFF",  # else the version carries a `-dev`
    "GGML_BACKEND_DL": "ON",
    "GGML_CPU_ALL_VARIANTS": "ON",
    "GGML_NATIVE": "OFF",
    # The compiler has no runtime library for it: the variants use engine_parts/threads.c. Its barrier sleeps when a
    # thread is kept waiting; ggml's own spins, and where others use the processor as well it was up to ten times
    # slower (2 cores, one of them busy).
    "GGML_OPENMP": "OFF",
}
# As their users look them up: libllama by the binding, the others by it.
LIBRARIES = ("libllama.so", "libggml.so.0", "libggml-base.so.0")
ALL_VARIANTS = ""


def engine_key() -> str:
    """Names what the engine of a machine is made of: the version, the flags, our kernels, the compiler."""
    own_files = [
        *_KERNEL_FILES,
        *_PARTS.iterdir(),
        *(Path(__file__).with_name(name) for name in ("engine.py", "zig-cc", "requirements.txt")),
    ]
    return key_of(key_of_files(own_files), engine_version())


def is_built(target: Target, variant: str = ALL_VARIANTS) -> bool:
    """True when `engine` has nothing to do."""
    return _stamp(target, variant).holds() and _place(target, variant).exists()


def engine(target: Target, variant: str = ALL_VARIANTS) -> Path:
    """A folder with libllama, its companions and the CPU variants, or the one that is named; built once."""
    place = _place(target, variant)
    if is_built(target, variant):
        return place
    log = target.folder / "engine.log"
    what = f"`{variant}` alone, about 3" if variant else "all CPU variants, about 6"
    say(f"engine: compiling llama.cpp for {target.machine}, {what} minutes on 2 cores (log: `{log}`)")
    log.unlink(missing_ok=True)
    work = _configured(target, variant, log)
    with log.open("ab") as file:
        ninja: list[str | Path] = ["ninja", "-C", work, "-j", N_JOBS]
        exit_code = compile_with_progress("engine", ninja, file, compiler(target.glibc_triple).environment)
    if exit_code != 0:
        last_lines = "\n".join(log.read_text(errors="replace")[-2000:].splitlines()[-15:])
        raise BuildError(f"the engine did not build; the whole log is in `{log}`, its end:\n{last_lines}")
    _collect(work, place, variant)
    _stamp(target, variant).write()
    return place


def _place(target: Target, variant: str) -> Path:
    return target.folder / (f"engine-{variant}" if variant else "engine")


def _stamp(target: Target, variant: str) -> Stamp:
    place = _place(target, variant)
    return Stamp(place.with_name(f"{place.name}-stamp"), engine_key())


def _configured(target: Target, variant: str, log: Path) -> Path:
    """The folder of the build, which is told what to compile."""
    chosen, work = compiler(target.glibc_triple), target.folder / "engine-work"
    definitions = {
        **_CMAKE_FLAGS,
        **chosen.cmake_definitions,
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": target.machine,
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_PROJECT_llama_cpp_INCLUDE": str(_PARTS / "portable.cmake"),
        "SHIMMY_CPU_VARIANT": variant,
        # Texts of failed assertions tell where a source lies.
        **{f"CMAKE_{kind}_FLAGS": f"-g0 -ffile-prefix-map={engine_sources()}=." for kind in ("C", "CXX")},
        **{f"CMAKE_{kind}_LINKER_FLAGS": "-s" for kind in ("SHARED", "MODULE")},
        # Where scikit-build-core would put the binding.
        "SKBUILD_PLATLIB_DIR": str(work / "platlib"),
        "SKBUILD_STATE": "wheel",
    }
    work.mkdir(parents=True, exist_ok=True)
    cmake: list[str | Path] = ["cmake", "-G", "Ninja", "-S", engine_sources(), "-B", work]
    run_logged(
        log, [*cmake, *(f"-D{name}={value}" for name, value in definitions.items())], PORTABLE, chosen.environment
    )
    return work


def _collect(work: Path, place: Path, variant: str) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    found = {path.name: path for path in (work / "bin").iterdir()}
    variants = [path.name for path in (work / "bin").glob(f"libggml-cpu-{variant or '*'}.so")]
    if not variants or not found.keys() >= set(LIBRARIES):
        raise BuildError(f"llama.cpp left {sorted(found)}, and {LIBRARIES} and CPU variants are expected")
    for name in (*LIBRARIES, *variants):
        shutil.copy(found[name], place / name)
    (place / "pkgconfig").mkdir()
    shutil.copy(next(work.rglob("llama.pc")), place / "pkgconfig")
