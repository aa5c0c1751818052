"""The C libraries that Python is linked with: zlib, liblzma, libffi and OpenSSL, static, for one machine.

Knows how each is compiled, and which parts of it are left out.
"""

import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.portable import sources
from tools.portable.compiler import Compiler, compiler, run_logged
from tools.portable.target import Target
from tools.steps import BuildError, Stamp, key_of, key_of_files, run, say

FLAGS = ("-O3", "-g0", "-fPIC")
N_JOBS = str(len(os.sched_getaffinity(0)))

_FFI_CONFIG = Path(__file__).with_name("ffi_config.h")
_FFI_NAMES = {"x86_64": "X86_64", "aarch64": "AARCH64"}
_FFI_FILES = {
    "x86_64": ("x86/ffi64.c", "x86/unix64.S", "x86/ffiw64.c", "x86/win64.S"),
    "aarch64": ("aarch64/ffi.c", "aarch64/sysv.S"),
}
_XZ_OPTIONS = (
    *("BUILD_SHARED_LIBS", "BUILD_TESTING", "XZ_DOC", "XZ_NLS", "XZ_TOOL_LZMADEC", "XZ_TOOL_LZMAINFO"),
    *("XZ_TOOL_SCRIPTS", "XZ_TOOL_XZ", "XZ_TOOL_XZDEC"),
)
# What Python's `ssl` does not offer, what no server speaks any more, and what only servers of other kinds use.
_OPENSSL_OPTIONS = [
    f"no-{name}"
    for name in (
        *(
            "apps",
            "aria",
            "async",
            "bf",
            "blake2",
            "camellia",
            "cast",
            "cmp",
            "cms",
            "comp",
            "ct",
            "des",
            "dso",
            "dtls",
        ),
        *("docs", "ec2m", "engine", "gost", "http", "idea", "legacy", "md4", "mdc2", "module", "ocsp", "psk", "quic"),
        *("rc2", "rc4", "rfc3779", "rmd160", "scrypt", "seed", "shared", "siphash", "sm2", "sm3", "sm4", "srp", "srtp"),
        *("ssl3", "tests", "tls1", "tls1_1", "ts", "ui-console", "whirlpool", "ml-dsa", "slh-dsa"),
    )
]


def libraries(target: Target) -> Path:
    """A folder with `include` and `lib` for the target, built once."""
    place = target.folder / "libraries"
    own_files = [
        Path(__file__),
        _FFI_CONFIG,
        *(Path(__file__).with_name(name) for name in ("zig-cc", "requirements.txt")),
    ]
    archives = [source.sha256 for source in (sources.ZLIB, sources.XZ, sources.LIBFFI, sources.OPENSSL)]
    stamp = Stamp(target.folder / "libraries-stamp", key_of(key_of_files(own_files), *archives))
    if stamp.holds():
        return place
    shutil.rmtree(place, ignore_errors=True)
    for name in ("include", "lib"):
        (place / name).mkdir(parents=True)
    work = target.folder / "libraries-work"
    shutil.rmtree(work, ignore_errors=True)
    chosen = compiler(target.glibc_triple)
    for build in (_zlib, _liblzma, _libffi, _openssl):
        say(f"portable: compiling {build.__name__.strip('_')} for {target.machine}")
        folder = work / build.__name__.strip("_")
        folder.mkdir(parents=True)
        build(target, chosen, folder, place)
    stamp.write()
    return place


def _zlib(_: Target, chosen: Compiler, folder: Path, place: Path) -> None:
    source = sources.unpacked(sources.ZLIB)
    defines = ("-D_LARGEFILE64_SOURCE=1", "-DHAVE_HIDDEN", "-DHAVE_UNISTD_H")
    _archive("libz.a", sorted(source.glob("*.c")), defines, chosen, folder, place)
    _copy_headers((source / "zlib.h", source / "zconf.h"), place)


