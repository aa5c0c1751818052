"""What lies in a frozen file: reads PyInstaller's archive and the archives in it, and puts files into one.

Knows how the program packs its libraries; nothing of what they are for.
"""

import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from struct import calcsize, pack, unpack_from

from shimmy.engine.llama.unpack_libraries import GRAMMAR_ARCHIVE, LOOPS_ARCHIVE, NUMPY_ARCHIVE
from shimmy.system.backends import RPC, VULKAN
from tools import module_archive, openssl
from tools.variants import ARCHIVE_NAME

# PyInstaller's bootloader/src/pyi_archive.h: the cookie at the end of the archive, and an entry of its table.
_MAGIC = b"MEI\014\013\012\013\016"
_COOKIE, _COOKIE_BYTES = "!8sIII", 88
_ENTRY = "!IIIIBc"
# The archive of the Python modules.
MODULES = "PYZ.pyz"
_ELF = b"\x7fELF"


def archive_start(data: bytes) -> int:
    """Where in the file the archive begins: what lies in front of it is the bootloader."""
    cookie = data.rfind(_MAGIC)
    _, length, _, _ = unpack_from(_COOKIE, data, cookie)
    return int(cookie + _COOKIE_BYTES - length)


def read_files(program: Path) -> Iterator[tuple[str, int, bytes]]:
    """All files of the archive: the name, how many bytes of the archive it takes, and the content."""
    data = program.read_bytes()
    start = archive_start(data)
    _, _, table, table_bytes = unpack_from(_COOKIE, data, data.rfind(_MAGIC))
    place, end = start + table, start + table + table_bytes
    while place < end:
        entry_bytes, offset, n_bytes, _, is_packed, _ = unpack_from(_ENTRY, data, place)
        name = data[place + calcsize(_ENTRY) : place + entry_bytes].rstrip(b"\0").decode()
        content = data[start + offset : start + offset + n_bytes]
        yield name, n_bytes, zlib.decompress(content) if is_packed else content
        place += entry_bytes


def with_files(program: bytes, added: Mapping[str, bytes]) -> bytes:
    """The program with more files in its archive, which lie there as they are."""
    cookie = program.rfind(_MAGIC)
    magic, length, table, table_bytes = unpack_from(_COOKIE, program, cookie)
    at = archive_start(program) + table  # the table stands behind all files, and the cookie behind the table
    entries = []
    for name, content in added.items():
        entries.append(_entry(name, table, len(content)))
        table += len(content)
    files, more = b"".join(added.values()), b"".join(entries)
    head = pack(_COOKIE, magic, length + len(files) + len(more), table, table_bytes + len(more))
    return program[:at] + files + program[at:cookie] + more + head + program[cookie + len(head) :]


def _entry(name: str, place: int, n_bytes: int) -> bytes:
    """A line of the table, for data that is unpacked when it is needed; its length is a multiple of 16."""
    entry_bytes = -(-(calcsize(_ENTRY) + len(name) + 1) // 16) * 16
    head = pack(_ENTRY, entry_bytes, place, n_bytes, n_bytes, 0, b"x")
    return (head + name.encode()).ljust(entry_bytes, b"\0")


def read_elf_files(program: Path) -> Iterator[tuple[str, bytes]]:
    """The program itself and all libraries in it, also those that are packed together, by name."""
    yield program.name, program.read_bytes()
    for name, _, content in read_files(program):
        for inner, data in unpacked(name, content):
            if data.startswith(_ELF):
                yield inner, data


def unpacked(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """What a file of the archive is when it is used: itself, or what is packed in it, by name."""
    plain = PurePosixPath(name).name
    if plain == ARCHIVE_NAME:
        stream = io.BytesIO(content)
        for n_bytes, libraries in json.loads(stream.readline()):
            group = io.BytesIO(lzma.decompress(stream.read(n_bytes)))
            for variant, size in libraries:
                yield f"CPU variant {variant}", group.read(size)
    elif plain in {GRAMMAR_ARCHIVE, LOOPS_ARCHIVE, NUMPY_ARCHIVE, VULKAN.archive, RPC.archive}:
        yield name, lzma.decompress(content)
    elif plain == "ssl.xz":
        yield from openssl.unpack(content)
    elif plain == MODULES:
        yield from module_archive.read(content)
    elif plain.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield from ((member, archive.read(member)) for member in archive.namelist())
    elif plain.endswith(".z"):
        yield name, zlib.decompress(content)
    else:
        yield name, content
