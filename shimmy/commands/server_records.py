"""Servers in the background: a folder for each, with its record, its log, and a lock that its processes hold.

The lock says whether the server lives, as a pid is given to another process sooner or later. It is an flock(2) on the
folder, which keeps tidiers of temporary folders out, too. The server inherits the descriptor with the lock from the
command that starts it, and the lock is free when the last of the server's processes has ended. Knows neither HTTP nor
signals.
"""

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shimmy.system import files
from shimmy.system.private_folder import UNFINISHED, create_private, make_private

# How a server learns that it is one in the background: the descriptor with its lock, and the path of its folder.
VARIABLE = "_SHIMMY_BACKGROUND"
_PREFIX = "server-"
_RECORD, _LOG = "server.json", "log"
_MAX_RECORD_BYTES = 1 << 16
_LOOK_EVERY_S = 0.02
_KEPT_S = 86_400.0  # how long the log of a server that died stays


class NoPlace(Exception):
    """There is no folder for a server's record; the message lists where one was looked for."""


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """What a server in the background says of itself. `hosts` are how it is reached, as ServerAddress has them."""

    pid: int
    started: str  # when its process was, as /proc tells it; empty where there is no /proc
    hosts: tuple[str, ...]
    port: int

    @property
    def is_of_a_process_here(self) -> bool:
        """Whether the pid is that of the server: in another container it is not, even if the folder is shared."""
        return not self.started or process_start(self.pid) == self.started


class ServerFolder:
    """The folder of one server in the background."""

    def __init__(self, path: Path, lock: int | None = None) -> None:
        """`lock` is the descriptor with the lock, for the server and the command that starts it."""
        self.path = path
        self.lock = lock

    @classmethod
    def make(cls, places: Sequence[Path]) -> "ServerFolder":
        """A new folder, locked, in the first place that will do; raises NoPlace."""
        reasons = []
        for place in places:
            path = place / f"{_PREFIX}{os.getpid()}-{time.time_ns():x}"
            try:
                if place.is_symlink():
                    raise OSError("it is a link")
                make_private(place)
                path.mkdir(mode=0o700)
                lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(lock, fcntl.LOCK_EX)
                _write_private(path / _RECORD, b"{}")  # there is room for one
            except OSError as exc:
                reasons.append(f"`{place}`: {exc.strerror or exc}")
                cls(path).remove()
                continue
            return cls(path, lock)
        raise NoPlace(f"there is no folder for the server's record: {'; '.join(reasons)}")

    @classmethod
    def inherited(cls) -> "ServerFolder | None":
        """The folder of this process, if it was started as a server in the background."""
        lock, _, path = os.environ.pop(VARIABLE, "").partition(":")
        if not path:
            return None
        os.set_inheritable(int(lock), False)  # workers are not what the lock tells of
        return cls(Path(path), int(lock))

    @property
    def inheritance(self) -> str:
        """The value of VARIABLE for the server, which inherits the descriptor `lock`."""
        return f"{self.lock}:{self.path}"

    @property
    def log_path(self) -> Path:
        return self.path / _LOG

    @property
    def is_alive(self) -> bool:
        """Whether a process of the server, or the command that starts it, still runs."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # others may look at the same time
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def is_free_within(self, within_s: float) -> bool:
        """Wait for the end of the server's last process, for so long; returns whether it has come."""
        end_s = time.monotonic() + within_s
        while self.is_alive:
            if time.monotonic() >= end_s:
                return False
            time.sleep(_LOOK_EVERY_S)
        return True

    def record(self) -> ServerRecord | None:
        """None until the server listens."""
        try:
            fields: dict[str, Any] = json.loads(files.read_start(self.path / _RECORD, _MAX_RECORD_BYTES))
            return ServerRecord(**fields | {"hosts": tuple(fields["hosts"])})
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def announce(self, hosts: tuple[str, ...], port: int) -> None:
        """The server: say that this process listens there. Raises OSError."""
        record = ServerRecord(os.getpid(), process_start(os.getpid()), hosts, port)
        _write_private(self.path / _RECORD, json.dumps(asdict(record)).encode())

    def unlock(self) -> None:
        """The command that starts the server: leave the lock to the server alone."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def remove(self) -> None:
        import shutil

        shutil.rmtree(self.path, ignore_errors=True)


def places(cache_dir: Path | None) -> tuple[Path, ...]:
    """Where folders of servers may be: this machine's folder for what runs, else one for temporary files.

    Programs that cron or `su` start have no XDG_RUNTIME_DIR, and find the same folder without the variable.
    """
    user = os.geteuid()
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{user}")
    temporary = Path(os.environ.get("TMPDIR") or "/tmp")
    found = [runtime / "shimmy"] if runtime.is_dir() else []
    found.append(temporary / f"shimmy-{user}")
    if cache_dir is not None:
        found.append(cache_dir / "servers")
    return tuple(dict.fromkeys(found))


def running(searched: Sequence[Path]) -> list[tuple[ServerFolder, ServerRecord]]:
    """The servers in the background that live and listen."""
    found = [(folder, folder.record()) for folder in _folders(searched) if folder.is_alive]
    return [(folder, record) for folder, record in found if record is not None]


def remove_dead(searched: Sequence[Path]) -> None:
    """Remove what servers that died have left, a day later: until then their logs may tell why."""
    for folder in _folders(searched):
        with contextlib.suppress(OSError):
            if folder.path.stat().st_mtime < time.time() - _KEPT_S and not folder.is_alive:
                folder.remove()


def process_start(pid: int) -> str:
    """When a process was started, in ticks since the start of the machine; empty where that cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _write_private(path: Path, data: bytes) -> None:
    unfinished = path.with_suffix(UNFINISHED)
    with open(unfinished, "wb", opener=create_private) as file:
        file.write(data)
    unfinished.replace(path)


def _folders(searched: Sequence[Path]) -> Iterator[ServerFolder]:
    """All that are of this user alone, and so are the places that they are in."""
    for place in searched:
        paths = sorted(place.glob(f"{_PREFIX}*")) if _is_private(place) else []
        yield from (ServerFolder(path) for path in paths if _is_private(path))


def _is_private(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
