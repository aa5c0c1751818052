"""`libggml-vulkan.so` for one machine, with all shaders, for any Linux since glibc 2.17 and any engine of this version.

Knows how ggml's Vulkan backend is compiled. It asks for nothing of C++ beside itself, so that an engine of another
compiler may open it; the loader of Vulkan is opened when the backend is (loader.c).
"""

import hashlib
import lzma
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shimmy.system.gpu_backends import VULKAN
from tools.engine_sources import engine_sources, engine_version
from tools.portable.compiler import Compiler, compiler
from tools.portable.elf import ElfFile
from tools.portable.target import Target
from tools.steps import BuildError, Stamp, key_of, key_of_files, run, say
from tools.vulkan.shader_compiler import FOLDER, edition, headers
from tools.vulkan.shaders import Shaders, compile_shaders, declared

LIBRARY = VULKAN.library
_HERE = Path(__file__).parent
_ENGINE = "libggml-base.so.0"  # what it is opened beside
_DEFINES = (
    *("GGML_BACKEND_BUILD", "GGML_BACKEND_DL", "GGML_BACKEND_SHARED", "GGML_SHARED", "GGML_SCHED_MAX_COPIES=4"),
    *("NDEBUG", "_GNU_SOURCE", "_XOPEN_SOURCE=600"),
)
_FLAGS = ("-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-w")
_CXX_FLAGS = ("-std=gnu++17", "-fvisibility-inlines-hidden")
# Most of it are shaders, whose words of 4 bytes are alike in pairs.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2, "pb": 2}]


def library(target: Target) -> Path:
    """The library for a machine, made once."""
    made = FOLDER / target.machine / LIBRARY
    stamp = Stamp(made.with_name("stamp"), _key())
    if stamp.holds() and made.exists():
        return made
    say(f"vulkan: compiling `{LIBRARY}` for {target.machine}")
    work = made.with_name("work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    chosen, made_of = compiler(target.glibc_triple), declared(edition())
    # The shaders take most of the time, and one of the sources most of the rest: side by side.
    with ThreadPoolExecutor(1) as beside:
        objects = beside.submit(_compiled, chosen, made_of, work)
        compile_shaders(made_of, edition())
    linked = _linked(chosen, [*objects.result(), _assembled(chosen, made_of, work)], work)
    _check(linked.read_bytes())
    linked.replace(made)
    shutil.rmtree(work)
    stamp.write()
    return made


def packed(target: Target) -> tuple[Path, Path]:
    """What lies in the frozen file: the library as xz, and a text of its SHA-256 and its size once it is unpacked."""
    content = library(target).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    archive = FOLDER / target.machine / "packed" / f"{key_of(digest, repr(_FILTERS))}.xz"
    if not archive.exists():
        say(f"vulkan: packing `{LIBRARY}` for {target.machine}")
        archive.parent.mkdir(parents=True, exist_ok=True)
        unfinished = archive.with_suffix(".part")
        unfinished.write_bytes(lzma.compress(content, filters=_FILTERS))
        unfinished.rename(archive)
    text = archive.with_suffix(".sha256")
    text.write_text(f"{digest} {len(content)}\n")
    return archive, text


def _key() -> str:
    compiler_files = [_HERE.parent / "portable" / name for name in ("zig-cc", "requirements.txt")]
    own_files = [path for path in _HERE.iterdir() if path.is_file()]
    return key_of(key_of_files([*own_files, *compiler_files]), engine_version(), edition().key)


def _compiled(chosen: Compiler, made_of: Shaders, work: Path) -> list[Path]:
    """The backend's own sources, the tables of shaders, and what opens Vulkan."""
    ggml = engine_sources() / "vendor" / "llama.cpp" / "ggml"
    flags = [*_FLAGS, f"-ffile-prefix-map={engine_sources()}=.", *(f"-D{name}" for name in _DEFINES)]
    flags += [f"-D{name}" for name in made_of.features]
    flags += [*(f"-I{folder}" for folder in (ggml / "src", ggml / "include")), f"-isystem{headers(edition())}"]
    objects = []
    for source in (*sorted((ggml / "src" / "ggml-vulkan").glob("*.cpp")), made_of.tables, _HERE / "loader.c"):
        objects.append(work / f"{source.name}.o")
        command: list[str | Path] = [chosen.cxx, *_CXX_FLAGS] if source.suffix == ".cpp" else [chosen.cc]
        run([*command, *flags, f"-I{made_of.folder}", "-c", source, "-o", objects[-1]], **chosen.environment)
    return objects


def _assembled(chosen: Compiler, made_of: Shaders, work: Path) -> Path:
    target = work / "shaders.o"
    here = ["env", f"--chdir={made_of.folder}"]  # it names the shaders' files from there
    run([*here, chosen.cc, "-c", made_of.assembler.name, "-o", target], **chosen.environment)
    return target


def _linked(chosen: Compiler, objects: list[Path], work: Path) -> Path:
    # The library says that it needs the engine's, whose own names are not known before that is made.
    engine = work / _ENGINE
    run([chosen.cc, "-shared", f"-Wl,-soname,{_ENGINE}", "-o", engine, "-xc", "/dev/null"], **chosen.environment)
    link = ["-shared", "-s", "-Wl,-z,undefs", f"-Wl,--version-script={_HERE / 'symbols.map'}", "-ldl", "-lpthread"]
    run([chosen.cxx, *link, "-o", work / LIBRARY, *objects, "-Wl,--no-as-needed", engine], **chosen.environment)
    return work / LIBRARY


def _check(content: bytes) -> None:
    """Raise BuildError where the library asks for more than the engine's functions and a system's libraries."""
    file = ElfFile(content)
    strange = [name for name in file.undefined_symbols() if not name.startswith("ggml_")]
    if strange or _ENGINE not in file.libraries():
        raise BuildError(f"`{LIBRARY}` asks for {strange} of {file.libraries()}")
