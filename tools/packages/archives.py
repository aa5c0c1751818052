"""Archives whose bytes depend on nothing but their contents: zip, tar and ar with fixed times, owners and order.

Knows no package. The time of all files is SOURCE_DATE_EPOCH, in seconds, where it is set.
"""

import io
import os
import tarfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

FILE_MODE, PROGRAM_MODE, FOLDER_MODE = 0o644, 0o755, 0o755
_IS_REGULAR_FILE = 0o100000
_BY_UNIX = 3  # who made a zip: its modes are those of Unix


@dataclass(frozen=True)
class Entry:
    """A file of an archive."""

    content: bytes
    mode: int = FILE_MODE


def release_time_s() -> int:
    """The time that all files in all packages have."""
    return int(os.environ.get("SOURCE_DATE_EPOCH", "1767225600"))  # 2026-01-01


def zipped(entries: Mapping[str, Entry]) -> bytes:
    """A zip with these files, in this order."""
    buffer = io.BytesIO()
    year, month, day, hour, minute, second = time.gmtime(release_time_s())[:6]
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, entry in entries.items():
            info = zipfile.ZipInfo(name, (year, month, day, hour, minute, second))
            info.create_system = _BY_UNIX
            info.external_attr = (_IS_REGULAR_FILE | entry.mode) << 16
            archive.writestr(info, entry.content, zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def tarred(entries: Mapping[str, Entry], *, folders: tuple[str, ...] = ()) -> bytes:
    """A tar with these files, the folders above them and `folders`, all of root; names begin with `./`."""
    names = {*entries, *folders}
    names |= {parent for name in names for parent in _parents(name)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(names):
            entry = entries.get(name)
            info = tarfile.TarInfo(f"./{name}" if name else ".")
            info.type = tarfile.REGTYPE if entry else tarfile.DIRTYPE
            info.mode = entry.mode if entry else FOLDER_MODE
            info.size = len(entry.content) if entry else 0
            info.mtime = release_time_s()
            info.uname = info.gname = "root"
            archive.addfile(info, io.BytesIO(entry.content) if entry else None)
    return buffer.getvalue()


def _parents(name: str) -> set[str]:
    """The folders above a path, the root (the empty name) among them."""
    parts = name.split("/")
    return {"/".join(parts[:length]) for length in range(len(parts))}


def in_ar(members: Mapping[str, bytes]) -> bytes:
    """An archive of ar(5) with these members, whose names have at most 16 characters."""
    parts = [b"!<arch>\n"]
    for name, content in members.items():
        head = f"{name:<16}{release_time_s():<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        parts += [head.encode("ascii"), content, b"\n" * (len(content) % 2)]
    return b"".join(parts)
