"""Asks NVIDIA's driver for its devices by CUDA, and writes them as JSON; a hidden sub-command.

As `probe` does for Vulkan, in a process of its own. Knows the functions of `libcuda.so.1` that need no memory of a GPU
(cuda.h), those of `libnvidia-ml.so.1` that tell what is free (nvml.h), and what the build's CUDA serves.
"""

import contextlib
import ctypes
import os
from ctypes import byref, c_char, c_int, c_size_t, c_ubyte, c_ulonglong, c_void_p
from typing import Any, NoReturn

from shimmy.gpus.probe import MAX_DEVICES, NoDevices, tell
from shimmy.messages.device import DeviceBackend

DRIVER = "libcuda.so.1"

# What tools/cuda compiles with, and for.
_NEEDED_VERSION = (13, 0)
_NEEDED_DRIVER = 580  # the first that has it
_NEEDED_CAPABILITY = (7, 5)

_MANAGEMENT = "libnvidia-ml.so.1"
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76  # CUdevice_attribute
_NO_DEVICE = 100
_ERRORS = {
    46: "the GPU is in use by another program alone",
    101: "a GPU that was named does not exist",
    802: "the system of GPUs is not initialised yet: is NVIDIA's fabric manager running?",
    803: "the driver's library and its kernel module are of different versions: restart the machine",
    804: "the driver's library is newer than its kernel module allows",
    999: "an unknown error: is the kernel module loaded, and are /dev/nvidia* there?",
}
_NAME_BYTES, _UUID_BYTES, _VERSION_BYTES = 256, 16, 96


def main() -> NoReturn:
    """Write {"devices": [...], "reason": "..."} on one line; a driver's own words go to stderr."""
    tell(_devices)


def _devices() -> list[dict[str, Any]]:
    """All devices, those that are not to be used with the reason; raises NoDevices."""
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError as exc:
        raise NoDevices(f"NVIDIA's driver cannot be opened: {exc}") from exc
    version = _version(cuda)
    result = cuda.cuInit(0)
    if result == _NO_DEVICE:
        raise NoDevices("NVIDIA's driver knows no device for CUDA" + _hidden())
    _check("cuInit", result)
    count = c_int()
    _check("cuDeviceGetCount", cuda.cuDeviceGetCount(byref(count)))
    management = _management()
    return [_described(cuda, management, index, version) for index in range(min(count.value, MAX_DEVICES))]


def _version(cuda: ctypes.CDLL) -> tuple[int, int]:
    """Of CUDA, that the driver has at most."""
    number = c_int()
    _check("cuDriverGetVersion", cuda.cuDriverGetVersion(byref(number)))
    return number.value // 1000, number.value % 1000 // 10


def _described(
    cuda: ctypes.CDLL, management: ctypes.CDLL | None, index: int, version: tuple[int, int]
) -> dict[str, Any]:
    device, name, n_bytes = c_int(), (c_char * _NAME_BYTES)(), c_size_t()
    _check("cuDeviceGet", cuda.cuDeviceGet(byref(device), index))
    _check("cuDeviceGetName", cuda.cuDeviceGetName(name, _NAME_BYTES - 1, device))
    _check("cuDeviceTotalMem", cuda.cuDeviceTotalMem_v2(byref(n_bytes), device))
    uuid = _uuid(cuda, device)
    capability = _attribute(cuda, _MAJOR, device), _attribute(cuda, _MINOR, device)
    free_bytes = None if management is None else _free_bytes(management, uuid)
    driver = "" if management is None else _driver_version(management)
    return {
        "backend": DeviceBackend.CUDA,
        "index": index,
        "description": name.value.decode("utf-8", "replace").strip(),
        "kind": "integrated" if _attribute(cuda, _INTEGRATED, device) else "discrete",
        "vendor": "NVIDIA",
        "driver": f"NVIDIA {driver}".strip(),
        "api_version": _text(version),
        "total_bytes": n_bytes.value,
        "free_bytes": None if free_bytes is None else min(free_bytes, n_bytes.value),
        "gpu": uuid.hex() if any(uuid) else "",
        "unusable": _unusable(version, capability),
    }


def _unusable(version: tuple[int, int], capability: tuple[int, int]) -> str:
    if capability < _NEEDED_CAPABILITY:
        return f"it has compute capability {_text(capability)}, CUDA in this program needs {_text(_NEEDED_CAPABILITY)}"
    if version < _NEEDED_VERSION:
        return (
            f"its driver has CUDA {_text(version)}, this program needs {_text(_NEEDED_VERSION)}: install NVIDIA's "
            f"driver {_NEEDED_DRIVER} or newer"
        )
    return ""


def _attribute(cuda: ctypes.CDLL, which: int, device: c_int) -> int:
    value = c_int()
    _check("cuDeviceGetAttribute", cuda.cuDeviceGetAttribute(byref(value), which, device))
    return value.value


def _uuid(cuda: ctypes.CDLL, device: c_int) -> bytes:
    """By which Vulkan knows the same GPU; zeros where the driver does not say."""
    uuid = (c_ubyte * _UUID_BYTES)()
    with contextlib.suppress(AttributeError):  # older than CUDA 11.4
        if cuda.cuDeviceGetUuid_v2(uuid, device):
            return bytes(_UUID_BYTES)
    return bytes(uuid)


def _check(function: str, result: int) -> None:
    """Raise NoDevices for a CUresult that is an error."""
    if result:
        raise NoDevices(f"{function} failed: {_ERRORS.get(result, f'error {result}')}")


def _hidden() -> str:
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if setting is None else f"; CUDA_VISIBLE_DEVICES is `{setting}`"


# -- what is free, which CUDA tells only of a GPU whose memory it has taken --------------------------------------------


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


def _management() -> ctypes.CDLL | None:
    """The driver's library for management; a container may lack it."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(_MANAGEMENT)
        if library.nvmlInit_v2() == 0:
            return library
    return None


def _free_bytes(management: ctypes.CDLL, uuid: bytes) -> int | None:
    text = uuid.hex()
    name = "GPU-" + "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
    handle, memory = c_void_p(), _Memory()
    with contextlib.suppress(AttributeError):
        has_handle = management.nvmlDeviceGetHandleByUUID(name.encode(), byref(handle)) == 0
        if has_handle and management.nvmlDeviceGetMemoryInfo(handle, byref(memory)) == 0:
            return int(memory.free)
    return None


def _driver_version(management: ctypes.CDLL) -> str:
    text = (c_char * _VERSION_BYTES)()
    with contextlib.suppress(AttributeError):
        if management.nvmlSystemGetDriverVersion(text, _VERSION_BYTES - 1) == 0:
            return text.value.decode("utf-8", "replace")
    return ""


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
