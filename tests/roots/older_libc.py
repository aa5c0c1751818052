"""Makes a C library look as old as one likes: newer versions of its symbols get other names, so that the dynamic loader
refuses each program that asks for them. Proves which names a program asks for, not how an old library behaves.

Format: Linux Standard Base, "Symbol Versioning"; the hash is that of the System V ABI.
"""

import re
import struct

from tools.portable.elf import ElfFile, Section, SectionKind

_OLD, _NEW = b"GLIBC", b"GLIBX"


def without_versions_above(data: bytes, oldest: tuple[int, ...]) -> bytes:
    """A library, or what belongs to the C library, with the versions above `oldest` renamed."""
    file, changed = ElfFile(data), bytearray(data)
    for kind, entry_format, hash_place in (
        (SectionKind.VERSION_DEFINITIONS, "<HHHHIII", 8),
        (SectionKind.VERSION_NEEDS, "<HHIII", None),
    ):
        section = file.section(kind)
        if section is not None:
            _rename(changed, file, section, entry_format, hash_place, oldest)
    return bytes(changed)


def _rename(
    changed: bytearray,
    file: ElfFile,
    section: Section,
    entry_format: str,
    hash_place: int | None,
    oldest: tuple[int, ...],
) -> None:
    place = section.place
    for _ in range(section.count):
        entry = struct.unpack_from(entry_format, changed, place)
        count, first, following = (entry[3] if hash_place else entry[1]), entry[-2], entry[-1]
        at = place + first
        for index in range(count):
            # A definition's parts are its name and its parents'; a need's are versions, each with a hash in front.
            name, after = struct.unpack_from("<II", changed, at + (0 if hash_place else 8))
            if number := _is_above(file.text(section.linked, name), oldest):
                start = file.text_place(section.linked, name)
                changed[start : start + len(_NEW)] = _NEW
                if hash_place is None:
                    struct.pack_into("<I", changed, at, number)
                elif index == 0:
                    struct.pack_into("<I", changed, place + hash_place, number)
            at += after
        place += following


def _is_above(name: str, oldest: tuple[int, ...]) -> int:
    """The hash of a version's new name where it is above `oldest`, else 0. `name` is as in the file before."""
    if not name.startswith("GLIBC_2.") or tuple(map(int, re.findall(r"\d+", name))) <= oldest:
        return 0
    value = 0
    for character in name.encode().replace(_OLD, _NEW, 1):
        value = (value << 4) + character
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high & 0xFFFFFFFF
    return value
