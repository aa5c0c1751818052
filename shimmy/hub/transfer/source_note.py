"""Whether a file that is there came from a URL: a note beside the lock, for files that are not named by their digest.

The note holds a digest of the URL, which may have a secret in its query, and which file it is for: one that was put
there later by somebody else has another time. Knows no network.
"""

import hashlib
import os
from pathlib import Path

from shimmy.errors import PullFailed
from shimmy.hub.transfer.digests import digest_for
from shimmy.hub.transfer.events import Meter
from shimmy.system.files import open_regular, read_start, write_atomically

_BUFFER_BYTES = 1 << 20
_MAX_BYTES = 1024


def write(note: Path, url: str, status: os.stat_result) -> None:
    """`status` is of the file that came from `url`. Raises PullFailed."""
    try:
        write_atomically(note, _content(url, status))
    except OSError as exc:
        raise PullFailed(f"`{note}` cannot be written: {exc.strerror}") from exc


def check(note: Path, url: str, target: Path, digest: str, meter: Meter) -> None:
    """Raise PullFailed where `target` is not what would be fetched: by its digest, or without one by its note."""
    if digest:
        meter.say("waiting", reason=f"`{target.name}` is there already: its digest is computed", seconds=None)
        if _digest_of(target, digest) != digest:
            raise PullFailed(f"`{target}` is there already, with another digest than the URL asks for: remove it first")
    elif not _is_noted(note, url, target):
        raise PullFailed(
            f"`{target}` is there already, and not from this URL as far as is known: remove it first, or write "
            "#sha256=DIGEST behind the URL if it is the file that you want"
        )


def _is_noted(note: Path, url: str, target: Path) -> bool:
    try:
        return read_start(note, _MAX_BYTES) == _content(url, target.stat())
    except OSError:
        return False


def _content(url: str, status: os.stat_result) -> bytes:
    return f"{hashlib.sha256(url.encode()).hexdigest()} {status.st_size} {status.st_mtime_ns}\n".encode()


def _digest_of(path: Path, expected: str) -> str:
    """Of the kind of `expected`. Raises OSError."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with open_regular(path) as file:
        digest = digest_for(expected, os.fstat(file.fileno()).st_size)
        while digest is not None and (n_read := file.readinto(buffer)):
            digest.update(buffer[:n_read])
    return digest.hexdigest() if digest is not None else ""
