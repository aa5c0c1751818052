"""numpy without what conversions do not use: its arrays, types and loops, compiled from its source package.

The library in numpy's wheel has each loop for five kinds of processors and asks for a BLAS: 7 MB packed, and a newer C
library. This one has each loop once, for any processor of the machine, and takes 1 MB. Knows numpy's own build and what
of numpy is left out; what stands in for its `__init__` is in tools/stand_ins/numpy/.
"""

import lzma
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.stand_in_files import FOLDER
from tools.steps import CACHE, VENV, key_of, key_of_files, requirements, run, say, unpack_once, venv_python

PACKAGE = "numpy"
EXTENSION = "numpy._core._multiarray_umath"

_OPTIONS = {
    "buildtype": "release",
    "b_ndebug": "if-release",
    **dict.fromkeys(("blas", "lapack", "cpu-baseline", "cpu-dispatch"), "none"),
    **dict.fromkeys(("disable-svml", "disable-intel-sort", "disable-highway"), "true"),
}
# How `long double` lies in memory, which numpy's build would find out by running a program.
_LONG_DOUBLES = {"x86_64": "INTEL_EXTENDED_16_BYTES_LE", "aarch64": "IEEE_QUAD_LE"}
_C_FLAGS = ("-ffunction-sections", "-fdata-sections")
_LINK_FLAGS = ("-Wl,-s", "-Wl,--gc-sections")

# By module: the file of it in numpy's package.
_MODULES = (
    *("_globals", "_pytesttester", "_utils/__init__", "_utils/_convertions", "_utils/_inspect", "dtypes"),
    *("exceptions", "version", "_core/__init__", "_core/_asarray", "_core/_dtype", "_core/_dtype_ctypes"),
    *("_core/_exceptions", "_core/_internal", "_core/_methods", "_core/_string_helpers", "_core/_type_aliases"),
    *("_core/_ufunc_config", "_core/arrayprint", "_core/einsumfunc", "_core/fromnumeric", "_core/function_base"),
    *("_core/getlimits", "_core/memmap", "_core/multiarray", "_core/numeric", "_core/numerictypes"),
    *("_core/overrides", "_core/printoptions", "_core/records", "_core/shape_base", "_core/umath"),
)
# Of parts of the library, in numpy/_core. What is switched off above has others.
_LICENSES = (
    "include/numpy/libdivide/LICENSE.txt",
    "src/common/pythoncapi-compat/COPYING",
    "src/multiarray/dragon4_LICENSE.txt",
)
_STAND_INS_FOLDER = FOLDER / "numpy"
_STAND_INS = {
    PACKAGE: _STAND_INS_FOLDER / "__init__.py",
    "numpy._core._add_newdocs": _STAND_INS_FOLDER / "docs.py",
    "numpy._core._add_newdocs_scalars": _STAND_INS_FOLDER / "docs.py",
    EXTENSION: _STAND_INS_FOLDER / "extension.py",
    "numpy.typing": _STAND_INS_FOLDER / "typing.py",
}

# What pip asks of a source package that it downloads. The answer of numpy's own is a configured build, after minutes.
_BACKEND = """\
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, settings=None):
    place = Path(folder, "numpy-{version}.dist-info")
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\\nName: numpy\\nVersion: {version}\\n")
    return place.name
"""


@dataclass(frozen=True)
class Toolchain:
    """What compiles the library for a machine: programs, flags for the linker of C++, variables.

    `python` is the one that the library is for, or one that answers like it and runs here.
    """

    machine: str
    cc: str | Path
    cxx: str | Path
    python: str | Path
    cxx_link_flags: Sequence[str]
    environment: Mapping[str, str]


def modules(package: Path) -> dict[str, Path]:
    """The sources of numpy's Python modules in the frozen file, by name; `package` is the folder of all of them."""
    names = {f"{PACKAGE}.{name}".replace("/", ".").removesuffix(".__init__"): f"{name}.py" for name in _MODULES}
    return {name: package / file for name, file in names.items()} | _STAND_INS


