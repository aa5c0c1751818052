"""What an ELF file asks of the system: read from its tables of dynamic linking.

Format: System V ABI, generic part, chapters 4 and 5; versions of symbols: the GNU extensions described in the Linux
Standard Base, "Symbol Versioning". 64-bit little-endian files alone, which is all that is built here.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

_PT_LOAD, _DT_NEEDED = 1, 1
_WEAK_VERSION, _WEAK_SYMBOL, _UNDEFINED = 2, 2, 0
_HIDDEN_BIT, _NO_VERSION = 0x8000, 1


@dataclass(frozen=True)
class NeededVersion:
    """One version of a library's symbols that a file asks for."""

    name: str
    index: int  # by which its symbols refer to it
    flags_place: int  # where in the file its flags are

    @property
    def number(self) -> tuple[int, ...]:
        """The numbers in the name."""
        return tuple(int(part) for part in re.findall(r"\d+", self.name))


class SectionKind(IntEnum):
    """Kinds of sections that are read here."""

    DYNAMIC = 6
    SYMBOLS = 11
    VERSION_DEFINITIONS = 0x6FFFFFFD
    VERSION_NEEDS = 0x6FFFFFFE
    SYMBOL_VERSIONS = 0x6FFFFFFF


@dataclass(frozen=True)
class Section:
    """A part of a file; `linked` is the section of its texts, and `count` how many entries it has where it says so."""

    kind: int
    place: int
    size: int
    linked: int
    count: int


class ElfFile:
    """A shared library or program; raises ValueError for what is none."""

    def __init__(self, data: bytes) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("no 64-bit little-endian ELF file")
        self._data = data
        (place,) = struct.unpack_from("<Q", data, 0x28)
        size, count = struct.unpack_from("<HH", data, 0x3A)
        entries = [struct.unpack_from("<IIQQQQIIQQ", data, place + index * size) for index in range(count)]
        self._sections = [Section(entry[1], entry[4], entry[5], entry[6], entry[7]) for entry in entries]

    @property
    def machine(self) -> str:
        """The machine it is for, as `uname -m` has it."""
        (number,) = struct.unpack_from("<H", self._data, 18)
        return {62: "x86_64", 183: "aarch64"}.get(number, str(number))

    def page_bytes(self) -> int:
        """The largest pages of memory that it can be mapped in."""
        (place,) = struct.unpack_from("<Q", self._data, 0x20)
        size, count = struct.unpack_from("<HH", self._data, 0x36)
        segments = [struct.unpack_from("<IIQQQQQQ", self._data, place + index * size) for index in range(count)]
        return min((segment[7] for segment in segments if segment[0] == _PT_LOAD), default=0)

    def libraries(self) -> list[str]:
        """The libraries it names."""
        dynamic = self.section(SectionKind.DYNAMIC)
        if dynamic is None:
            return []
        found = []
        for place in range(dynamic.place, dynamic.place + dynamic.size, 16):
            tag, value = struct.unpack_from("<QQ", self._data, place)
            if tag == _DT_NEEDED:
                found.append(self.text(dynamic.linked, value))
        return found

    def needed_versions(self) -> Iterator[tuple[NeededVersion, bool]]:
        """The versions it asks for, and whether it starts without them."""
        section = self.section(SectionKind.VERSION_NEEDS)
        place = section.place if section else 0
        for _ in range(section.count if section else 0):
            _, n_versions, _, first, following = struct.unpack_from("<HHIII", self._data, place)
            at = place + first
            for _ in range(n_versions):
                _, flags, index, name, after = struct.unpack_from("<IHHII", self._data, at)
                assert section is not None
                version = NeededVersion(self.text(section.linked, name), index & ~_HIDDEN_BIT, at + 4)
                yield version, bool(flags & _WEAK_VERSION)
                at += after
            place += following

    def strong_symbols_of(self, version: NeededVersion) -> list[str]:
        """The undefined symbols of a version without which the file cannot be loaded."""
        symbols, versions = self.section(SectionKind.SYMBOLS), self.section(SectionKind.SYMBOL_VERSIONS)
        assert symbols is not None
        assert versions is not None
        found = []
        for index in range(symbols.size // 24):
            name, info, _, section = struct.unpack_from("<IBBH", self._data, symbols.place + 24 * index)
            (of,) = struct.unpack_from("<H", self._data, versions.place + 2 * index)
            if section == _UNDEFINED and of & ~_HIDDEN_BIT == version.index and info >> 4 != _WEAK_SYMBOL:
                found.append(self.text(symbols.linked, name))
        return found

    def undefined_symbols(self) -> list[str]:
        """The symbols without which the file cannot be loaded and of which it names no version."""
        symbols, versions = self.section(SectionKind.SYMBOLS), self.section(SectionKind.SYMBOL_VERSIONS)
        assert symbols is not None
        found = []
        for index in range(1, symbols.size // 24):
            name, info, _, section = struct.unpack_from("<IBBH", self._data, symbols.place + 24 * index)
            of = struct.unpack_from("<H", self._data, versions.place + 2 * index)[0] if versions else 0
            if section == _UNDEFINED and of & ~_HIDDEN_BIT <= _NO_VERSION and info >> 4 != _WEAK_SYMBOL:
                found.append(self.text(symbols.linked, name))
        return found

    def section(self, kind: SectionKind) -> Section | None:
        """The section of a kind of which there is at most one."""
        return next((section for section in self._sections if section.kind == kind), None)

    def text_place(self, section: int, offset: int) -> int:
        """Where in the file a text begins that lies `offset` bytes behind the beginning of a section."""
        return self._sections[section].place + offset

    def text(self, section: int, offset: int) -> str:
        """That text."""
        start = self.text_place(section, offset)
        return self._data[start : self._data.index(b"\0", start)].decode()
