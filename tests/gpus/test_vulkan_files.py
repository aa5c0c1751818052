"""Where the loader is looked for, and which files make an answer old."""

import os
from pathlib import Path

import pytest

from shimmy.gpus.vulkan_files import LOADER, drivers, loader, states


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("folder", ["lib64", "usr/lib64", "lib", "usr/lib", f"usr/lib/{os.uname().machine}-linux-gnu"])
def test_the_loader_is_found_in_the_systems_folders(folder: str, tmp_path: Path) -> None:
    assert loader({}, tmp_path) is None
    path = touch(tmp_path / folder / LOADER)
    assert loader({}, tmp_path) == path


def test_the_linkers_cache_and_variables_name_other_places(tmp_path: Path) -> None:
    opt = touch(tmp_path / "opt/vulkan" / LOADER)
    cache = tmp_path / "etc/ld.so.cache"
    cache.parent.mkdir()
    cache.write_bytes(b"glibc-ld.so.cache1.1\0\x03/gone/libvulkan.so.1\0libvulkan.so.1\0/opt/vulkan/libvulkan.so.1\0x")
    assert loader({}, tmp_path) == opt
    own = touch(tmp_path / "own" / LOADER)
    assert loader({"LD_LIBRARY_PATH": f":{tmp_path}/missing:{tmp_path}/own"}, tmp_path) == own
    assert loader({"LD_PRELOAD": f"/some/libc.so.6:{own} {opt}"}, tmp_path) == own
    assert loader({"LD_LIBRARY_PATH": 300 * "x"}, tmp_path) == opt  # no folder can have that name
    assert loader({"LD_PRELOAD": "libvulkan.so.1:/gone/libvulkan.so.1"}, tmp_path) == opt


@pytest.mark.parametrize(
    ("file", "environment"),
    [
        ("etc/vulkan/icd.d/a.json", {}),
        ("home/.config/vulkan/icd.d/a.json", {"HOME": "{root}/home"}),
        ("home/.local/share/vulkan/implicit_layer.d/a.json", {"HOME": "{root}/home"}),
        ("data/vulkan/icd.d/a.json", {"XDG_DATA_DIRS": "/nowhere:{root}/data"}),
        ("mine/a.json", {"VK_ICD_FILENAMES": "{root}/mine/a.json"}),
        ("mine/a.json", {"VK_DRIVER_FILES": "{root}/other:{root}/mine"}),
        ("mine/a.json", {"VK_ADD_DRIVER_FILES": "{root}/mine"}),
        ("usr/lib/libvulkan.so.1", {}),
        ("etc/ld.so.cache", {}),
    ],
)
def test_a_file_that_decides_about_drivers_is_one_of_the_states(
    file: str, environment: dict[str, str], tmp_path: Path
) -> None:
    variables = {name: text.format(root=tmp_path) for name, text in environment.items()}
    before = states(variables, tmp_path)
    path = touch(tmp_path / file)
    found = states(variables, tmp_path)
    assert found != before
    os.utime(path, (1, 1))
    changed = states(variables, tmp_path)
    assert changed != found
    assert str(path) in [state[0] for state in changed]


def test_drivers_are_those_that_the_loader_reads(tmp_path: Path) -> None:
    system = touch(tmp_path / "usr/share/vulkan/icd.d/a.json")
    mine = [touch(tmp_path / "mine/b.json"), touch(tmp_path / "mine/c.json")]
    touch(tmp_path / "mine/readme.txt")
    assert drivers({}, tmp_path) == [system]
    assert drivers({"VK_ADD_DRIVER_FILES": f"{tmp_path}/mine"}, tmp_path) == [system, *mine]
    named = {"VK_ICD_FILENAMES": str(system), "VK_DRIVER_FILES": f"{tmp_path}/mine:/gone"}
    assert drivers(named, tmp_path) == mine
    assert drivers({"VK_ICD_FILENAMES": str(mine[1])}, tmp_path) == mine[1:]
