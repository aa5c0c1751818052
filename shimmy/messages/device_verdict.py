"""What a trial has found about a device for one kind of model. Knows times; nothing of how they are measured."""

from dataclasses import dataclass

# The table in the cache folder that keeps them. What a verdict is about is its key.
TABLE = "device_trials.json"

# A device has to be faster than the processor by this factor: what is as good as equal stays where it is.
_FASTER = 1.05
# A trial that came to nothing says no more than that for so long: as with drivers that fail when they are asked
# (`gpus.devices`), it may have been the moment.
FAULT_KEPT_S = 3600.0


@dataclass(frozen=True, slots=True)
class DeviceVerdict:
    """Seconds for the same job, with as many layers on the device as fit, and without it."""

    device_s: float
    processor_s: float
    fault: str = ""  # why the trial came to nothing, where it did; the times are 0 then
    failed_at_s: float = 0.0  # when, by the system's clock

    @property
    def is_faster(self) -> bool:
        return not self.fault and _FASTER * self.device_s < self.processor_s

    def holds(self, now_s: float) -> bool:
        """Whether there need be no other trial, at `now_s` of the system's clock."""
        return not self.fault or 0 <= now_s - self.failed_at_s < FAULT_KEPT_S
