"""The devices that a model's layers go to, in the hands of the engine.

Knows ggml's registry and the variables that its backends and drivers look at; nothing of models.
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shimmy.engine import backend_library
from shimmy.engine.llama.binding import function, log
from shimmy.errors import ModelUnavailable
from shimmy.system import backends
from shimmy.system.backends import Backend
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
# What names the devices that a backend shall have, by their places in the list of its driver.
_VISIBLE = {backends.CUDA: "CUDA_VISIBLE_DEVICES", backends.VULKAN: "GGML_VK_VISIBLE_DEVICES"}
# Where drivers keep the programs that they compile: Vulkan's Mesa's and NVIDIA's, and CUDA's. Compiling them anew takes
# seconds.
_CACHES = ("MESA_SHADER_CACHE_DIR", "__GL_SHADER_DISK_CACHE_PATH", "CUDA_CACHE_PATH")
_CACHES_FOLDER = Path("vulkan", "shaders")


@dataclass(frozen=True, slots=True)
class EngineDevices:
    """Devices of the backends, and how many layers each of them gets."""

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
    """Load the backends of the devices of `offload`, with these devices and no others; once in a process. Raises
    ModelUnavailable.

    A driver may abort here, or hang.
    """
    _keep_shaders(cache_dir)
    by_backend: dict[Backend, list[str]] = {}
    for name in offload.devices:
        by_backend.setdefault(backends.of_device(name), []).append(name)
    opened: dict[str, int] = {}
    for backend, names in by_backend.items():
        opened |= zip(names, _opened(backend, names, cache_dir), strict=True)
    described = [f"{name} ({_description(opened[name]).decode('utf-8', 'replace')})" for name in offload.devices]
    pointers = tuple(opened[name] for name in offload.devices)
    return EngineDevices(pointers, offload.layers, offload.n_cpu_moe, ", ".join(offload.devices), ", ".join(described))


def _opened(backend: Backend, names: Sequence[str], cache_dir: Path | None) -> list[int]:
    """The devices of these names, in their order."""
    variable = _VISIBLE[backend]
    places = [name.removeprefix(backend.name) for name in names]
    if backend == backends.CUDA:
        places = _among_visible(places, os.environ.get(variable))
    os.environ[variable] = ",".join(places)
    with backend_library.path(backend, cache_dir) as path:
        registry = _load(path.encode())
    if not registry:
        raise ModelUnavailable(f"{backend.name} does not work here: {log.reason()}")
    n_devices = _count(registry)
    if n_devices != len(names):
        raise ModelUnavailable(f"{backend.name} has {n_devices} of the devices {', '.join(names)}")
    return [_get(registry, place) for place in range(n_devices)]


def _among_visible(places: Sequence[str], setting: str | None) -> list[str]:
    """Of CUDA, whose driver counts only what the variable's `setting` lets be seen: what the variable calls these."""
    visible = None if setting is None else setting.split(",")
    return [place if visible is None or int(place) >= len(visible) else visible[int(place)] for place in places]


def _keep_shaders(cache_dir: Path | None) -> None:
    """Let drivers keep compiled programs in our cache folder, unless the user has named another place."""
    if cache_dir is None:
        return
    folder = cache_dir / _CACHES_FOLDER
    try:
        make_private(folder.parent)
        make_private(folder)  # drivers run what is in it
    except OSError:  # it costs time and nothing else
        return
    for variable in _CACHES:
        os.environ.setdefault(variable, str(folder))
