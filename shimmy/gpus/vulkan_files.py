"""Where the Vulkan loader and the descriptions of its drivers lie, looked for as the system and the loader do.

Knows names and dates of files; nothing of what is in them.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from shimmy.gpus import system_libraries
from shimmy.gpus.system_libraries import LINKER_CACHE, FileState, is_file, state

LOADER = "libvulkan.so.1"

# The loader's documentation (docs/LoaderDriverInterface.md): files and folders of drivers' descriptions.
# The first two name all of them, the third some more.
_DRIVER_VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES")
_FOLDER_VARIABLES = (
    ("XDG_CONFIG_HOME", "{home}/.config"),
    ("XDG_CONFIG_DIRS", "{root}/etc/xdg"),
    ("XDG_DATA_HOME", "{home}/.local/share"),
    ("XDG_DATA_DIRS", "{root}/usr/local/share:{root}/usr/share"),
)
_DRIVERS, _LAYERS = "vulkan/icd.d", "vulkan/implicit_layer.d"
_MAX_FILES = 200  # of a folder


def loader(environment: Mapping[str, str], root: Path = Path("/")) -> Path | None:
    """The loader, where the dynamic linker would find it; None where it would not."""
    return system_libraries.find(LOADER, environment, root)


def drivers(environment: Mapping[str, str], root: Path = Path("/")) -> list[Path]:
    """The descriptions of drivers that the loader reads."""
    first, second, added = (environment.get(name, "") for name in _DRIVER_VARIABLES)
    places = _paths(first or second) or [folder / _DRIVERS for folder in _folders(environment, root)]
    found: list[Path] = []
    for place in (*places, *_paths(added)):
        with contextlib.suppress(OSError):
            found += _inside(place) if place.is_dir() else [place]
    return list(filter(is_file, found))


def states(environment: Mapping[str, str], root: Path = Path("/")) -> list[FileState]:
    """Of all files that decide which drivers there are: one of them differs when a driver was installed or changed."""
    found = [path for name in _DRIVER_VARIABLES for path in _paths(environment.get(name, ""))]
    found += [folder / below for folder in _folders(environment, root) for below in (_DRIVERS, _LAYERS)]
    found.append(root / LINKER_CACHE)
    if (library := loader(environment, root)) is not None:
        found.append(library)
    return list(_states(found))


def _folders(environment: Mapping[str, str], root: Path) -> list[Path]:
    """Those below which the loader looks."""
    found = [root / "etc"]
    for name, default in _FOLDER_VARIABLES:
        usual = default.format(home=environment.get("HOME", ""), root=str(root).rstrip("/"))
        found += _paths(environment.get(name) or usual)
    return found


def _paths(setting: str) -> list[Path]:
    return [Path(text) for text in setting.split(":") if text]


def _states(paths: Iterable[Path]) -> Iterator[FileState]:
    """Of those that are there, and of what is in those that are folders."""
    for path in paths:
        with contextlib.suppress(OSError):
            yield state(path)
            for inside in _inside(path) if path.is_dir() else ():
                with contextlib.suppress(OSError):  # a link to nothing
                    yield state(inside)


def _inside(folder: Path) -> list[Path]:
    return sorted(islice(folder.glob("*.json"), _MAX_FILES))
