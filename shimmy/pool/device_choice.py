"""Which devices a model is put on when it is loaded: what `gpus` places there, unless it has failed there lately; and
who has to end so that it finds room there.

Knows the options, what is reserved of each device's memory, and failures; nothing of the life of workers. Where the
person wishes none and where this build has no backend for GPUs, nothing is looked for, and nothing of `gpus` is
imported.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from shimmy.background import in_thread
from shimmy.catalog.catalog import Model
from shimmy.config import Config
from shimmy.errors import ModelUnavailable
from shimmy.pool import memory_estimate
from shimmy.pool.eviction import Occupant
from shimmy.pool.machine_choice import MachineChoice
from shimmy.pool.memory_budget import MemoryBudget
from shimmy.pool.memory_estimate import MemoryEstimate
from shimmy.system import backends
from shimmy.wire.worker_options import Offload

if TYPE_CHECKING:
    from shimmy.gpus.devices import FoundDevices
    from shimmy.gpus.placement import DeviceWish, FreeDevice, LayerSizes
    from shimmy.messages.device import Device

# A model that failed on its devices is computed by the processor, or has fewer layers there; a load after this time
# tries them again.
RETRY_S = 600.0
# What the engine takes on a device beside what it takes to compute on the processor.
_ENGINE_BYTES = 256 * 10**6
# Others end where they leave a model less than this share of the layers that it would have without them: a load takes
# seconds, and the last quarter of the layers takes longer on the processor than all others on a device.
_ENOUGH = 3 / 4


class DeviceDecision(NamedTuple):
    """What a load is given, once those that are `in_the_way` have ended."""

    offload: Offload
    in_the_way: tuple[Occupant, ...] = ()
    rival: Offload = Offload()  # what a trial may compare with the processor
    rival_key: str = ""  # by which its outcome is kept


@dataclass(frozen=True, slots=True)
class _Failure:
    """What happened to a model on its devices, and until when it has no more layers there."""

    note: str
    until_s: float
    n_first: int = 0  # layers that it had when it failed for the first time
    n_most: int = 0  # layers that it is given


class _Tried(NamedTuple):
    """What trials say of the devices that need one."""

    proven: tuple[str, ...] = ()  # the names of those that may be used
    note: str = ""  # why none of them is used, where there are any
    unknown: tuple[str, str] | None = None  # the name of one that was not tried yet, and the key of its verdict


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
        self._machines = MachineChoice(config, budget, self._pending)
        self.is_required = config.device_required
        self.has_machines = bool(config.rpc)

    async def choose(
        self,
        model: Model,
        whole: MemoryEstimate,
        *,
        has_adapters: bool,
        occupants: Callable[[], Sequence[Occupant]] = tuple,
    ) -> DeviceDecision:
        """For a model that takes `whole` without devices. Where others are in the way, ask again when they have ended;
        else call `is_reserved` when it has its memory. `occupants` are those that may end for it, in that order.

        Raises ModelUnavailable where a device is required and none can have any of it."""
        decision = await self._decided(model, whole, has_adapters=has_adapters, occupants=occupants)
        if self.is_required and not decision.offload.devices and not decision.in_the_way:
            raise ModelUnavailable(f"`{model.name}` needs a device (`--device-required`): {decision.offload.note}")
        return decision

    async def _decided(
        self,
        model: Model,
        whole: MemoryEstimate,
        *,
        has_adapters: bool,
        occupants: Callable[[], Sequence[Occupant]],
    ) -> DeviceDecision:
        has_none = self._config.devices == () and not self._config.rpc
        if has_none or self._config.gpu_layers == 0:
            return DeviceDecision(Offload())
        failure = self._failure(model.name)
        if failure is not None and not failure.n_most:
            return DeviceDecision(Offload(note=failure.note))
        config = self._config
        if config.rpc and not has_adapters:
            offload = self._pending[model.name] = await self._spread(model, whole, failure)
            return DeviceDecision(offload)
        if config.devices == ():
            return DeviceDecision(Offload(note="models with LoRA adapters are not computed by other machines"))
        found = await in_thread(self._find)
        if not found.devices:
            return DeviceDecision(Offload(note=found.reason))
        from shimmy.gpus import placement  # most machines have no device

        n_most = None if failure is None else failure.n_most
        tried = await in_thread(lambda: self._tried(model, found.devices))
        wish, notes = self._wish(found.devices, n_most)
        wish = replace(wish, proven=tried.proven)
        sizes = layer_sizes(model, whole, config.n_cpu_moe)

        def free(gone: Sequence[Occupant] = ()) -> "list[FreeDevice]":
            return [placement.FreeDevice(device, self._free_bytes(device, gone)) for device in found.devices]

        if tried.note:
            return self._untried(wish, free(), tried, sizes)
        others = _in_the_way(occupants(), lambda gone: placement.n_with_room(wish, free(gone), sizes))
        offload = placement.place(wish, free(), found.reason, sizes)
        if others:
            return DeviceDecision(offload, others)
        if failure is not None:
            notes.append(failure.note)
        offload = replace(offload, note="; ".join(filter(None, (offload.note, *notes))))
        self._pending[model.name] = offload
        return DeviceDecision(offload)

    async def _spread(self, model: Model, whole: MemoryEstimate, failure: _Failure | None = None) -> Offload:
        """Over other machines, and the devices of this one."""
        from shimmy.gpus import placement

        config = self._config
        devices = () if config.devices == () else (await in_thread(self._find)).devices
        wish, notes = self._wish(devices, None if failure is None else failure.n_most)
        if failure is not None:
            notes.append(failure.note)
        own = [placement.FreeDevice(device, self._free_bytes(device, ())) for device in devices]
        return await self._machines.spread(wish, own, layer_sizes(model, whole, config.n_cpu_moe), notes)

    def _wish(self, devices: "Sequence[Device]", n_most: int | None) -> "tuple[DeviceWish, list[str]]":
        """What a person wishes, with the names that these devices are used by, and what is to be said of those."""
        from shimmy.gpus import placement

        config = self._config
        wish = placement.DeviceWish(None, config.gpu_layers, config.tensor_split, n_most)
        if config.devices is None:
            return wish, []
        names, split, notes = placement.named(config.devices, config.tensor_split, devices)
        return replace(wish, names=names, split=split), [*notes]

    async def left(self, model: Model, whole: MemoryEstimate, failed: Offload, note: str) -> Offload:
        """Where `model` goes after it could not be loaded with `failed`, for the reason in `note`: to the processor, or
        where other machines were lost, to those that are left."""
        left = await self._spread(model, whole) if failed.has_remote else failed
        return Offload(note=note) if left.devices == failed.devices else left

    def _tried(self, model: Model, devices: "Sequence[Device]") -> "_Tried":
        """What trials say of devices that may be slower than the processor, where there are no better ones and no
        person names one."""
        doubtful = [device for device in devices if device.needs_trial]
        if not doubtful or self._config.devices is not None or any(device.is_automatic for device in devices):
            return _Tried()
        if self.is_required:
            return _Tried(proven=tuple(device.name for device in doubtful))
        from shimmy.gpus import device_trials, placement

        hindrance = device_trials.hindrance(self._config, is_embedding=model.is_embedding)
        kind = model.architecture, model.quantization or self._config.safetensors_type or "", model.n_params
        keys = {device: device_trials.key(device, *kind) for device in doubtful}
        found = {device: device_trials.verdict(self._config.cache_dir, key) for device, key in keys.items()}
        if proven := tuple(device.name for device, verdict in found.items() if verdict and verdict.is_faster):
            return _Tried(proven=proven)
        notes = [
            device_trials.sentence(verdict, device) if verdict else placement.unused_reason(device, hindrance)
            for device, verdict in found.items()
        ]
        unknown = [(device.name, key) for device, key in keys.items() if found[device] is None and not hindrance]
        return _Tried(note="; ".join(notes), unknown=unknown[0] if unknown else None)

    def _untried(
        self, wish: "DeviceWish", free: "Sequence[FreeDevice]", tried: "_Tried", sizes: "LayerSizes"
    ) -> DeviceDecision:
        """The processor, and what a trial shall compare with it."""
        from shimmy.gpus import placement

        if tried.unknown is None:
            return DeviceDecision(Offload(note=tried.note))
        name, key = tried.unknown
        rival = placement.place(replace(wish, names=(name,)), free, "", sizes)
        return DeviceDecision(Offload(note=tried.note), rival=rival, rival_key=key)

    def is_reserved(self, model: Model) -> None:
        """What was chosen for `model` is in the budget, or nobody's any more."""
        self._pending.pop(model.name, None)

    def failed(self, model: Model, note: str) -> None:
        """`model` ended or was refused on its devices: the processor computes it for a while, with this `note`.

        With other machines, the first time is no reason: its next load finds those that are left.
        """
        if self._config.rpc and self._machines.is_first_loss(model.name, self._clock(), RETRY_S):
            return
        if not self.is_required:
            self._failures[model.name] = _Failure(note, self._clock() + RETRY_S)

    def lacked_memory(self, model: Model, n_layers: int, device: str, reason: str) -> bool:
        """`model` ended or was refused for want of memory with `n_layers` on `device`: it is given fewer for a while.
        False where there are no fewer."""
        before = self._failure(model.name)
        n_first = max(n_layers, before.n_first if before else 0)
        n_most = next((n for n in (-(-n_first * share // 4) for share in (3, 2, 1)) if n < n_layers), 0)
        if n_most:
            note = f"{device} had no memory for {n_layers} layers: {reason}"
            self._failures[model.name] = _Failure(note, self._clock() + RETRY_S, n_first, n_most)
        return n_most > 0

    def forget(self, name: str) -> None:
        """A person wants the model loaded, or its file has changed: its next load tries the devices."""
        self._failures.pop(name, None)
        self._machines.forget(name)

    def _failure(self, name: str) -> _Failure | None:
        """What still holds of it."""
        failure = self._failures.get(name)
        if failure is not None and self._clock() >= failure.until_s:
            self.forget(name)
            return None
        return failure

    def _look(self) -> "FoundDevices":
        """The devices, with their free memory; with nothing to tell where a person without a GPU names none."""
        from shimmy.gpus import devices, hardware
        from shimmy.messages.device import DeviceBackend, DeviceKind

        names = self._config.devices

        def is_enough(kept: "FoundDevices") -> bool:
            if self.is_required:  # a fault that has passed would still be an error
                return False
            if names:  # what is named by another backend may be used by this one
                return not any(device.name in names or device.backend == DeviceBackend.CUDA for device in kept.devices)
            return not any(device.is_automatic for device in kept.devices)

        if not backends.has_one_for_gpus():
            found = devices.FoundDevices(reason=backends.NONE_FOR_GPUS)
        else:
            found = devices.find_devices(self._config.cache_dir, is_enough=is_enough)
        has_gpu = any(device.kind != DeviceKind.CPU for device in found.devices) or hardware.gpus()
        return found if names or self.is_required or has_gpu else devices.FoundDevices()

    def _free_bytes(self, device: "Device", gone: Sequence[Occupant]) -> int:
        """What is free by the driver's word, less what loading workers will take; and no more than what we have left
        of all, as some drivers tell nothing but that. All of that with the memory of those that are `gone`."""
        chosen = self._pending.values()
        pending = sum(_bytes_on(device, zip(each.devices, each.n_bytes, strict=True)) for each in chosen)
        freed = sum(_bytes_on(device, occupant.on_devices) for occupant in gone)
        left = device.total_bytes - self._budget.on_device(device.name)
        if device.has_system_memory:  # a driver tells all of that, whoever has it
            left = int(min(left, self._budget.available_bytes()))
        if device.free_bytes is not None:
            left = min(left, device.free_bytes - self._budget.on_device(device.name, is_taken=False))
        return max(0, left + freed - pending)


def _bytes_on(device: "Device", parts: Iterable[tuple[str, int]]) -> int:
    return sum(n_bytes for name, n_bytes in parts if name == device.name)


def _in_the_way(occupants: Sequence[Occupant], n_layers: Callable[[Sequence[Occupant]], int]) -> tuple[Occupant, ...]:
    """Who has to end: those who leave anyway, where that brings any layers; else as few others as it takes, where they
    leave too few. `n_layers` says how many a model has without some of the occupants."""
    n_now = n_layers(())
    leaving = [occupant for occupant in occupants if occupant.is_leaving]
    if leaving and n_layers(leaving) > n_now:
        return tuple(leaving)
    n_most = n_layers(occupants) if occupants else n_now
    if n_now >= _ENOUGH * n_most:
        return ()
    chosen: list[Occupant] = []
    for occupant in occupants:
        if n_layers(chosen) < n_most:
            chosen.append(occupant)
    for occupant in tuple(chosen):  # the first ones may have given what nobody needed
        others = [each for each in chosen if each is not occupant]
        if n_layers(others) >= n_most:
            chosen = others
    return tuple(chosen)


def layer_sizes(model: Model, whole: MemoryEstimate, n_cpu_moe: int) -> "LayerSizes":
    """What `model` takes on devices, if it takes `whole` without them."""
    from shimmy.gpus.placement import LayerSizes

    table = memory_estimate.table_bytes(model)
    layer = (whole.weights - table + whole.kv) // max(1, model.n_layers)
    experts = min(layer, memory_estimate.expert_bytes(model))
    n_cpu_moe = min(n_cpu_moe, model.n_layers) if experts else 0
    return LayerSizes(model.n_layers, layer, table, whole.compute + _ENGINE_BYTES, experts, n_cpu_moe)
