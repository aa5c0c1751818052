"""Loops over weights are those of the C library, compiled for the tests; `loaded` has them in numpy as well."""

import ctypes

import pytest

from shimmy.engine.layouts import loops
from tools.weight_loops import compile_loops


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(compile_loops(tmp_path_factory.mktemp("loops") / "library.so", "cc")))


@pytest.fixture(autouse=True)
def _in_c(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "library", library)


@pytest.fixture(params=["C", "numpy"])
def loaded(request: pytest.FixtureRequest, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "library", library if request.param == "C" else None)
