"""`gpu-info`: the GPUs of this machine, as their drivers describe them now, and why one is not used."""

import json

from shimmy.commands.console import CommandCall, print_table
from shimmy.commands.terminal.amounts import size
from shimmy.commands.terminal.screen_text import safe_line
from shimmy.gpus.devices import FoundDevices, find_devices
from shimmy.gpus.placement import unused_reason
from shimmy.messages.device import Device
from shimmy.system import vulkan_archive
from shimmy.wire.records import to_wire

_HEAD = ("NAME", "DEVICE", "KIND", "MEMORY", "FREE", "DRIVER", "VULKAN", "NOTE")


def gpu_info(call: CommandCall) -> int:
    found = find_devices(call.config.cache_dir, is_enough=lambda _kept: False)
    if call.options.json:
        print(json.dumps(_told(found), indent=2))
        return 0
    if found.devices:
        print_table(_HEAD, [_row(device) for device in found.devices], numbers=("MEMORY", "FREE"))
    else:
        print("No GPU answers.")
    if found.reason:
        print(safe_line(f"Reason: {found.reason}"))
    print(f"Use: {_use(found)}")
    return 0


def _told(found: FoundDevices) -> dict[str, object]:
    devices = [{"name": device.name, **to_wire(device)} for device in found.devices]
    return {"devices": devices, "reason": found.reason, "use": _use(found)}


def _use(found: FoundDevices) -> str:
    """Where models are computed when a person names no device."""
    if not vulkan_archive.is_there():
        return "this build has no Vulkan, and computes on the processor"
    names = [device.name for device in found.devices if device.is_automatic]
    return f"models are put on {' and '.join(names)}, as far as they fit" if names else "models stay on the processor"


def _row(device: Device) -> tuple[str, ...]:
    return (
        device.name,
        device.description,
        device.kind,
        size(device.total_bytes),
        "" if device.free_bytes is None else size(device.free_bytes),
        device.driver,
        device.api_version,
        device.unusable or unused_reason(device),
    )
