"""The engine: llama-cpp-python's wheel, built from its source package with our own flags and kernels, and cached.

Knows how llama.cpp is configured. Knows nothing of what is done with the libraries afterwards.
"""

import platform
import sys
from pathlib import Path

from tools.environment import ENGINE_PACKAGE
from tools.progress import compile_with_progress
from tools.steps import CACHE, VENV, BuildError, Stamp, key_of, key_of_files, pip, requirements, say, venv_python

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


def engine_key() -> str:
    """Names the wheel: the version, the flags, our kernels, the Python and the machine."""
    flags = [f"{name}={value}" for name, value in CMAKE_FLAGS.items()]
    tag = f"{sys.implementation.cache_tag}-{platform.machine()}"
    return key_of(_requirement(), key_of_files(KERNEL_FILES), tag, *flags)


def install_engine(venv: Path = VENV) -> None:
    """Put the engine into an environment, building the wheel if it is not cached yet."""
    stamp = Stamp(venv / "engine-stamp", engine_key())
    if stamp.holds():
        return
    wheel = _cached_wheel() or _build_wheel()
    # Without its dependencies: numpy and diskcache serve the high-level package, which is never imported.
    pip(venv_python(venv), "install", "--no-deps", "--force-reinstall", wheel)
    stamp.write()


def library_folder(venv: Path = VENV) -> Path:
    """Where libllama.so, its companions and the CPU variants lie."""
    return next(venv.glob("lib/python3*/site-packages/llama_cpp/lib"))


def source_package() -> Path:
    """The source package, fetched once: the wheel is built from it, and so is the benchmark's llama-server."""
    pattern = f"{ENGINE_PACKAGE.replace('-', '_')}-{_version()}.tar.gz"
    if not list(SOURCES.glob(pattern)):
        say("engine: fetching the source package")
        SOURCES.mkdir(parents=True, exist_ok=True)
        pip(venv_python(), "download", "--no-deps", "--no-binary", ENGINE_PACKAGE, "--dest", SOURCES, _requirement())
    return next(SOURCES.glob(pattern))


def _requirement() -> str:
    return next(name for name in requirements() if name.startswith(ENGINE_PACKAGE))


def _version() -> str:
    return _requirement().partition("==")[2]


def _wheel_folder() -> Path:
    return CACHE / "wheels" / engine_key()


def _cached_wheel() -> Path | None:
    return next(_wheel_folder().glob("*.whl"), None)


def _build_wheel() -> Path:
    log = CACHE / "engine-build.log"
    source = source_package()
    defines = {"CMAKE_PROJECT_llama_cpp_INCLUDE": str(CMAKE_HOOK), **CMAKE_FLAGS}
    command = [venv_python(), "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-cache-dir", f"{source}"]
    command += ["--disable-pip-version-check", f"--wheel-dir={_wheel_folder()}"]
    for name, value in defines.items():
        command += ["--config-settings", f"cmake.define.{name}={value}"]
    say(f"engine: compiling llama.cpp with all CPU variants, about 10 minutes on 2 cores (log: `{log}`)")
    with log.open("wb") as log_file:
        exit_code = compile_with_progress("engine", command, log_file)
    wheel = _cached_wheel()
    if exit_code != 0 or wheel is None:
        last_lines = "\n".join(log.read_text(errors="replace")[-2000:].splitlines()[-15:])
        raise BuildError(f"the engine did not build; the whole log is in `{log}`, its end:\n{last_lines}")
    return wheel
