"""Packs OpenSSL for tools/stand_ins/ssl.py. Knows in which order its files are loaded, not where they lie."""

import lzma
import marshal
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import groupby
from operator import itemgetter
from pathlib import Path

# The beginnings of the names of the files, each before those that need it.
IN_ORDER = ("libcrypto.so", "libssl.so", "_ssl.")
_PIECE_BYTES = 1 << 18  # so that nobody needs the memory for a file as a whole
_MACHINE, _X86_64 = slice(18, 20), b"\x3e\0"  # `e_machine` of an ELF file


def pack(paths: Iterable[Path], preset: int = 9 | lzma.PRESET_EXTREME) -> bytes:
    """One archive of these files, each of which is one of IN_ORDER: pairs of a name and a piece, marshalled."""
    files = [(path.name, path.read_bytes()) for path in sorted(paths, key=_rank)]
    is_x86 = all(data[_MACHINE] == _X86_64 for _, data in files)
    filters = [{"id": lzma.FILTER_X86}] if is_x86 else []
    pieces = ((name, data[at : at + _PIECE_BYTES]) for name, data in files for at in range(0, len(data), _PIECE_BYTES))
    content = b"".join(map(marshal.dumps, pieces))
    return lzma.compress(content, filters=[*filters, {"id": lzma.FILTER_LZMA2, "preset": preset}])


def unpack(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """The files of `pack`, by their names."""
    for name, pieces in groupby(_pieces(BytesIO(lzma.decompress(archive))), itemgetter(0)):
        yield name, b"".join(data for _, data in pieces)


def _pieces(stream: BytesIO) -> Iterator[tuple[str, bytes]]:
    while True:
        try:
            yield marshal.load(stream)
        except EOFError:
            return


def is_part(name: str) -> bool:
    """Whether a file of this name belongs to it."""
    return Path(name).name.startswith(IN_ORDER)


def _rank(path: Path) -> int:
    return next(rank for rank, beginning in enumerate(IN_ORDER) if path.name.startswith(beginning))
