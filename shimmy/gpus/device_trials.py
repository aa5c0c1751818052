"""What trials have found about devices that may be slower than the processor: an integrated GPU, a virtual one.

Knows the table in the cache folder and its keys. Workers measure (`engine.tune.device_trial`), and write there.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shimmy import __version__
from shimmy.config import Config
from shimmy.messages.device import Device
from shimmy.messages.device_verdict import TABLE, DeviceVerdict
from shimmy.system import cpu
from shimmy.system.remembered import Remembered
from shimmy.text.printable import shortened
from shimmy.wire import values

_MAX_FAULT = 300


def key(device: Device, architecture: str, quantization: str, n_params: int) -> str:
    """What a verdict is about: a device with its driver, the processor, and a kind of model. Models are of one size
    that have as many parameters, but for a factor of two."""
    of_device = [device.name.rstrip("0123456789"), device.description, device.driver, device.api_version]
    of_model = [architecture, quantization, n_params.bit_length()]
    return json.dumps([__version__, *of_device, cpu.processor_name(), *of_model])


def verdict(cache_folder: Path | None, about: str) -> DeviceVerdict | None:
    """What was found about that; None where nothing was, where what stands there makes no sense, and where a trial that
    failed is to have another chance."""
    try:
        found = values.made(DeviceVerdict, values.members(Remembered(cache_folder, TABLE).get(about)), _READERS)
    except (KeyError, TypeError, ValueError):
        return None
    return found if found.holds(time.time()) else None


def hindrance(config: Config, *, is_embedding: bool = False) -> str:
    """Why no trial of a model will ever run; '' where one may."""
    if config.max_memory_bytes is not None:
        return "`--max-memory` leaves none for a second copy of a model"
    if config.cache_dir is None:
        return "there is no cache folder, which keeps the outcome"
    return "it makes no text" if is_embedding else ""


def sentence(found: DeviceVerdict, device: Device) -> str:
    """Why a device is not used that was not found to be faster."""
    if found.fault:
        return f"{device.name} ({device.description}) is not used: a trial of it failed: {found.fault}"
    return (
        f"{device.name} ({device.description}) is not used: in a trial it took {found.device_s:.3g} s for what the "
        f"processor does in {found.processor_s:.3g} s"
    )


def _fault(value: object) -> str:
    return shortened(values.text(value), _MAX_FAULT)


_READERS: dict[object, Callable[[Any], object]] = {float: values.duration, str: _fault}
