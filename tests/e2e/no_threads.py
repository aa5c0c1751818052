"""Runs a program in a container of before 2021, as far as it sees: no threads, as clone3 fails with EPERM.

    python no_threads.py PROGRAM ARGUMENT...

The filter is seccomp's, as container runtimes set it: `clone3` fails, and with it every thread of glibc 2.34 and later;
`clone` with CLONE_THREAD fails as well, for other C libraries. Processes start as ever.
"""

import ctypes
import os
import platform
import struct
import sys

_SYSTEM_CALLS = {"x86_64": (0xC000003E, 56, 435), "aarch64": (0xC00000B7, 220, 435)}  # architecture, clone, clone3
_CLONE_THREAD = 0x00010000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF's instructions
_ALLOW, _FAIL_WITH_EPERM = 0x7FFF0000, 0x00050000 | 1
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # places in struct seccomp_data


def forbid_threads() -> None:
    """For this process and its children, for ever."""
    architecture, clone, clone3 = _SYSTEM_CALLS[platform.machine()]
    instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, 5, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 4, 0, clone3),
        (_EQUAL, 0, 2, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL_WITH_EPERM),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
    program = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(code))
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if library.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no filter of system calls")


if __name__ == "__main__":
    forbid_threads()
    os.execv(sys.argv[1], sys.argv[1:])
