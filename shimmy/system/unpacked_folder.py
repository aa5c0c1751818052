"""The folder that the one-file program is unpacked to: what belongs in it, whose it is, and how it is put back.

Tidiers of temporary folders remove what is old, and people remove everything, under a running program. What that takes
away is put back from the program's own file, which stays open. Knows the archive that PyInstaller puts into that file,
and what tools/bootloader.c does before Python runs; in a source tree everything here does nothing. Workers import it
first of all, so it imports next to nothing.
"""

import contextlib
import errno
import fcntl
import os
import stat
import sys
import zlib
from _thread import RLock
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from struct import calcsize, unpack_from
from types import ModuleType

from shimmy.system import files

# A folder with this file, which has this in it, is one of ours. tools/bootloader.c writes it.
MARKER = "shimmy.home"
MARKER_TEXT = b"unpacked by shimmy\n"
DAMAGED = "the program's own file is damaged: fetch it again"

# The archive: PyInstaller's bootloader/src/pyi_archive.h. It ends with a cookie, and begins that many bytes before.
_MAGIC = b"MEI\014\013\012\013\016"
_COOKIE = "!8sIII"  # the magic, and in bytes: its length, where its table of contents begins, how long that is
_COOKIE_BYTES = 88
_ENTRY = "!IIIIBc"  # of the entry, in bytes: its own length, place, length, length unpacked; packed or not; its type
_TAIL_BYTES = 65_536  # the cookie is in the last bytes of the program's file, and behind it only ELF's tables
_CODE_SUFFIXES = {".so", ".inner"}  # of libraries, and of the program that they belong to
_AT_START, _WHEN_NEEDED = b"bZ", b"x"  # binaries and archives of modules; data

# The C library of the file is unpacked where the system's will not do, which the bootloader tells by a variable.
_LIBC_FOLDER, _LIBC = "libc/", "_SHIMMY_LIBC"

_lock = RLock()
_claimed = -1  # a descriptor of the folder
_n_removals = [0]  # how often something was put back that had been there
# The owner and the mode of the folder as the bootloader made it; some file systems know only one of each.
_made_as = [os.geteuid(), 0o700]
# Of each file: name, place in the program's file, bytes there, whether it is packed there, size in bytes, and whether
# each start unpacks it.
_Entry = tuple[str, int, int, bool, int, bool]
_contents: list[_Entry] = []


def folder() -> Path | None:
    """Where this program was unpacked; None in a source tree."""
    path = getattr(sys, "_MEIPASS", None)
    return Path(path) if path else None


def keep() -> None:
    """Let what this process imports later be there, whatever happens to the folder. Called before all other imports."""
    home = folder()
    if home is None:
        return
    status = home.stat()
    _made_as[:] = status.st_uid, status.st_mode
    sys.meta_path.append(_Restored)
    if sys.executable.startswith("/proc/"):  # descriptors can be read from
        with contextlib.suppress(OSError):  # whoever needs a module will find out
            _hold_open(str(home / "base_library.zip"))


def _hold_open(archive: str) -> None:
    """Let what is imported from an archive of modules be read through a descriptor."""
    descriptor = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
    for importer in sys.path_importer_cache.values():
        if getattr(importer, "archive", None) == archive:
            importer.archive = f"/proc/self/fd/{descriptor}"  # type: ignore[union-attr]


