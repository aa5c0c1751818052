"""`dist/shimmy-linux-MACHINE`: brings the parts of a machine together, runs PyInstaller on them, and checks the file.

Knows the parts and where shimmy.spec looks for them. The parts are made by the modules beside this one.
"""

import hashlib
import lzma
import platform
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from shimmy.engine.llama.unpack_libraries import GRAMMAR_ARCHIVE, LOOPS_ARCHIVE, NUMPY_ARCHIVE
from tools import numpy_core, openssl, variants
from tools.bootloader import WRAPPED_OUTSIDE, bootloader_key, compile_bootloader, write_size
from tools.engine import lay_out, write_metadata
from tools.module_archive import COMPILER_SETTINGS
from tools.papers import LICENSES, SBOM, SIZES, beside
from tools.portable.c_library import c_library
from tools.portable.compiler import compiler, tools_environment
from tools.portable.contents import read_elf_files
from tools.portable.elf import ElfFile
from tools.portable.engine import LIBRARIES, engine
from tools.portable.expected_contents import RPC_FILES, VULKAN_FILES, check_contents
from tools.portable.numpy_core import core
from tools.portable.packages import grammar_library, not_installed, site, speedups
from tools.portable.papers import sbom, sizes
from tools.portable.papers.components import Component, components
from tools.portable.papers.licenses import license_texts
from tools.portable.python import VERSION, python
from tools.portable.target import BUILD_MACHINE, Target
from tools.portable.weak_versions import newer_versions
from tools.rpc import library as rpc
from tools.steps import DIST, ROOT, WORK, BuildError, Stamp, key_of, key_of_files, run, say
from tools.vulkan import library as vulkan
from tools.weight_loops import loops_key, packed_loops

LIMIT_BYTES = 22_000_000

