"""Modules that packages import at their top for rare cases: each is read when something of it is used first.

Knows how that is arranged, not which modules are worth it. It helps where a package says `import name`, as
`from name import …` is a use. `importlib.util.LazyLoader` is no help: in Python 3.11, `import name` is a use for it.
"""

import sys
from _thread import RLock
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_lock = RLock()


class _LateModule(ModuleType):
    """A module that is empty but for what the import system writes into it."""

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there: read the module, unless the import system is only looking."""
        if name.startswith("__"):
            raise AttributeError(name)
        with _lock:
            if type(self) is _LateModule and "__reading__" not in self.__dict__:  # nobody was faster, nor is it us
                self.__dict__["__reading__"] = True
                assert self.__spec__ is not None
                assert self.__spec__.loader is not None
                self.__spec__.loader.exec_module(self)
                del self.__dict__["__reading__"]
                self.__class__ = ModuleType  # type: ignore[assignment]
        return ModuleType.__getattribute__(self, name)


def import_late(*names: str) -> None:
    """Let each of these modules be read at its first use, unless it is there already."""
    for name in names:
        if name in sys.modules:
            continue
        spec = find_spec(name)
        assert spec is not None
        module = module_from_spec(spec)
        module.__class__ = _LateModule
        sys.modules[name] = module
        package, _, own_name = name.rpartition(".")
        if package:
            setattr(sys.modules[package], own_name, module)
