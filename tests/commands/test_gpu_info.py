"""`shimmy gpu-info`: what people and programs are told of the devices that were found."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shimmy import cli
from shimmy.commands import gpu_info
from shimmy.gpus.devices import FoundDevices
from shimmy.messages.device import Device, DeviceBackend, DeviceKind
from shimmy.system import backends
from tests.tiny_models import write_tiny_model

GEFORCE = Device(0, "GeForce", DeviceKind.DISCRETE, "NVIDIA", "NVIDIA 550", "1.3.9", 8 * 10**9, 7 * 10**9)
RADEON = Device(1, "Rade\x1bon", DeviceKind.DISCRETE, "AMD", "", "1.1.0", 10**9, None, "it is old")

IRIS = Device(2, "Iris", DeviceKind.INTEGRATED, "Intel", "", "1.3.0", 4 * 10**9, None)


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> "pytest.MonkeyPatch":
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(backends, "has_one_for_gpus", lambda: True)
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
    assert head.split() == ["NAME", "DEVICE", "KIND", "MEMORY", "FREE", "DRIVER", "API", "NOTE"]
    assert first.split("  ")[0] == "Vulkan0"
    assert all(text in first for text in ("GeForce", "discrete", "8.0 GB", "7.0 GB", "NVIDIA 550", "Vulkan 1.3.9"))
    assert "Rade\u241bon" in second
    assert second.endswith("it is old")
    assert reason == "Reason: one is missing"
    assert use == "Use: models are put on Vulkan0, as far as they fit"


def test_a_device_that_may_be_slower_is_said_to_be_tried(
    find: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(FoundDevices((IRIS,)), find)
    assert cli.main(["gpu-info"]) == 0
    assert "used when it is named: --device Vulkan2, or where a trial finds that faster" in capsys.readouterr().out


def test_no_trial_is_promised_where_none_will_run(find: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    has(FoundDevices((IRIS,)), find)
    find.setenv("SHIMMY_MAX_MEMORY", "8G")
    assert cli.main(["gpu-info"]) == 0
    promise = (
        "used when it is named: --device Vulkan2 (no trial finds out whether that is faster: `--max-memory` leaves"
    )
    assert promise in capsys.readouterr().out


def test_a_gpu_that_cuda_has_is_used_by_cuda_whatever_it_is_called(
    find: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vulkan = replace(GEFORCE, gpu="1", unusable="it is used as CUDA0")
    has(FoundDevices((replace(GEFORCE, gpu="1", backend=DeviceBackend.CUDA), vulkan)), find)
    assert cli.main(["gpu-info", "--device", "Vulkan0"]) == 0
    assert "Use: models are put on CUDA0, as far as they fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "note", "use"),
    [
        ((), "used when it is named: --device Vulkan2", "models are put on Vulkan0, as far as they fit"),
        (("--device", "Vulkan2,Vulkan0"), "1.3.0", "models are put on Vulkan0 and Vulkan2, as far as they fit"),
        (("--device", "Vulkan1"), "1.3.0", "models stay on the processor"),
        (("--device", "none"), "1.3.0", "models stay on the processor"),
        (("--gpu-layers", "0"), "1.3.0", "models stay on the processor"),
    ],
)
def test_the_options_decide_which_are_used(
    options: tuple[str, ...], note: str, use: str, find: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(FoundDevices((GEFORCE, RADEON, IRIS)), find)
    assert cli.main(["gpu-info", *options]) == 0
    *_, last, told = capsys.readouterr().out.splitlines()
    assert last.endswith(note)
    assert told == f"Use: {use}"


def test_a_models_layers_are_placed(
    find: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_tiny_model(tmp_path))
    has(FoundDevices((GEFORCE, IRIS)), find)
    find.setenv("SHIMMY_DEVICE_REQUIRED", "true")
    assert cli.main(["gpu-info", path, "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    (device,) = model["devices"]
    assert (model["name"], model["n_layers"], device["name"], device["n_layers"]) == ("tiny", 3, "Vulkan0", 3)
    assert 0 < device["n_bytes"] < GEFORCE.total_bytes
    assert cli.main(["gpu-info", path]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Model: tiny has 3 layers: 3 on Vulkan0, ")
    find.delenv("SHIMMY_DEVICE_REQUIRED")
    assert cli.main(["gpu-info", path, "--device", "none"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Model: tiny is computed on the processor"


def test_a_model_that_stays_on_the_processor_has_a_reason(
    find: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_tiny_model(tmp_path))
    has(FoundDevices((), "there is none"), find)
    assert cli.main(["gpu-info", path]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Model: tiny is computed on the processor (there is none)"
    find.setattr(backends, "has_one_for_gpus", lambda: False)
    assert cli.main(["gpu-info", path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["use"] == "this build has no backend for GPUs, and computes on the processor"
    assert told["model"]["devices"] == []
    assert told["model"]["note"] == "this build has no backend for GPUs"


def test_a_model_that_is_not_there_is_an_error(find: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find.delattr(gpu_info, "find_devices")
    assert cli.main(["gpu-info", "missing.gguf"]) == 1
    assert capsys.readouterr().err == "shimmy: there is no file `missing.gguf`\n"


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
