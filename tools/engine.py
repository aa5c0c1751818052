"""The engine: llama-cpp-python's wheel, built from its source package with our own flags and kernels, and cached.

A whole engine has every CPU variant, for the file that is handed out. One with the variant of this processor alone is
built in a third of the time; the sources and objects stay, so that a whole one is completed and not started over.

Knows how llama.cpp is configured. Knows nothing of what is done with the libraries afterwards.
"""

import platform
import sys
from pathlib import Path

from shimmy.engine.cpu_variants.variants import VARIANTS, processor_flags, ranked
from tools.environment import ENGINE_PACKAGE
from tools.progress import compile_with_progress
from tools.steps import (
    CACHE,
    VENV,
    BuildError,
    Stamp,
    key_of,
    key_of_files,
    pip,
    requirements,
    say,
    unpack_once,
    venv_python,
)

# Read by CMake in the middle of the package's own configuration; it names the kernels that lie beside it.
KERNELS = Path(__file__).parent / "kernels"
CMAKE_HOOK = KERNELS / "engine.cmake"
KERNEL_FILES = (CMAKE_HOOK, KERNELS / "quantized_rows.cpp", KERNELS / "amx_tile_config.h")
CMAKE_FLAGS = {
    "LLAVA_BUILD": "OFF",
    "LLAMA_BUILD_IS_DEV": "OFF",  # else the version carries a `-dev`
    "GGML_BACKEND_DL": "ON",
    "GGML_CPU_ALL_VARIANTS": "ON",
    "GGML_NATIVE": "OFF",
    # Its barrier sleeps when a thread is kept waiting; ggml's own spins, and where others use the processor as well it
    # was up to ten times slower (2 cores, one of them busy).
    "GGML_OPENMP": "ON",
    # The binding installs only the libraries that it knows by name; ggml's own rules place the variants, and here they
    # are told to place them beside the others.
    "CMAKE_INSTALL_BINDIR": "llama_cpp/lib",
    "CMAKE_INSTALL_LIBDIR": "llama_cpp/lib",
    "CMAKE_INSTALL_INCLUDEDIR": "llama_cpp/include",
}
SOURCES = CACHE / "sources"
ALL_VARIANTS = ""


def engine_key(variant: str = ALL_VARIANTS) -> str:
    """Names the wheel: the version, the flags, our kernels, the Python, the machine, and the variant if it has one."""
    return key_of(_configuration_key(), key_of_files(KERNEL_FILES), variant)


def install_engine(venv: Path = VENV, *, for_this_processor: bool = False) -> None:
    """Put the engine into an environment, building the wheel if it is not cached yet.

    `for_this_processor` is for who cannot wait: one CPU variant is enough, unless all of them are built already.
    """
    variant = ALL_VARIANTS
    if for_this_processor and not _stamp(venv, ALL_VARIANTS).holds() and _cached_wheel(ALL_VARIANTS) is None:
        variant = _variant_of_this_processor()
    stamp = _stamp(venv, variant)
    if stamp.holds():
        return
    wheel = _cached_wheel(variant) or _build_wheel(variant)
    # Without its dependencies: numpy and diskcache serve the high-level package, which is never imported.
    pip(venv_python(venv), "install", "--no-deps", "--force-reinstall", wheel)
    stamp.write()


def library_folder(venv: Path = VENV) -> Path:
    """Where libllama.so, its companions and the CPU variants lie."""
    return next(venv.glob("lib/python3*/site-packages/llama_cpp/lib"))


def source_package() -> Path:
    """The source package, fetched once: the wheel is built from it, and so is the benchmark's llama-server."""
    pattern = f"{ENGINE_PACKAGE.replace('-', '_')}-{engine_version()}.tar.gz"
    if not list(SOURCES.glob(pattern)):
        say("engine: fetching the source package")
        SOURCES.mkdir(parents=True, exist_ok=True)
        pip(venv_python(), "download", "--no-deps", "--no-binary", ENGINE_PACKAGE, "--dest", SOURCES, _requirement())
    return next(SOURCES.glob(pattern))


def engine_version() -> str:
    """The version of the binding, whose source package has llama.cpp inside."""
    return _requirement().partition("==")[2]


def engine_sources() -> Path:
    """The source package, unpacked once: objects are valid for as long as their sources stay where they are."""
    archive = source_package()
    return unpack_once(archive, archive.with_name(archive.name.removesuffix(".tar.gz")))


def _requirement() -> str:
    return next(name for name in requirements() if name.startswith(ENGINE_PACKAGE))


def _configuration_key() -> str:
    """Names all that objects depend on, but for the sources that ninja follows by itself."""
    flags = [f"{name}={value}" for name, value in CMAKE_FLAGS.items()]
    return key_of(_requirement(), f"{sys.implementation.cache_tag}-{platform.machine()}", *flags)


def _stamp(venv: Path, variant: str) -> Stamp:
    return Stamp(venv / "engine-stamp", engine_key(variant))


def _variant_of_this_processor() -> str:
    """The best variant for this processor; ALL_VARIANTS where the system does not tell its flags."""
    flags = processor_flags()
    is_arm = platform.machine() == "aarch64"
    names = frozenset(name for name, _ in VARIANTS if name.startswith("arm") == is_arm)
    return ranked(names, flags)[0] if flags is not None else ALL_VARIANTS


def _wheel_folder(variant: str) -> Path:
    return CACHE / "wheels" / engine_key(variant)


def _cached_wheel(variant: str) -> Path | None:
    return next(_wheel_folder(variant).glob("*.whl"), None)


def _build_wheel(variant: str) -> Path:
    log = CACHE / "engine-build.log"
    sources = engine_sources()
    defines = {"CMAKE_PROJECT_llama_cpp_INCLUDE": str(CMAKE_HOOK), "SHIMMY_CPU_VARIANT": variant, **CMAKE_FLAGS}
    command = [venv_python(), "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-cache-dir", f"{sources}"]
    command += ["--disable-pip-version-check", f"--wheel-dir={_wheel_folder(variant)}"]
    command += ["--config-settings", f"build-dir={CACHE / 'engine-build' / _configuration_key()}"]
    for name, value in defines.items():
        command += ["--config-settings", f"cmake.define.{name}={value}"]
    what = f"for this processor (`{variant}`), about 3" if variant else "with all CPU variants, about 10"
    say(f"engine: compiling llama.cpp {what} minutes on 2 cores (log: `{log}`)")
    with log.open("wb") as log_file:
        exit_code = compile_with_progress("engine", command, log_file)
    wheel = _cached_wheel(variant)
    if exit_code != 0 or wheel is None:
        last_lines = "\n".join(log.read_text(errors="replace")[-2000:].splitlines()[-15:])
        raise BuildError(f"the engine did not build; the whole log is in `{log}`, its end:\n{last_lines}")
    return wheel
