"""`python -m tests.roots FILE [PYTEST_ARGUMENT...]`: end-to-end tests of a portable file in other systems.

`--only SYSTEM` takes one of them, `--quick` the shortest test in each. Knows what each system is made of: what a person
would have there is left out, except for the C library. Needs root, and Debian's packages of the C libraries. Ends with
1 where a test fails in one of them. For others than root, `--quick` passes with a line that says that nothing was run.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.roots import may_mount
from tests.roots.older_libc import without_versions_above
from tools.portable import c_library
from tools.portable.sources import binary_package, files_of
from tools.portable.target import GLIBC
from tools.steps import CACHE, ROOT

ROOTS = CACHE.resolve() / "roots"
MUSL = "1.2.2-1"
# The main paths, for the systems that differ in few things only.
MAIN_PATHS = (
    "tests/e2e/test_machines.py",
    "tests/e2e/test_swap.py",
    "tests/e2e/test_shutdown.py",
    "tests/e2e/test_safetensors.py",
)
# A converted model that no folder takes is a file in memory: old kernels have none, and only /proc gives it a name.
IN_MEMORY = ("tests/e2e/test_safetensors.py::test_a_cache_that_cannot_be_written_costs_nothing_but_memory",)
# A library that is compiled here, and this system's driver for Vulkan, ask for this system's C library.
COMPILED_HERE = (
    "tests/e2e/test_variants.py::test_a_variant_that_does_not_run_here_costs_nobody_an_answer",
    "tests/e2e/test_gpu_info.py",
    "tests/e2e/test_vulkan.py",
)
QUICK = ("tests/e2e/test_machines.py",)
SHORT = (*QUICK, "tests/e2e/test_safetensors.py", "tests/e2e/test_cli.py")
ANY_USER = 41_234


@dataclass(frozen=True)
class System:
    """A Linux to run in: how its root is made, how it is entered, and the tests that run there."""

    name: str
    make: Callable[[Path], None]
    options: Sequence[str] = ()
    tests: Sequence[str] = MAIN_PATHS
    left_out: Sequence[str] = ()  # tests of what the system cannot do


def main() -> int:
    """Run the tests in each system, and tell how they went."""
    parser = argparse.ArgumentParser(prog="tests.roots")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=[system.name for system in SYSTEMS])
    parser.add_argument("file", type=Path)
    options, arguments = parser.parse_known_args()
    if not may_mount():
        print("systems: NOT RUN, as this user may make no mount namespace: run it as root")
        return 0 if options.quick else 1
    outcomes = {}
    # Other runs of pytest close its usual folder to all other users.
    with TemporaryDirectory(prefix="shimmy-roots-") as folder:
        for system in SYSTEMS:
            if options.only and system.name not in options.only:
                continue
            tests = QUICK if options.quick else system.tests
            command = [
                *(sys.executable, "-m", "pytest", "-q", f"--basetemp={folder}/{system.name}"),
                *(*tests, *(f"--deselect={test}" for test in system.left_out), *arguments),
            ]
            environment = _environment(system, options.file)
            print(f"== {system.name}", flush=True)
            outcomes[system.name] = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    for name, code in outcomes.items():
        print(f"{name:20} {'good' if code == 0 else 'FAILED'}")
    return int(any(outcomes.values()))


def _environment(system: System, file: Path) -> dict[str, str]:
    """What the tests find the file and the system by, whose root is made anew."""
    root = ROOTS / system.name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    system.make(root)
    return os.environ | {"SHIMMY_BIN": str(file.resolve()), "SHIMMY_IN_ROOT": " ".join([*system.options, str(root)])}


def _nothing(_: Path) -> None:
    """No file at all."""


def _debian_11(root: Path) -> None:
    _unpack(root, "libc6", c_library.VERSION)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")


def _old_libc(root: Path) -> None:
    """Debian 11's C library with no version above the oldest that is asked for."""
    _debian_11(root)
    oldest = tuple(map(int, GLIBC.split(".")))
    for path in root.rglob("*.so*"):
        if path.is_file() and not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF":
            path.write_bytes(without_versions_above(path.read_bytes(), oldest))


def _musl(root: Path) -> None:
    _unpack(root, "musl", MUSL)


def _unpack(root: Path, package: str, version: str) -> None:
    with files_of(binary_package(package, "amd64", version)) as archive:
        archive.extractall(root)


SYSTEMS = (
    System("debian-11", _debian_11, tests=("tests/e2e",), left_out=COMPILED_HERE),
    System(f"glibc-{GLIBC}", _old_libc),
    System("empty", _nothing),
    System("musl", _musl),
    # Tests of SafeTensors let the program write where only they themselves may.
    System("any-user", _nothing, ("--user", str(ANY_USER)), MAIN_PATHS[:-1]),
    System("read-only", _debian_11, ("--read-only",)),
    System("linux-3.10", _debian_11, ("--system-calls", "linux-3.10"), SHORT, IN_MEMORY),
    System("old-docker", _nothing, ("--system-calls", "old-docker"), SHORT),
    System("no-proc", _nothing, ("--no-proc",), SHORT, IN_MEMORY),
    System("no-written-code", _debian_11, ("--no-written-code",), SHORT),
)


if __name__ == "__main__":
    sys.exit(main())