# What a system with glibc has, and what the file itself has.
_SYSTEM_LIBRARIES = {
    *("libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1", "libutil.so.1"),
    *("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
}
# The largest pages of memory that a kernel may have.
_PAGE_BYTES = {"x86_64": 4096, "aarch64": 65_536}
_OWN_LIBRARIES = {*LIBRARIES, f"libpython{VERSION}.so.1.0"}


def freeze(target: Target) -> Path:
    """The file for a machine, made anew when one of its parts has changed."""
    if platform.machine() != BUILD_MACHINE.machine:
        raise BuildError(
            f"frozen files are made on {BUILD_MACHINE.machine} alone; `make run` runs the source tree here"
        )
    parts = _collect_parts(target)
    stamp = Stamp(target.folder / "freeze-stamp", _inputs_key(parts))
    if not stamp.holds() or not (DIST / target.file_name).exists():
        publish(checked(_composed(parts, target), target), target, components(target))
        stamp.write()
    if target == BUILD_MACHINE:
        _name_also(DIST / "shimmy", DIST / target.file_name)
    return DIST / target.file_name


def _name_also(name: Path, file: Path) -> None:
    """Have another name for a file, whose own tells the machine: a hard link, as it is copied and sent like a file."""
    name.unlink(missing_ok=True)
    name.hardlink_to(file)


def _inputs_key(parts: Path) -> str:
    """Names the parts, and the Python code and the tools that become a file with them."""
    paths = [ROOT / name for name in ("shimmy.spec", "pyproject.toml")]
    for folder in ("shimmy", "tools"):
        paths += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    contents = (path.read_bytes() for path in sorted(parts.rglob("*")) if path.is_file())
    return key_of(key_of_files(paths), *contents)


def _composed(parts: Path, target: Target) -> Path:
    """The file as PyInstaller makes it."""
    say(f"freeze: making `dist/{target.file_name}`")
    own = python(BUILD_MACHINE)
    work = target.folder / "freeze"
    shutil.rmtree(work, ignore_errors=True)
    WORK.mkdir(exist_ok=True)  # where shimmy.spec puts what it makes
    command: list[str | Path] = [own.program, "-m", "PyInstaller", "--noconfirm", "--log-level=ERROR"]
    environment = {
        **tools_environment(),
        **own.environment,
        # What is analysed is also imported, so the engine is this machine's.
        "PYTHONPATH": f"{site()}:{_binding(BUILD_MACHINE, BUILD_MACHINE.folder / 'binding')}",
        **COMPILER_SETTINGS,
        "SHIMMY_PARTS": str(parts),
        "SHIMMY_MACHINE": target.machine,
    }
    run([*command, f"--distpath={work / 'dist'}", f"--workpath={work}", ROOT / "shimmy.spec"], **environment)
    # PyInstaller puts the archive into a section of a bootloader, by a tool that knows this machine's files alone. The
    # archive is found behind the bootloader as well.
    outer, _ = _bootloaders(target)
    program = work / target.file_name
    program.write_bytes(outer.read_bytes() + (work / "shimmy" / "shimmy.pkg").read_bytes())
    write_size(program)
    program.chmod(0o755)
    return program


def checked(program: Path, target: Target, more_files: Collection[str] = (), limit_bytes: int = LIMIT_BYTES) -> Path:
    """The file, once it has been found good; raises BuildError where it is not. `more_files` are in it beside those
    that are in each."""
    own = python(BUILD_MACHINE)
    modules = run([own.program, "-c", "import sys; print(*sys.stdlib_module_names)"], **own.environment)
    check_contents(program, modules.split(), more_files)
    _check_elf_files(program, target)
    size_bytes = program.stat().st_size
    say(f"freeze: `{program.name}` has {size_bytes / 1e6:.2f} MB (limit {limit_bytes / 1e6:.1f})")
    if size_bytes > limit_bytes:
        raise BuildError("the frozen file is larger than its limit")
    if target == BUILD_MACHINE:
        run([program, "version"])
    return program


def publish(
    program: Path, target: Target, inside: Sequence[Component], more_licenses: Mapping[str, str] | None = None
) -> Path:
    """Put the checked file and its papers into dist/; who runs the old one keeps it. Of `more_licenses`, those that
    SPDX has no name for are called `LicenseRef-…`."""
    file = DIST / program.name
    DIST.mkdir(exist_ok=True)
    program.replace(file)
    texts = more_licenses or {}
    own_names = {name: text for name, text in texts.items() if name.startswith("LicenseRef-")}
    beside(file, ".sha256").write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")
    beside(file, SBOM).write_text(sbom.document(file, inside, own_names))
    beside(file, LICENSES).write_text(license_texts(file.name, target, inside, texts))
    beside(file, SIZES).write_text(sizes.table(file))
    return file


def _collect_parts(target: Target) -> Path:
    """A folder of all that is not Python code, by the names that shimmy.spec gives it."""
    libraries, own = engine(target), python(target)
    parts = _binding(target, target.folder / "parts")
    shutil.copy(own.library, parts)
    (parts / "_speedups.so").write_bytes(speedups(target))
    shutil.copytree(c_library(target), parts / "libc")
    found = variants.read_libraries(libraries)
    grammars, arithmetic = grammar_library(target), core(target).read_bytes()
    archives: dict[str, tuple[str, Callable[[], bytes]]] = {
        variants.ARCHIVE_NAME: (key_of(*sorted(found), *found.values()), lambda: variants.pack(found)),
        "ssl.xz": (
            key_of(own.ssl_module.read_bytes(), key_of_files([Path(openssl.__file__)])),
            lambda: openssl.pack([own.ssl_module]),
        ),
        GRAMMAR_ARCHIVE: (key_of(grammars), lambda: lzma.compress(grammars, preset=9 | lzma.PRESET_EXTREME)),
        NUMPY_ARCHIVE: (key_of(arithmetic), lambda: numpy_core.packed(arithmetic, target.machine)),
        LOOPS_ARCHIVE: (loops_key(), lambda: packed_loops(target)),
    }
    for name, (key, pack) in archives.items():
        shutil.copy(_packed_once(target.folder / "packed" / f"{key}-{name}", pack), parts / name)
    for name, path in zip((*VULKAN_FILES, *RPC_FILES), (*vulkan.packed(target), *rpc.packed(target)), strict=True):
        shutil.copy(path, parts / name)
    _, inner = _bootloaders(target)
    shutil.copy(_bootloaders(BUILD_MACHINE)[0], parts / "bootloader")
    shutil.copy(inner, parts / "shimmy.inner")
    return parts


def _binding(target: Target, place: Path) -> Path:
    """A new folder with what is not installed for the analysis: the binding, the engine, and what metadata tells."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    lay_out(engine(target), place)
    for name, version in not_installed():
        write_metadata(place, name, version, f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return place


def _packed_once(path: Path, pack: Callable[[], bytes]) -> Path:
    """A file of what `pack` gives, which takes seconds."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(pack())
        unfinished.rename(path)
    return path


def _bootloaders(target: Target) -> tuple[Path, Path]:
    """The outer one, which needs no library, and the inner one, see tools/bootloader.c."""
    key = key_of(bootloader_key(), *WRAPPED_OUTSIDE)
    outer, inner = (target.folder / "bootloader" / f"{key}-{name}" for name in ("outer", "inner"))
    static, dynamic = compiler(target.static_triple), compiler(target.glibc_triple)
    if not outer.exists():
        say(f"portable: compiling the bootloaders for {target.machine}")
        command: list[str | Path] = [static.cc, "-static", "-g0", "-DSHIMMY_OUTER"]
        compile_bootloader(outer, command, WRAPPED_OUTSIDE, **static.environment)
    if not inner.exists():
        compile_bootloader(inner, [dynamic.cc, "-g0", "-DSHIMMY_INNER"], **dynamic.environment)
    return outer, inner


def _check_elf_files(program: Path, target: Target) -> None:
    """Raise BuildError where a file in the program is for another machine, or asks for what a system need not have."""
    faults = []
    for name, data in read_elf_files(program):
        file = ElfFile(data)
        if file.machine != target.machine:
            faults.append(f"{name} is for {file.machine}")
        if file.page_bytes() < _PAGE_BYTES[target.machine]:
            faults.append(f"{name} cannot be mapped in pages of more than {file.page_bytes()} bytes")
        if name.startswith("libc/"):
            continue
        faults += [f"{name} asks for {version}" for version in newer_versions(data)]
        strange = set(file.libraries()) - _SYSTEM_LIBRARIES - _OWN_LIBRARIES
        faults += [f"{name} asks for {library}" for library in sorted(strange)]
    if faults:
        raise BuildError(f"the portable file would not start everywhere: {'; '.join(faults)}")
