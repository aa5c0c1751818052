"""Whether devices that may be slower than the processor are faster for a model: has that tried, and remembers it.

Knows two times and the table that keeps the verdict; the next load of a model of this kind goes by that
(`gpus.device_trials`). The trial itself is another process, so that a driver that crashes or hangs costs nothing.
"""

import json
import logging
import time
from pathlib import Path

from shimmy.engine.tune import tuner
from shimmy.engine.tune.tuner import TrialResult, Tuning
from shimmy.messages.device_verdict import TABLE, DeviceVerdict
from shimmy.system.remembered import Remembered
from shimmy.wire import records
from shimmy.wire.worker_options import WorkerOptions

logger = logging.getLogger(__name__)


class DeviceTrial:
    """The devices that `options` name as the processor's rival, which has the best settings known."""

    limit_s = 300.0  # drivers compile what they have not computed before

    def __init__(self, options: WorkerOptions, tuning: Tuning) -> None:
        self._options = options
        self._tuning = tuning
        self._memory = Remembered(None if options.cache_dir is None else Path(options.cache_dir), TABLE)

    @property
    def is_wanted(self) -> bool:
        options = self._options
        is_possible = options.may_tune and self._memory.is_possible
        return is_possible and bool(options.rival.devices and options.rival_key)

    def is_affordable(self, size_bytes: int) -> bool:
        return tuner.is_affordable(size_bytes, n_copies=2)  # one on the device, whose memory may be the system's

    def command(self) -> list[str]:
        best = self._tuning.settings
        rival = records.to_wire(self._options.rival)
        return tuner.command(self._options, [[best.weights, best.n_threads, each] for each in (None, rival)])

    def learn(self, output: bytes) -> None:
        """Remember which of the two is faster, by the output of a trial."""
        try:
            times = [(float(token_s), float(row_s)) for token_s, row_s in json.loads(output)]
            processor_s, device_s = (TrialResult(self._tuning.settings, *pair).job_s for pair in times)
        except (ValueError, TypeError, RecursionError):
            self.failed("it says nothing")
            return
        self._remember(DeviceVerdict(device_s, processor_s))

    def failed(self, reason: str) -> None:
        self._remember(DeviceVerdict(0.0, 0.0, reason, time.time()))

    def _remember(self, verdict: DeviceVerdict) -> None:
        name, devices = Path(self._options.model_path).name, ", ".join(self._options.rival.devices)
        logger.info(
            "a trial of `%s` on %s: %s", name, devices,
            verdict.fault or f"{verdict.device_s:.3g} s for a job that takes the processor {verdict.processor_s:.3g} s",
        )  # fmt: skip
        self._memory.put(self._options.rival_key, records.to_wire(verdict))
