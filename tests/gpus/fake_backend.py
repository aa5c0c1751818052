"""The engine's library for NVIDIA's GPUs, by one of ours whose device fails when it is told to: see fakes/backend.c."""

import subprocess
from pathlib import Path

from shimmy.system.backends import CUDA
from tools.engine import library_folder
from tools.engine_sources import ggml_sources
from tools.portable.compiler import compiler
from tools.portable.target import this_machine

SOURCE = Path(__file__).parent / "fakes" / "backend.c"
NAME = "CUDA0"


def compile_backend(folder: Path) -> Path:
    """The library, in `folder`, for the engine of the source tree."""
    library, engine, ggml = folder / CUDA.library, library_folder(), ggml_sources()
    chosen = compiler(this_machine().glibc_triple)
    command: list[str | Path] = [chosen.cc, "-std=gnu17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
    command += [f"-I{ggml / 'include'}", f"-I{ggml / 'src'}", "-o", library, SOURCE]
    command += [engine / "libggml.so.0", engine / "libggml-base.so.0"]
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, check=True)
    return library


def source_tree(folder: Path) -> Path:
    """In `folder` the program's source tree as it is where that library was built, and no other backend for GPUs."""
    (folder / "shimmy").symlink_to(Path(__file__).parents[2] / "shimmy")
    compile_backend(folder / ".cache" / CUDA.folder / this_machine().machine)
    return folder
