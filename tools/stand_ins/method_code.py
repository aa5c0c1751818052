"""The methods that `dataclasses` writes, compiled when the program is frozen, as all its other Python code is.

`dataclasses` writes the methods of a class as text, which it hands to `exec`. Compiling that text is most of the 0.6 ms
that a class takes, 50 ms of a server's start. In the frozen file `dataclasses` is the real one, except that it takes
`exec` and `inspect` from here. Text that is not in the table is compiled: a class that is missing there is only slow.
The table has a digest of each text, not the text, which is longer than the code.
"""

import builtins
import marshal
import zlib
from _blake2 import blake2b  # what `hashlib` has, which `version` does without
from types import CodeType
from typing import Any

DIGEST_BYTES = 16
# By the name of a module: a marshalled dictionary from the digest of a method's text to its code, compressed.
CODE: dict[str, bytes] = {}  # filled in by tools/stand_in_files.py

_module_name: object = None
_code: dict[bytes, CodeType] = {}  # of this module, which is the one that made a class last


def exec(text: str, globals: dict[str, Any], names: dict[str, Any]) -> None:  # noqa: A001, A002
    """As the builtin one."""
    global _module_name, _code
    name = globals.get("__name__")
    if name != _module_name:
        packed = CODE.pop(str(name), None)
        _module_name, _code = name, marshal.loads(zlib.decompress(packed)) if packed else {}
    digest = blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()
    builtins.exec(_code.get(digest, text), globals, names)


class inspect:  # noqa: N801 - the name that it has there
    """`dataclasses` asks for a signature only to make up the docstring of a class that has none: no class has one here,
    and a signature takes 0.1 ms."""

    @staticmethod
    def signature(of: type) -> str:  # noqa: ARG004 - as the real one has it
        return ""

    @staticmethod
    def get_annotations(of: type) -> dict[str, Any]:
        """As the real one, for a class. CPython 3.13 asks for them."""
        return dict(vars(of).get("__annotations__", {}))
