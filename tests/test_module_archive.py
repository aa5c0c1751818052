"""The archive of the frozen file's modules, and the finder that reads it there; a Python process plays the file."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tools import module_archive
from tools.stand_in_files import FOLDER

SOURCES = {
    "house/__init__.py": "from house.room import Chair, sit\n",
    "house/room.py": '''"""A docstring."""
from typing import NamedTuple
class Chair(NamedTuple):
    legs: int = 4
async def sit(chair: Chair, *others: "Chair", quietly: bool = True, **more: int) -> Chair:
    """Another."""
    assert quietly
    return chair
''',
    "house/cellar.py": "where = __file__\n\n\ndef fall():\n    raise RuntimeError\n",
    "garden/shed.py": "import house.cellar\n",
}
# What lies in front of the archive.
IN_FRONT = b"\x7fELF and so on"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A file with an archive of SOURCES in it, whose sources are gone."""
    modules: dict[str, Path | None] = {"garden": None}
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        modules[name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")] = path
    file = tmp_path / "shimmy"
    module_archive.write(file, modules)
    for name in SOURCES:
        (tmp_path / name).unlink()
    file.write_bytes(IN_FRONT + file.read_bytes())
    return file


def said(archive: Path, code: str) -> str:
    """What a frozen program with this archive prints."""
    begin = f"""
import sys
sys.path[:] = [path for path in sys.path if path] + [{str(FOLDER)!r}]
sys._MEIPASS = "/unpacked"
import frozen_modules
sys._pyinstaller_pyz = "{archive}?{len(IN_FRONT)}"
"""
    command = [sys.executable, "-c", begin + code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=archive.parent)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_modules_and_packages_are_imported_from_it(archive: Path) -> None:
    code = "import garden.shed, house as h; print(h.Chair(), h.cellar.where, h.__path__, h.__file__, sys.frozen)"
    expected = "Chair(legs=4) /unpacked/house/cellar.py ['/unpacked/house'] /unpacked/house/__init__.py True\n"
    assert said(archive, code) == expected


def test_what_is_not_in_it_is_looked_for_elsewhere(archive: Path) -> None:
    code = """
import calendar
try:
    import house.attic
except ModuleNotFoundError as error:
    print(error)
"""
    assert said(archive, code) == "No module named 'house.attic'\n"


def test_annotations_of_functions_are_gone_and_those_of_classes_are_there(archive: Path) -> None:
    code = "import house; print(house.sit.__annotations__, house.Chair.__annotations__, house.room.__doc__)"
    assert said(archive, code) == "{} {'legs': <class 'int'>} None\n"


def test_errors_tell_their_file_and_line(archive: Path) -> None:
    code = """
import traceback, house.cellar
try:
    house.cellar.fall()
except RuntimeError:
    print(traceback.format_exc())
"""
    assert 'File "house/cellar.py", line 5, in fall' in said(archive, code)


def test_another_file_of_its_name_is_not_read(archive: Path) -> None:
    code = f"""
import house, os
os.unlink({str(archive)!r})
open({str(archive)!r}, "w").close()
import house.cellar
print(house.cellar.where)
"""
    assert said(archive, code) == "/unpacked/house/cellar.py\n"


def test_the_archive_is_read_back(archive: Path) -> None:
    found = dict(module_archive.read(archive.read_bytes()[len(IN_FRONT) :]))
    assert found.keys() == {"house", "house.cellar", "house.room", "garden.shed"}
    assert all(found.values())


def test_two_archives_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        module_archive.write(tmp_path / name, {"room": Path(module_archive.__file__), "empty": None})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_numbers_of_standard_streams_are_left_free(archive: Path) -> None:
    code = """
import os
os.close(0)
os.close(2)
import house
print([number for number in range(3) if os.path.exists(f"/proc/self/fd/{number}")], house.Chair())
"""
    assert said(archive, code) == "[1] Chair(legs=4)\n"


def test_what_modules_have_in_common_is_in_the_archive_once(tmp_path: Path) -> None:
    common = "".join(f"name_{random.Random(number).getrandbits(64)} = 1\n" for number in range(100))
    modules: dict[str, Path | None] = {}
    sizes = []
    for name in "abcdef":
        modules[name] = tmp_path / f"{name}.py"
        (tmp_path / f"{name}.py").write_text(common)
        module_archive.write(tmp_path / "archive", modules)
        sizes.append((tmp_path / "archive").stat().st_size)
    assert sizes[-1] < 2 * sizes[0]


@pytest.mark.parametrize("offset", [30, 1], ids=["its code", "its checksum"])
def test_a_damaged_module_says_so(archive: Path, offset: int) -> None:
    """`offset` from the end: the modules lie there by their names, so the last one is `house.room`."""
    content = bytearray(archive.read_bytes())
    content[-offset] ^= 1
    archive.write_bytes(content)
    with pytest.raises(AssertionError, match=r"ImportError: the program's own file is damaged, in `house\.room`"):
        said(archive, "import house")
