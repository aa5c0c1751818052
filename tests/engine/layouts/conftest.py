"""Loops over weights are those of the C library, compiled for the tests; `loaded` has all builds of them, and numpy."""

from pathlib import Path

import pytest

from shimmy.engine.layouts import loops
from shimmy.engine.layouts.loops import Library
from tools.weight_loops import compile_loops


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_loops(tmp_path_factory.mktemp("loops") / "library.so", "cc")


@pytest.fixture(scope="session")
def library(compiled: Path) -> Library:
    """With the best of this processor's instructions."""
    return Library(compiled)


@pytest.fixture(scope="session")
def plain_library(compiled: Path) -> Library:
    """As any processor of this machine has it."""
    return Library(compiled, is_plain=True)


@pytest.fixture(autouse=True)
def _in_c(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "library", library)


@pytest.fixture(params=["C", "plain C", "numpy"])
def loaded(
    request: pytest.FixtureRequest, library: Library, plain_library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"C": library, "plain C": plain_library, "numpy": None}
    monkeypatch.setattr(loops, "library", chosen[request.param])
