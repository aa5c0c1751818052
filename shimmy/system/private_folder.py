"""A folder of this user's alone: with a secret in it, and a lock for those who write there.

Knows files and who they belong to; nothing of what is in them.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

UNFINISHED = ".part"  # behind the name of a file that is being written
_SECRET_BYTES = 32


class Worthless(Exception):
    """A file that is not what its name says."""


def make_private(path: Path) -> None:
    """Make the folder at `path`, or see to it that nobody but this user can look into the one that is there; OSError
    says why that cannot be."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it belongs to another user")
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
    if path.stat().st_mode & 0o077:
        raise PermissionError(errno.EPERM, "other users may read it, and that cannot be changed")


class PrivateFolder:
    """`secret` is 32 random bytes, the same for all who open the folder, and known to nobody else."""

    def __init__(self, path: Path) -> None:
        """Use the folder at `path`, or make it; OSError says why that cannot be."""
        self._path = path
        make_private(path)
        self.secret = self._read_secret() or self._make_secret()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes that write into the folder."""
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @property
    def _secret_path(self) -> Path:
        return self._path / "secret"

    def _read_secret(self) -> bytes | None:
        """None where there is none, or one that others may know."""
        try:
            with open_own(self._secret_path) as file:
                secret = file.read(_SECRET_BYTES + 1)
                is_private = not os.fstat(file.fileno()).st_mode & 0o077
        except (FileNotFoundError, Worthless):
            return None
        return secret if is_private and len(secret) == _SECRET_BYTES else None

    def _make_secret(self) -> bytes:
        with self.locked():
            secret = self._read_secret()  # another process may have been faster
            if secret is None:
                secret = os.urandom(_SECRET_BYTES)
                unfinished = self._secret_path.with_suffix(UNFINISHED)
                remove(unfinished)
                with open(unfinished, "xb", opener=create_private) as file:
                    file.write(secret)
                unfinished.replace(self._secret_path)
            return secret


def open_own(path: Path) -> FileIO:
    """Open a regular file of this user's; Worthless when it is none, and OSError when it cannot be opened."""
    try:
        file = FileIO(path, opener=_open_unfollowed)
    except OSError as exc:
        if exc.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise Worthless("not a file") from exc
        raise
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        file.close()
        raise Worthless("not a file of this user's")
    return file


def create_private(path: str, flags: int) -> int:
    """For `open`: a file that nobody else may read."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def remove(path: Path) -> None:
    """Remove a file, where that is possible."""
    with contextlib.suppress(OSError):
        path.unlink()


def _open_unfollowed(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)  # a FIFO does not keep us waiting
