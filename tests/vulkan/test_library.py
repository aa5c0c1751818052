"""The library for GPUs: how it is packed, and, where it was made, that the engine of this system may open it."""

import hashlib
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.backend_library import check
from tools.engine import library_folder
from tools.portable.elf import ElfFile
from tools.portable.target import BUILD_MACHINE, TARGETS
from tools.portable.weak_versions import newer_versions
from tools.steps import BuildError
from tools.vulkan import library
from tools.vulkan.library import LIBRARY
from tools.vulkan.shader_compiler import FOLDER

MADE = {machine: FOLDER / machine / LIBRARY for machine in TARGETS}
# As ggml opens a backend that finds no device: asked, closed, and then the process ends.
OPENED_AND_CLOSED = """
import _ctypes, ctypes, sys
ctypes.CDLL(sys.argv[1])
opened = ctypes.CDLL(sys.argv[2])
opened.ggml_backend_init.restype = ctypes.c_void_p
print(opened.ggml_backend_init())
_ctypes.dlclose(opened._handle)
"""


def test_what_is_packed_is_told_without_unpacking_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    (tmp_path / LIBRARY).write_bytes(content)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    monkeypatch.setattr(library, "library", lambda _: tmp_path / LIBRARY)
    archive, told = library.packed(BUILD_MACHINE)
    assert lzma.decompress(archive.read_bytes()) == content
    assert told.read_text() == f"{hashlib.sha256(content).hexdigest()} {len(content)}\n"


def test_a_library_that_asks_for_more_than_the_engine(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int vkCreateInstance(void); int f(void) { return vkCreateInstance(); }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "a.so", tmp_path / "a.c"], check=True)
    with pytest.raises(BuildError, match=r"asks for \['vkCreateInstance'\] of \["):
        check(tmp_path / "a.so")


@pytest.mark.parametrize("machine", [*TARGETS])
def test_it_asks_for_no_newer_system_and_for_no_driver(machine: str) -> None:
    if not MADE[machine].exists():
        pytest.skip(f"not made: `python3 build.py vulkan {machine}`")
    content = MADE[machine].read_bytes()
    file = ElfFile(content)
    assert file.machine == machine
    assert newer_versions(content) == []
    assert not any("vulkan" in name or "++" in name or "gcc" in name for name in file.libraries())


def test_the_engine_opens_and_closes_it_where_there_is_no_driver() -> None:
    if not (made := MADE[BUILD_MACHINE.machine]).exists():
        pytest.skip("not made: `python3 build.py vulkan`")
    none = {"VK_DRIVER_FILES": "/nonexistent.json", "VK_ICD_FILENAMES": "/nonexistent.json"}
    command: list[str | Path] = [sys.executable, "-c", OPENED_AND_CLOSED, library_folder() / "libggml-base.so.0", made]
    ended = subprocess.run(command, env=os.environ | none, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "None\n"), ended.stderr
