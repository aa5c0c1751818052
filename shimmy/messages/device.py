"""A device that can compute beside the processor, as its driver describes it. Knows no driver and no model."""

from dataclasses import dataclass
from enum import StrEnum


class DeviceKind(StrEnum):
    """Vulkan's types of devices."""

    DISCRETE = "discrete"  # a GPU with memory of its own
    INTEGRATED = "integrated"  # its memory is the system's
    VIRTUAL = "virtual"
    CPU = "cpu"  # the processor itself, by a driver in software
    OTHER = "other"


class DeviceBackend(StrEnum):
    """What the engine uses a device by; the names of devices begin so."""

    CUDA = "CUDA"
    VULKAN = "Vulkan"


@dataclass(frozen=True, slots=True)
class Device:
    """`index` is its place in the list of Vulkan's loader, by which GGML_VK_VISIBLE_DEVICES names it, or in that of
    CUDA's driver."""

    index: int
    description: str
    kind: DeviceKind
    vendor: str  # `NVIDIA`, `AMD`, `Intel`, or the number of another one, such as `0x10005`
    driver: str  # its name and version; empty where it does not say
    api_version: str  # of Vulkan or CUDA, such as `1.3.274`
    total_bytes: int
    free_bytes: int | None  # None: the driver does not say, or it was not asked now
    unusable: str = ""  # why the engine cannot use it; empty where it can
    backend: DeviceBackend = DeviceBackend.VULKAN
    gpu: str = ""  # the same of one GPU, whichever backend it is asked by; empty where its driver does not say

    @property
    def name(self) -> str:
        """How people name it, and how ggml does where all devices are visible."""
        return f"{self.backend}{self.index}"

    @property
    def is_automatic(self) -> bool:
        """Whether models are put on it without a person naming it, and without a trial."""
        return self.kind == DeviceKind.DISCRETE and not self.unusable

    @property
    def needs_trial(self) -> bool:
        """Whether models are put on it where a trial finds that faster: GPUs without memory of their own, and those of
        virtual machines, may be slower than the processor."""
        return self.kind in (DeviceKind.INTEGRATED, DeviceKind.VIRTUAL) and not self.unusable

    @property
    def has_system_memory(self) -> bool:
        """Whether its memory is the system's."""
        return self.kind in (DeviceKind.INTEGRATED, DeviceKind.CPU)
