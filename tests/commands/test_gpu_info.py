"""`shimmy gpu-info`: what people and programs are told of the devices that were found."""

import json
from dataclasses import replace

import pytest

from shimmy import cli
from shimmy.commands import gpu_info
from shimmy.gpus.devices import FoundDevices
from shimmy.messages.device import Device, DeviceKind
from shimmy.system import vulkan_archive

GEFORCE = Device(0, "GeForce", DeviceKind.DISCRETE, "NVIDIA", "NVIDIA 550", "1.3.9", 8 * 10**9, 7 * 10**9)
RADEON = Device(1, "Rade\x1bon", DeviceKind.DISCRETE, "AMD", "", "1.1.0", 10**9, None, "it is old")


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> "pytest.MonkeyPatch":
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(vulkan_archive, "is_there", lambda: True)
    return monkeypatch


def has(found: FoundDevices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let that be what is found; a kept answer is not enough."""

    def find_devices(_folder: object, *, is_enough: object) -> FoundDevices:
        assert callable(is_enough)
        assert not is_enough(found)
        return found

    monkeypatch.setattr(gpu_info, "find_devices", find_devices)


def test_a_table_for_people(find: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    has(FoundDevices((GEFORCE, RADEON), "one is\nmissing"), find)
    assert cli.main(["gpu-info"]) == 0
    head, first, second, reason, use = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "DEVICE", "KIND", "MEMORY", "FREE", "DRIVER", "VULKAN", "NOTE"]
    assert first.split("  ")[0] == "Vulkan0"
    assert all(text in first for text in ("GeForce", "discrete", "8.0 GB", "7.0 GB", "NVIDIA 550", "1.3.9"))
    assert "Rade\u241bon" in second
    assert second.endswith("it is old")
    assert reason == "Reason: one is missing"
    assert use == "Use: models are put on Vulkan0, as far as they fit"


def test_no_gpu_is_told_with_its_reason(find: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    has(FoundDevices((), "there is none"), find)
    assert cli.main(["gpu-info"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["No GPU answers.", "Reason: there is none"]


def test_json_for_programs(find: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    has(FoundDevices((GEFORCE, RADEON), ""), find)
    assert cli.main(["gpu-info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reason"] == ""
    assert [device["name"] for device in told["devices"]] == ["Vulkan0", "Vulkan1"]
    assert told["devices"][0] | {"kind": "discrete", "total_bytes": 8 * 10**9, "unusable": ""} == told["devices"][0]
    assert (told["devices"][1]["free_bytes"], told["devices"][1]["unusable"]) == (None, "it is old")


def test_a_device_that_is_used_only_when_named_says_so(
    find: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(FoundDevices((replace(GEFORCE, kind=DeviceKind.INTEGRATED),)), find)
    assert cli.main(["gpu-info"]) == 0
    _, row, use = capsys.readouterr().out.splitlines()
    assert row.endswith("is an integrated GPU, which is used when it is named: `--device Vulkan0`")
    assert use == "Use: models stay on the processor"
    find.setattr(vulkan_archive, "is_there", lambda: False)
    assert cli.main(["gpu-info"]) == 0
    assert "this build has no Vulkan" in capsys.readouterr().out
