"""What systemd does to a service before it starts: a filter of system calls, no new rights, no memory that is written
to and executed. For tests of units where there is no systemd; x86-64 only.

`python -m tests.packaging.sandbox UNIT PROGRAM ...` runs a program within the limits of a unit.
"""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests import seccomp

NUMBERS = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


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
    numbers = {name: int(number) for name, number in re.findall(r"__NR_(\w+) (\d+)", NUMBERS.read_text())}
    if not may_write_and_execute:
        seccomp.refuse_to_execute_what_was_written()
    known = sorted(numbers[name] for name in allowed & numbers.keys())
    rules = [(range(number, number + 1), seccomp.ALLOW) for number in known]
    seccomp.install(rules, seccomp.fail_with(errno.EPERM))


if __name__ == "__main__":
    unit = Path(sys.argv[1]).read_text()
    restrict(unit_filter(unit), may_write_and_execute="MemoryDenyWriteExecute=yes" not in unit)
    os.execvp(sys.argv[2], sys.argv[2:])
