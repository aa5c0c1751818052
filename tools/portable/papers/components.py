"""The works of others in a portable file, with their versions, licences and the hashes of what they are made from.

The licences are SPDX expressions, written by hand into the tables below; a part that is in none of them ends the build.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from shimmy.commands.contents import PACKAGES, llama_cpp_version
from tools import bootloader, numpy_core
from tools.engine_sources import source_package
from tools.environment import ENGINE_PACKAGE
from tools.licenses import text_in
from tools.portable import c_library, sources
from tools.portable.compiler import zig_folder, zig_version
from tools.portable.engine import engine
from tools.portable.packages import grammar_library, wheel_of
from tools.portable.target import Target
from tools.steps import BuildError, requirements
from tools.vulkan import shader_compiler

PACKAGE_LICENSES = {
    "anyio": "MIT",
    "h11": "MIT",
    "hypercorn": "MIT",
    "jinja2": "BSD-3-Clause",
    "llama-cpp-python": "MIT",
    "llguidance": "MIT",
    "markupsafe": "BSD-3-Clause",
    "numpy": "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0",
    "starlette": "BSD-3-Clause",
    "typing-extensions": "PSF-2.0",
    "watchdog": "Apache-2.0",
}
_MIT_OR_APACHE = "MIT OR Apache-2.0"
CRATE_LICENSES = {
    **dict.fromkeys(
        (
            *("addr2line", "ahash", "anyhow", "base64", "bit-set", "bit-vec", "crossbeam-deque", "crossbeam-epoch"),
            *("gimli", "hashbrown", "indexmap", "once_cell", "parking_lot", "parking_lot_core", "percent-encoding"),
            *("pyo3", "pyo3-ffi", "rand", "rand_chacha", "rayon", "rayon-core", "regex", "regex-automata"),
            *("regex-syntax", "rustc-demangle", "serde", "serde_json", "smallvec", "unicode-normalization-alignments"),
            "unicode-segmentation",
        ),
        _MIT_OR_APACHE,
    ),
    **dict.fromkeys(("derivre", "fancy-regex", "fluent-uri", "referencing", "tiktoken-rs"), "MIT"),
    **dict.fromkeys(("aho-corasick", "memchr"), "Unlicense OR MIT"),
    **dict.fromkeys(("spm_precompiled", "tokenizers"), "Apache-2.0"),
    "miniz_oxide": "MIT OR Zlib OR Apache-2.0",
}
LLVM_LICENSE = "Apache-2.0 WITH LLVM-exception"
# The start files of glibc in each program that is linked with it: they may be part of any program.
_START_FILES_LICENSE = "LGPL-2.1-or-later WITH GCC-exception-2.0"

BOOTLOADER, ENGINE, GRAMMARS, PYTHON = "PyInstaller bootloader", "llama.cpp", "llguidance", "CPython"
# Rust's compiler leaves the path of each source file that can panic.
_CRATE = re.compile(rb"/(?:registry/src/[^/]+|rust/deps)/([\w.+-]+?)-(\d+\.\d+\.\d+[\w.+-]*)/")
_RUST_VERSION = re.compile(rb"rustc version (\d+\.\d+\.\d+)")


@dataclass(frozen=True)
class Component:
    """A work that is in the file.

    `part_of` names the component that it is linked into, "" for what lies in the file by itself. `archive` is the name
    of what was fetched to make it, and `sha256` the hash of that; both are "" where nothing single was fetched.
    """

    name: str
    version: str
    license: str
    purl: str
    part_of: str = ""
    archive: str = ""
    sha256: str = ""


def components(target: Target) -> list[Component]:
    """All of a machine's file, except for Shimmy itself."""
    return [
        *python_packages(target),
        *_engine_parts(target),
        *vulkan_headers(shader_compiler.edition()),
        *_runtime_libraries(ENGINE),
        *_runtime_libraries(numpy_core.PACKAGE),
        *crates(grammar_library(target)),
        *_python_and_libraries(),
        *_bootloader_parts(),
        _c_library(target),
    ]


def python_packages(target: Target) -> list[Component]:
    """Those that pyproject.toml pins and the file holds."""
    pinned = dict(requirement.split("==") for requirement in requirements())
    found = []
    for name in sorted(PACKAGES):
        if name not in PACKAGE_LICENSES:
            raise BuildError(f"`{name}` is in the file: write its licence into `{Path(__file__).name}`")
        version = pinned[name]
        archive = _archive_of(name, target)
        found.append(
            Component(
                name,
                version,
                PACKAGE_LICENSES[name],
                f"pkg:pypi/{name}@{version}",
                archive=archive.name if archive else "",
                sha256=_hash_of(archive) if archive else "",
            )
        )
    return found


def crates(library: bytes) -> list[Component]:
    """The Rust packages in llguidance's library: those that it names in messages of errors, and Rust's own library."""
    found = []
    for name, version in sorted({(name.decode(), version.decode()) for name, version in _CRATE.findall(library)}):
        if name not in CRATE_LICENSES:
            raise BuildError(f"the crate `{name}` is in llguidance: write its licence into `{Path(__file__).name}`")
        found.append(Component(name, version, CRATE_LICENSES[name], f"pkg:cargo/{name}@{version}", GRAMMARS))
    if (rust := _RUST_VERSION.search(library)) is None or not found:
        raise BuildError("llguidance's library does not tell what is in it")
    version = rust[1].decode()
    found.append(
        Component("Rust standard library", version, _MIT_OR_APACHE, f"pkg:generic/rust-std@{version}", GRAMMARS)
    )
    return found


