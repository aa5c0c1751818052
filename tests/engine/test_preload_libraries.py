"""The engine is unpacked before anybody asks for it; `_MEIPASS` and the thread are played by the test."""

import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from shimmy.engine import preload_libraries
from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.unpack_libraries import ENGINE_FOLDER
from tools import variants as packing


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What threads were started for; they have ended when `begin` returns."""
    names: list[str] = []

    def start(function: Callable[[str], None], arguments: tuple[str]) -> None:
        names.extend(arguments)
        function(*arguments)

    monkeypatch.setattr(preload_libraries, "start_new_thread", start)
    return names


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the engine in this 'frozen program'."""
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path), raising=False)
    monkeypatch.setattr(variants, "processor_flags", lambda: frozenset({"sse4_2"}))
    folder = tmp_path / ENGINE_FOLDER
    folder.mkdir(parents=True)
    (folder / "libllama.so.z").write_bytes(zlib.compress(b"llama"))
    (folder / variants.ARCHIVE_NAME).write_bytes(packing.pack({"haswell": b"fast", "sse42": b"slow", "x64": b"slower"}))
    return folder


def test_libraries_and_the_variant_that_fits_are_unpacked(engine: Path) -> None:
    preload_libraries.begin()
    assert (engine / "libllama.so").read_bytes() == b"llama"
    assert [path.name for path in engine.glob("libggml-cpu-*.so")] == ["libggml-cpu-sse42.so"]


def test_what_goes_wrong_is_left_to_who_needs_the_engine(engine: Path) -> None:
    (engine / "libllama.so.z").unlink()
    (engine / "libllama.so.z").mkdir()  # cannot be read
    preload_libraries.begin()
    assert not (engine / "libllama.so").exists()


def test_in_a_source_tree_there_is_nothing_to_do(started: list[str]) -> None:
    preload_libraries.begin()
    assert started == []
