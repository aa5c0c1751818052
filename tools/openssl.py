"""Packs OpenSSL for tools/stand_ins/ssl.py. Knows in which order its files are loaded, not where they lie."""

import lzma
import marshal
import subprocess
from collections.abc import Iterable
from pathlib import Path

# The beginnings of the names of the files, each before those that need it.
IN_ORDER = ("libcrypto.so", "libssl.so", "_ssl.")


def pack(paths: Iterable[Path], work: Path, preset: int = 9 | lzma.PRESET_EXTREME) -> bytes:
    """One archive of these files, each of which is one of IN_ORDER; `work` is a folder for what comes between."""
    files = []
    for path in sorted(paths, key=_rank):
        stripped = work / path.name
        subprocess.run(["strip", "-o", stripped, path], check=True)
        files.append((path.name, stripped.read_bytes()))
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": preset}]
    return lzma.compress(marshal.dumps(files), filters=filters)


def is_part(name: str) -> bool:
    """Whether a file of this name belongs to it."""
    return Path(name).name.startswith(IN_ORDER)


def _rank(path: Path) -> int:
    return next(rank for rank, beginning in enumerate(IN_ORDER) if path.name.startswith(beginning))
