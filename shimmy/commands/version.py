"""`version`: which Shimmy this is, and for scripts what is inside."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from shimmy import __version__
from shimmy.commands.console import CommandCall
from shimmy.system.self_command import executable


def version(call: CommandCall) -> int:
    if call.options.json:
        print(json.dumps(facts(), indent=2))
    else:
        print(f"shimmy {__version__}")
    return 0


def facts() -> dict[str, Any]:
    """`build` is the SHA-256 of the frozen file, as in the checksums that are handed out with it; None in a source
    tree. `machine` is the processor's architecture as the system calls it."""
    import hashlib

    from shimmy.commands.contents import contents

    program = executable()
    build = None
    if program is not None:
        with Path(program).open("rb") as file:
            build = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "version": __version__,
        "build": build,
        "frozen": program is not None,
        "python": ".".join(map(str, sys.version_info[:3])),
        "machine": os.uname().machine,
        **contents(),
    }
