"""What lies in a frozen file: reads PyInstaller's archive and the archives in it.

Knows how the program packs its libraries; nothing of what they are for.
"""

import io
import json
import lzma
import marshal
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from struct import calcsize, unpack_from

from shimmy.engine.llama.unpack_libraries import GRAMMAR_ARCHIVE
from tools.variants import ARCHIVE_NAME

# PyInstaller's bootloader/src/pyi_archive.h: the cookie at the end of the archive, and an entry of its table.
_MAGIC = b"MEI\014\013\012\013\016"
_COOKIE, _COOKIE_BYTES = "!8sIII", 88
_ENTRY = "!IIIIBc"
_ELF = b"\x7fELF"


def read_files(program: Path) -> Iterator[tuple[str, bytes]]:
    """All files of the archive, unpacked, by name."""
    data = program.read_bytes()
    cookie = data.rfind(_MAGIC)
    _, length, table, table_bytes = unpack_from(_COOKIE, data, cookie)
    start = cookie + _COOKIE_BYTES - length
    place, end = start + table, start + table + table_bytes
    while place < end:
        entry_bytes, offset, n_bytes, _, is_packed, _ = unpack_from(_ENTRY, data, place)
        name = data[place + calcsize(_ENTRY) : place + entry_bytes].rstrip(b"\0").decode()
        content = data[start + offset : start + offset + n_bytes]
        yield name, zlib.decompress(content) if is_packed else content
        place += entry_bytes


def read_elf_files(program: Path) -> Iterator[tuple[str, bytes]]:
    """The program itself and all libraries in it, also those that are packed together, by name."""
    yield program.name, program.read_bytes()
    for name, content in read_files(program):
        for inner, data in _unpacked(name, content):
            if data.startswith(_ELF):
                yield inner, data


def _unpacked(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    plain = PurePosixPath(name).name
    if plain == ARCHIVE_NAME:
        stream = io.BytesIO(content)
        for n_bytes, libraries in json.loads(stream.readline()):
            group = io.BytesIO(lzma.decompress(stream.read(n_bytes)))
            for variant, size in libraries:
                yield f"CPU variant {variant}", group.read(size)
    elif plain == GRAMMAR_ARCHIVE:
        yield name, lzma.decompress(content)
    elif plain == "ssl.xz":
        yield from marshal.loads(lzma.decompress(content))
    elif plain.endswith(".z"):
        yield name, zlib.decompress(content)
    else:
        yield name, content
