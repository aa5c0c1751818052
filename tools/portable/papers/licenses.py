"""The licences of what is inside a portable file, as one text to hand on with it.

Knows where each part keeps the text of its licence. What the parts are stands in components.py.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from shimmy.commands.contents import PACKAGES
from tools import bootloader, numpy_core
from tools.engine_sources import engine_sources
from tools.licenses import in_sections, of_packages, of_page, text_in
from tools.portable import c_library, sources
from tools.portable.compiler import zig_folder
from tools.portable.packages import not_installed, wheel_of
from tools.portable.papers.components import GRAMMARS, PYTHON, Component
from tools.portable.target import Target
from tools.vulkan import shader_compiler

_LIST = """\
`{file}` contains Shimmy, which is under the MIT licence (see LICENSE), and these works of others. The
texts of their licences follow. `{file}.spdx.json` has the same list for programs, with hashes.

{rows}
"""

_C_LIBRARY = """\
The file holds unmodified copies of shared libraries of the GNU C Library, from Debian's package libc6 {version}
for {architecture}. They are under the GNU Lesser General Public License 2.1 or later, whose text follows below.
Copyright (C) Free Software Foundation, Inc. and others; the package's own notices follow, too.

Shimmy is not linked with these copies when it is built. They are separate files (`libc/ld.so`, `libc/libc.so.6` and
others) and are used only on a system without glibc, or where SHIMMY_LIBC=own asks for them; elsewhere the system's own
C library is used in their place.

Their source is Debian's source package `glibc` of the same version, which Debian keeps in its archive of all versions.

To run Shimmy with a modified version of the library:
- where it is installed as the system's C library (its loader at {loader}, and no musl beside it), the
  program uses it without any change to the file; it has to offer the names of glibc 2.17;
- or put it into the file: Shimmy's sources are complete and under the MIT licence, tools/portable/c_library.py in them
  chooses the files of `libc/`, and `make dist` makes the program with them. Nothing in Shimmy's licence forbids to take
  the program apart and to debug it for that.
"""
_LOADERS = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}

_START_FILES = """\
`shimmy.inner` and the libraries that were compiled for this file have the start-up code of the GNU C Library in them
(crt1.o, crti.o, crtn.o, libc_nonshared.a). The Free Software Foundation gives unlimited permission to link it into
combinations with other programs. Notices of others in the GNU C Library:
"""

# CPython's licence asks for it.
_CHANGES_OF_PYTHON = """\
What is not as in CPython's own sources, in short: a thread that is left over when the interpreter ends waits in the
place of ending itself (Python/thread_pthread.h); memfd_create is called by its number (Modules/posixmodule.c); modules
that Shimmy does not import are left out, and so are docstrings; modules of Shimmy stand in for `logging.config`, for
`multiprocessing` and, until TLS is used, for `ssl`; the methods that `dataclasses` writes at run time are written when
the file is built. See tools/portable/python.py, tools/portable/setup_local and tools/stand_in_files.py in Shimmy's
sources.

"""

_RUST = """\
The library of llguidance has these Rust packages and Rust's standard library in it, as far as it names them:

{rows}

