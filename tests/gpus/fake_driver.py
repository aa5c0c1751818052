"""NVIDIA's driver as far as programs can ask it for its GPUs, by a library of ours: see fakes/cuda.c."""

import subprocess
from pathlib import Path

LIBRARY = "libcuda.so.1"
SOURCE = Path(__file__).parent / "fakes" / "cuda.c"
HOPPER = "NVIDIA H200,9,0,143771,0,4"
PASCAL = "Tesla P40,6,1,22919,0,5"


def compile_driver(folder: Path) -> Path:
    """The driver, in `folder`."""
    library = folder / LIBRARY
    command = ["cc", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True)
    return library
