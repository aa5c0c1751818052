"""`gpu-info`: the GPUs of this machine, as their drivers describe them now, which of them models are put on and why not
on the others; and where the layers of one model would go."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shimmy.catalog.catalog import Model
from shimmy.commands.console import CommandCall, print_table
from shimmy.commands.models import located
from shimmy.commands.terminal.amounts import size
from shimmy.commands.terminal.screen_text import safe_line
from shimmy.config import Config
from shimmy.gpus import device_trials, placement
from shimmy.gpus.devices import FoundDevices, find_devices
from shimmy.messages.device import Device
from shimmy.pool.device_choice import DeviceChoice
from shimmy.pool.launch_plan import LaunchPlanner
from shimmy.pool.memory_budget import MemoryBudget
from shimmy.system import backends
from shimmy.wire.records import to_wire
from shimmy.wire.worker_options import Offload

_HEAD = ("NAME", "DEVICE", "KIND", "MEMORY", "FREE", "DRIVER", "API", "NOTE")


def gpu_info(call: CommandCall) -> int:
    named = None if call.options.name is None else located(call.config, call.options.name)
    found = find_devices(call.config.cache_dir, is_enough=lambda _kept: False)
    placed = None if named is None else (named[-1], _place(named[-1], named[0], found))
    if call.options.json:
        of_model = {} if placed is None else {"model": _fields(*placed)}
        print(json.dumps(_told(found, call.config) | of_model, indent=2))
        return 0
    if found.devices:
        has_better = any(device.is_automatic for device in found.devices)
        rows = [_row(device, call.config, has_better=has_better) for device in found.devices]
        print_table(_HEAD, rows, numbers=("MEMORY", "FREE"), spare=("API", "DRIVER", "KIND", "MEMORY"), remark="NOTE")
    else:
        print("No GPU answers.")
    if found.reason:
        print(safe_line(f"Reason: {found.reason}"))
    print(f"Use: {_use(_used(found, call.config))}")
    if placed is not None:
        print(safe_line(f"Model: {_sentence(*placed)}"))
    return 0


def _told(found: FoundDevices, config: Config) -> dict[str, Any]:
    used = _used(found, config)
    devices = [{"name": device.name, **to_wire(device), "is_used": device.name in used} for device in found.devices]
    return {"devices": devices, "reason": found.reason, "use": _use(used)}


def _use(used: Sequence[str]) -> str:
    """Where models are computed when these devices are used."""
    if not backends.has_one_for_gpus():
        return f"{backends.NONE_FOR_GPUS}, and computes on the processor"
    return f"models are put on {' and '.join(used)}, as far as they fit" if used else "models stay on the processor"


def _used(found: FoundDevices, config: Config) -> list[str]:
    """The names of the devices that models are put on with these options."""
    if config.devices is None:
        wanted = [device for device in found.devices if device.is_automatic]
    else:
        named = placement.named(config.devices, config.tensor_split, found.devices)
        wanted = [device for device in found.devices if device.name in named.names]
    return [device.name for device in wanted if _can_be_used(device, config)]


def _can_be_used(device: Device, config: Config) -> bool:
    return not device.unusable and config.gpu_layers != 0 and backends.has_one_for_gpus()


def _row(device: Device, config: Config, *, has_better: bool) -> tuple[str, ...]:
    """`has_better`: there are devices that are used without a trial."""
    is_nameable = _can_be_used(device, config) and config.devices is None and not device.is_automatic
    return (
        device.name,
        device.description,
        device.kind,
        size(device.total_bytes),
        "" if device.free_bytes is None else size(device.free_bytes),
        device.driver,
        f"{device.backend} {device.api_version}",
        device.unusable or (_when_used(device, config, has_better=has_better) if is_nameable else ""),
    )


def _when_used(device: Device, config: Config, *, has_better: bool) -> str:
    tried = "" if has_better else placement.or_tried(device, device_trials.hindrance(config))
    return f"used when it is named: --device {device.name}{tried}"


# -- one model -------------------------------------------------------------------------------------------------------


def _place(model: Model, config: Config, found: FoundDevices) -> Offload:
    """Where a server that has no other model loaded would put it."""
    if not backends.has_one_for_gpus():
        return Offload(note=backends.NONE_FOR_GPUS)
    config = replace(config, device_required=False)  # nothing is refused here
    planner = LaunchPlanner(config)
    choice = DeviceChoice(config, MemoryBudget(config.max_memory_bytes), find=lambda: found)
    has_adapters = planner.has_adapters(model)
    return asyncio.run(choice.choose(model, planner.whole(model), has_adapters=has_adapters)).offload


def _sentence(model: Model, offload: Offload) -> str:
    note = f" ({offload.note})" if offload.note else ""
    if not offload.devices:
        return f"{model.name} is computed on the processor{note}"
    parts = zip(offload.layers, offload.devices, offload.n_bytes, strict=True)
    shares = " and ".join(f"{n_layers} on {name}, {size(n_bytes)}" for n_layers, name, n_bytes in parts)
    return f"{model.name} has {model.n_layers + 1} layers: {shares}{note}"


def _fields(model: Model, offload: Offload) -> dict[str, Any]:
    parts = zip(offload.devices, offload.layers, offload.n_bytes, strict=True)
    devices = [{"name": name, "n_layers": n_layers, "n_bytes": n_bytes} for name, n_layers, n_bytes in parts]
    return {"name": model.name, "n_layers": model.n_layers + 1, "devices": devices, "note": offload.note}
