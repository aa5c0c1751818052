"""Puts the stand-ins of the frozen file at their modules' names, in each Python that starts with this module as its
`sitecustomize`. tools/with_stand_ins.py copies it to where that is so.

It is in the place of the standard finder, and not in front of it, because pytest's own finder asks the standard one.
"""

from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from typing import Any

FILES: dict[str, str] = {}  # filled in by tools/stand_in_files.py

_find_elsewhere = PathFinder.find_spec


def find_spec(_: type[PathFinder], name: str, *others: Any) -> ModuleSpec | None:
    """The place of a stand-in, or that of any other module."""
    return spec_from_file_location(name, FILES[name]) if name in FILES else _find_elsewhere(name, *others)


PathFinder.find_spec = classmethod(find_spec)  # type: ignore[method-assign,assignment]
