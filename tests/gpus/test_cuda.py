"""What is found by CUDA: a driver of NVIDIA's that fails, hangs or aborts at each call, is too old, or works; and a GPU
that Vulkan has, too."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shimmy.gpus import hardware, system_libraries, vulkan_files
from shimmy.gpus.devices import FoundDevices, find_devices
from shimmy.messages.device import Device, DeviceBackend, DeviceKind
from shimmy.system import backends
from shimmy.system.backends import Backend
from tests.gpus.conftest import SetVulkan
from tests.gpus.fake_driver import HOPPER, PASCAL, compile_driver
from tests.gpus.fake_loader import GEFORCE

SetCuda = Callable[..., None]

HOPPER_BY_VULKAN = "2,3,1,143771,-1,10de,4,4,NVIDIA H200"
PATIENCE_S = 60.0  # for a child that answers: the machine may be busy
CALLS = (
    *("cuDriverGetVersion", "cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceTotalMem_v2"),
    *("cuDeviceGetAttribute", "cuDeviceGetUuid_v2"),
)


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def set_cuda(driver: Path, set_vulkan: SetVulkan, monkeypatch: pytest.MonkeyPatch) -> SetCuda:
    """Sets what the driver does and which GPUs it has, on a machine without other GPUs, for a build with CUDA."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(Backend, "is_there", lambda _: True)
    set_vulkan()

    def set_variables(*gpus: str, does: str = "", version: int = 13000) -> None:
        monkeypatch.setenv("FAKE_CUDA_GPUS", ";".join(gpus))
        monkeypatch.setenv("FAKE_CUDA", does)
        monkeypatch.setenv("FAKE_CUDA_VERSION", str(version))

    return set_variables


def found(cache: Path | None = None, limit_s: float = PATIENCE_S) -> FoundDevices:
    return find_devices(cache, limit_s=limit_s)


def by_cuda() -> FoundDevices:
    """Without what Vulkan says, which is that it has no device."""
    told = found()
    reasons = told.reason.split("; ")
    assert reasons.pop() == "the drivers of this machine know no device"
    return FoundDevices(told.devices, "; ".join(reasons))


def test_a_device_is_told_as_its_driver_describes_it(set_cuda: SetCuda) -> None:
    set_cuda(HOPPER, "Orin,8,7,30000,1,6")
    hopper, orin = by_cuda().devices
    n_bytes = 143771 << 20
    gpu = 16 * "04"
    assert hopper == Device(
        0, "NVIDIA H200", DeviceKind.DISCRETE, "NVIDIA", "NVIDIA", "13.0", n_bytes, None, "", DeviceBackend.CUDA, gpu
    )
    assert (hopper.name, hopper.is_automatic) == ("CUDA0", True)
    assert (orin.name, orin.kind, orin.is_automatic) == ("CUDA1", DeviceKind.INTEGRATED, False)


def test_an_older_gpu_is_not_used_and_says_why(set_cuda: SetCuda) -> None:
    set_cuda(PASCAL, HOPPER)
    pascal, hopper = by_cuda().devices
    assert pascal.unusable == "it has compute capability 6.1, CUDA in this program needs 7.5"
    assert not hopper.unusable


def test_an_older_driver_is_told(set_cuda: SetCuda) -> None:
    set_cuda(HOPPER, version=12080)
    (hopper,) = by_cuda().devices
    assert hopper.unusable == (
        "its driver has CUDA 12.8, this program needs 13.0: install NVIDIA's driver 580 or newer"
    )


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_is_one_line_or_costs_a_detail(call: str, set_cuda: SetCuda) -> None:
    set_cuda(HOPPER, does=f"{call}=999")
    answer = by_cuda()
    if call == "cuDeviceGetUuid_v2":
        assert [(device.gpu, device.unusable) for device in answer.devices] == [("", "")]
    else:
        called = call.removesuffix("_v2")
        assert answer == FoundDevices(
            reason=f"{called} failed: an unknown error: is the kernel module loaded, and are /dev/nvidia* there?"
        )


@pytest.mark.parametrize(("number", "reason"), [(803, "different versions: restart the machine"), (35, "error 35")])
def test_errors_are_told_for_a_person(number: int, reason: str, set_cuda: SetCuda) -> None:
    set_cuda(HOPPER, does=f"cuInit={number}")
    assert by_cuda().reason.endswith(reason)


