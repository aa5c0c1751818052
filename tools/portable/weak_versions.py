"""Lets a library that was linked with a newer C library start with an older one, where the new parts are not needed."""

from tools.portable.elf import ElfFile
from tools.portable.target import GLIBC
from tools.steps import BuildError

_OLDEST = tuple(map(int, GLIBC.split(".")))
_WEAK = 2


def weaken(data: bytes) -> bytes:
    """The library with the versions above GLIBC marked as weak; raises BuildError where a symbol of them is needed."""
    file = ElfFile(data)
    changed = bytearray(data)
    for version, is_weak in file.needed_versions():
        if is_weak or not version.name.startswith("GLIBC_") or version.number <= _OLDEST:
            continue
        if symbols := file.strong_symbols_of(version):
            raise BuildError(f"{', '.join(symbols)} need {version.name} and are not weak")
        changed[version.flags_place] |= _WEAK
    return bytes(changed)


def newer_versions(data: bytes) -> list[str]:
    """The versions of the C library above GLIBC without which a file does not start."""
    return [
        version.name
        for version, is_weak in ElfFile(data).needed_versions()
        if not is_weak and version.name.startswith("GLIBC_") and version.number > _OLDEST
    ]
