"""The library for several machines: how it is packed, and, where it was made, that engines open it on old systems."""

import hashlib
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shimmy.system.backends import RPC
from tools.backend_library import check
from tools.engine import library_folder
from tools.engine_sources import ggml_sources
from tools.portable.elf import ElfFile
from tools.portable.target import BUILD_MACHINE, TARGETS
from tools.portable.weak_versions import newer_versions
from tools.rpc import library
from tools.steps import BuildError

MADE = {machine: library.FOLDER / machine / RPC.library for machine in TARGETS}
LIMIT_BYTES = 1_000_000
OPENED_AND_CLOSED = """
import _ctypes, ctypes, sys
ctypes.CDLL(sys.argv[1])
opened = ctypes.CDLL(sys.argv[2])
opened.ggml_backend_init.restype = ctypes.c_void_p
print(bool(opened.ggml_backend_init()))
_ctypes.dlclose(opened._handle)
"""


def test_what_is_packed_is_told_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    (tmp_path / RPC.library).write_bytes(content)
    monkeypatch.setattr(library, "library", lambda _: tmp_path / RPC.library)
    archive, told = library.packed(BUILD_MACHINE)
    digest = hashlib.sha256(content).hexdigest()
    assert told.read_text() == f"{digest} {len(content)}\n"
    assert lzma.decompress(archive.read_bytes()) == content


def test_a_library_that_asks_for_more_than_the_engine(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int ibv_open(void); int f(void) { return ibv_open(); }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "a.so", tmp_path / "a.c"], check=True)
    with pytest.raises(BuildError, match=r"asks for \['ibv_open'\] of \["):
        check(tmp_path / "a.so", ("ggml_", "gguf_"))


def test_weights_of_a_megabyte_are_asked_for_before_they_are_sent(tmp_path: Path) -> None:
    changed = library._with_our_number(ggml_sources() / library._SOURCE, tmp_path).read_text()
    assert "\nconst size_t HASH_THRESHOLD = 1 * 1024 * 1024;\n" in changed
    assert len(changed.splitlines()) == len((ggml_sources() / library._SOURCE).read_text().splitlines())
    (tmp_path / "other.cpp").write_text("const size_t HASH_THRESHOLD = 5;")
    with pytest.raises(BuildError, match=r"`other.cpp` does not say"):
        library._with_our_number(tmp_path / "other.cpp", tmp_path)


@pytest.mark.parametrize("machine", [*TARGETS])
def test_it_asks_for_no_newer_system_and_is_small(machine: str) -> None:
    if not MADE[machine].exists():
        pytest.skip(f"not made: `python3 build.py rpc {machine}`")
    content = MADE[machine].read_bytes()
    file = ElfFile(content)
    assert file.machine == machine
    assert newer_versions(content) == []
    assert not any("++" in name or "gcc" in name or "verbs" in name for name in file.libraries())
    assert len(content) < LIMIT_BYTES


def test_the_engine_opens_and_closes_it() -> None:
    if not (made := MADE[BUILD_MACHINE.machine]).exists():
        pytest.skip("not made: `python3 build.py rpc`")
    command: list[str | Path] = [sys.executable, "-c", OPENED_AND_CLOSED, library_folder() / "libggml-base.so.0", made]
    ended = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "True\n"), ended.stderr
