"""`dist/shimmy-linux-x86_64-cuda`: the file for any x86-64 Linux, and in it the library for NVIDIA's GPUs as it is.

The library is packed already: nvcc has compressed its kernels. Knows what the file must hold.
"""

import hashlib
from pathlib import Path

from shimmy.system.backends import CUDA
from tools.bootloader import write_size
from tools.cuda import papers
from tools.cuda.library import library
from tools.cuda.toolkit import FOLDER
from tools.portable import freeze
from tools.portable.contents import with_files
from tools.portable.papers.components import components
from tools.portable.target import BUILD_MACHINE

FILE_NAME = f"{BUILD_MACHINE.file_name}-cuda"
LIMIT_BYTES = 150_000_000


def cuda_file() -> Path:
    """The file, with the one without CUDA beside it."""
    return made_of(freeze.freeze(BUILD_MACHINE), library())


def made_of(program: Path, made: Path) -> Path:
    """The file of a program and of the library that goes into it."""
    content = made.read_bytes()
    added = {CUDA.archive: content, CUDA.digest: f"{hashlib.sha256(content).hexdigest()} {len(content)}\n".encode()}
    unfinished = FOLDER / FILE_NAME
    unfinished.write_bytes(with_files(program.read_bytes(), added))
    write_size(unfinished)
    unfinished.chmod(0o755)
    freeze.checked(unfinished, BUILD_MACHINE, added.keys(), LIMIT_BYTES)
    inside = [*components(BUILD_MACHINE), *papers.components()]
    return freeze.publish(unfinished, BUILD_MACHINE, inside, papers.license_texts())
