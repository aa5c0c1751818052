"""The devices that a model's layers go to, in the hands of the engine.

Knows ggml's registry and the variables that its Vulkan backend and drivers look at; nothing of models.
"""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from shimmy.engine.llama.binding import function, log
from shimmy.engine.vulkan import library
from shimmy.errors import ModelUnavailable
from shimmy.system.private_folder import make_private
from shimmy.wire.worker_options import Offload

_load = function("ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)
_count = function("ggml_backend_reg_dev_count", ctypes.c_size_t, ctypes.c_void_p)
_get = function("ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_description = function("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
_buffer_type = function("ggml_backend_dev_buffer_type", ctypes.c_void_p, ctypes.c_void_p)
_buffer_name = function("ggml_backend_buft_name", ctypes.c_char_p, ctypes.c_void_p)
_sizes = ctypes.POINTER(ctypes.c_size_t)
_memory = function("ggml_backend_dev_memory", None, ctypes.c_void_p, _sizes, _sizes)

_SPARE_BYTES = 256 * 10**6  # of a device's memory, for the screen and for others
_PREFIX = "Vulkan"  # of names; behind it stands the place in the list of Vulkan's loader
# Where drivers keep the programs that they compile: Mesa's and NVIDIA's. Compiling them anew takes seconds.
_CACHES = ("MESA_SHADER_CACHE_DIR", "__GL_SHADER_DISK_CACHE_PATH")


@dataclass(frozen=True, slots=True)
class EngineDevices:
    """Devices of the backend, and how many layers each of them gets."""

    pointers: tuple[int, ...]
    layers: tuple[int, ...]
    n_cpu_moe: int  # as in Offload
    names: str
    description: str

    @property
    def n_layers(self) -> int:
        return sum(self.layers)

    @property
    def buffers(self) -> tuple[str, ...]:
        """What the engine calls the memory of each, which is not always its name."""
        return tuple(_buffer_name(_buffer_type(pointer)).decode() for pointer in self.pointers)

    def have_memory(self, n_bytes: int) -> bool:
        """Whether each has memory free for its part of `n_bytes`, by its driver's word."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        for pointer, n_layers in zip(self.pointers, self.layers, strict=True):
            _memory(pointer, ctypes.byref(free), ctypes.byref(total))
            if n_bytes * n_layers > (free.value - _SPARE_BYTES) * self.n_layers:
                return False
        return True


def open_devices(offload: Offload, cache_dir: Path | None) -> EngineDevices:
    """Load the Vulkan backend with the devices of `offload` and no others; once in a process. Raises ModelUnavailable.

    A driver may abort here, or hang.
    """
    _keep_shaders(cache_dir)
    os.environ["GGML_VK_VISIBLE_DEVICES"] = ",".join(name.removeprefix(_PREFIX) for name in offload.devices)
    with library.path(cache_dir) as path:
        registry = _load(path.encode())
    if not registry:
        raise ModelUnavailable(f"Vulkan does not work here: {log.reason()}")
    n_devices = _count(registry)
    if n_devices != len(offload.devices):
        raise ModelUnavailable(f"Vulkan has {n_devices} of the devices {', '.join(offload.devices)}")
    pointers = tuple(_get(registry, place) for place in range(n_devices))
    described = [
        f"{name} ({_description(pointer).decode('utf-8', 'replace')})"
        for name, pointer in zip(offload.devices, pointers, strict=True)
    ]
    return EngineDevices(pointers, offload.layers, offload.n_cpu_moe, ", ".join(offload.devices), ", ".join(described))


def _keep_shaders(cache_dir: Path | None) -> None:
    """Let drivers keep compiled programs in our cache folder, unless the user has named another place."""
    if cache_dir is None:
        return
    folder = cache_dir / library.FOLDER / "shaders"
    try:
        make_private(folder.parent)
        make_private(folder)  # drivers run what is in it
    except OSError:  # it costs time and nothing else
        return
    for variable in _CACHES:
        os.environ.setdefault(variable, str(folder))
