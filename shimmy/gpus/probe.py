"""Asks the Vulkan loader of this machine for its devices, and writes them as JSON; a hidden sub-command.

Drivers abort, hang, and print what they like: this runs in a process of its own, which `devices` starts and limits.
Knows Vulkan's C structures (vulkan_core.h) and what ggml asks of a device; no model and no setting of ours.
"""

import ctypes
import json
import os
import resource
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_uint8, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NoReturn

MAX_DEVICES = 64
LOADER = "libvulkan.so.1"
VISIBLE = "GGML_VK_VISIBLE_DEVICES"

_MAX_EXTENSIONS = 1024
_MAX_HEAPS = 16
_NEEDED_API = (1, 2)  # ggml_vk_instance_init
_NO_DRIVER = -9  # VK_ERROR_INCOMPATIBLE_DRIVER
# Other values of VkResult, as they are meant here; the loader has the first for damaged descriptions of drivers, too.
_ERRORS = {-1: "out of memory, or a driver's description cannot be read", -3: "a driver could not be initialised"}
_KINDS = ("other", "integrated", "discrete", "virtual", "cpu")  # VkPhysicalDeviceType
_INTEGRATED = 1
_DEVICE_LOCAL = 1  # VK_MEMORY_HEAP_DEVICE_LOCAL_BIT
_VENDORS = {0x10DE: "NVIDIA", 0x1002: "AMD", 0x8086: "Intel"}
# Of two drivers for one GPU, by their VkDriverId, which is used: as in ggml_vk_instance_init.
_DRIVER_RANKS = {3: 1, 4: 1, 6: 1, 8: 1, 2: 2, 5: 2, 18: 2, 24: 2, 1: 3, 23: 100}
_NO_RANK = 1000
_BUDGET_EXTENSION = b"VK_EXT_memory_budget"


class NoDevices(Exception):
    """Why there are none, for a person."""


@dataclass(slots=True)
class _Described:
    """The fields of a Device, and by what two drivers of one GPU are found."""

    fields: dict[str, Any]
    gpu: bytes  # its UUID; zeros where the driver does not say
    driver_rank: int
    unusable: str

    @property
    def index(self) -> int:
        index: int = self.fields["index"]
        return index


# -- Vulkan's structures ---------------------------------------------------------------------------------------------

_HEAD = (("type", c_uint32), ("next", c_void_p))


class _Application(Structure):
    _fields_ = (
        *_HEAD, ("name", c_char_p), ("version", c_uint32), ("engine", c_char_p), ("engine_version", c_uint32),
        ("api", c_uint32),
    )  # fmt: skip


class _InstanceInfo(Structure):
    _fields_ = (
        *_HEAD, ("flags", c_uint32), ("application", POINTER(_Application)), ("n_layers", c_uint32),
        ("layers", c_void_p), ("n_extensions", c_uint32), ("extensions", c_void_p),
    )  # fmt: skip


class _Properties(Structure):
    _fields_ = (
        ("api", c_uint32), ("driver", c_uint32), ("vendor", c_uint32), ("device", c_uint32), ("kind", c_uint32),
        ("name", c_char * 256), ("rest", c_uint64 * 128),
    )  # fmt: skip


class _Driver(Structure):
    _fields_ = (*_HEAD, ("id", c_uint32), ("name", c_char * 256), ("info", c_char * 256), ("conformance", c_uint32))


class _Identity(Structure):
    _fields_ = (*_HEAD, ("device_uuid", c_uint8 * 16), ("rest", c_uint8 * 32))


class _Properties2(Structure):
    _fields_ = (*_HEAD, ("properties", _Properties))


class _Storage16(Structure):
    _fields_ = (*_HEAD, ("storage_buffer", c_uint32), ("rest", c_uint32 * 3))


class _Features2(Structure):
    _fields_ = (*_HEAD, ("features", c_uint32 * 64))


class _Heap(Structure):
    _fields_ = (("size", c_uint64), ("flags", c_uint32))


