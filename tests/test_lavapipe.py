"""What the tests' Vulkan without a GPU needs: one driver, named in the environment."""

import json
from pathlib import Path

import pytest

from tools import debian_tools, lavapipe
from tools.steps import BuildError


def package(folder: Path, *names: str) -> Path:
    libraries = folder / "usr" / "lib" / "x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    for name in names:
        (libraries / name).touch()
    return folder


def unpack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *names: str) -> None:
    folder = package(tmp_path / "package", *names)
    monkeypatch.setattr(debian_tools, "unpacked", lambda _: folder)
    monkeypatch.setattr(lavapipe, "_FOLDER", tmp_path / "lavapipe")
    monkeypatch.setattr(lavapipe, "_SYSTEM", tmp_path / "system")
    monkeypatch.setattr(lavapipe, "_PLACE", "x86_64-linux-gnu")


def test_the_driver_of_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unpack(monkeypatch, tmp_path, "libvulkan_lvp.so", "libvulkan.so.1")
    found = lavapipe.environment()
    driver = json.loads(Path(found["VK_DRIVER_FILES"]).read_text())["ICD"]["library_path"]
    assert driver == f"{found['LD_LIBRARY_PATH']}/libvulkan_lvp.so"
    assert Path(driver).exists()
    assert found["VK_ICD_FILENAMES"] == found["VK_DRIVER_FILES"]


def test_the_system_s_own_driver_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unpack(monkeypatch, tmp_path)
    package(tmp_path / "system", "libvulkan_lvp.so", "libvulkan.so.1")
    monkeypatch.setattr(lavapipe, "_SYSTEM", tmp_path / "system" / "usr" / "lib")
    assert lavapipe.environment()["LD_LIBRARY_PATH"].startswith(f"{tmp_path}/system/")


def test_a_package_without_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unpack(monkeypatch, tmp_path, "libvulkan.so.1")
    with pytest.raises(BuildError, match=r"has no `libvulkan_lvp\.so`"):
        lavapipe.environment()
