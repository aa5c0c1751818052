"""The archive of all Python modules in a frozen file, which tools/stand_ins/frozen_modules.py reads, and their code.

Knows how the archive lies in the file and how modules are compiled for it; not which modules are in it.
"""

import ast
import marshal
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType

SIZE_BYTES = 4  # of the number at the beginning: how long the table is

# For the Python that compiles: its code is the same each time, and tells no columns, which show where in a line an
# error is to those who have the source. They are a third of the archive and 0.3 MB of an idle server.
COMPILER_SETTINGS = {"PYTHONHASHSEED": "1", "PYTHONNODEBUGRANGES": "1"}


class _WithoutAnnotations(ast.NodeTransformer):
    """Removes the annotations of functions, which a start would evaluate and keep, and nothing reads. Those of classes
    stay: they say which fields a dataclass has."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._visit_function(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def compiled(name: str, source: Path) -> CodeType:
    """The code of a module without assertions, docstrings and annotations of functions."""
    file = f"{name.replace('.', '/')}{'/__init__' if _is_package(source) else ''}.py"
    tree = _WithoutAnnotations().visit(ast.parse(source.read_bytes()))
    code: CodeType = compile(tree, file, "exec", dont_inherit=True, optimize=2)
    return code


def write(path: Path, modules: Mapping[str, Path | None]) -> None:
    """Write an archive of these modules, given with their source files; a package may have none."""
    table, contents, place = {}, [], 0
    for name, source in sorted(modules.items()):
        content = zlib.compress(marshal.dumps(compiled(name, source)), 9) if source else b""
        table[name] = place, len(content), source is None or _is_package(source)
        contents.append(content)
        place += len(content)
    packed_table = marshal.dumps(table)
    path.write_bytes(len(packed_table).to_bytes(SIZE_BYTES, "big") + packed_table + b"".join(contents))


def read(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """The modules of an archive that have a source: the name, and the marshalled code."""
    start = SIZE_BYTES + int.from_bytes(archive[:SIZE_BYTES], "big")
    for name, (place, n_bytes, _) in marshal.loads(archive[SIZE_BYTES:start]).items():
        if n_bytes:
            yield name, zlib.decompress(archive[start + place : start + place + n_bytes])


def _is_package(source: Path) -> bool:
    return source.name == "__init__.py"
