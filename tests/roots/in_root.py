"""`in_root.py [--user UID] [--read-only] ROOT PROGRAM ARGUMENT...`: runs a program where ROOT is `/`.

The folders that tests use are there as they are here, in a mount namespace of the program's own: nothing stays mounted.
Knows Linux, and needs root. Imports little, as each start of a server under test passes here.
"""

import ctypes
import os
import sys
from pathlib import Path

# The folders that are the same inside and outside. What they have of libraries is not where a program would look.
SHARED = ("/proc", "/dev", "/tmp", "/work")

_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


def main(arguments: list[str]) -> None:
    """Become the program."""
    user, is_read_only = None, False
    while arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option == "--user":
            user = int(arguments.pop(0))
        elif option == "--read-only":
            is_read_only = True
        else:
            sys.exit(f"in_root.py: there is no option {option}")
    root, program, *rest = arguments
    working_directory = Path.cwd()
    _call("unshare", _CLONE_NEWNS)
    _mount("none", "/", _MS_REC | _MS_PRIVATE)
    _mount(root, root, _MS_BIND | _MS_REC)
    for folder in SHARED:
        if Path(folder).is_dir():
            Path(root + folder).mkdir(parents=True, exist_ok=True)
            _mount(folder, root + folder, _MS_BIND | _MS_REC)
    if is_read_only:
        _mount(root, root, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
    os.chroot(root)
    os.chdir(working_directory)
    if user is not None:
        _let_in(user, [working_directory, *map(Path, rest)])
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    os.execv(program, [program, *rest])


def _let_in(user: int, paths: list[Path]) -> None:
    """Open the tests' own folders, which are root's alone, and hand over the one for what the program writes."""
    temporary = Path(os.environ["TMPDIR"])
    for path in (temporary, *(path for path in paths if path.is_absolute() and path.exists())):
        for folder in (path, *path.parents):
            if folder.is_dir() and folder.is_relative_to("/tmp/pytest-of-root"):
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
