"""llama.cpp as llama-cpp-python's source package brings it along, fetched and unpacked once.

Knows where the sources lie. How the engine is compiled from them stands in tools/portable/engine.py.
"""

from pathlib import Path

from tools.environment import ENGINE_PACKAGE
from tools.steps import CACHE, pip, requirements, say, unpack_once, venv_python

SOURCES = CACHE / "sources"


def source_package() -> Path:
    """The source package: the engine is compiled from it, and so is the benchmark's llama-server."""
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
    """The unpacked package: objects are valid for as long as their sources stay where they are."""
    archive = source_package()
    return unpack_once(archive, archive.with_name(archive.name.removesuffix(".tar.gz")))


def _requirement() -> str:
    return next(name for name in requirements() if name.startswith(ENGINE_PACKAGE))


def ggml_sources() -> Path:
    """The folder of ggml in it."""
    return engine_sources() / "vendor" / "llama.cpp" / "ggml"