def core_key() -> str:
    """Names what the library depends on beside the toolchain."""
    return key_of(_requirement(), key_of_files([Path(__file__)]))


def packed(library: bytes, machine: str) -> bytes:
    """The library as it lies in the frozen file."""
    filters = [{"id": lzma.FILTER_X86}] if machine == "x86_64" else []
    return lzma.compress(library, filters=[*filters, {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}])


def compile_core(chosen: Toolchain, work: Path) -> bytes:
    """The library, compiled in the empty folder `work`."""
    say(f"numpy: compiling its core for {chosen.machine}, about 2 minutes on 2 cores")
    description, build = work / "machine.ini", work / "build"
    description.write_text(_description(chosen, build))
    # ninja, and Cython, which has to be there but is not used for this library.
    path = f"{VENV}/bin{os.pathsep}{chosen.environment.get('PATH', os.environ['PATH'])}"
    environment = {**chosen.environment, "PATH": path, "PYTHONHASHSEED": "0"}
    meson: list[str | Path] = [venv_python(), sources() / "vendored-meson" / "meson" / "meson.py"]
    options = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
    run([*meson, "setup", build, sources(), "--cross-file", description, *options], **environment)
    suffix = run([chosen.python, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"]).strip()
    library = f"{EXTENSION.replace('.', '/')}{suffix}"
    run([VENV / "bin" / "ninja", "-C", build, library], **environment)
    return (build / library).read_bytes()


def source_package() -> Path:
    """The source package, fetched once."""
    downloads = CACHE.resolve() / "sources"
    archive = downloads / f"{PACKAGE}-{version()}.tar.gz"
    if not archive.exists():
        say("numpy: fetching the source package")
        pip = [venv_python(), "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "download"]
        options = ["--no-deps", "--no-build-isolation", f"--no-binary={PACKAGE}", f"--dest={downloads}"]
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "mesonpy.py").write_text(_BACKEND.format(version=version()))
            run([*pip, *options, _requirement()], PYTHONPATH=folder)
    return archive


def sources() -> Path:
    """The source package, unpacked once."""
    archive = source_package()
    return unpack_once(archive, archive.with_name(archive.name.removesuffix(".tar.gz")))


def license_texts() -> str:
    """The licences of what is in the library: numpy's, and those of parts that others have written."""
    core = sources() / "numpy" / "_core"
    return "\n\n".join(path.read_text() for path in (sources() / "LICENSE.txt", *(core / name for name in _LICENSES)))


def version() -> str:
    """As pyproject.toml pins it."""
    return _requirement().partition("==")[2]


def _requirement() -> str:
    return next(name for name in requirements() if name.startswith(f"{PACKAGE}=="))


def _description(chosen: Toolchain, build: Path) -> str:
    """What meson is told. It takes any machine for one whose programs do not run here, so there is one way for all."""
    # ninja names the sources by their way from the build.
    places = (sources(), os.path.relpath(sources(), build.resolve()))
    c_flags = [*_C_FLAGS, *(f"-ffile-prefix-map={place}=." for place in places)]
    sections: dict[str, dict[str, object]] = {
        "binaries": {
            "c": str(chosen.cc),
            "cpp": str(chosen.cxx),
            "python": str(chosen.python),
            "pkg-config": "/bin/false",
        },
        "built-in options": {
            "c_args": c_flags,
            "cpp_args": c_flags,
            "c_link_args": [*_LINK_FLAGS],
            "cpp_link_args": [*_LINK_FLAGS, *chosen.cxx_link_flags],
        },
        "host_machine": {
            "system": "linux",
            "cpu_family": chosen.machine,
            "cpu": chosen.machine,
            "endian": "little",
        },
        "properties": {"longdouble_format": _LONG_DOUBLES[chosen.machine], "needs_exe_wrapper": True},
    }
    lines = []
    for title, settings in sections.items():
        lines += [f"[{title}]", *(f"{name} = {_meson(value)}" for name, value in settings.items())]
    return "\n".join(lines) + "\n"


def _meson(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
