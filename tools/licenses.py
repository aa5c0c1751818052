"""The licences of what is inside the frozen file, as one text to hand on with it.

Knows where each part keeps its licence text; for the system's libraries it names the licence.
"""

import sysconfig
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tools import bootloader, numpy_core
from tools.engine import source_package
from tools.steps import ROOT, VENV, BuildError

LICENSE_FILES = ("LICEN[CS]E*", "COPYING*", "licenses/*")
SYSTEM_LIBRARIES = """\
libstdc++ and libgcc (the GCC runtime libraries): GPL-3.0 with the GCC Runtime Library Exception 3.1, which permits to
hand on programs linked with them under terms of your choice.
The boot loader of PyInstaller, with tools/bootloader.c in front: GPL-2.0 with an exception that permits to hand on
programs made with it.
Rust's standard library and the crates compiled into llguidance (derivre, toktrie, pyo3, regex, serde, rayon, hashbrown,
referencing and others): MIT, or MIT or Apache-2.0 at choice; tokenizers and spm_precompiled among them: Apache-2.0.
OpenSSL 3: Apache-2.0.
libffi: MIT. liblzma (XZ Utils): public domain (0BSD in later versions). zlib: zlib licence.
"""


def license_texts(packages: set[str]) -> str:
    """A section for each of these installed packages, then numpy's, llama.cpp's, CPython's, the system's libraries'."""
    sections = of_packages(packages)
    sections[f"numpy-{numpy_core.version()}"] = numpy_core.license_texts()
    sections["llama.cpp"] = text_in(source_package(), "vendor/llama.cpp/LICENSE")
    sections["libdeflate"] = text_in(bootloader.source_package(bootloader.LIBDEFLATE_PACKAGE), "/libdeflate/COPYING")
    sections["CPython"] = (Path(sysconfig.get_path("stdlib")) / "LICENSE.txt").read_text()
    sections["System libraries"] = SYSTEM_LIBRARIES
    sections |= of_page()
    return in_sections(sections)


def in_sections(texts: Mapping[str, str]) -> str:
    """One text of these, each below its title."""
    return "\n".join(f"{'=' * 80}\n{title}\n{'=' * 80}\n\n{text.strip()}\n" for title, text in texts.items())


def of_packages(packages: Iterable[str]) -> dict[str, str]:
    """The texts of installed packages, by name and version."""
    folders = sorted(_folder(package) for package in packages)
    return {folder.name.removesuffix(".dist-info"): _of_distribution(folder) for folder in folders}


def of_page() -> dict[str, str]:
    """The texts of the libraries on the page at `/`."""
    paths = sorted((ROOT / "shimmy" / "api" / "page" / "vendored").glob("LICENSE-*"))
    return {f"{path.name.removeprefix('LICENSE-')}, on the page at `/`": path.read_text() for path in paths}


def text_in(archive: Path, ending: str) -> str:
    """The one file of a source package whose path ends like this."""
    with tarfile.open(archive) as package:
        member = next(name for name in package.getnames() if name.endswith(ending))
        content = package.extractfile(member)
        assert content is not None
        return content.read().decode()


def _folder(package: str) -> Path:
    """The package's metadata; folders are matched without regard to case and to `-` or `_`."""
    for folder in VENV.glob("lib/python3*/site-packages/*.dist-info"):
        name = folder.name.partition("-")[0].lower()
        if name in {package, f"{package}_python"}:
            return folder
    raise BuildError(f"`{package}` is in the frozen file, but no installed package has this name")


def _of_distribution(folder: Path) -> str:
    texts = [path.read_text() for pattern in LICENSE_FILES for path in sorted(folder.glob(pattern)) if path.is_file()]
    if not texts:
        raise BuildError(f"`{folder.name}` comes without the text of its licence")
    return "\n\n".join(texts)
