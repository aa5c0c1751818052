"""A Vulkan loader of ours, by which drivers can be had that do anything."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shimmy.gpus import hardware, vulkan_files
from tests.gpus.fake_loader import compile_loader

SetVulkan = Callable[..., None]


@pytest.fixture(scope="session")
def fake_loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Vulkan loader of ours."""
    return compile_loader(tmp_path_factory.mktemp("vulkan")).parent


@pytest.fixture
def set_vulkan(fake_loader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetVulkan:
    """Sets what the drivers of a machine without GPUs do, and which devices they have."""
    for name in ("GGML_VK_VISIBLE_DEVICES", "VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_loader), prepend=":")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(hardware, "gpus", lambda _root: [])
    monkeypatch.setattr(vulkan_files, "drivers", lambda _environment: [])

    def set_variables(mode: str = "", *devices: str) -> None:
        monkeypatch.setenv("FAKE_VULKAN", mode)
        monkeypatch.setenv("FAKE_DEVICES", ";".join(devices))

    return set_variables
