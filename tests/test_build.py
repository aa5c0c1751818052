"""The command line of the build: which machines a step is for."""

import sys
from contextlib import nullcontext
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest

from tools.steps import ROOT


def front_door() -> ModuleType:
    """`build.py`, whose name is also that of a folder."""
    spec = spec_from_file_location("build_py", ROOT / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = front_door()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    steps: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(build, "locked", lambda _: nullcontext())
    monkeypatch.setattr(
        build, "build", lambda step, _, machines: steps.append((step, [target.machine for target in machines]))
    )
    return steps


@pytest.mark.parametrize(
    ("words", "machines"),
    [
        ("freeze", ["x86_64"]),
        ("freeze x86_64 aarch64", ["x86_64", "aarch64"]),
        ("vulkan", ["x86_64"]),
        ("vulkan aarch64 x86_64", ["aarch64", "x86_64"]),
        ("rpc", ["x86_64"]),
        ("peer", ["x86_64"]),
        ("env", []),
    ],
)
def test_a_step_is_for_the_machines_that_are_named(
    built: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch, words: str, machines: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["build.py", *words.split()])
    assert build.main() == 0
    assert built == [(words.split(maxsplit=1)[0], machines)]


def test_a_machine_that_is_not_known(
    built: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["build.py", "vulkan", "riscv64"])
    with pytest.raises(SystemExit):
        build.main()
    assert "`riscv64` is none of x86_64, aarch64" in capsys.readouterr().err
    assert built == []
