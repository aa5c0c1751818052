"""The archive of all Python modules in a frozen file, which tools/stand_ins/frozen_modules.py reads, and their code.

Knows how the archive lies in the file and how modules are compiled for it; not which modules are in it. Each module is
deflated by itself, as a start reads few of them, but with a dictionary of what they have in common: that makes the
archive smaller by an eighth, and inflating takes no longer.
"""

import ast
import marshal
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType

from tools.common_bytes import common_bytes

SIZE_BYTES = 4  # of the number at the beginning: how long the table and the dictionary are, which are packed together
_RAW = -zlib.MAX_WBITS  # a stream of deflate without zlib's head, for which both sides would sum up the dictionary

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
    code = {name: marshal.dumps(compiled(name, source)) for name, source in sorted(modules.items()) if source}
    common = common_bytes(code.values())
    table, contents, place = {}, [], 0
    for name, source in sorted(modules.items()):
        content = _packed(code[name], common) if source else b""
        table[name] = place, len(content), source is None or _is_package(source)
        contents.append(content)
        place += len(content)
    head = zlib.compress(marshal.dumps((table, common)), 9)
    path.write_bytes(len(head).to_bytes(SIZE_BYTES, "big") + head + b"".join(contents))


def read(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """The modules of an archive that have a source: the name, and the marshalled code."""
    start = SIZE_BYTES + int.from_bytes(archive[:SIZE_BYTES], "big")
    table, common = marshal.loads(zlib.decompress(archive[SIZE_BYTES:start]))
    for name, (place, n_bytes, _) in table.items():
        if n_bytes:
            yield name, zlib.decompressobj(_RAW, common).decompress(archive[start + place : start + place + n_bytes])


def _packed(code: bytes, common: bytes) -> bytes:
    """The code deflated, and behind that its checksum, as zlib would write it."""
    stream = zlib.compressobj(9, zlib.DEFLATED, _RAW, zdict=common)
    return stream.compress(code) + stream.flush() + zlib.adler32(code).to_bytes(4, "big")


def _is_package(source: Path) -> bool:
    return source.name == "__init__.py"
