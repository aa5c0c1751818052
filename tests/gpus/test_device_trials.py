"""What is kept of trials, and what of it is believed."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shimmy.config import load
from shimmy.gpus import device_trials
from shimmy.messages.device import Device, DeviceKind
from shimmy.messages.device_verdict import FAULT_KEPT_S, TABLE, DeviceVerdict
from shimmy.system import cpu
from shimmy.system.remembered import Remembered
from shimmy.wire.records import to_wire

WHOLE = {"device_s": 1.0, "processor_s": 2.0, "fault": "", "failed_at_s": 0.0}
IRIS = Device(0, "Iris", DeviceKind.INTEGRATED, "Intel", "Mesa 25.0", "1.3.0", 10**9, None)


def key(device: Device = IRIS, architecture: str = "llama", quantization: str = "Q4_K", n_params: int = 10**9) -> str:
    return device_trials.key(device, architecture, quantization, n_params)


def test_a_verdict_holds_for_one_device_with_its_driver_and_for_models_of_a_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert key(replace(IRIS, index=1, free_bytes=7)) == key(n_params=9 * 10**8) == key()
    others = [
        key(replace(IRIS, description="Arc")), key(replace(IRIS, driver="Mesa 25.1")), key(architecture="qwen3"),
        key(quantization="F16"), key(n_params=8 * 10**9),
    ]  # fmt: skip
    monkeypatch.setattr(cpu, "processor_name", lambda: "another one")
    assert len({key(), *others}) == 6
    assert key() not in others


def test_what_was_found_is_read_back(tmp_path: Path) -> None:
    Remembered(tmp_path, TABLE).put("it", {"device_s": 1.5, "processor_s": 2, "fault": "", "failed_at_s": 0})
    assert device_trials.verdict(tmp_path, "it") == DeviceVerdict(1.5, 2.0)
    assert device_trials.verdict(tmp_path, "another") is None
    assert device_trials.verdict(None, "it") is None


@pytest.mark.parametrize(
    "value",
    [7, [], {}, {"device_s": 1.0}, WHOLE | {"device_s": -1.0}, WHOLE | {"device_s": "1"},
     WHOLE | {"fault": None}, WHOLE | {"more": 1}],
)  # fmt: skip
def test_nonsense_is_no_verdict(value: object, tmp_path: Path) -> None:
    Remembered(tmp_path, TABLE).put("it", value)
    assert device_trials.verdict(tmp_path, "it") is None


def test_a_trial_that_failed_has_another_chance_and_one_that_the_device_lost_has_not(tmp_path: Path) -> None:
    now_s = time.time()
    for age_s, holds in ((0.0, True), (FAULT_KEPT_S - 60, True), (FAULT_KEPT_S, False), (-60.0, False)):
        Remembered(tmp_path, TABLE).put("it", to_wire(DeviceVerdict(0.0, 0.0, "signal 6", now_s - age_s)))
        assert (device_trials.verdict(tmp_path, "it") is not None) == holds
    assert DeviceVerdict(2.0, 1.0).holds(now_s)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"max_memory_bytes": 10**9}, "--max-memory"),
        ({"cache_dir": None}, "cache folder"),
    ],
)
def test_where_no_trial_will_run_that_is_said(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = replace(load({"cache_dir": str(tmp_path)}, {}), **fields)
    told = device_trials.hindrance(config)
    assert words in told
    assert bool(told) == bool(words)
    assert device_trials.hindrance(config, is_embedding=True) == (told or "it makes no text")


def test_what_a_file_says_is_shown_on_one_short_line(tmp_path: Path) -> None:
    fault = {"fault": "\x1b[31m" + 9999 * "x", "failed_at_s": time.time()}
    Remembered(tmp_path, TABLE).put("it", WHOLE | fault)
    verdict = device_trials.verdict(tmp_path, "it")
    assert verdict is not None
    sentence = device_trials.sentence(verdict, IRIS)
    assert sentence.isprintable()
    assert len(sentence) < 400
    assert not verdict.is_faster
