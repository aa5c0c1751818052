"""Stands in for `anyio._lazyimport` in the frozen file. The real one reads in anyio's source where a name comes from;
where there is no source, as here, all of anyio is imported with its package: 25 ms of each start, 2 MB of an idle
server. This one is told by tools/stand_in_files.py, which asks the real one."""

import sys
from importlib import import_module
from typing import Any

# Of each package, the names it has and where they come from: a module, and the name there; an empty one for a module.
PLACES: dict[str, dict[str, tuple[str, str]]] = {}  # filled in by tools/stand_in_files.py


def install_lazy_importer() -> bool:
    """Called by a package of anyio: its names will be imported when they are asked for."""
    package = sys._getframe(1).f_globals
    places = PLACES[package["__name__"]]

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in places:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        module, inner_name = places[name]
        found = import_module(module, package["__name__"])
        package[name] = getattr(found, inner_name) if inner_name else found
        return package[name]

    package["__getattr__"] = __getattr__
    return True


def fix_package_names() -> None:
    """Called by a package that has imported all its names."""


def set_deprecated_aliases(aliases: dict[str, str]) -> None:
    """As above."""