@pytest.mark.parametrize("call", CALLS)
def test_a_driver_that_aborts_costs_a_child_and_is_told(call: str, set_cuda: SetCuda) -> None:
    set_cuda(HOPPER, does=f"{call}=abort")
    assert by_cuda() == FoundDevices(reason="NVIDIA's driver crashed (SIGABRT) when it was asked for its devices")


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetName"])
def test_a_driver_that_hangs_is_given_up(call: str, set_cuda: SetCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    set_cuda(HOPPER, does=f"{call}=hang")
    monkeypatch.setattr(vulkan_files, "loader", lambda *_: None)
    assert found(limit_s=0.5).reason == (
        "NVIDIA's driver did not answer within 0.5 s; there is no Vulkan loader (`libvulkan.so.1`)"
    )


def test_no_gpu_is_told_with_what_hides_it(set_cuda: SetCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    set_cuda()
    assert by_cuda().reason == "NVIDIA's driver knows no device for CUDA"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert by_cuda().reason == "NVIDIA's driver knows no device for CUDA; CUDA_VISIBLE_DEVICES is `7`"


# -- beside Vulkan -----------------------------------------------------------------------------------------------------


def test_a_gpu_of_both_is_used_by_cuda_and_others_by_vulkan(set_cuda: SetCuda, set_vulkan: SetVulkan) -> None:
    radeon = "2,3,1,16384,-1,1002,3,2,Radeon"
    set_vulkan("", GEFORCE, HOPPER_BY_VULKAN, radeon)
    set_cuda(HOPPER)
    told = found()
    assert [(device.name, device.unusable) for device in told.devices] == [
        ("CUDA0", ""), ("Vulkan0", ""), ("Vulkan1", "it is used as CUDA0"), ("Vulkan2", ""),
    ]  # fmt: skip
    assert told.reason == ""


def test_a_gpu_that_cuda_cannot_use_stays_vulkans(set_cuda: SetCuda, set_vulkan: SetVulkan) -> None:
    set_vulkan("", HOPPER_BY_VULKAN)
    set_cuda(HOPPER, version=12040)
    assert [bool(device.unusable) for device in found().devices] == [True, False]


def test_without_vulkan_nothing_is_missing_where_cuda_has_a_gpu(
    set_cuda: SetCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vulkan_files, "loader", lambda *_: None)
    set_cuda(HOPPER)
    assert found().reason == ""


def test_a_build_without_cuda_asks_no_driver_of_it(
    set_cuda: SetCuda, set_vulkan: SetVulkan, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_vulkan("", HOPPER_BY_VULKAN)
    set_cuda(HOPPER, does="cuDriverGetVersion=abort")
    monkeypatch.setattr(Backend, "is_there", lambda backend: backend == backends.VULKAN)
    assert [(device.name, device.unusable) for device in found().devices] == [("Vulkan0", "")]
    assert found().reason == ""


def test_a_machine_without_a_driver_pays_nothing_and_hears_of_a_gpu(
    set_cuda: SetCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_cuda(HOPPER)
    monkeypatch.setattr(system_libraries, "find", lambda *_: None)
    monkeypatch.delattr(subprocess, "Popen")
    assert found().reason == "there is no Vulkan loader (`libvulkan.so.1`)"
    monkeypatch.setattr(hardware, "gpus", lambda _root: [hardware.PciGpu("NVIDIA", "nvidia")])
    monkeypatch.setattr(hardware, "nodes", lambda _root=None: [("/dev/nvidia0", True)])
    assert "the GPU of NVIDIA is not used: NVIDIA's driver does not answer for it (`libcuda.so.1`)" in found().reason


def test_an_answer_is_kept_until_the_driver_or_a_variable_is_another(
    set_cuda: SetCuda, driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_cuda(PASCAL)
    assert [device.description for device in found(tmp_path).devices] == ["Tesla P40"]
    set_cuda(HOPPER)  # which nobody could see
    assert [device.description for device in found(tmp_path).devices] == ["Tesla P40"]
    os.utime(driver)
    assert [device.description for device in found(tmp_path).devices] == ["NVIDIA H200"]
    set_cuda("Other,8,0,1,0,1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [device.description for device in found(tmp_path).devices] == ["Other"]
