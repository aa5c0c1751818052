"""Compiles the methods that `dataclasses` writes when a server or worker starts, for tools/stand_ins/method_code.py.

Run with -OO and the name of a file to write, by shimmy.spec: it needs a process in which no class has been made yet.
"""

import dataclasses
import hashlib
import marshal
import sys
import zlib
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

# What a server and a worker import before they serve; classes that are made later are compiled then.
_IMPORTED_AT_START = (
    *("shimmy.cli", "shimmy.server", "shimmy.engine.main", "shimmy.engine.prepare_prompt", "shimmy.engine.llama.model"),
    *("shimmy.engine.constrain.constraints", "shimmy.engine.speculate.draft_model"),
)


_DIGEST_BYTES = 16  # as in tools/stand_ins/method_code.py


def recorded(module_names: tuple[str, ...]) -> dict[str, dict[bytes, CodeType]]:
    """The code of the methods written while these modules are imported, by the module of the class and by the digest of
    the text."""
    found: dict[str, dict[bytes, CodeType]] = {}

    def record(text: str, namespace: dict[str, Any], names: dict[str, Any]) -> None:
        code = compile(text, "<string>", "exec")
        digest = hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()
        found.setdefault(str(namespace.get("__name__")), {})[digest] = code
        exec(code, namespace, names)

    setattr(dataclasses, "exec", record)  # noqa: B010 - it has no such name of its own
    try:
        for name in module_names:
            import_module(name)
    finally:
        delattr(dataclasses, "exec")
    return found


def main() -> None:
    """Write the table."""
    found = recorded(_IMPORTED_AT_START)
    code = {module: zlib.compress(marshal.dumps(methods), 9) for module, methods in found.items()}
    Path(sys.argv[1]).write_bytes(marshal.dumps(code))


if __name__ == "__main__":
    main()
