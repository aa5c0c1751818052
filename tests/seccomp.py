"""Filters of system calls for this process and its children, as containers and systemd have them. x86-64 only.

Format: seccomp(2), linux/bpf_common.h. Imports little: tests/roots/in_root.py needs it at each start of a server.
"""

import ctypes
import os
import struct
from collections.abc import Sequence

ALLOW = 0x7FFF0000
_FAIL, _KILL = 0x00050000, 0x80000000

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_SET_MDWE = 38, 22, 65
_SECCOMP_MODE_FILTER = 2
_MDWE_REFUSE_EXEC_GAIN = 1
_X86_64 = 0xC000003E
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_ABOVE, _JUMP_FROM, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4

Rule = tuple[range, int]  # system calls by their numbers, and what becomes of them


def fail_with(number: int) -> int:
    """What becomes of a system call: it fails with this `errno`."""
    return _FAIL | number


def install(rules: Sequence[Rule], otherwise: int) -> None:
    """From now on the first rule with a system call's number says what becomes of it. Raises OSError."""
    code = ctypes.create_string_buffer(_program(rules, otherwise))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(code)))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head)


def refuse_to_execute_what_was_written() -> None:
    """What systemd calls MemoryDenyWriteExecute. Raises OSError, as on kernels before 6.3."""
    _prctl(_PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN)


def _prctl(*arguments: "int | ctypes.Array[ctypes.c_char]") -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(*arguments, *[0] * (5 - len(arguments))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {arguments[0]!r}: {os.strerror(number)}")


def _program(rules: Sequence[Rule], otherwise: int) -> bytes:
    """Instructions of the kernel's packet filter: code, how many to skip if so and if not, and a number."""
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT), (_JUMP_IF_EQUAL, 1, 0, _X86_64), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]  # fmt: skip
    for numbers, action in rules:
        program += [(_JUMP_FROM, 0, 2, numbers[0]), (_JUMP_IF_ABOVE, 1, 0, numbers[-1]), (_RETURN, 0, 0, action)]
    program.append((_RETURN, 0, 0, otherwise))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
