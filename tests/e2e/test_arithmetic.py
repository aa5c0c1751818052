"""The frozen file's arithmetic: numpy computes what the wheel's does, our loops what numpy does, where it is needed."""

import platform
import re
import sys
from pathlib import Path

import pytest

from shimmy.engine.layouts.loops import Library
from shimmy.engine.llama.unpack_libraries import LOOPS_ARCHIVE, NUMPY_ARCHIVE
from tests import loop_operations
from tests.e2e.conftest import StartServer
from tests.e2e.harness import PROGRAM
from tests.e2e.processes import mapped_files
from tests.numpy_package import lay_out, results
from tests.quantised_llama import write_both
from tools.portable.contents import read_files, unpacked
from tools.portable.elf import ElfFile

pytestmark = pytest.mark.frozen


def test_the_library_computes_what_the_wheel_does(tmp_path: Path) -> None:
    files = {name: content for name, _, content in read_files(Path(PROGRAM[-1]))}
    if not any(name.startswith(f"libpython3.{sys.version_info.minor}.") for name in files):
        pytest.skip("the library is for another Python than this one")
    ((_, data),) = unpacked(NUMPY_ARCHIVE, files[NUMPY_ARCHIVE])
    library = tmp_path / "library.so"
    library.write_bytes(data)
    assert results(lay_out(tmp_path / "package", library)) == results()


def test_the_library_of_loops_gives_what_numpy_gives(tmp_path: Path) -> None:
    files = {name: content for name, _, content in read_files(Path(PROGRAM[-1]))}
    ((_, data),) = unpacked(LOOPS_ARCHIVE, files[LOOPS_ARCHIVE])
    if ElfFile(data).machine != platform.machine():
        pytest.skip("the program runs in an emulator")
    library = tmp_path / "library.so"
    library.write_bytes(data)
    for is_plain in (False, True):
        found = loop_operations.results(Library(library, is_plain=is_plain))
        assert found == loop_operations.results(None)


def has(name: str, pid: int) -> bool:
    return any(re.match(rf"(memfd:)?{name}\b", Path(path).name) for path in mapped_files(pid))


def test_only_a_worker_with_quantised_weights_computes(start: StartServer, tmp_path: Path) -> None:
    write_both(tmp_path / "models", "gptq")
    server = start("--model-path", tmp_path / "models", "--cache-dir", tmp_path / "cache")
    assert server.chat("hello", "gptq-plain", max_tokens=1)
    plain = server.worker()
    assert server.chat("hello", "gptq", max_tokens=1)
    (quantised,) = set(server.workers()) - {plain}
    for library in ("numpy", "weight_loops"):
        assert [has(library, pid) for pid in (server.pid, plain, quantised)] == [False, False, True]
