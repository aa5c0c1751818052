"""`in_root.py [OPTION...] ROOT PROGRAM ARGUMENT...`: runs a program where ROOT is `/`.

    --user UID              as another user
    --read-only             nothing can be written in ROOT
    --no-proc               there is no /proc
    --system-calls KIND     some fail, see SYSTEM_CALLS
    --set NAME=VALUE        a variable of the program's, which may be no good for others
    --no-written-code       memory that was written to is not executed

The folders that tests use are there as they are here, in a mount namespace of the program's own: nothing stays mounted.
Knows Linux, and needs root. Imports little, as each start of a server under test passes here.
"""

import ctypes
import errno
import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from tests import seccomp  # noqa: E402 - a server's environment is as its test makes it

# The folders that are the same inside and outside. What they have of libraries is not where a program would look.
SHARED = ("/proc", "/dev", "/tmp", str(CHECKOUT), str((CHECKOUT / "models").resolve()))

_ENOSYS, _EPERM = seccomp.fail_with(errno.ENOSYS), seccomp.fail_with(errno.EPERM)
_CLONE3 = 435
# Which system calls there are, and how the others fail. Linux's arch/x86/entry/syscalls/syscall_64.tbl has the numbers.
SYSTEM_CALLS = {
    # Up to finit_module. The filters of container runtimes were asked to refuse clone3, whose flags they cannot see.
    "linux-3.10": ([(range(314), seccomp.ALLOW), (range(_CLONE3, _CLONE3 + 1), _EPERM)], _ENOSYS),
    # Up to statx: libseccomp before 2.4 knows no others, and Docker before 20.10.10 says EPERM to them.
    "old-docker": ([(range(333), seccomp.ALLOW)], _EPERM),
}

_OPTIONS = {"--user", "--read-only", "--no-proc", "--system-calls", "--no-written-code", "--set"}
_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


def main(arguments: list[str]) -> None:
    """Become the program."""
    options = {}
    while arguments[0].startswith("--"):
        option = arguments.pop(0)
        options[option] = arguments.pop(0) if option in ("--user", "--system-calls", "--set") else ""
    if unknown := options.keys() - _OPTIONS:
        sys.exit(f"in_root.py: there is no option {min(unknown)}")
    root, program, *rest = arguments
    is_read_only, has_proc = "--read-only" in options, "--no-proc" not in options
    try:
        working_directory = [Path.cwd()]
    except FileNotFoundError:  # it was removed, and stays so
        working_directory = []
    _enter(root, is_read_only=is_read_only, has_proc=has_proc)
    for folder in working_directory:
        os.chdir(folder)
    if "--user" in options:
        _become(int(options["--user"]), [*working_directory, *map(Path, rest)])
    if "--no-written-code" in options:
        seccomp.refuse_to_execute_what_was_written()
    if "--system-calls" in options:
        seccomp.install(*SYSTEM_CALLS[options["--system-calls"]])
    name, _, value = options.get("--set", "").partition("=")
    os.execve(program, [program, *rest], os.environ | ({name: value} if name else {}))


def _enter(root: str, *, is_read_only: bool, has_proc: bool) -> None:
    """Make ROOT what `/` is, for this process and its children."""
    _call("unshare", _CLONE_NEWNS)
    _mount("none", "/", _MS_REC | _MS_PRIVATE)
    _mount(root, root, _MS_BIND | _MS_REC)
    for folder in SHARED:
        if Path(folder).is_dir() and (has_proc or folder != "/proc"):
            Path(root + folder).mkdir(parents=True, exist_ok=True)
            _mount(folder, root + folder, _MS_BIND | _MS_REC)
    if is_read_only:
        _mount(root, root, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
    os.chroot(root)


def _become(user: int, paths: list[Path]) -> None:
    """Another user, who may read what the tests made."""
    _let_in(user, paths)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def _let_in(user: int, paths: list[Path]) -> None:
    """Open the tests' own folders, which are root's alone, and hand over the one for what the program writes."""
    temporary = Path(os.environ["TMPDIR"])
    for path in (temporary, *(path for path in paths if path.is_absolute() and path.exists())):
        for folder in (path, *path.parents):
            if folder.is_dir() and Path("/tmp") in folder.parents:
                folder.chmod(0o755)
    for folder in (temporary, temporary.parent):
        os.chown(folder, user, user)


def _mount(source: str, target: str, flags: int) -> None:
    _call("mount", source.encode(), target.encode(), None, flags, None)


def _call(name: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        error = ctypes.get_errno()
        sys.exit(f"in_root.py: {name}{arguments}: {os.strerror(error)}")


if __name__ == "__main__":
    main(sys.argv[1:])
