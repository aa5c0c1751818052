"""What the program is made of: its packages and its engine, with their versions.

Looked up in the environment that runs the source tree. The frozen file has no metadata of packages: shimmy.spec puts a
module in this one's place that answers what was looked up when the file was made.
"""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

# What the frozen file holds beside Python and Shimmy itself, as packages are called where they come from.
PACKAGES = (
    "anyio", "h11", "hypercorn", "jinja2", "llama-cpp-python", "llguidance", "markupsafe", "numpy",
    "starlette", "typing-extensions", "watchdog",
)  # fmt: skip
_ENGINE = "llama-cpp-python"


def contents() -> dict[str, Any]:
    """`engine`: versions of the binding and of llama.cpp, and the CPU variants; `packages`: a version for each name."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    libraries = Path(str(importlib.metadata.distribution(_ENGINE).locate_file("llama_cpp/lib")))
    variants = sorted(path.stem.removeprefix("libggml-cpu-") for path in libraries.glob("libggml-cpu-*.so"))
    engine = {"llama_cpp_python": packages.pop(_ENGINE), "llama_cpp": llama_cpp_version(libraries)}
    return {"engine": engine | {"cpu_variants": variants}, "packages": packages}


def llama_cpp_version(libraries: Path) -> str | None:
    """As llama.cpp's build says for those who link with it; None where it does not."""
    try:
        found = re.search(r"^Version: (.+)$", (libraries / "pkgconfig" / "llama.pc").read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None
