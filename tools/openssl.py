"""Packs OpenSSL for tools/stand_ins/ssl.py. Knows in which order its files are loaded, not where they lie."""

import lzma
import marshal
import subprocess
from collections.abc import Iterable
from pathlib import Path

# The beginnings of the names of the files, each before those that need it.
IN_ORDER = ("libcrypto.so", "libssl.so", "_ssl.")
_MACHINE, _X86_64 = slice(18, 20), b"\x3e\0"  # `e_machine` of an ELF file


def pack(paths: Iterable[Path], preset: int = 9 | lzma.PRESET_EXTREME) -> bytes:
    """One archive of these files, each of which is one of IN_ORDER."""
    files = [(path.name, path.read_bytes()) for path in sorted(paths, key=_rank)]
    is_x86 = all(data[_MACHINE] == _X86_64 for _, data in files)
    filters = [{"id": lzma.FILTER_X86}] if is_x86 else []
    return lzma.compress(marshal.dumps(files), filters=[*filters, {"id": lzma.FILTER_LZMA2, "preset": preset}])


def stripped(files: Iterable[tuple[str, str]], folder: Path) -> list[Path]:
    """Copies of files, given with the names they are known by, in `folder`, without what only debuggers read."""
    copies = []
    for name, path in files:
        copies.append(folder / Path(name).name)
        subprocess.run(["strip", "-o", copies[-1], path], check=True)
    return copies


def is_part(name: str) -> bool:
    """Whether a file of this name belongs to it."""
    return Path(name).name.startswith(IN_ORDER)


def _rank(path: Path) -> int:
    return next(rank for rank, beginning in enumerate(IN_ORDER) if path.name.startswith(beginning))