def _liblzma(target: Target, chosen: Compiler, folder: Path, place: Path) -> None:
    source = sources.unpacked(sources.XZ)
    definitions = {
        **chosen.cmake_definitions,
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": target.machine,
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_C_FLAGS": " ".join(FLAGS),
        "CMAKE_POSITION_INDEPENDENT_CODE": "ON",
        **dict.fromkeys(_XZ_OPTIONS, "OFF"),
    }
    log, environment = target.folder / "libraries.log", chosen.environment
    cmake: list[str | Path] = ["cmake", "-G", "Ninja", "-S", source, "-B", folder]
    run_logged(log, [*cmake, *(f"-D{name}={value}" for name, value in definitions.items())], folder, environment)
    run_logged(log, ["ninja", "-j", N_JOBS, "liblzma"], folder, environment)
    shutil.copy(folder / "liblzma.a", place / "lib")
    shutil.copytree(source / "src" / "liblzma" / "api", place / "include", dirs_exist_ok=True)


def _libffi(target: Target, chosen: Compiler, folder: Path, place: Path) -> None:
    source = sources.unpacked(sources.LIBFFI)
    machine = target.machine
    values = {
        "VERSION": "3.4.8",
        "FFI_VERSION_STRING": "3.4.8",
        "FFI_VERSION_NUMBER": "30408",
        "TARGET": _FFI_NAMES[machine],
        "HAVE_LONG_DOUBLE": "1",
        "HAVE_LONG_DOUBLE_VARIANT": "0",
        "FFI_EXEC_TRAMPOLINE_TABLE": "0",
    }
    header = (source / "include" / "ffi.h.in").read_text()
    for name, value in values.items():
        header = header.replace(f"@{name}@", value)
    (folder / "ffi.h").write_text(header)
    shutil.copy(_FFI_CONFIG, folder / "fficonfig.h")
    first = _FFI_FILES[machine][0].partition("/")[0]
    shutil.copy(source / "src" / first / "ffitarget.h", folder)
    common = ("prep_cif.c", "types.c", "raw_api.c", "java_raw_api.c", "closures.c", "tramp.c")
    files = [source / "src" / name for name in (*common, *_FFI_FILES[machine])]
    options = ("-DHAVE_CONFIG_H", "-D_GNU_SOURCE", f"-I{folder}", f"-I{source}/include", f"-I{source}/src")
    _archive("libffi.a", files, options, chosen, folder, place)
    _copy_headers((folder / "ffi.h", folder / "ffitarget.h"), place)


def _openssl(target: Target, chosen: Compiler, folder: Path, place: Path) -> None:
    source = sources.unpacked(sources.OPENSSL)
    log, environment = target.folder / "libraries.log", chosen.environment
    configure = ["perl", f"{source}/Configure", f"linux-{target.machine}", *_OPENSSL_OPTIONS]
    # Nothing is installed there. Certificates are the system's, which is where most keep them.
    folders = ["--prefix=/usr", "--libdir=lib", "--openssldir=/etc/ssl"]
    run_logged(log, [*configure, *folders, *FLAGS], folder, environment)
    run_logged(log, ["make", "-s", "-j", N_JOBS, "build_libs"], folder, environment)
    for name in ("libssl.a", "libcrypto.a"):
        shutil.copy(folder / name, place / "lib")
    shutil.copytree(source / "include" / "openssl", place / "include" / "openssl", dirs_exist_ok=True)
    shutil.copytree(folder / "include" / "openssl", place / "include" / "openssl", dirs_exist_ok=True)


def _archive(
    name: str, files: Iterable[Path], options: Iterable[str], chosen: Compiler, folder: Path, place: Path
) -> None:
    """Compile files and leave a static library of them in `place`."""

    def compile_one(file: Path) -> Path:
        target = folder / f"{file.name}.o"
        run([chosen.cc, *FLAGS, *options, "-c", file, "-o", target], **chosen.environment)
        return target

    with ThreadPoolExecutor(int(N_JOBS)) as threads:
        objects = list(threads.map(compile_one, files))
    run(["ar", "rcs", place / "lib" / name, *objects], **chosen.environment)


def _copy_headers(headers: Iterable[Path], place: Path) -> None:
    for header in headers:
        if not header.exists():
            raise BuildError(f"`{header}` is not there")
        shutil.copy(header, place / "include")
