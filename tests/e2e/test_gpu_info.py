"""`shimmy gpu-info` beside Vulkan drivers of ours: the program asks them in a child of its own."""

import json
from pathlib import Path

import pytest

from tests.e2e.harness import run
from tests.gpus.fake_loader import GEFORCE, compile_loader


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program runs, with our loader before the system's."""
    library = compile_loader(tmp_path)
    monkeypatch.setenv("LD_PRELOAD", str(library))  # the frozen file heeds no LD_LIBRARY_PATH
    monkeypatch.setenv("FAKE_DEVICES", GEFORCE)
    monkeypatch.delenv("GGML_VK_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_devices_are_listed(folder: Path) -> None:
    ended = run(folder, "gpu-info", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    (device,) = json.loads(ended.stdout)["devices"]
    assert (device["name"], device["description"], device["free_bytes"]) == ("Vulkan0", "GeForce", 7 << 30)
    assert "GeForce" in run(folder, "gpu-info").stdout


def test_a_driver_that_crashes_is_a_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VULKAN", "abort")
    ended = run(folder, "gpu-info")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "a Vulkan driver crashed (SIGABRT)" in ended.stdout
    assert not list(folder.glob("_MEI*"))
