"""GPUs in a /sys of ours, and what people are told to do where Vulkan does not answer for them."""

import grp
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from shimmy.gpus.hardware import PciGpu, advice, gpus

NVIDIA, AMD, INTEL = "0x10de", "0x1002", "0x8086"


def add(root: Path, vendor: str, kind: str = "0x030000", driver: str = "") -> None:
    devices = root / "sys/bus/pci/devices"
    devices.mkdir(parents=True, exist_ok=True)
    device = devices / f"0000:0{len(list(devices.iterdir()))}:00.0"
    device.mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    if driver:
        (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(root / "sys/bus/pci/drivers" / driver)


def add_node(root: Path, name: str) -> None:
    (root / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
    (root / "dev" / name).touch()


def test_gpus_are_display_controllers_and_accelerators_of_known_vendors(tmp_path: Path) -> None:
    assert gpus(tmp_path) == []
    add(tmp_path, NVIDIA, "0x030200", "nvidia")
    add(tmp_path, NVIDIA, "0x040300", "snd_hda_intel")  # its sound
    add(tmp_path, "0x1a03")  # the console of a server's board
    add(tmp_path, AMD, "0x120000")
    add(tmp_path, INTEL, "0x020000", "igb")
    (tmp_path / "sys/bus/pci/devices/0000:09:00.0").mkdir()
    assert gpus(tmp_path) == [PciGpu("NVIDIA", "nvidia"), PciGpu("AMD", "")]


@pytest.mark.parametrize(
    ("vendor", "driver", "nodes", "has_loader", "told"),
    [
        (NVIDIA, "", (), True, "no kernel driver has taken it; install NVIDIA's driver"),
        (NVIDIA, "vfio-pci", (), True, "it is kept for virtual machines (`vfio-pci`)"),
        (NVIDIA, "nvidia", ("dri/renderD128",), True, "`--gpus all -e NVIDIA_DRIVER_CAPABILITIES=all`"),
        (NVIDIA, "nvidia", ("nvidiactl",), False, "install the Vulkan loader (`libvulkan1` on Debian"),
        (NVIDIA, "nvidia", ("nvidiactl",), True, "a container needs `-e NVIDIA_DRIVER_CAPABILITIES=all`, a system"),
        (NVIDIA, "nouveau", ("dri/renderD128",), True, "install Mesa's (`mesa-vulkan-drivers` on Debian"),
        (AMD, "", (), True, "install the kernel's driver (`amdgpu`"),
        (AMD, "amdgpu", ("nvidiactl",), True, "a container gets them by `--device /dev/dri`"),
        (AMD, "amdgpu", ("dri/renderD128",), False, "install the Vulkan loader"),
        (INTEL, "xe", ("dri/renderD128",), True, "no Vulkan driver answers for it; install Mesa's"),
    ],
)  # fmt: skip
def test_what_stands_in_the_way_is_told(
    vendor: str, driver: str, nodes: tuple[str, ...], has_loader: bool, told: str, tmp_path: Path
) -> None:
    add(tmp_path, vendor, driver=driver)
    for node in nodes:
        add_node(tmp_path, node)
    (text,) = advice(("0x10005",), has_loader=has_loader, root=tmp_path)
    assert told in text
    assert text.startswith(f"the GPU of {gpus(tmp_path)[0].vendor} is not used: ")


def test_a_device_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, AMD, driver="amdgpu")
    add_node(tmp_path, "dri/renderD128")
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    number = (tmp_path / "dev/dri/renderD128").stat().st_gid
    names = {number: SimpleNamespace(gr_name="render")}
    monkeypatch.setattr(grp, "getgrgid", names.__getitem__)
    (text,) = advice((), has_loader=True, root=tmp_path)
    assert f"`{tmp_path}/dev/dri/renderD128` cannot be opened; add the user to the group `render`" in text
    names.clear()  # as in a container that does not know the group
    (text,) = advice((), has_loader=True, root=tmp_path)
    assert text.endswith(f"add the user to the group `{number}`")


def test_nothing_is_said_of_gpus_that_answer(tmp_path: Path) -> None:
    add(tmp_path, AMD, driver="amdgpu")
    add(tmp_path, NVIDIA)
    assert advice(("NVIDIA", "AMD"), has_loader=True, root=tmp_path) == []
    assert len(advice(("NVIDIA",), has_loader=True, root=tmp_path)) == 1
    assert len(advice((), has_loader=True, root=tmp_path)) == 2
