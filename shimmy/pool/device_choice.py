"""Which devices a model is put on when it is loaded: what `gpus` places there, unless it has failed there lately.

Knows the options, what is reserved of each device's memory, and failures; nothing of workers. Where the person wishes
none and where this build has no Vulkan, nothing is looked for, and nothing of `gpus` is imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from shimmy.background import in_thread
from shimmy.catalog.catalog import Model
from shimmy.config import Config
from shimmy.errors import ModelUnavailable
from shimmy.pool import memory_estimate
from shimmy.pool.memory_budget import MemoryBudget
from shimmy.pool.memory_estimate import MemoryEstimate
from shimmy.system import vulkan_archive
from shimmy.wire.worker_options import Offload

if TYPE_CHECKING:
    from shimmy.gpus.devices import FoundDevices
    from shimmy.gpus.placement import LayerSizes
    from shimmy.messages.device import Device

# A model that failed on its devices is computed by the processor; a load after this time tries them again.
RETRY_S = 600.0
# What the engine takes on a device beside what it takes to compute on the processor.
_ENGINE_BYTES = 256 * 10**6


@dataclass(frozen=True, slots=True)
class _Failure:
    """What happened to a model on its devices, and until when it is not put there again."""

    note: str
    until_s: float


class DeviceChoice:
    """Asked before each load. `find` looks for devices, on a thread of its own."""

    def __init__(
        self,
        config: Config,
        budget: MemoryBudget,
        clock: Callable[[], float] = monotonic,
        find: "Callable[[], FoundDevices] | None" = None,
    ) -> None:
        self._config = config
        self._budget = budget
        self._clock = clock
        self._find = find or self._look
        self._failures: dict[str, _Failure] = {}
        self._pending: dict[str, Offload] = {}  # by model: what is chosen and not reserved yet
        self.is_required = config.device_required

    async def choose(self, model: Model, whole: MemoryEstimate, *, has_adapters: bool) -> Offload:
        """For a model that takes `whole` without devices; call `is_reserved` when it has its memory. Raises
        ModelUnavailable where a device is required and none can have any of it."""
        offload = await self._chosen(model, whole, has_adapters=has_adapters)
        if self.is_required and not offload.devices:
            raise ModelUnavailable(f"`{model.name}` needs a device (`--device-required`): {offload.note}")
        return offload

    async def _chosen(self, model: Model, whole: MemoryEstimate, *, has_adapters: bool) -> Offload:
        if self._config.devices == () or self._config.gpu_layers == 0:
            return Offload()
        if (failure := self._failures.get(model.name)) is not None:
            if self._clock() < failure.until_s:
                return Offload(note=failure.note)
            self.forget(model.name)
        config = self._config
        found = await in_thread(self._find)
        if not found.devices:
            return Offload(note=found.reason)
        if has_adapters:
            return Offload(note="models with LoRA adapters are computed on the processor")
        from shimmy.gpus import placement  # most machines have no device

        wish = placement.DeviceWish(config.devices, config.gpu_layers, config.tensor_split)
        free = [placement.FreeDevice(device, self._free_bytes(device)) for device in found.devices]
        sizes = layer_sizes(model, whole, config.n_cpu_moe)
        offload = self._pending[model.name] = placement.place(wish, free, found.reason, sizes)
        return offload

    def is_reserved(self, model: Model) -> None:
        """What was chosen for `model` is in the budget, or nobody's any more."""
        self._pending.pop(model.name, None)

    def failed(self, model: Model, note: str) -> None:
        """`model` ended or was refused on its devices: the processor computes it for a while, with this `note`."""
        if not self.is_required:
            self._failures[model.name] = _Failure(note, self._clock() + RETRY_S)

    def forget(self, name: str) -> None:
        """A person wants the model loaded, or its file has changed: its next load tries the devices."""
        self._failures.pop(name, None)

    def _look(self) -> "FoundDevices":
        """The devices, with their free memory; with nothing to tell where a person without a GPU names none."""
        from shimmy.gpus import devices, hardware
        from shimmy.messages.device import DeviceKind

        names = self._config.devices

        def is_enough(kept: "FoundDevices") -> bool:
            if self.is_required:  # a fault that has passed would still be an error
                return False
            return not any(device.name in names if names else device.is_automatic for device in kept.devices)

        if not vulkan_archive.is_there():
            found = devices.FoundDevices(reason="this build has no Vulkan")
        else:
            found = devices.find_devices(self._config.cache_dir, is_enough=is_enough)
        has_gpu = any(device.kind != DeviceKind.CPU for device in found.devices) or hardware.gpus()
        return found if names or self.is_required or has_gpu else devices.FoundDevices()

    def _free_bytes(self, device: "Device") -> int:
        """What is free by the driver's word, less what loading workers will take; and no more than what we have left
        of all, as some drivers tell nothing but that."""
        pending = sum(
            n_bytes for offload in self._pending.values()
            for name, n_bytes in zip(offload.devices, offload.n_bytes, strict=True) if name == device.name
        )  # fmt: skip
        left = device.total_bytes - self._budget.on_device(device.name)
        if device.free_bytes is not None:
            left = min(left, device.free_bytes - self._budget.on_device(device.name, is_taken=False))
        return max(0, left - pending)


def layer_sizes(model: Model, whole: MemoryEstimate, n_cpu_moe: int) -> "LayerSizes":
    """What `model` takes on devices, if it takes `whole` without them."""
    from shimmy.gpus.placement import LayerSizes

    table = memory_estimate.table_bytes(model)
    layer = (whole.weights - table + whole.kv) // max(1, model.n_layers)
    experts = min(layer, memory_estimate.expert_bytes(model))
    n_cpu_moe = min(n_cpu_moe, model.n_layers) if experts else 0
    return LayerSizes(model.n_layers, layer, table, whole.compute + _ENGINE_BYTES, experts, n_cpu_moe)
