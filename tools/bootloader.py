"""The bootloader in front of a frozen file: PyInstaller's, compiled from its sources with our own functions in front.

Knows how it is compiled; what ours do stands in bootloader.c.
PyInstaller's wheels bring a bootloader, too, which would ask the system for its zlib. libdeflate, which unpacks what a
start needs in a third of zlib's time, is part of a package of the index, of which nothing else is used.
"""

import hashlib
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.steps import CACHE, BuildError, key_of, key_of_files, pip, requirements, run, venv_python

PACKAGE = "pyinstaller"
LIBDEFLATE_PACKAGE = "deflate"
# Of the archives of sources.
HASHES = {
    PACKAGE: "05eb2f5615503e72939a7224d68b4aff572c6b0438ee4a17d0a4b481f399362d",
    LIBDEFLATE_PACKAGE: "962e0a6f1ea3a94b900a8ea0ce138fa92bfcbafda5b86367104a259ffcd3462b",
}
# Of libdeflate: what unpacks.
LIBDEFLATE_FILES = ("adler32", "deflate_decompress", "utils", "zlib_decompress", "*/cpu_features")
OWN_FUNCTIONS = Path(__file__).with_suffix(".c")
WRAPPED = (
    "realpath",
    "pyi_archive_open",
    "pyi_create_temporary_application_directory",
    "pyi_launch_extract_files_from_archive",
    "pyi_utils_set_library_search_path",
    "execvp",
    "raise",
    "signal",
    "waitpid",
)
# Of the outer one of the portable file, which becomes the inner one there.
WRAPPED_OUTSIDE = ("pyi_launch_initialize",)
# Of bootloader.c; 8 bytes for the size of the finished file follow.
SIZE_WORDS = b"size of the whole file:\0"
# What PyInstaller's own build finds out about a Linux system. A fortified `realpath` would have another name.
DEFINES = (
    *("_REENTRANT", "_BSD_SOURCE", "_DEFAULT_SOURCE", "PYI_USE_POSIX_SEMAPHORE", "HAVE_UNSETENV=1", "HAVE_MKDTEMP=1"),
    *("HAVE_DIRNAME=1", "HAVE_BASENAME=1", "HAVE_WCSDUP=1", "HAVE_STDBOOL_H=1", "_FORTIFY_SOURCE=0"),
)


def bootloader_key() -> str:
    """Names the sources."""
    return key_of(*map(_requirement, HASHES), key_of_files([OWN_FUNCTIONS, Path(__file__)]))


def compile_bootloader(
    target: Path, compiler: Sequence[str | Path], wrapped: Sequence[str] = (), **environment: str
) -> None:
    """Compile it to `target`, with a compiler and its options, and with more functions of ours in front."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".part")
    with tempfile.TemporaryDirectory() as folder:
        sources = _unpacked(source_package(), "bootloader", Path(folder))
        libdeflate = _unpacked(source_package(LIBDEFLATE_PACKAGE), "libdeflate", Path(folder))
        files = [*sorted(sources.glob("src/*.c")), *sorted(sources.glob("zlib/*.c")), OWN_FUNCTIONS]
        files += [path for name in LIBDEFLATE_FILES for path in sorted(libdeflate.glob(f"lib/{name}.c"))]
        options = ["-O2", "-s", "-w", "-U_FORTIFY_SOURCE", *(f"-D{define}" for define in DEFINES)]
        folders = [f"-I{path}" for path in (sources / "src", sources / "zlib", libdeflate)]
        wraps = [f"-Wl,--wrap={name}" for name in (*WRAPPED, *wrapped)]
        libraries = ["-ldl", "-lm", "-lpthread"]
        run([*compiler, *options, *folders, *wraps, "-o", unfinished, *files, *libraries], **environment)
    unfinished.rename(target)


def write_size(program: Path) -> None:
    """Tell the bootloader of a finished file how large the whole is."""
    content = program.read_bytes()
    place = content.find(SIZE_WORDS)
    if place < 0:
        raise BuildError(f"`{program}` has no place for its size: is its bootloader ours?")
    with program.open("r+b") as file:
        file.seek(place + len(SIZE_WORDS))
        file.write(len(content).to_bytes(8, "little"))


def source_package(package: str = PACKAGE) -> Path:
    """PyInstaller's source package, or the one that has libdeflate in it; fetched once."""
    downloads = CACHE / "sources"
    archive = downloads / f"{package}-{version(package)}.tar.gz"
    if not archive.exists():
        downloads.mkdir(parents=True, exist_ok=True)
        requirement = _requirement(package)
        pip(venv_python(), "download", "--no-deps", "--no-binary", package, "--dest", downloads, requirement)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != HASHES[package]:
        archive.unlink()
        raise BuildError(f"`{archive.name}` has the hash {digest}, and {HASHES[package]} is expected")
    return archive


def version(package: str) -> str:
    """The version that pyproject.toml pins."""
    return _requirement(package).partition("==")[2]


def _unpacked(package: Path, name: str, folder: Path) -> Path:
    """The folder of this name in a source package, unpacked below `folder`."""
    with tarfile.open(package) as archive:
        archive.extractall(folder)
    sources = next(folder.glob(f"*/{name}"), None)
    if sources is None:
        raise BuildError(f"`{package.name}` has no folder `{name}`")
    return sources


def _requirement(package: str) -> str:
    return next(name for name in requirements("build", "bootloader") if name.startswith(f"{package}=="))
