"""What a process gives up for good: its files and the network.

Knows Linux. What the kernel does not have is left out: this is a second wall, and nothing hangs on it alone.
"""

import ctypes
import os
import resource
from contextlib import suppress

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
# linux/landlock.h; the numbers of the calls are the same on all machines.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
# By the version of the interface: which of its rights there are, on files and on the network.
_FILE_RIGHTS = (0, 13, 14, 15, 15, 16)
_NETWORK_SINCE, _NETWORK_RIGHTS = 4, 0b11


def give_up_files_and_network() -> bool:
    """Open no more files and connections, start no more programs, and dump no core; False where the kernel only does a
    part of that. Files that are open stay so, and so do loaded libraries. It holds for this thread and those that it
    starts."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.syscall.restype = ctypes.c_long
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    rights = (ctypes.c_uint64 * 2)(2 ** _FILE_RIGHTS[min(version, len(_FILE_RIGHTS) - 1)] - 1, 0)
    if version >= _NETWORK_SINCE:
        rights[1] = _NETWORK_RIGHTS
    size = ctypes.sizeof(rights) if version >= _NETWORK_SINCE else ctypes.sizeof(rights) // 2
    ruleset = libc.syscall(_CREATE_RULESET, rights, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    is_done: bool = libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return is_done and version >= _NETWORK_SINCE
