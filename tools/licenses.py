"""The texts of licences: of installed packages, of the page's libraries, of what lies in an archive of sources.

Knows where each keeps its text. What is in a frozen file stands in tools/portable/papers/.
"""

import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tools.steps import ROOT, VENV, BuildError

LICENSE_FILES = ("LICEN[CS]E*", "COPYING*", "licenses/*")


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
