"""The shaders of ggml's Vulkan backend in SPIR-V, the same for every machine, and the sources that name them.

Knows how ggml's generator is asked, and what it leaves behind. The generator would write 190 MB of C++ arrays; here the
shaders stay files, which one file of assembler takes in.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.engine_sources import ggml_sources
from tools.portable.compiler import compiler
from tools.portable.libraries import N_JOBS
from tools.portable.target import BUILD_MACHINE
from tools.steps import BuildError, key_of, key_of_files, run, say
from tools.vulkan.shader_compiler import FOLDER, Edition, glslc

_NAMES = re.compile(r"^extern const unsigned char (\w+)_data\[\];$", re.MULTILINE)


@dataclass(frozen=True)
class Shaders:
    """A folder of what the backend is compiled with beside its own sources."""

    folder: Path

    @property
    def header(self) -> Path:
        """Declares the data and the size of each shader."""
        return self.folder / "ggml-vulkan-shaders.hpp"

    @property
    def tables(self) -> Path:
        """C++: arrays of shaders that differ in a type alone."""
        return self.folder / "tables.cpp"

    @property
    def generator(self) -> Path:
        """A program of ggml's that calls the compiler for each variant of a shader."""
        return self.folder / "generator"

    @property
    def spirv(self) -> Path:
        """The folder of the shaders."""
        return self.folder / "spirv"

    @property
    def assembler(self) -> Path:
        """Takes in the shaders, from the folder that it lies in."""
        return self.folder / "shaders.S"

    @property
    def features(self) -> tuple[str, ...]:
        """Macros that tell the backend which kinds of shaders there are."""
        return tuple((self.folder / "features.txt").read_text().split())


def source_folder() -> Path:
    """The shaders' sources, and the generator's."""
    return ggml_sources() / "src" / "ggml-vulkan" / "vulkan-shaders"


def declared(edition: Edition) -> Shaders:
    """All but the shaders themselves, made once: what the backend's own sources are compiled with."""
    sources = [path for path in source_folder().rglob("*") if path.is_file()]
    made = Shaders(FOLDER / "shaders" / key_of(key_of_files([*sources, Path(__file__)]), edition.key))
    if not made.folder.exists():
        unfinished = Shaders(made.folder.with_suffix(".part"))
        shutil.rmtree(unfinished.folder, ignore_errors=True)
        unfinished.folder.mkdir(parents=True)
        features = _features(glslc(edition))
        (unfinished.folder / "features.txt").write_text("\n".join(features) + "\n")
        _compile_generator(unfinished)
        run([unfinished.generator, "--output-dir", unfinished.folder, "--target-hpp", unfinished.header])
        _write_tables(unfinished)
        unfinished.folder.rename(made.folder)
    return made


def compile_shaders(made: Shaders, edition: Edition) -> None:
    """Make the shaders themselves and `made.assembler`, unless they are there; some minutes on 2 cores."""
    if made.assembler.exists():
        return
    say("vulkan: compiling the shaders, about 3 minutes on 2 cores")
    made.spirv.mkdir(exist_ok=True)
    command: list[str | Path] = [made.generator, "--glslc", glslc(edition), "--output-dir", made.spirv]
    command = ["env", f"--chdir={made.spirv}", *command]  # it notes in the present folder what a shader includes
    with ThreadPoolExecutor(int(N_JOBS)) as threads:
        list(threads.map(lambda file: run([*command, "--source", file]), _files()))
    _write_assembler(made)


def _files() -> list[Path]:
    return sorted(source_folder().glob("*.comp"))


def _features(program: Path) -> list[str]:
    """What the compiler takes of what ggml tries; the names are those of ggml's own build."""
    found = []
    command: list[str | Path] = [program, "-fshader-stage=compute", "--target-env=vulkan1.3", "-o", os.devnull]
    for test in sorted((source_folder() / "feature-tests").glob("*.comp")):
        # A compiler that lacks an extension says so, and goes on.
        said = subprocess.run([*command, test], capture_output=True, text=True, check=False).stderr
        if "extension not supported" not in said:
            found.append(f"GGML_VULKAN_{test.stem.upper()}_GLSLC_SUPPORT")
    return found


def _compile_generator(made: Shaders) -> None:
    chosen = compiler(BUILD_MACHINE.glibc_triple)
    options = ["-std=c++17", "-O1", "-g0", *(f"-D{name}" for name in made.features)]
    run([chosen.cxx, *options, source_folder() / "vulkan-shaders-gen.cpp", "-o", made.generator], **chosen.environment)


def _write_tables(made: Shaders) -> None:
    """The generator writes the tables behind the arrays; without shaders there are none of these."""
    texts = []
    text, nothing = made.folder / "tables.part", made.folder / "nothing"
    command: list[str | Path] = [made.generator, "--glslc", shutil.which("true") or "true", "--output-dir", nothing]
    for file in _files():
        run([*command, "--source", file, "--target-hpp", made.header, "--target-cpp", text])
        texts.append(text.read_text())
    text.unlink()
    shutil.rmtree(nothing)
    made.tables.write_text("".join(texts))


def _write_assembler(made: Shaders) -> None:
    """Raises BuildError where the generator left other shaders than its header declares."""
    names = sorted(_NAMES.findall(made.header.read_text()))
    found = sorted(path.stem for path in made.spirv.glob("*.spv"))
    if not names or names != found:
        raise BuildError(f"the Vulkan shaders are not the expected ones: {sorted({*names} ^ {*found})}")
    # The compiler's cache goes by this text alone, so it tells of what is in the shaders.
    contents = key_of(*((made.spirv / f"{name}.spv").read_bytes() for name in names))
    lines = [f"// of {contents}", '.section .rodata,"a"']
    for name in names:
        for symbol in (f"{name}_data", f"{name}_len"):
            lines += [f".globl {symbol}", f".hidden {symbol}", f".type {symbol},%object"]
        size_bytes = (made.spirv / f"{name}.spv").stat().st_size
        lines += [".balign 8", f"{name}_len: .quad {size_bytes}", f'{name}_data: .incbin "spirv/{name}.spv"']
    lines.append('.section .note.GNU-stack,"",%progbits')
    unfinished = made.assembler.with_suffix(".part")
    unfinished.write_text("\n".join(lines) + "\n")
    unfinished.rename(made.assembler)
