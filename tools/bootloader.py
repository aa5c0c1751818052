"""The bootloader in front of `dist/shimmy`: PyInstaller's, compiled from its sources with our own functions in front.

Knows how it is compiled, for this machine or, by tools/portable, for others; what ours do stands in bootloader.c.
PyInstaller's wheels bring a bootloader, too, which would ask the system for its zlib.
"""

import platform
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.steps import CACHE, BuildError, key_of, key_of_files, pip, requirements, run, say, venv_python

PACKAGE = "pyinstaller"
OWN_FUNCTIONS = Path(__file__).with_suffix(".c")
WRAPPED = (
    "realpath",
    "pyi_create_temporary_application_directory",
    "pyi_launch_extract_files_from_archive",
    "pyi_utils_set_library_search_path",
    "raise",
    "signal",
)
# Of the outer one of the portable file, which becomes the inner one there.
WRAPPED_OUTSIDE = ("pyi_launch_initialize",)
# What PyInstaller's own build finds out about a Linux system. A fortified `realpath` would have another name.
DEFINES = (
    *("_REENTRANT", "_BSD_SOURCE", "_DEFAULT_SOURCE", "PYI_USE_POSIX_SEMAPHORE", "HAVE_UNSETENV=1", "HAVE_MKDTEMP=1"),
    *("HAVE_DIRNAME=1", "HAVE_BASENAME=1", "HAVE_WCSDUP=1", "HAVE_STDBOOL_H=1", "_FORTIFY_SOURCE=0"),
)


def bootloader() -> Path:
    """The compiled bootloader for this machine, which is cached."""
    key = key_of(bootloader_key(), platform.machine())
    cached = CACHE / "bootloader" / key / "run"
    if not cached.exists():
        say("freeze: compiling the bootloader")
        compile_bootloader(cached, ["cc"])
    return cached


def bootloader_key() -> str:
    """Names the sources."""
    return key_of(_requirement(), key_of_files([OWN_FUNCTIONS, Path(__file__)]))


def compile_bootloader(
    target: Path, compiler: Sequence[str | Path], wrapped: Sequence[str] = (), **environment: str
) -> None:
    """Compile it to `target`, with a compiler and its options, and with more functions of ours in front."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".part")
    with tempfile.TemporaryDirectory() as folder:
        sources = _unpacked_sources(Path(folder))
        files = [*sorted(sources.glob("src/*.c")), *sorted(sources.glob("zlib/*.c")), OWN_FUNCTIONS]
        options = ["-O2", "-s", "-w", "-U_FORTIFY_SOURCE", *(f"-D{define}" for define in DEFINES)]
        folders = [f"-I{sources / name}" for name in ("src", "zlib")]
        wraps = [f"-Wl,--wrap={name}" for name in (*WRAPPED, *wrapped)]
        libraries = ["-ldl", "-lm", "-lpthread"]
        run([*compiler, *options, *folders, *wraps, "-o", unfinished, *files, *libraries], **environment)
    unfinished.rename(target)


def source_package() -> Path:
    """PyInstaller's source package, which is fetched once."""
    downloads = CACHE / "sources"
    if not list(downloads.glob(f"{PACKAGE}-{_version()}.tar.gz")):
        downloads.mkdir(parents=True, exist_ok=True)
        pip(venv_python(), "download", "--no-deps", "--no-binary", PACKAGE, "--dest", downloads, _requirement())
    return downloads / f"{PACKAGE}-{_version()}.tar.gz"


def _unpacked_sources(folder: Path) -> Path:
    """The folder `bootloader` of PyInstaller's source package."""
    with tarfile.open(source_package()) as archive:
        archive.extractall(folder)
    sources = next(folder.glob("*/bootloader"), None)
    if sources is None:
        raise BuildError("PyInstaller's source package has no folder `bootloader`")
    return sources


def _requirement() -> str:
    return next(name for name in requirements("build") if name.startswith(f"{PACKAGE}=="))


def _version() -> str:
    return _requirement().partition("==")[2]
