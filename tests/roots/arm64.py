"""`python -m tests.roots.arm64 FILE [PYTEST_ARGUMENT...]`: end-to-end tests of the file for ARM64, in QEMU's user mode.

`--only VARIANT` takes the processors that get this CPU variant. Knows which processors QEMU has, and which CPU variant
of the engine each of them has to get. Needs root, since the kernel is told that ARM64 programs are started by QEMU
(binfmt_misc). There is no ARM64 C library here, so that the file runs with its own.
"""

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import PATIENCE
from tools.steps import ROOT

QEMU = "qemu-aarch64-static"
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_NAME = "qemu-aarch64"
# The beginning of an ELF program for ARM64, and which of its bits count.
_MAGIC = "7f454c460201010000000000000000000200b700"
_MASK = "ffffffffffffff00fffffffffffffffffeffffff"
# The kernel opens the program (O), which may be named by a descriptor that closes then; the program keeps its own first
# argument (P); QEMU is opened now (F), for other roots.
_FLAGS = "OPF"
SLOWER = 12  # how many times as long everything may take as on a processor

MAIN_JOB = ("tests/e2e/test_machines.py",)
MAIN_PATHS = (
    *MAIN_JOB,
    "tests/e2e/test_models.py",
    "tests/e2e/test_swap.py",
    "tests/e2e/test_shutdown.py",
    "tests/e2e/test_embeddings.py",
    "tests/e2e/test_safetensors.py",
    "tests/e2e/test_control.py",
)


@dataclass(frozen=True)
class Processor:
    """One of QEMU's, and what runs on it."""

    name: str
    variant: str  # that it has to get, or, where `is_forced`, that is asked for
    tests: tuple[str, ...] = MAIN_JOB
    is_forced: bool = False


PROCESSORS = (
    Processor("cortex-a53", "armv8.0_1"),  # a Raspberry Pi 3 and 4 can do as much
    Processor("cortex-a76", "armv8.2_2", MAIN_PATHS),  # a Raspberry Pi 5
    Processor("a64fx", "armv8.0_1"),  # SVE, but no products of 8-bit vectors, which the variants with SVE want
    Processor("max,sme=off", "armv8.6_2"),  # with SVE2 and products of 8-bit matrices, as Graviton 4
    Processor("max", "armv9.2_2"),  # with SME
    # QEMU 7.2 has no processor for which these are the best.
    Processor("max", "armv8.2_3", is_forced=True),  # SVE
    Processor("max", "armv8.6_1", is_forced=True),  # SVE and products of 8-bit matrices, as Graviton 3
)


def main() -> int:
    """Run the tests on each processor, and tell how they went."""
    parser = argparse.ArgumentParser(prog="tests.roots.arm64")
    parser.add_argument("--only", action="append", choices=[processor.variant for processor in PROCESSORS])
    parser.add_argument("file", type=Path)
    options, arguments = parser.parse_known_args()
    _start_programs_by_qemu()
    outcomes = {}
    for processor in PROCESSORS:
        if options.only and processor.variant not in options.only:
            continue
        title = f"{processor.name}: {processor.variant}"
        print(f"== {title}", flush=True)
        environment = os.environ | {
            "SHIMMY_BIN": str(options.file.resolve()),
            "SHIMMY_TEST_PATIENCE": str(SLOWER * PATIENCE),
            "SHIMMY_TEST_EXPECTED_VARIANT": processor.variant,
            "QEMU_CPU": processor.name,
        }
        if processor.is_forced:
            environment["SHIMMY_TEST_CPU_VARIANT"] = processor.variant
        command = [sys.executable, "-m", "pytest", "-q", *processor.tests, *arguments]
        outcomes[title] = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    for name, code in outcomes.items():
        print(f"{name:24} {'good' if code == 0 else 'FAILED'}")
    return int(any(outcomes.values()))


def _start_programs_by_qemu() -> None:
    qemu = shutil.which(QEMU)
    if qemu is None:
        sys.exit(f"tests.roots.arm64: there is no {QEMU}: install Debian's package qemu-user-static")
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "none", _BINFMT], check=True)
    if not (_BINFMT / _NAME).exists():
        magic, mask = ("".join(f"\\x{text[at : at + 2]}" for at in range(0, len(text), 2)) for text in (_MAGIC, _MASK))
        (_BINFMT / "register").write_text(f":{_NAME}:M::{magic}:{mask}:{qemu}:{_FLAGS}")


if __name__ == "__main__":
    sys.exit(main())
