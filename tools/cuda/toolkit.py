"""NVIDIA's compiler and the static runtime library, of one version.

Knows where they lie: where this machine has that version, its own; else as packages from the index, each pinned by its
hash. Nothing of cuBLAS is among them, see include/cublas_v2.h.
"""

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.steps import CACHE, BuildError, key_of_files, pip, say, venv_python

FOLDER = CACHE.resolve() / "cuda"
COMPILER_VERSION = "V13.0.88"
_REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_HOST_COMPILER = "g++"


@dataclass(frozen=True)
class Toolkit:
    """A folder of CUDA's, and where the papers of its packages are."""

    folder: Path
    papers: Path

    @property
    def nvcc(self) -> Path:
        """The compiler of both halves of a source; for the processor's half it calls GCC."""
        return self.folder / "bin" / "nvcc"

    @property
    def include(self) -> Path:
        """The headers."""
        return self.folder / "include"

    @property
    def runtime(self) -> Path:
        """The runtime library, which is linked into ours."""
        return self.folder / "lib" / "libcudart_static.a"

    @property
    def license_file(self) -> Path:
        """NVIDIA's agreement; its Attachment A names the runtime library among what may be handed on."""
        return next(self.papers.glob("nvidia_cuda_runtime-*.dist-info/licenses/License.txt"))


_OF_THE_MACHINE = Toolkit(Path("/usr/local/cuda"), Path("/usr/local/cuda/dist-info"))


def installed() -> Toolkit | None:
    """The one that is here already."""
    packages = _packages()
    for found in (_OF_THE_MACHINE, Toolkit(packages / "nvidia" / "cu13", packages)):
        if found.runtime.exists() and _version_of(found.nvcc) == COMPILER_VERSION:
            return found
    return None


@cache
def toolkit() -> Toolkit:
    """That one, or the packages, fetched now."""
    return installed() or _fetched()


@cache
def host_compiler() -> tuple[str, str]:
    """GCC as it is called, and its version; raises BuildError where there is none."""
    if shutil.which(_HOST_COMPILER) is None:
        raise BuildError(f"CUDA's compiler needs `{_HOST_COMPILER}`: install it with this system's packages")
    words = [_HOST_COMPILER, "-dumpfullversion"]
    return _HOST_COMPILER, subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def package_version(name: str) -> str:
    """Of one of the packages."""
    lines = _REQUIREMENTS.read_text().splitlines()
    return next(line.split()[0] for line in lines if line.startswith(f"{name}==")).partition("==")[2]


def host_library() -> Path:
    """GCC's library for C++, which is linked into ours."""
    words = [_HOST_COMPILER, "-print-file-name=libstdc++.a"]
    return Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip())


def _packages() -> Path:
    return FOLDER / "packages" / key_of_files([_REQUIREMENTS])


def _version_of(nvcc: Path) -> str:
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    return next((word for word in said.split() if word.startswith("V")), "")


def _fetched() -> Toolkit:
    say("cuda: fetching the compiler")
    target = _packages()
    unfinished = target.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    arguments = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile"]
    pip(venv_python(), "install", *arguments, f"--target={unfinished}", f"--requirement={_REQUIREMENTS}")
    unfinished.rename(target)
    found = installed()
    if found is None:
        raise BuildError(f"the packages of `{_REQUIREMENTS.name}` hold no nvcc {COMPILER_VERSION}")
    return found
