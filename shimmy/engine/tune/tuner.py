"""Which settings make a model fastest on this machine: has them tried while its worker is idle, and remembers that.

Knows settings, their times, and the file of the cache folder that keeps them. The trial itself, which needs the engine,
is another process (`trial`). A file that cannot be read or written costs speed and nothing else. Whether a device is
faster than the fastest of them is a trial of its own (`device_trial`), which has its turn afterwards.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from shimmy import __version__
from shimmy.system import cpu, memory
from shimmy.system.remembered import Remembered
from shimmy.system.self_command import executable, own_program
from shimmy.wire.worker_options import WorkerOptions

if TYPE_CHECKING:
    import subprocess

# How llama.cpp has the weights: as pages of the file, which all its workers share, or as a copy in an order that suits
# the processor, where the engine has one for the type of the weights. The pages are better where both are as fast.
WEIGHTS = ("mapped", "repacked")

_IDLE_S = 20.0  # without a job, until a trial
_LOOK_EVERY_S = 0.2  # whether a trial has ended
_MAX_LOAD = 0.5  # of the processors, by other programs: times would be wrong, and a trial would slow those down
# Memory of the engine in a trial, beside the copies of the weights.
_TRIAL_BYTES = 300 * 10**6
# Settings count as equally fast within this factor, and the first of them are taken.
_SAME = 1.05
# Times are compared for a job of so many tokens generated and read.
_N_GENERATED, _N_READ = 128, 512

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    weights: str
    n_threads: int


@dataclass(frozen=True, slots=True)
class TrialResult:
    """Seconds that one token and one row of a prompt took with `settings`."""

    settings: Settings
    token_s: float
    row_s: float

    @property
    def job_s(self) -> float:
        return _N_GENERATED * self.token_s + _N_READ * self.row_s


def is_affordable(size_bytes: int, n_copies: int) -> bool:
    """Whether memory and processors have room for a trial with so many copies of `size_bytes` of weights."""
    with contextlib.suppress(OSError):
        if os.getloadavg()[0] > _MAX_LOAD * (os.cpu_count() or 1):
            return False
    # The copies must not drive out the pages that the worker has mapped, which count as free.
    free = memory.free_bytes()
    return free is None or free > (1 + n_copies) * size_bytes + _TRIAL_BYTES


def command(options: WorkerOptions, settings: object) -> list[str]:
    """That of a trial of `settings`, see `trial.main`."""
    where = (options.model_path, options.cpu_variant or "", options.cache_dir or "")
    return [*own_program(), "trial", *where, json.dumps(settings)]


class IdleTrial(Protocol):
    """What a trial shall find out about a model."""

    limit_s: float  # a longer trial is ended

    @property
    def is_wanted(self) -> bool:
        """Whether the answer is not known yet, and could be remembered."""

    def is_affordable(self, size_bytes: int) -> bool:
        """Whether memory and processors have room for it, with `size_bytes` of weights."""

    def command(self) -> list[str]: ...

    def learn(self, output: bytes) -> None:
        """Remember what it has found."""

    def failed(self, reason: str) -> None:
        """It came to no end."""


def fastest(results: Sequence[TrialResult]) -> Settings:
    """The first settings that are as fast as any."""
    least_s = min(result.job_s for result in results)
    return next(result.settings for result in results if result.job_s <= _SAME * least_s)


class Tuning:
    """The settings of one model file: the best known, and the candidates that might be faster."""

    limit_s = 120.0

    def __init__(self, options: WorkerOptions) -> None:
        """For the model file that `options` name. Settings that a person has chosen stay."""
        self._options = options
        self._memory = Remembered(None if options.cache_dir is None else Path(options.cache_dir), "tuning.json")
        counts = cpu.thread_counts() if options.n_threads is None else [options.n_threads]
        weights = WEIGHTS if options.weights == "auto" else (options.weights,)
        self.candidates = [Settings(each, n_threads) for n_threads, each in product(counts, weights)]
        self._key = self._identity(counts)
        known = self._memory.get(self._key or "")
        found = [each for each in self.candidates if [each.weights, each.n_threads] == known]
        self.is_known = bool(found)
        # llama.cpp's own default where nothing is known.
        self.settings = found[0] if found else Settings(weights[-1], counts[0])

    @property
    def is_wanted(self) -> bool:
        """Whether there are several candidates, the best is not known yet, and a result could be remembered."""
        is_open = len(self.candidates) > 1 and not self.is_known
        return self._options.may_tune and is_open and self._memory.is_possible and self._key is not None

    def is_affordable(self, size_bytes: int) -> bool:
        return is_affordable(size_bytes, n_copies=1)

    def command(self) -> list[str]:
        return command(self._options, [[each.weights, each.n_threads, None] for each in self.candidates])

    def failed(self, reason: str) -> None:
        logger.debug("a trial of settings came to no end: %s", reason)

    def learn(self, output: bytes) -> None:
        """Choose settings by the output of a trial, and remember them for the next load."""
        try:
            times = [(float(token_s), float(row_s)) for token_s, row_s in json.loads(output)]
            settings = fastest([TrialResult(each, *pair) for each, pair in zip(self.candidates, times, strict=True)])
        except (ValueError, TypeError, RecursionError):
            logger.debug("a trial of settings had no result")
            return
        logger.info(
            "`%s` is fastest with %s weights and %d threads here, which holds from its next load on",
            Path(self._options.model_path).name, settings.weights, settings.n_threads,
        )  # fmt: skip
        assert self._key is not None
        self.settings = settings
        self._memory.put(self._key, [settings.weights, settings.n_threads])

    def _identity(self, counts: Sequence[int]) -> str | None:
        """A key for what the times depend on; None where the model is a file in memory."""
        path = Path(self._options.model_path)
        if path.is_relative_to("/proc"):  # a file in the memory of this worker
            return None
        try:
            status = path.stat()
        except OSError:
            return None
        file = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return json.dumps([__version__, *file, cpu.processor_name(), self._options.cpu_variant, *counts])


def start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start a trial. It ends when its standard input ends, at the latest with this process."""
    import subprocess  # most workers do without

    return subprocess.Popen(
        command, executable=executable(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


class Tuner:
    """Runs the trials of a worker, once the worker has had jobs and is idle. The main thread calls it."""

    def __init__(
        self,
        trials: Sequence[IdleTrial],
        size_bytes: int | None,
        *,
        start: Callable[[Sequence[str]], "subprocess.Popen[bytes]"] = start,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`size_bytes` is the size of the weights; None for a model without trials."""
        self._trials = [] if size_bytes is None else [trial for trial in trials if trial.is_wanted]
        self._size_bytes = size_bytes or 0
        self._start = start
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None  # of the first of the trials
        self._started_s = 0.0
        self._has_worked = False

    @property
    def wait_s(self) -> float | None:
        """How long the worker waits for an order before it calls `idle`; None for ever."""
        if not self._trials or not self._has_worked:
            return None
        return _IDLE_S if self._process is None else _LOOK_EVERY_S

    def interrupt(self) -> None:
        """An order came: end a trial at once. A later idle time has room for another."""
        self._has_worked = True
        if self._process is not None:
            self._end(self._process)

    def idle(self) -> None:
        """No order came for `wait_s`: begin a trial, or see whether it has ended."""
        trial = self._trials[0]
        if self._process is None:
            if trial.is_affordable(self._size_bytes):
                self._begin(trial)
        elif self._process.poll() is not None:
            self._trials.remove(trial)
            output, _ = self._process.communicate()
            if self._process.returncode == 0:
                trial.learn(output)
            else:
                trial.failed(_how_ended(self._process.returncode))
            self._process = None
        elif self._clock() - self._started_s > trial.limit_s:
            self._trials.remove(trial)
            self._end(self._process)
            trial.failed(f"it took longer than {trial.limit_s:.0f} s")

    def _begin(self, trial: IdleTrial) -> None:
        try:
            self._process = self._start(trial.command())
        except OSError as exc:
            self._trials.clear()
            logger.debug("no trial of settings could be started: %s", exc.strerror)
        self._started_s = self._clock()

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        process.kill()
        process.communicate()
        self._process = None


def _how_ended(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
