"""`dist/shimmy`: makes it with PyInstaller, checks what is in it, runs it, and puts its papers beside it.

Knows what the finished file must hold. How it is composed stands in shimmy.spec.
"""

import hashlib
import lzma
import platform
import re
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from shimmy.engine.llama.unpack_libraries import GRAMMAR_ARCHIVE, LOOPS_ARCHIVE, NUMPY_ARCHIVE
from shimmy.system import vulkan_archive
from tools import numpy_core, variants
from tools.bootloader import bootloader, write_size
from tools.engine import engine_key, library_folder
from tools.licenses import license_texts
from tools.module_archive import COMPILER_SETTINGS
from tools.papers import LICENSES, beside
from tools.portable.contents import MODULES, read_files, unpacked
from tools.portable.sources import is_debian
from tools.portable.target import BUILD_MACHINE
from tools.steps import CACHE, DIST, ROOT, VENV, WORK, BuildError, Stamp, key_of, key_of_files, run, say, venv_python
from tools.vulkan import library as vulkan
from tools.weight_loops import packed_loops

LIMIT_BYTES = 22_000_000

# Besides the Python standard library, the program holds these packages and these files, no more and no fewer.
PACKAGES = {
    *("anyio", "h11", "hypercorn", "jinja2", "llama_cpp", "markupsafe", "numpy", "shimmy", "starlette", "watchdog"),
    "typing_extensions",
}
# Ours, and names of packages that are not in it (tools/stand_ins/).
STAND_INS = {"h2", "method_code", "ssl_in_full"}
FILES = {
    "base_library.zip",
    *("libffi.so", "libgcc_s.so", "liblzma.so", "libpython.so", "libz.so"),
    *("llama_cpp/lib/libllama.so.z", "llama_cpp/lib/libggml.so.z", "llama_cpp/lib/libggml-base.so.z"),
    *("llama_cpp/lib/libstdc++.so.z", "llama_cpp/lib/libgomp.so.z"),
    f"llama_cpp/lib/{variants.ARCHIVE_NAME}",
    *(GRAMMAR_ARCHIVE, LOOPS_ARCHIVE, NUMPY_ARCHIVE),
    "ssl.xz",
    "markupsafe/_speedups.so",
}
VULKAN_FILES = (vulkan_archive.ARCHIVE, vulkan_archive.DIGEST)


def freeze() -> Path:
    """The frozen file, made anew when anything it is made of has changed."""
    stamp = Stamp(CACHE / "freeze-stamp", _inputs_key())
    if stamp.holds() and (DIST / "shimmy").exists():
        return DIST / "shimmy"
    say("freeze: making `dist/shimmy`")
    _pack_variants()
    _pack_grammar_library()
    has_vulkan = _pack_vulkan()
    shutil.copyfile(numpy_core.core(), WORK / NUMPY_ARCHIVE)
    (WORK / LOOPS_ARCHIVE).write_bytes(packed_loops())
    shutil.copyfile(bootloader(), WORK / "bootloader")
    pyinstaller = [venv_python(), "-m", "PyInstaller", "--noconfirm", "--log-level=ERROR"]
    folders = [f"--distpath={WORK / 'dist'}", f"--workpath={WORK}"]
    run([*pyinstaller, *folders, ROOT / "shimmy.spec"], **COMPILER_SETTINGS)
    program = WORK / "dist" / "shimmy"
    write_size(program)
    check_contents(program, FILES.union(VULKAN_FILES if has_vulkan else ()))
    _check_size(program)
    run([program, "version"])
    _publish(program)
    stamp.write()
    return DIST / "shimmy"


def _inputs_key() -> str:
    paths = [ROOT / name for name in ("shimmy.spec", "pyproject.toml", "build.py")]
    for folder in ("shimmy", "tools"):
        paths += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return key_of(engine_key(), platform.python_version(), sys.base_prefix, key_of_files(paths))


def _pack_variants() -> None:
    """Leave the archive where shimmy.spec looks for it; packing takes 10 s, so the result is cached."""
    key = key_of(engine_key(), key_of_files([ROOT / "tools" / "variants.py"]))
    cached = CACHE / "variants" / f"{key}.xz"
    if not cached.exists():
        say("freeze: packing the CPU variants")
        cached.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cached.with_suffix(".part")
        unfinished.write_bytes(variants.pack(variants.read_libraries(library_folder())))
        unfinished.rename(cached)
    WORK.mkdir(exist_ok=True)
    shutil.copyfile(cached, WORK / variants.ARCHIVE_NAME)


def _pack_grammar_library() -> None:
    """Leave llguidance, of which only the compiled module is used, where shimmy.spec looks for it, in a quarter of its
    size; packing takes 4 s, so the result is cached."""
    library = next(VENV.glob("lib/python3*/site-packages/llguidance/_lib*.so"))
    cached = CACHE / "grammar" / f"{key_of(library.read_bytes())}.xz"
    if not cached.exists():
        say("freeze: packing llguidance")
        cached.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cached.with_suffix(".part")
        unfinished.write_bytes(lzma.compress(library.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
        unfinished.rename(cached)
    shutil.copyfile(cached, WORK / GRAMMAR_ARCHIVE)


def _pack_vulkan() -> bool:
    """Leave the library for GPUs where shimmy.spec looks for it; False where it cannot be made."""
    has_vulkan = platform.machine() == BUILD_MACHINE.machine and is_debian()
    if has_vulkan:
        for name, path in zip(VULKAN_FILES, vulkan.packed(BUILD_MACHINE), strict=True):
            shutil.copyfile(path, WORK / name)
    else:
        say("freeze: without the library for GPUs, which is made on an x86-64 Debian alone")
        for name in VULKAN_FILES:
            (WORK / name).unlink(missing_ok=True)
    return has_vulkan


def check_contents(
    program: Path, expected: set[str], standard_library: Collection[str] = sys.stdlib_module_names
) -> None:
    """Raise BuildError where the program holds other packages than PACKAGES, or other files than these."""
    contents = {name: (stored, content) for name, stored, content in read_files(program)}
    modules = {name.partition(".")[0] for name, _ in unpacked(MODULES, contents.pop(MODULES)[1])}
    files = {plain_name(name) for name in contents if "." in name}
    found = {name for name in files if not name.startswith("lib-dynload/")}
    _compare("files", expected, found)
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
        "Exclude them in `shimmy.spec`, or expect them in `tools/freeze.py`"
    )


def _check_size(program: Path) -> None:
    size_bytes = program.stat().st_size
    say(f"freeze: {size_bytes / 1e6:.1f} MB (limit {LIMIT_BYTES / 1e6:.1f})")
    if size_bytes > LIMIT_BYTES:
        raise BuildError("the frozen file is larger than its limit")


def _publish(program: Path) -> None:
    """Put the checked file and its papers into dist/; whoever runs the old one keeps it."""
    DIST.mkdir(exist_ok=True)
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    beside(DIST / "shimmy", LICENSES).write_text(license_texts(PACKAGES - {"shimmy", "numpy"} | {"llguidance"}))
    (DIST / "shimmy.sha256").write_text(f"{digest}  shimmy\n")
    program.replace(DIST / "shimmy")
