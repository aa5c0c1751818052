"""`libggml-vulkan.so` for one machine, with all shaders, for any Linux since glibc 2.17 and any engine of this version.

Knows how ggml's Vulkan backend is compiled. It asks for nothing of C++ beside itself, so that an engine of another
compiler may open it; the loader of Vulkan is opened when the backend is (loader.c).
"""

import hashlib
import lzma
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shimmy.system.backends import VULKAN
from tools.backend_library import check, compile_flags, key_of_sources, linked, made_once
from tools.engine_sources import ggml_sources
from tools.portable.compiler import Compiler, compiler
from tools.portable.target import Target
from tools.steps import key_of, run, say
from tools.vulkan.shader_compiler import FOLDER, edition, headers
from tools.vulkan.shaders import Shaders, compile_shaders, declared

LIBRARY = VULKAN.library
_HERE = Path(__file__).parent
_FLAGS = ("-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-w")
_CXX_FLAGS = ("-std=gnu++17", "-fvisibility-inlines-hidden")
# Most of it are shaders, whose words of 4 bytes are alike in pairs.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2, "pb": 2}]


def library(target: Target) -> Path:
    """The library for a machine, made once."""

    def make(work: Path) -> Path:
        say(f"vulkan: compiling `{LIBRARY}` for {target.machine}")
        chosen, made_of = compiler(target.glibc_triple), declared(edition())
        # The shaders take most of the time, and one of the sources most of the rest: side by side.
        with ThreadPoolExecutor(1) as beside:
            compiled = beside.submit(_compiled, chosen, made_of, work)
            compile_shaders(made_of, edition())
        objects = [*compiled.result(), _assembled(chosen, made_of, work)]
        return check(linked(chosen, work / LIBRARY, objects, _HERE / "symbols.map", ("-ldl", "-lpthread")))

    return made_once(FOLDER / target.machine / LIBRARY, key_of(key_of_sources(_HERE), edition().key), make)


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


def _compiled(chosen: Compiler, made_of: Shaders, work: Path) -> list[Path]:
    """The backend's own sources, the tables of shaders, and what opens Vulkan."""
    ggml = ggml_sources()
    flags = [*_FLAGS, *compile_flags(), *(f"-D{name}" for name in made_of.features)]
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