class _Restored:
    """Finds modules that nothing else finds, as their files have been removed."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        try:
            return PathFinder.find_spec(name, path, target) if restore() else None
        except OSError:
            return None


def part(name: str) -> Path:
    """The path of a file that belongs to the folder, put there unless it is there; raises OSError."""
    home = folder()
    assert home is not None
    if not (home / name).exists():
        restore(name)
    return home / name


def parts(beginning: str) -> list[Path]:
    """The same for all files whose names begin like this; none in a source tree."""
    return [part(name) for name, *_ in _files() if name.startswith(beginning)] if folder() else []


def has(name: str) -> bool:
    """Whether a file belongs to the folder, wherever it is now; never in a source tree."""
    return folder() is not None and any(entry[0] == name for entry in _files())


def content(name: str) -> bytes:
    """What is in a file that belongs to the folder, without putting it there; raises OSError, told for a person."""
    entry = next((entry for entry in _files() if entry[0] == name), None)
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, f"the program has no `{name}`")
    try:
        return _content(entry)
    except zlib.error as exc:
        raise OSError(errno.EIO, DAMAGED) from exc


def claim() -> None:
    """Lock the folder as long as this process lives. Others see by that that somebody lives there; so does systemd.

    The bootloader has locked the folder that it made; this is for one that was made anew.
    """
    global _claimed
    home = folder()
    if home is not None:
        before, _claimed = _claimed, os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(_claimed, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if before >= 0:
            os.close(before)


def restore(wanted: str | None = None) -> bool:
    """Put back what is missing in the folder, and there what is wanted; returns whether anything was missing.

    Raises OSError, told for a person.
    """
    home = folder()
    if home is None:
        return False
    with _lock:
        try:
            if _be_owner(home) or (_claimed >= 0 and os.fstat(_claimed).st_ino != home.stat().st_ino):
                claim()
            needed = [entry for entry in _files() if entry[-1] or entry[0] == wanted]
            missing = [entry for entry in needed if _size(home / entry[0]) != entry[4]]
            is_marked = _size(home / MARKER) == len(MARKER_TEXT)
            if not missing and is_marked:
                return False
            files.write_atomically(home / MARKER, MARKER_TEXT)
            for entry in missing:
                put(home / entry[0], _content(entry))
        except OSError as exc:
            raise OSError(exc.errno, f"the program cannot be put back into `{home}`: {exc.strerror}") from exc
        except zlib.error as exc:
            raise OSError(errno.EIO, DAMAGED) from exc
        _n_removals[0] += not is_marked or any(entry[-1] for entry in missing)
        return True


def n_removals() -> int:
    """How often this process has put back what was removed, whoever asked: imports and new workers do, too."""
    return _n_removals[0]


def put(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file whole, of its content or the pieces of it; raises OSError.

    Where code may not run from its folder, a library lies in memory, and is there as long as this process lives.
    """
    is_code = not _CODE_SUFFIXES.isdisjoint(path.suffixes)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_code or not os.statvfs(path.parent).f_flag & os.ST_NOEXEC:
        files.write_atomically(path, data)
        if is_code:
            path.chmod(0o700)
        return
    descriptor = os.memfd_create(path.name)
    with open(descriptor, "wb", closefd=False) as file:
        file.writelines((data,) if isinstance(data, bytes) else data)
    link = path.with_name(f"{path.name}.{os.getpid()}")
    link.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
    link.replace(path)


def freshen() -> None:
    """Let everything in the folder be of now, so that what removes old files finds none."""
    home = folder()
    for path in (home, *home.rglob("*")) if home else ():
        with contextlib.suppress(OSError):  # removed meanwhile
            os.utime(path)


def is_abandoned(path: Path) -> bool:
    """Whether a folder is one of ours, of this user, and nobody lives in it."""
    try:
        status = path.lstat()
        if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
            return False
        with (path / MARKER).open("rb") as marker:
            if marker.read(len(MARKER_TEXT) + 1) != MARKER_TEXT:
                return False
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False  # locked: somebody lives there
    finally:
        os.close(descriptor)
    return True


def _be_owner(home: Path) -> bool:
    """Make the folder if it is not there; returns whether that was so. Another user may have made one in its place."""
    try:
        home.mkdir(0o700)
    except FileExistsError:
        status = home.lstat()
        owner, mode = _made_as
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & ~mode & 0o022:
            raise PermissionError(errno.EPERM, "somebody else's folder has its name") from None
        return False
    return True


def _files() -> list[_Entry]:
    """The files of the folder as the archive has them; none where there is no archive."""
    if not _contents:
        with Path(sys.executable).open("rb") as archive:
            tail_place = archive.seek(max(0, archive.seek(0, os.SEEK_END) - _TAIL_BYTES))
            tail = archive.read()
            cookie_place = tail.rfind(_MAGIC)
            if cookie_place >= 0:
                _, length, toc_place, toc_bytes = unpack_from(_COOKIE, tail, cookie_place)
                start = tail_place + cookie_place + _COOKIE_BYTES - length
                archive.seek(start + toc_place)
                _contents[:] = _read_entries(archive.read(toc_bytes), start)
    return _contents


def _content(entry: _Entry) -> bytes:
    _, place, n_bytes, is_packed, *_ = entry
    with Path(sys.executable).open("rb") as archive:
        archive.seek(place)
        data = archive.read(n_bytes)
    return zlib.decompress(data) if is_packed else data


def _read_entries(table: bytes, start: int) -> list[_Entry]:
    found, place = [], 0
    brings_libc = _LIBC in os.environ
    while place < len(table):
        length, offset, n_bytes, size, is_packed, kind = unpack_from(_ENTRY, table, place)
        name = table[place + calcsize(_ENTRY) : place + length].rstrip(b"\0").decode()
        if kind in _AT_START + _WHEN_NEEDED and (brings_libc or not name.startswith(_LIBC_FOLDER)):
            found.append((name, start + offset, n_bytes, bool(is_packed), size, kind in _AT_START))
        place += length
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