class _Memory(Structure):
    _fields_ = (("n_types", c_uint32), ("types", c_uint32 * 64), ("n_heaps", c_uint32), ("heaps", _Heap * _MAX_HEAPS))


class _Budget(Structure):
    _fields_ = (*_HEAD, ("budget", c_uint64 * _MAX_HEAPS), ("usage", c_uint64 * _MAX_HEAPS))


class _Memory2(Structure):
    _fields_ = (*_HEAD, ("memory", _Memory))


class _Extension(Structure):
    _fields_ = (("name", c_char * 256), ("version", c_uint32))


# -- the child process -----------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Write {"devices": [...], "reason": "..."} on one line; a driver's own words go to stderr."""
    tell(lambda: [device.fields | {"unusable": device.unusable} for device in _devices(*_loader())])


def tell(devices: Callable[[], list[dict[str, Any]]]) -> NoReturn:
    """Write what `devices` gives, or why it raises NoDevices, and end the process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what it may die of is a driver's fault
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        said: dict[str, Any] = {"devices": devices(), "reason": ""}
    except NoDevices as exc:
        said = {"devices": [], "reason": str(exc)}
    with os.fdopen(stdout, "wb") as file:
        file.write(json.dumps(said).encode() + b"\n")
    os._exit(0)  # drivers run code at an exit, too


def _loader() -> tuple[ctypes.CDLL, int]:
    """The loader's library and the version of Vulkan that it has; raises NoDevices."""
    try:
        vulkan = ctypes.CDLL(LOADER)
    except OSError as exc:
        raise NoDevices(f"the Vulkan loader cannot be opened: {exc}") from exc
    try:
        ask_version = vulkan.vkEnumerateInstanceVersion
    except AttributeError:
        raise NoDevices("the Vulkan loader is older than Vulkan 1.1") from None
    version = c_uint32()
    if ask_version(byref(version)) or _api(version.value)[:2] < _NEEDED_API:
        raise NoDevices(f"the Vulkan loader is of Vulkan {_text(_api(version.value))}, the engine needs 1.2")
    return vulkan, version.value


def _devices(vulkan: ctypes.CDLL, version: int) -> list[_Described]:
    """All devices, those that are not to be used with the reason; raises NoDevices."""
    handles = map(c_void_p, _handles(vulkan, version))
    found = [_described(vulkan, index, handle) for index, handle in enumerate(handles)]
    visible = _visible(os.environ.get(VISIBLE))
    for device in found:
        if visible is not None and device.index not in visible:
            device.unusable = device.unusable or f"hidden by {VISIBLE}"
    first: dict[bytes, _Described] = {}  # of each GPU
    for device in sorted(found, key=lambda each: each.driver_rank):
        if not device.unusable and any(device.gpu):
            best = first.setdefault(device.gpu, device)
            device.unusable = "" if best is device else f"it is Vulkan{best.index} by another driver"
    return found


def _handles(vulkan: ctypes.CDLL, version: int) -> list[int]:
    application = _Application(type=0, name=b"shimmy", api=version)
    info = _InstanceInfo(type=1, application=ctypes.pointer(application))
    instance = c_void_p()
    _check("vkCreateInstance", vulkan.vkCreateInstance(byref(info), None, byref(instance)))
    count, handles = c_uint32(MAX_DEVICES), (c_void_p * MAX_DEVICES)()
    result = vulkan.vkEnumeratePhysicalDevices(instance, byref(count), handles)
    _check("vkEnumeratePhysicalDevices", result)
    return [handle for handle in takewhile(bool, handles[: min(count.value, MAX_DEVICES)]) if handle]


def _check(function: str, result: int) -> None:
    """Raise NoDevices for a VkResult that is an error: those are negative."""
    if result == _NO_DRIVER:
        raise NoDevices("no Vulkan driver was found, or none that works")
    if result < 0:
        raise NoDevices(f"{function} failed: {_ERRORS.get(result, f'error {result}')}")


