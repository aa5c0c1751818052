"""Whether a device is faster than the processor: when that is tried, what is remembered of it, and one that is not."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from shimmy.engine.tune import tuner as tuner_module
from shimmy.engine.tune.device_trial import DeviceTrial
from shimmy.engine.tune.tuner import Tuner, Tuning
from shimmy.gpus import device_trials
from shimmy.messages.device_verdict import DeviceVerdict
from shimmy.system import memory
from shimmy.system.backends import VULKAN
from shimmy.wire.worker_options import Offload, WorkerOptions
from tests.tiny_models import write_tiny_model
from tools import lavapipe

RIVAL = Offload(("Vulkan0",), (3,), (10**6,), 10**6)


@pytest.fixture
def options(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerOptions:
    """Of a model whose settings are known, but not whether a device is faster; on an idle machine with memory."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**12)
    return WorkerOptions(
        *(str(tiny_model), 256, 2, 64, 1, None, None),
        cache_dir=str(tmp_path / "cache"),
        weights="mapped",
        may_tune=True,
        rival=RIVAL,
        rival_key="it",
    )


def trial(options: WorkerOptions) -> DeviceTrial:
    return DeviceTrial(options, Tuning(options))


def remembered(options: WorkerOptions) -> DeviceVerdict | None:
    return device_trials.verdict(Path(str(options.cache_dir)), "it")


def fault_of(options: WorkerOptions) -> str:
    verdict = remembered(options)
    assert verdict is not None
    assert not verdict.is_faster
    return verdict.fault


def test_a_device_is_tried_against_the_best_settings_of_the_processor(options: WorkerOptions) -> None:
    assert trial(options).is_wanted
    *_, program, path, variant, cache_dir, settings = trial(options).command()
    assert (program, path, variant, cache_dir) == ("trial", options.model_path, "", options.cache_dir)
    processor, device = json.loads(settings)
    assert processor == ["mapped", 1, None]
    assert device[:2] == ["mapped", 1]
    assert device[2]["devices"] == ["Vulkan0"]


def test_nothing_is_tried_without_a_device_a_place_to_keep_it_or_leave_to_take_memory(options: WorkerOptions) -> None:
    for less in ({"rival": Offload()}, {"cache_dir": None}, {"may_tune": False}, {"rival_key": ""}):
        assert not trial(replace(options, **less)).is_wanted


def test_memory_has_to_have_room_for_another_copy(options: WorkerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes = 10**9
    monkeypatch.setattr(memory, "free_bytes", lambda: 3 * size_bytes)
    assert not trial(options).is_affordable(size_bytes)
    assert Tuning(options).is_affordable(size_bytes)


def test_the_faster_one_of_a_job_is_remembered(options: WorkerOptions) -> None:
    trial(options).learn(b"[[0.01, 0.001], [0.005, 0.001]]")
    verdict = remembered(options)
    assert verdict is not None
    assert verdict.is_faster
    trial(options).learn(b"[[0.01, 0.001], [0.0099, 0.001]]")
    verdict = remembered(options)
    assert verdict is not None
    assert not verdict.is_faster, "as good as equal"


@pytest.mark.parametrize("output", [b"", b"[]", b"[[1, 2]]", b"[[1, 2], [3]]", b"nonsense", b"[" * 100_000])
def test_a_trial_that_says_nothing_speaks_against_the_device(options: WorkerOptions, output: bytes) -> None:
    trial(options).learn(output)
    assert fault_of(options) == "it says nothing"


class Ended:
    """A process that has ended like this, or has not: None."""

    def __init__(self, returncode: int | None) -> None:
        self.returncode = returncode

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self) -> tuple[bytes, None]:
        return b"", None

    def kill(self) -> None:
        pass


@pytest.mark.parametrize(
    ("returncode", "fault"), [(-6, "signal 6"), (1, "exit code 1"), (None, "it took longer than 300 s")]
)
def test_a_driver_that_crashes_or_hangs_in_a_trial_is_not_used(
    returncode: int | None, fault: str, options: WorkerOptions
) -> None:
    now_s = 0.0
    process = Ended(returncode)
    tuner = Tuner([trial(options)], 10**6, start=lambda _: process, clock=lambda: now_s)  # type: ignore[arg-type, return-value]
    tuner.interrupt()
    tuner.idle()
    now_s = 301.0
    tuner.idle()
    assert fault_of(options) == fault
    assert tuner.wait_s is None, "it is not tried again"


def test_a_trial_that_a_job_ends_decides_nothing(options: WorkerOptions) -> None:
    tuner = Tuner([trial(options)], 10**6, start=lambda _: Ended(None))  # type: ignore[arg-type, return-value]
    tuner.interrupt()
    tuner.idle()
    tuner.interrupt()
    assert remembered(options) is None
    assert tuner.wait_s is not None


def test_settings_are_tried_before_devices(options: WorkerOptions) -> None:
    open_options = replace(options, weights="auto")
    commands: list[list[str]] = []

    def start(command: list[str]) -> Ended:
        commands.append(command)
        return Ended(0)

    tuning = Tuning(open_options)
    trials = [tuning, DeviceTrial(open_options, tuning)]
    tuner = Tuner(trials, 10**6, start=start)  # type: ignore[arg-type]
    tuner.interrupt()
    for _ in range(4):
        tuner.idle()
    offloads = [[setting[2] for setting in json.loads(command[-1])] for command in commands]
    assert offloads[0] == [None, None]
    assert [offload is None for offload in offloads[1]] == [True, False]


# -- the trial itself ------------------------------------------------------------------------------------------------


@pytest.fixture
def llvmpipe(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in lavapipe.environment().items():
        monkeypatch.setenv(name, value)


@pytest.mark.skipif(VULKAN.built() is None, reason="this build has no Vulkan")
@pytest.mark.timeout(1000)
@pytest.mark.thorough
@pytest.mark.usefixtures("llvmpipe")
def test_the_processor_is_faster_than_a_device_that_is_the_processor(options: WorkerOptions, tmp_path: Path) -> None:
    """llvmpipe, which computes a thousand times slower."""
    model = write_tiny_model(tmp_path, seed=1)
    asked = trial(replace(options, model_path=str(model)))
    with tuner_module.start(asked.command()) as process:
        assert process.stdout is not None
        output = process.stdout.read()
    asked.learn(output)
    verdict = remembered(options)
    assert verdict is not None
    assert verdict.fault == ""
    assert verdict.device_s > 10 * verdict.processor_s > 0
