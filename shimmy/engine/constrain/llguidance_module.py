"""The only importer of llguidance: its compiled module, unpacked and loaded when something first asks for it.

Knows where the module lies in the frozen file and in an installation, and nothing of what it does.
"""

import functools
import importlib.machinery
import importlib.util
import threading
from pathlib import Path
from typing import Any

from shimmy.engine.llama.unpack_libraries import GRAMMAR_ARCHIVE, in_memory, part_content
from shimmy.errors import ModelUnavailable
from shimmy.system import unpacked_folder

_lock = threading.Lock()


def loaded() -> Any:
    """The module, the same one for all threads: loaded twice, neither would take the other's objects."""
    with _lock:
        return _load()


@functools.cache
def _load() -> Any:
    # The package's `__init__` would bring importlib.metadata and more (40 ms).
    if unpacked_folder.folder() is None:
        return _extension(_installed())
    with in_memory("llguidance", part_content(GRAMMAR_ARCHIVE)) as path:
        return _extension(path)


def _installed() -> str:
    package = importlib.util.find_spec("llguidance")
    folders = (package and package.submodule_search_locations) or ()
    paths = [str(path) for folder in folders for path in Path(folder).glob("_lib*.so")]
    if not paths:
        raise ModelUnavailable("grammars need llguidance, which is not installed: run `make` to install it")
    return paths[0]


def _extension(path: str) -> Any:
    loader = importlib.machinery.ExtensionFileLoader("llguidance._lib", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
