"""What a machine offers to others, and its form on the wire: devices, and what is free of them. Knows no sockets."""

from dataclasses import dataclass
from typing import Any

from shimmy.wire import records, values

PROCESSOR = "CPU"
MAX_DEVICES = 16
_MAX_LABEL = 200


@dataclass(frozen=True, slots=True)
class OfferedDevice:
    """A device of another machine, or its processor, whose memory is the machine's."""

    name: str  # `CPU`, or as the machine itself calls it: `Vulkan0`
    description: str
    total_bytes: int
    free_bytes: int

    @property
    def is_processor(self) -> bool:
        return self.name == PROCESSOR


@dataclass(frozen=True, slots=True)
class MachineOffer:
    """`busy` says why the machine takes no one more now; empty where it does."""

    devices: tuple[OfferedDevice, ...] = ()
    busy: str = ""


def to_wire(offer: MachineOffer) -> dict[str, Any]:
    """As `read` takes it."""
    return records.to_wire(offer)


def read(message: dict[str, Any]) -> MachineOffer:
    """The offer in an object of another machine; raises KeyError, TypeError or ValueError for what is none."""
    told = values.items(message["devices"])
    if len(told) > MAX_DEVICES:
        raise ValueError("too many devices")
    devices = tuple([values.made(OfferedDevice, fields, {str: _label, int: values.large_count}) for fields in told])
    if len({device.name for device in devices}) < len(devices) or not all(_is_name(each.name) for each in devices):
        raise ValueError("no names of devices")
    return MachineOffer(devices, _label(message["busy"]))


def _label(value: object) -> str:
    return values.printable(values.text(value), _MAX_LABEL)


def _is_name(text: str) -> bool:
    return text.isascii() and text.isalnum()
