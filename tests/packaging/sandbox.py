"""What systemd does to a service before it starts: a filter of system calls, no new rights, no memory that is written
to and executed. For tests of units where there is no systemd; x86-64 only.

`python -m tests.packaging.sandbox UNIT PROGRAM ...` runs a program within the limits of a unit.
"""

import ctypes
import errno
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

NUMBERS = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_SET_MDWE = 38, 22, 65
_SECCOMP_MODE_FILTER = 2
_MDWE_REFUSE_EXEC_GAIN = 1
_X86_64 = 0xC000003E
# linux/bpf_common.h, linux/seccomp.h
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def system_calls(names: Iterable[str]) -> set[str]:
    """The system calls of these names and of systemd's sets (`@system-service`) among them."""
    found: set[str] = set()
    for name in names:
        if name.startswith("@"):
            listing = subprocess.run(
                ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
            ).stdout
            members = [line.strip() for line in listing.splitlines()[1:] if line.strip() and "#" not in line]
            found |= system_calls(members)
        else:
            found.add(name)
    return found


def unit_filter(unit: str) -> set[str]:
    """The system calls that the `SystemCallFilter=` lines of a unit allow; a line with `~` takes some away."""
    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        names = system_calls(line.removeprefix("~").split())
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def restrict(allowed: set[str], *, may_write_and_execute: bool) -> None:
    """From now on, this process and its children get EPERM from other system calls."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    code = ctypes.create_string_buffer(_filter(allowed))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(code)))
    steps = [(_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head)]
    if not may_write_and_execute:
        steps.insert(0, (_PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN))
    for step in steps:
        if prctl(*step, *[0] * (5 - len(step))) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {step[0]} failed")


def _filter(allowed: set[str]) -> bytes:
    """A program of the kernel's packet filter: one comparison for each system call that passes."""
    numbers = {name: int(number) for name, number in re.findall(r"__NR_(\w+) (\d+)", NUMBERS.read_text())}
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT), (_JUMP_IF_EQUAL, 1, 0, _X86_64), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]  # fmt: skip
    for name in sorted(allowed & numbers.keys()):
        program += [(_JUMP_IF_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _ALLOW)]
    program.append((_RETURN, 0, 0, _FAIL | errno.EPERM))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


if __name__ == "__main__":
    unit = Path(sys.argv[1]).read_text()
    restrict(unit_filter(unit), may_write_and_execute="MemoryDenyWriteExecute=yes" not in unit)
    os.execvp(sys.argv[2], sys.argv[2:])