def _archive_of(package: str, target: Target) -> Path | None:
    """What the compiled part of a package comes from; the others are Python code of the package index."""
    if package == ENGINE_PACKAGE:
        return source_package()
    if package == numpy_core.PACKAGE:
        return numpy_core.source_package()
    return wheel_of(package, target) if package in {"llguidance", "markupsafe"} else None


def _engine_parts(target: Target) -> list[Component]:
    archive = source_package()
    version = llama_cpp_version(engine(target)) or "unknown"
    purl = f"pkg:generic/llama.cpp@{version}"
    return [
        Component(ENGINE, version, "MIT", purl, archive=archive.name, sha256=_hash_of(archive)),
        Component("llamafile sgemm", "", "MIT", "pkg:generic/llamafile-sgemm", ENGINE),
    ]


def vulkan_headers(edition: shader_compiler.Edition) -> list[Component]:
    """What llama.cpp's library for GPUs is compiled with. The compiler of the shaders leaves nothing of its own."""
    rows = (
        ("Vulkan-Headers", edition.vulkan_headers, "Apache-2.0 OR MIT"),
        ("SPIRV-Headers", edition.spirv_headers, "MIT"),
    )
    found = []
    for name, package, license_expression in rows:
        purl = f"pkg:deb/debian/{package.name}@{package.version}?arch={package.architecture}"
        archive = f"{package.name}_{package.version}_{package.architecture}.deb"
        found.append(Component(name, package.version, license_expression, purl, ENGINE, archive, package.sha256))
    return found


def _runtime_libraries(part_of: str) -> list[Component]:
    """What the compiler links into a library in C++."""
    zig, llvm = zig_version(), _llvm_version()
    names = ("libc++", "libc++abi", "libunwind")
    return [
        *(Component(name, llvm, LLVM_LICENSE, f"pkg:generic/{name}@{llvm}", part_of) for name in names),
        Component("zig compiler-rt", zig, f"MIT AND {LLVM_LICENSE}", f"pkg:pypi/ziglang@{zig}", part_of),
    ]


def _python_and_libraries() -> list[Component]:
    rows = (
        (PYTHON, sources.PYTHON, "Python-2.0.1", ""),
        ("zlib", sources.ZLIB, "Zlib", PYTHON),
        ("liblzma", sources.XZ, "0BSD", PYTHON),
        ("libffi", sources.LIBFFI, "MIT", PYTHON),
        ("OpenSSL", sources.OPENSSL, "Apache-2.0", PYTHON),
    )
    found = []
    for name, source, license_expression, part_of in rows:
        version = re.sub(r".*really", "", source.archive.partition("_")[2].partition(".orig.")[0])
        purl = f"pkg:generic/{name.lower()}@{version}"
        found.append(Component(name, version, license_expression, purl, part_of, source.archive, source.sha256))
    return found


def _bootloader_parts() -> list[Component]:
    archive, packer = bootloader.source_package(), bootloader.source_package(bootloader.LIBDEFLATE_PACKAGE)
    version = bootloader.version(bootloader.PACKAGE)
    zlib, libdeflate, musl = _zlib_version(archive), _libdeflate_version(packer), _musl_version()
    return [
        Component(
            BOOTLOADER,
            version,
            "GPL-2.0-or-later WITH Bootloader-exception",
            f"pkg:pypi/pyinstaller@{version}",
            archive=archive.name,
            sha256=_hash_of(archive),
        ),
        Component("zlib", zlib, "Zlib", f"pkg:generic/zlib@{zlib}", BOOTLOADER),
        Component(
            "libdeflate",
            libdeflate,
            "MIT",
            f"pkg:generic/libdeflate@{libdeflate}",
            BOOTLOADER,
            packer.name,
            _hash_of(packer),
        ),
        Component("musl", musl, "MIT", f"pkg:generic/musl@{musl}", BOOTLOADER),
        Component("glibc start files", "", _START_FILES_LICENSE, "pkg:generic/glibc", BOOTLOADER),
    ]


def _c_library(target: Target) -> Component:
    package, digest = c_library.package(target), c_library.HASHES[target.debian_architecture]
    purl = f"pkg:deb/debian/libc6@{c_library.VERSION}?arch={target.debian_architecture}"
    return Component("glibc", c_library.VERSION, "LGPL-2.1-or-later", purl, archive=package.name, sha256=digest)


def _llvm_version() -> str:
    text = (zig_folder() / "lib/libcxx/include/__config").read_text()
    found = re.search(r"define _LIBCPP_VERSION (\d\d)(\d\d)(\d\d)", text)
    assert found is not None
    return ".".join(str(int(part)) for part in found.groups())


def _musl_version() -> str:
    found = re.search(r'VERSION "(.*)"', (zig_folder() / "lib/libc/musl/src/internal/version.h").read_text())
    assert found is not None
    return found[1]


def _zlib_version(archive: Path) -> str:
    """Of the one that PyInstaller's sources bring along."""
    found = re.search(r'define ZLIB_VERSION "(.*)"', text_in(archive, "bootloader/zlib/zlib.h"))
    assert found is not None
    return found[1]


def _libdeflate_version(archive: Path) -> str:
    found = re.search(r'define LIBDEFLATE_VERSION_STRING\s+"(.*)"', text_in(archive, "/libdeflate/libdeflate.h"))
    assert found is not None
    return found[1]


def _hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