Each is taken under the MIT licence where that is offered, else under the Apache License 2.0 (its text is OpenSSL's).
The names of the authors are in the sources of each package. The text of the MIT licence:

"""
_MIT_HEAD = "Permission is hereby granted"


def license_texts(
    file_name: str, target: Target, components: Sequence[Component], more: Mapping[str, str] | None = None
) -> str:
    """The list of the components, then the texts; `more` are those of components that not every file has."""
    rows = "\n".join(f"- {_described(component)}" for component in components)
    listed = {"What is inside": _LIST.format(file=file_name, rows=rows)}
    packages = _of_packages(target, components) | dict(more or {})
    return in_sections(listed | packages | of_page() | _of_libraries() | _of_c_library(target))


def _described(component: Component) -> str:
    place = f" (in {component.part_of})" if component.part_of else ""
    return f"{component.name} {component.version}".rstrip() + f"{place}: {component.license}"


def _of_packages(target: Target, components: Sequence[Component]) -> dict[str, str]:
    """Python packages, and what their compiled parts are made of."""
    texts = of_packages(name.replace("-", "_") for name in PACKAGES if name not in dict(not_installed()))
    texts["llama-cpp-python"] = (engine_sources() / "LICENSE.md").read_text()
    engine = engine_sources() / "vendor" / "llama.cpp"
    sgemm = engine / "ggml" / "src" / "ggml-cpu" / "llamafile" / "sgemm.cpp"
    texts["llama.cpp"] = (engine / "LICENSE").read_text()
    texts["llamafile sgemm (in llama.cpp)"] = _first_comment(sgemm)
    mit = _MIT_HEAD + texts["llama.cpp"].partition(_MIT_HEAD)[2]
    texts |= _of_vulkan_headers(mit)
    texts[numpy_core.PACKAGE] = numpy_core.license_texts()
    with zipfile.ZipFile(wheel_of("llguidance", target)) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("licenses/LICENSE"))
        texts[GRAMMARS] = wheel.read(name).decode()
    rows = "\n".join(f"- {_described(component)}" for component in components if component.part_of == GRAMMARS)
    texts["Rust packages (in llguidance)"] = _RUST.format(rows=rows) + mit
    return texts


def _of_vulkan_headers(mit: str) -> dict[str, str]:
    """Of those that the engine's library for GPUs is compiled with; both are offered under the MIT licence."""
    folder = shader_compiler.headers(shader_compiler.edition())
    firsts = {"Vulkan-Headers": "vulkan/vulkan.hpp", "SPIRV-Headers": "spirv/unified1/spirv.hpp"}
    return {
        f"{name} (in llama.cpp)": f"{_first_comment(folder / first)}\n\nTaken under the MIT licence:\n\n{mit}"
        for name, first in firsts.items()
    }


def _first_comment(source: Path) -> str:
    """What stands in front of a source: its authors and its licence."""
    lines = source.read_text().partition("\n\n")[0].splitlines()
    return "\n".join(line.removeprefix("//").strip() for line in lines)


def _of_libraries() -> dict[str, str]:
    """CPython, what it is linked with, the bootloader, and what the compiler links into all of these."""
    python, zig = sources.unpacked(sources.PYTHON), zig_folder()
    incorporated = (python / "Doc" / "license.rst").read_text()
    heading = "Licenses and Acknowledgements for Incorporated Software"
    return {
        PYTHON: _CHANGES_OF_PYTHON + (python / "LICENSE").read_text(),
        "Software incorporated in CPython": heading + incorporated.partition(f"\n{heading}")[2],
        "zlib": (sources.unpacked(sources.ZLIB) / "LICENSE").read_text(),
        "liblzma": (sources.unpacked(sources.XZ) / "COPYING.0BSD").read_text(),
        "libffi": (sources.unpacked(sources.LIBFFI) / "LICENSE").read_text(),
        "OpenSSL": (sources.unpacked(sources.OPENSSL) / "LICENSE.txt").read_text(),
        "PyInstaller, with tools/bootloader.c of Shimmy": text_in(bootloader.source_package(), "/COPYING.txt"),
        "libdeflate": text_in(bootloader.source_package(bootloader.LIBDEFLATE_PACKAGE), "/libdeflate/COPYING"),
        "zlib (in PyInstaller)": text_in(bootloader.source_package(), "bootloader/zlib/LICENSE"),
        "libc++, libc++abi, libunwind": (zig / "lib" / "libcxx" / "LICENSE.TXT").read_text(),
        "zig compiler-rt": (zig / "LICENSE").read_text(),
        "musl": (zig / "lib" / "libc" / "musl" / "COPYRIGHT").read_text(),
        "glibc start files": f"{_START_FILES}\n{(zig / 'lib' / 'libc' / 'glibc' / 'LICENSES').read_text()}",
    }


def _of_c_library(target: Target) -> dict[str, str]:
    with sources.files_of(c_library.package(target)) as archive:
        file = archive.extractfile("./usr/share/doc/libc6/copyright")
        assert file is not None
        notices = file.read().decode()
    lesser = (sources.unpacked(sources.XZ) / "COPYING.LGPLv2.1").read_text()
    about = _C_LIBRARY.format(
        version=c_library.VERSION, architecture=target.debian_architecture, loader=_LOADERS[target.machine]
    )
    return {"glibc": about, "glibc: notices of the package": notices, "GNU LGPL 2.1": lesser}
