"""The engine in an environment: the binding, and beside it llama.cpp's libraries for the machine that runs the build.

They are the libraries of the frozen file: what is tested on the source tree is what is handed out. Who cannot wait for
all CPU variants gets the one of this processor, in half of the time.

Knows where the engine lies for the source tree. How it is compiled stands in tools/portable/engine.py.
"""

import shutil
from pathlib import Path

from shimmy.engine.cpu_variants.variants import VARIANTS, processor_flags, ranked
from tools.engine_sources import engine_sources, engine_version
from tools.environment import ENGINE_PACKAGE
from tools.portable.engine import ALL_VARIANTS, engine, engine_key, is_built
from tools.portable.target import Target, this_machine
from tools.steps import VENV, Stamp, key_of


def install_engine(venv: Path = VENV, *, for_this_processor: bool = False) -> None:
    """Put the engine into an environment, compiling it if that was not done yet.

    `for_this_processor` is for who cannot wait: one CPU variant is enough, unless all of them are built already.
    """
    machine = this_machine()
    variant = ALL_VARIANTS
    if for_this_processor and not is_built(machine, ALL_VARIANTS):
        variant = _variant_of_this_processor(machine)
    stamp = Stamp(venv / "engine-stamp", key_of(engine_key(), variant))
    if stamp.holds():
        return
    libraries = engine(machine, variant)
    packages = next(venv.glob("lib/python3*/site-packages"))
    lay_out(libraries, packages)
    write_metadata(packages, ENGINE_PACKAGE, engine_version(), (engine_sources() / "PKG-INFO").read_text())
    stamp.write()


def library_folder(venv: Path = VENV) -> Path:
    """Where libllama.so, its companions and the CPU variants lie."""
    return next(venv.glob("lib/python3*/site-packages/llama_cpp/lib"))


def lay_out(libraries: Path, packages: Path) -> None:
    """The binding and its libraries as the package `llama_cpp`, in the place of what was there."""
    package = packages / "llama_cpp"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(engine_sources() / "llama_cpp", package)
    shutil.copytree(libraries, package / "lib", dirs_exist_ok=True)


def write_metadata(packages: Path, name: str, version: str, text: str) -> None:
    """Have the package among those that are installed there, in no other version than this one."""
    project = name.replace("-", "_")
    for old in packages.glob(f"{project}-*.dist-info"):
        shutil.rmtree(old)
    folder = packages / f"{project}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(text)


def _variant_of_this_processor(machine: Target) -> str:
    """The best variant for this processor; ALL_VARIANTS where the system does not tell its flags."""
    flags = processor_flags()
    names = frozenset(name for name, _ in VARIANTS if name.startswith("arm") == (machine.machine == "aarch64"))
    return ranked(names, flags)[0] if flags is not None else ALL_VARIANTS
