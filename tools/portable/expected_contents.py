"""What a frozen file must hold: these packages and these files beside Python's own modules, no more and no fewer.

Knows how a finished file is compared with that. How it is made stands in freeze.py.
"""

import re
from collections.abc import Collection
from pathlib import Path

from shimmy.engine.llama.unpack_libraries import GRAMMAR_ARCHIVE, LOOPS_ARCHIVE, NUMPY_ARCHIVE
from shimmy.system.backends import RPC, VULKAN
from tools import variants
from tools.portable.contents import MODULES, read_files, unpacked
from tools.steps import BuildError

PACKAGES = {
    *("anyio", "h11", "hypercorn", "jinja2", "llama_cpp", "markupsafe", "numpy", "shimmy", "starlette", "watchdog"),
    "typing_extensions",
}
# Ours, and names of packages that are not in it (tools/stand_ins/).
STAND_INS = {"h2", "method_code", "ssl_in_full"}
VULKAN_FILES = (VULKAN.archive, VULKAN.digest)
RPC_FILES = (RPC.archive, RPC.digest)
FILES = {
    *("base_library.zip", "libpython.so", "markupsafe/_speedups.so", "shimmy.inner", "ssl.xz"),
    *(f"llama_cpp/lib/{name}.z" for name in ("libggml-base.so", "libggml.so", "libllama.so")),
    *(f"libc/{name}.so" for name in ("ld", "libc", "libdl", "libm", "libnss_dns", "libnss_files", "libpthread")),
    *(f"libc/{name}.so" for name in ("libresolv", "librt", "libutil")),
    f"llama_cpp/lib/{variants.ARCHIVE_NAME}",
    *(GRAMMAR_ARCHIVE, LOOPS_ARCHIVE, NUMPY_ARCHIVE),
    *VULKAN_FILES,
    *RPC_FILES,
}


def check_contents(program: Path, standard_library: Collection[str], more_files: Collection[str] = ()) -> None:
    """Raise BuildError where the program holds other packages than PACKAGES, or other files than FILES and these."""
    contents = {name: (stored, content) for name, stored, content in read_files(program)}
    modules = {name.partition(".")[0] for name, _ in unpacked(MODULES, contents.pop(MODULES)[1])}
    _compare("files", FILES.union(more_files), {plain_name(name) for name in contents if "." in name})
    _compare("packages", PACKAGES | STAND_INS, modules - set(standard_library))


def plain_name(name: str) -> str:
    """A file's name without the versions that depend on the Python and on the system it was made with."""
    name = re.sub(r"^python3\.\d+/", "", name)
    name = re.sub(r"libpython3\.\d+", "libpython", name)
    return re.sub(r"(\.cpython-[^/]*)?\.so(\.\d+)*(\.z)?$", r".so\3", name)


def _compare(what: str, expected: set[str], found: set[str]) -> None:
    if expected == found:
        return
    surplus = ", ".join(sorted(found - expected)) or "none"
    missing = ", ".join(sorted(expected - found)) or "none"
    raise BuildError(
        f"the frozen file does not hold the expected {what}. Surplus: {surplus}. Missing: {missing}. "
        f"Exclude them in `shimmy.spec`, or expect them in `{Path(__file__).name}`"
    )
