"""Stands in for PyInstaller's importers in the frozen file: finds all Python modules in one archive of that file.

PyInstaller's open the file for each module, look along a path and inflate what they find, and the standard library is
read from a ZIP file. Knows the archive of tools/module_archive.py. The bootloader imports this module before any other,
so it imports what is there by then; where the archive lies is told in `sys` afterwards.
"""

import marshal
import os
import sys
from _frozen_importlib import ModuleSpec
from zlib import MAX_WBITS, adler32, decompress, decompressobj, error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType

SIZE_BYTES = 4  # of the number at the beginning of the archive


class FrozenModules:
    """A finder and loader of modules, for `sys.meta_path`."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._start = 0  # where in the file the first module lies
        # By name: its place behind that, its length in bytes there, and whether it is a package.
        self._table: dict[str, tuple[int, int, bool]] = {}
        self._common = b""  # what modules have in common, deflate's dictionary

    def find_spec(self, name: str, *_: object) -> "ModuleSpec | None":
        """Of a module that is in the archive, wherever else it may be."""
        if self._descriptor < 0:
            self._open()
        found = self._table.get(name)
        if found is None:
            return None
        _, n_bytes, is_package = found
        place = f"{sys._MEIPASS}/{name.replace('.', '/')}"
        file = f"{place}/__init__.py" if is_package else f"{place}.py"
        spec = ModuleSpec(name, self if n_bytes else None, origin=file, is_package=is_package)
        if is_package:
            spec.submodule_search_locations.append(place)  # where its compiled modules are
        return spec

    def create_module(self, spec: object) -> None:
        """An ordinary one."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run the code of a module."""
        spec = module.__spec__
        module.__file__ = spec.origin
        exec(self.get_code(spec.name), module.__dict__)

    def get_code(self, name: str) -> "CodeType":
        """The code of a module that is in the archive; raises ImportError where the file is damaged."""
        place, n_bytes, _ = self._table[name]
        stream = decompressobj(-MAX_WBITS, self._common)
        try:
            code = stream.decompress(os.pread(self._descriptor, n_bytes, self._start + place))
        except error:
            code = b""
        if stream.unused_data != adler32(code).to_bytes(4, "big"):
            raise ImportError(f"the program's own file is damaged, in `{name}`: fetch it again")
        return marshal.loads(code)

    def _open(self) -> None:
        """Read the table and the dictionary. The file stays open: its name may be another file's by the next import."""
        path, _, place = sys._pyinstaller_pyz.rpartition("?")
        self._descriptor = _above_standard_streams(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        table_start = int(place) + SIZE_BYTES
        n_bytes = int.from_bytes(os.pread(self._descriptor, SIZE_BYTES, int(place)), "big")
        self._table, self._common = marshal.loads(decompress(os.pread(self._descriptor, n_bytes, table_start)))
        self._start = table_start + n_bytes


def _above_standard_streams(descriptor: int) -> int:
    """The same file under a number that none of them has: our caller may have closed some (`2>&-`)."""
    if descriptor > 2:
        return descriptor
    try:
        return _above_standard_streams(os.dup(descriptor))
    finally:
        os.close(descriptor)


def put_in_place() -> None:
    """Let all modules be found here first."""
    sys.frozen = True
    sys.meta_path.insert(0, FrozenModules())


if hasattr(sys, "_MEIPASS"):
    put_in_place()