def _described(vulkan: ctypes.CDLL, index: int, handle: c_void_p) -> _Described:
    properties, driver, identity = _Properties(), _Driver(type=1000196000), _Identity(type=1000071004)
    vulkan.vkGetPhysicalDeviceProperties(handle, byref(properties))
    api = _api(properties.api)
    unusable = "" if api[:2] >= _NEEDED_API else f"it has Vulkan {_text(api)}, the engine needs 1.2"
    if not unusable:
        driver.next = ctypes.addressof(identity)
        chain = _Properties2(type=1000059001, next=ctypes.addressof(driver))
        vulkan.vkGetPhysicalDeviceProperties2(handle, byref(chain))
        storage = _Storage16(type=1000083000)
        vulkan.vkGetPhysicalDeviceFeatures2(handle, byref(_Features2(type=1000059000, next=ctypes.addressof(storage))))
        unusable = "" if storage.storage_buffer else "it has no 16-bit storage, which the engine needs"
    total_bytes, free_bytes = _memory(vulkan, handle, is_integrated=properties.kind == _INTEGRATED)
    fields = {
        "backend": "Vulkan",
        "index": index,
        "description": _decoded(properties.name),
        "kind": _KINDS[properties.kind] if properties.kind < len(_KINDS) else _KINDS[0],
        "vendor": _VENDORS.get(properties.vendor, hex(properties.vendor)),
        "driver": f"{_decoded(driver.name)} {_decoded(driver.info)}".strip(),
        "api_version": _text(api),
        "total_bytes": total_bytes,
        "free_bytes": free_bytes,
        "gpu": bytes(identity.device_uuid).hex() if any(identity.device_uuid) else "",
    }
    return _Described(fields, bytes(identity.device_uuid), _DRIVER_RANKS.get(driver.id, _NO_RANK), unusable)


def _memory(vulkan: ctypes.CDLL, handle: c_void_p, *, is_integrated: bool) -> tuple[int, int | None]:
    """Bytes in all and free, of the heaps that ggml counts (ggml_backend_vk_get_device_memory)."""
    budget = _Budget(type=1000237000)
    has_budget = _has_budget(vulkan, handle)
    if has_budget:
        chain = _Memory2(type=1000059006, next=ctypes.addressof(budget))
        vulkan.vkGetPhysicalDeviceMemoryProperties2(handle, byref(chain))
        memory = chain.memory
    else:
        memory = _Memory()
        vulkan.vkGetPhysicalDeviceMemoryProperties(handle, byref(memory))
    places = [
        place for place in range(min(memory.n_heaps, _MAX_HEAPS))
        if is_integrated or memory.heaps[place].flags & _DEVICE_LOCAL
    ]  # fmt: skip
    total_bytes = sum(memory.heaps[place].size for place in places)
    free_bytes = sum(max(0, budget.budget[place] - budget.usage[place]) for place in places)
    return total_bytes, min(free_bytes, total_bytes) if has_budget else None


def _has_budget(vulkan: ctypes.CDLL, handle: c_void_p) -> bool:
    count, extensions = c_uint32(_MAX_EXTENSIONS), (_Extension * _MAX_EXTENSIONS)()
    vulkan.vkEnumerateDeviceExtensionProperties(handle, None, byref(count), extensions)
    return any(extensions[place].name == _BUDGET_EXTENSION for place in range(min(count.value, _MAX_EXTENSIONS)))


def _visible(setting: str | None) -> set[int] | None:
    """The indices in GGML_VK_VISIBLE_DEVICES, as far as ggml reads them; None: all devices."""
    if setting is None:
        return None
    found = set()
    for word in setting.replace(",", " ").split():
        if not word.isdecimal():
            break
        found.add(int(word))
    return found


def _api(version: int) -> tuple[int, int, int]:
    return version >> 22 & 0x7F, version >> 12 & 0x3FF, version & 0xFFF


def _text(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "replace").strip()
