"""What ELF files ask for, compared with what readelf says of the libraries of this system and of our own."""

import re
import subprocess
from pathlib import Path

import pytest

from tools.engine import library_folder
from tools.portable.elf import ElfFile
from tools.portable.weak_versions import newer_versions, weaken
from tools.steps import BuildError

LIBRARIES = sorted(library_folder().glob("*.so"))


def readelf(option: str, path: Path) -> str:
    return subprocess.run(["readelf", "--wide", option, path], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name)
def test_libraries_and_versions_are_those_of_readelf(path: Path) -> None:
    file = ElfFile(path.read_bytes())
    assert file.libraries() == re.findall(r"NEEDED.*\[(.*)\]", readelf("-d", path))
    _, _, needed = readelf("-V", path).partition(".gnu.version_r")
    assert [version.name for version, _ in file.needed_versions()] == re.findall(r"Name: (\S+)", needed)
    assert file.machine in readelf("-h", path).replace("Advanced Micro Devices X86-64", "x86_64").replace(
        "AArch64", "aarch64"
    )


@pytest.mark.parametrize("path", LIBRARIES[:3], ids=lambda path: path.name)
def test_undefined_symbols_and_pages_are_those_of_readelf(path: Path) -> None:
    file = ElfFile(path.read_bytes())
    symbols = re.findall(r"GLOBAL +\w+ +UND (\w+)$", readelf("--dyn-syms", path), re.MULTILINE)
    assert file.undefined_symbols() == symbols
    aligned = re.findall(r"^ +LOAD .* (0x\w+)$", readelf("--segments", path), re.MULTILINE)
    assert file.page_bytes() == min(int(number, 16) for number in aligned)


def test_what_is_no_elf_file() -> None:
    with pytest.raises(ValueError, match="no 64-bit"):
        ElfFile(b"#!/bin/sh\n")


def compiled(folder: Path, source: str) -> bytes:
    (folder / "a.c").write_text(source)
    libraries = ("-Wl,--no-as-needed", "-lc")  # also where all that is taken from it is weak
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "a.so", folder / "a.c", *libraries], check=True)
    return (folder / "a.so").read_bytes()


def test_a_weak_symbol_makes_its_version_weak(tmp_path: Path) -> None:
    declared = "__attribute__((weak)) long getrandom(void *, unsigned long, unsigned);"
    data = compiled(tmp_path, f"{declared} long f(char *p) {{ return getrandom ? getrandom(p, 1, 0) : 0; }}")
    assert newer_versions(data) == ["GLIBC_2.25"]
    assert newer_versions(weaken(data)) == []
    (tmp_path / "weak.so").write_bytes(weaken(data))
    assert re.search(r"Name: GLIBC_2\.25  Flags: WEAK", readelf("-V", tmp_path / "weak.so"))


def test_a_symbol_that_is_needed_is_named(tmp_path: Path) -> None:
    data = compiled(
        tmp_path, "long getrandom(void *, unsigned long, unsigned); long f(char *p) { return getrandom(p, 1, 0); }"
    )
    with pytest.raises(BuildError, match=r"getrandom need GLIBC_2\.25"):
        weaken(data)


def test_a_library_for_old_systems_stays_as_it_is(tmp_path: Path) -> None:
    data = compiled(tmp_path, 'int puts(const char *); int f(void) { return puts(""); }')
    assert newer_versions(data) == []
    assert weaken(data) == data
