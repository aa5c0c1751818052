"""CPython of our own: one library with the modules that Shimmy imports, for any Linux since glibc 2.17.

Knows what CPython is told to leave out, and the two places of its sources that ask for more than such a system has.
The one for this machine also runs the build of the others.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tools.portable import sources
from tools.portable.compiler import compiler, run_logged
from tools.portable.libraries import FLAGS, N_JOBS, libraries
from tools.portable.target import BUILD_MACHINE, PORTABLE, Target
from tools.steps import BuildError, Stamp, key_of, key_of_files, say

VERSION = "3.13"
_SETUP = Path(__file__).with_name("setup_local")

# By file: what stands there, and what is written in its place.
_PATCHES = {
    "Python/thread_pthread.h": (
        # The C library ends a thread by the means of libgcc_s.so, which it looks for on the system and aborts without.
        # CPython 3.14 lets such threads, which all belong to a program that ends, wait as well.
        "    pthread_exit(0);",
        "    for (;;) pause();",
    ),
    "Modules/posixmodule.c": (
        # Linux has this call since 3.17, and glibc its name since 2.27.
        "/* eventfd() */",
        "#define memfd_create(name, flags) ((int)syscall(SYS_memfd_create, (name), (flags)))\n\n/* eventfd() */",
    ),
}
_OPTIONS = (
    *("--enable-shared", "--without-static-libpython", "--without-ensurepip", "--disable-test-modules"),
    *("--without-doc-strings", "--without-mimalloc", "--without-readline", "--with-computed-gotos", "--enable-ipv6"),
)
# What configure would find out by running a program, which it cannot for another machine.
_ANSWERS = {
    "ac_cv_file__dev_ptmx": "yes",
    "ac_cv_file__dev_ptc": "no",
    "ac_cv_func_memfd_create": "yes",
    "ac_cv_header_sys_memfd_h": "no",
    "PKG_CONFIG": "/bin/false",
}


@dataclass(frozen=True)
class Python:
    """An installed CPython of one machine."""

    prefix: Path

    @property
    def program(self) -> Path:
        """The interpreter."""
        return self.prefix / "bin" / f"python{VERSION}"

    @property
    def library(self) -> Path:
        """`libpython`, which the frozen file brings along."""
        return self.prefix / "lib" / f"libpython{VERSION}.so.1.0"

    @property
    def ssl_module(self) -> Path:
        """The extension module `_ssl`, with OpenSSL inside."""
        return next(self.prefix.glob(f"lib/python{VERSION}/lib-dynload/_ssl.*.so"))

    @property
    def environment(self) -> dict[str, str]:
        """For running it: it does not know where its library lies."""
        return {"LD_LIBRARY_PATH": str(self.prefix / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}


def python(target: Target) -> Python:
    """CPython for a machine, built once."""
    made = Python(target.folder / "python")
    own_files = [
        Path(__file__),
        *(Path(__file__).with_name(name) for name in ("setup_local", "libraries.py", "zig-cc")),
    ]
    stamp = Stamp(target.folder / "python-stamp", key_of(key_of_files(own_files), sources.PYTHON.sha256))
    if stamp.holds():
        return made
    dependencies = libraries(target)
    log, work = target.folder / "python.log", target.folder / "python-work"
    for folder in (work, made.prefix):
        shutil.rmtree(folder, ignore_errors=True)
    (work / "Modules").mkdir(parents=True)
    shutil.copy(_SETUP, work / "Modules" / "Setup.local")
    log.unlink(missing_ok=True)
    environment = _environment(target, dependencies)
    say(f"portable: compiling Python for {target.machine}")
    configure = [
        os.path.relpath(_patched_sources() / "configure", work),  # the library remembers it
        *_OPTIONS,
        "--prefix=/python",  # it finds its modules beside itself
        f"--with-openssl={dependencies}",
    ]
    if target != BUILD_MACHINE:
        configure += [f"--host={target.machine}-linux-gnu", f"--build={BUILD_MACHINE.machine}-pc-linux-gnu"]
        configure.append(f"--with-build-python={python(BUILD_MACHINE).program}")
        environment |= python(BUILD_MACHINE).environment
    run_logged(log, configure, work, environment)
    # Without `libpython3.so`, which zig cannot link as it has no code of its own.
    run_logged(log, ["make", "-s", "-j", N_JOBS, "PY3LIBRARY="], work, environment)
    run_logged(log, ["make", "-s", "PY3LIBRARY=", f"DESTDIR={target.folder}", "install"], work, environment)
    if not made.library.exists():
        raise BuildError(f"CPython was not installed; see `{log}`")
    stamp.write()
    return made


def _environment(target: Target, dependencies: Path) -> dict[str, str]:
    include, lib = dependencies / "include", dependencies / "lib"
    libraries_by_name = {"LIBLZMA": "-llzma", "ZLIB": "-lz", "LIBFFI": "-lffi"}
    return {
        **compiler(target.glibc_triple).environment,
        **_ANSWERS,
        "READELF": shutil.which("readelf") or "readelf",
        "CFLAGS": " ".join(FLAGS),
        # CPython's own are lost when one gives some; it counts on signed numbers that wrap. The date of build in it is
        # that of SOURCE_DATE_EPOCH.
        "OPT": "-DNDEBUG -fwrapv -O3 -Wall -Wno-date-time",
        "CPPFLAGS": f"-I{include}",
        "LDFLAGS": f"-L{lib} -Wl,-s",
        **{f"{name}_CFLAGS": f"-I{include}" for name in libraries_by_name},
        **{f"{name}_LIBS": f"-L{lib} {flag}" for name, flag in libraries_by_name.items()},
        "PYTHONHASHSEED": "0",
        "HOME": os.environ.get("HOME", "/"),
    }


def _patched_sources() -> Path:
    source = sources.unpacked(sources.PYTHON)
    patched = PORTABLE / "sources" / f"python-{key_of(repr(_PATCHES))}"
    if patched.exists():
        return patched
    unfinished = patched.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished, symlinks=True)
    for name, (old, new) in _PATCHES.items():
        text = (unfinished / name).read_text()
        if text.count(old) != 1:
            raise BuildError(f"CPython's {name} is not what it was: look at the patches in `{Path(__file__).name}`")
        (unfinished / name).write_text(text.replace(old, new))
    unfinished.rename(patched)
    return patched
