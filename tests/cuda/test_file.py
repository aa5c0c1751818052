"""The file with CUDA: the one without, and two more files in its archive, by PyInstaller's own reader."""

import hashlib
from pathlib import Path

import pytest
from PyInstaller.archive.readers import CArchiveReader  # type: ignore[import-untyped]
from PyInstaller.archive.writers import CArchiveWriter  # type: ignore[import-untyped]

from shimmy.system.backends import CUDA
from tools.bootloader import SIZE_WORDS
from tools.cuda import file, papers
from tools.cuda.toolkit import Toolkit
from tools.portable import freeze
from tools.portable.contents import read_files, with_files

BOOTLOADER = b"\x7fELF, the bootloader" + SIZE_WORDS + bytes(8)
LIBRARY = b"\x7fELF, the library" * 1000


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program as PyInstaller makes it: a bootloader and an archive."""
    entries = []
    for name, is_packed, kind in (("first.so", True, "b"), ("a-name-of-30-letters-and-digits", False, "x")):
        source = tmp_path / name
        source.write_bytes(f"what is in {name}".encode() * 10)
        entries.append((name, str(source), is_packed, kind))
    CArchiveWriter(str(tmp_path / "archive"), entries, "libpython3.13.so.1.0")
    made = tmp_path / "program"
    made.write_bytes(BOOTLOADER + (tmp_path / "archive").read_bytes())
    return made


def test_files_are_put_into_an_archive(program: Path, tmp_path: Path) -> None:
    before = {name: content for name, _, content in read_files(program)}
    made = tmp_path / "made"
    made.write_bytes(with_files(program.read_bytes(), {CUDA.archive: LIBRARY, CUDA.digest: b"1 2\n"}))
    assert made.read_bytes().startswith(program.read_bytes()[: len(BOOTLOADER) + 40])
    reader = CArchiveReader(str(made))
    assert {name: reader.extract(name) for name in reader.toc} == before | {
        CUDA.archive: LIBRARY,
        CUDA.digest: b"1 2\n",
    }
    assert reader.toc[CUDA.archive][-1] == "x"  # data, which no start unpacks
    assert {name: content for name, _, content in read_files(made)} == {
        name: reader.extract(name) for name in reader.toc
    }


def test_the_library_lies_in_the_file_as_it_is_with_its_hash(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "FOLDER", tmp_path)
    monkeypatch.setattr(file, "components", lambda _: [])
    monkeypatch.setattr(papers, "components", list)
    monkeypatch.setattr(papers, "license_texts", dict)
    expected = []
    monkeypatch.setattr(freeze, "checked", lambda _program, _target, names, limit: expected.append(({*names}, limit)))
    monkeypatch.setattr(freeze, "publish", lambda made, *_: made)
    library = tmp_path / CUDA.library
    library.write_bytes(LIBRARY)
    made = file.made_of(program, library)
    inside = {name: content for name, _, content in read_files(made)}
    assert made.name == "shimmy-linux-x86_64-cuda"
    assert made.read_bytes().count(LIBRARY) == 1
    assert inside[CUDA.digest].decode() == f"{hashlib.sha256(LIBRARY).hexdigest()} {len(LIBRARY)}\n"
    assert int.from_bytes(made.read_bytes()[len(BOOTLOADER) - 8 : len(BOOTLOADER)], "little") == made.stat().st_size
    assert expected == [({CUDA.archive, CUDA.digest}, 150_000_000)]


def test_the_papers_name_what_is_linked_in_and_say_why_it_may_be(cuda: Toolkit) -> None:
    assert "libcudart_static.a" in cuda.license_file.read_text()
    texts = papers.license_texts()
    names = {component.name: component.license for component in papers.components()}
    assert names["CUDA Runtime"] in texts
    assert "libstdc++" in texts
    assert "libstdc++" in names
