"""The GPUs that the kernel sees, and what a person can do where no driver answers for one of them.

Knows /sys and /dev; asks no driver.
"""

import grp
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from shimmy.system import files

_ROOT = Path("/")
_PCI_DEVICES = "sys/bus/pci/devices"
_DISPLAY, _ACCELERATOR = "0x03", "0x12"  # how a device's class begins
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_MAX_TEXT_BYTES = 64

_FOR_VIRTUAL_MACHINES = "vfio-pci"
_NVIDIAS_OWN = ("nvidia", "")  # kernel drivers; with another one NVIDIA's GPUs are served as the others' are
_LOADER_PACKAGES = "`libvulkan1` on Debian and Ubuntu, `vulkan-loader` on Fedora, `vulkan-icd-loader` on Arch"
_MESA_PACKAGES = "`mesa-vulkan-drivers` on Debian, Ubuntu and Fedora, `vulkan-radeon` or `vulkan-intel` on Arch"
_CUDA_PACKAGES = "`libcuda1` on Debian, `libnvidia-compute-…` on Ubuntu, `nvidia-utils` on Arch"
_NVIDIA_PACKAGES = "`nvidia-vulkan-icd` on Debian, `libnvidia-gl-…` on Ubuntu, `nvidia-utils` on Arch"


@dataclass(frozen=True, slots=True)
class PciGpu:
    """A GPU as the kernel sees it."""

    vendor: str
    kernel_driver: str  # empty where none has taken it


def gpus(root: Path = _ROOT) -> list[PciGpu]:
    """Those of vendors whose GPUs compute, in the order of their addresses."""
    found = []
    for device in sorted((root / _PCI_DEVICES).glob("*")):
        vendor, kind = _VENDORS.get(_text(device / "vendor")), _text(device / "class")
        if vendor is not None and kind.startswith((_DISPLAY, _ACCELERATOR)):
            found.append(PciGpu(vendor, _target(device / "driver")))
    return found


def nodes(root: Path = _ROOT) -> list[tuple[str, bool]]:
    """The device files by which programs reach GPUs, and whether this user may open each."""
    found = [*sorted((root / "dev").glob("nvidia[0-9c]*")), *sorted((root / "dev/dri").glob("renderD*"))]
    return [(str(path), os.access(path, os.R_OK | os.W_OK)) for path in found]


def advice(answering: Collection[str], *, has_loader: bool, wants_cuda: bool = False, root: Path = _ROOT) -> list[str]:
    """For each vendor of a GPU here that is not among those `answering` by Vulkan or CUDA: why not, and what to do."""
    missing = {gpu.vendor: gpu for gpu in gpus(root) if gpu.vendor not in answering}
    return [
        f"the GPU of {vendor} is not used: {_obstacle(gpu, has_loader=has_loader, wants_cuda=wants_cuda, root=root)}"
        for vendor, gpu in missing.items()
    ]


def _obstacle(gpu: PciGpu, *, has_loader: bool, wants_cuda: bool, root: Path) -> str:
    """What stands between a GPU and its use: the first of what is looked at, from the kernel upwards."""
    is_nvidias = gpu.vendor == "NVIDIA" and gpu.kernel_driver in _NVIDIAS_OWN
    if not gpu.kernel_driver:
        driver = "NVIDIA's driver" if is_nvidias else "the kernel's driver (`amdgpu`, `i915` or `xe`)"
        return f"no kernel driver has taken it; install {driver}"
    if gpu.kernel_driver == _FOR_VIRTUAL_MACHINES:
        return f"it is kept for virtual machines (`{_FOR_VIRTUAL_MACHINES}`)"
    ours = [(path, is_open) for path, is_open in nodes(root) if ("/dev/nvidia" in path) == is_nvidias]
    if not ours:
        options = "--gpus all -e NVIDIA_DRIVER_CAPABILITIES=all" if is_nvidias else "--device /dev/dri"
        return f"its device files are not here; a container gets them by `{options}`, a service as docs/gpu.md says"
    closed = [path for path, is_open in ours if not is_open]
    if closed:
        return f"`{closed[0]}` cannot be opened; add the user to the group `{_group(Path(closed[0]))}`"
    if is_nvidias and wants_cuda:
        return (
            "NVIDIA's driver does not answer for it (`libcuda.so.1`); a container needs `--gpus all`, a system CUDA's "
            f"part of the driver ({_CUDA_PACKAGES})"
        )
    if not has_loader:
        return f"install the Vulkan loader ({_LOADER_PACKAGES})"
    if is_nvidias:
        return (
            "no Vulkan driver answers for it; a container needs `-e NVIDIA_DRIVER_CAPABILITIES=all`, a system the "
            f"Vulkan part of NVIDIA's driver ({_NVIDIA_PACKAGES})"
        )
    return f"no Vulkan driver answers for it; install Mesa's ({_MESA_PACKAGES})"


def _group(path: Path) -> str:
    try:
        number = path.stat().st_gid
    except OSError:  # it is gone again
        return "render"
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:  # a container does not know the system's groups
        return str(number)


def _target(link: Path) -> str:
    """The name of what a link leads to; empty where there is none."""
    try:
        return link.readlink().name
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return files.read_start(path, _MAX_TEXT_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""
