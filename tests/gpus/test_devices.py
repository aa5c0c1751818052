"""What is found behind a Vulkan loader whose drivers crash, hang, fail, lie or work, and when a kept answer is used."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shimmy.gpus import devices, hardware, vulkan_files
from shimmy.gpus.devices import FoundDevices, find_devices
from shimmy.messages.device import Device, DeviceKind
from tests.gpus.conftest import SetVulkan
from tests.gpus.fake_loader import GEFORCE

GB = 1 << 30
RADEON = "2,3,1,16384,-1,1002,3,2,Radeon"
INTEGRATED = "1,3,1,512,-1,8086,6,3,Iris"
SOFTWARE = "4,3,1,2048,-1,10005,13,4,llvmpipe"
PATIENCE_S = 60.0  # for a child that answers: the machine may be busy


def found(cache: Path | None = None, **settings: Any) -> FoundDevices:
    return find_devices(cache, limit_s=PATIENCE_S, **settings)


def test_a_device_is_told_as_its_driver_describes_it(set_vulkan: SetVulkan) -> None:
    set_vulkan("", GEFORCE)
    assert found() == FoundDevices(
        (Device(0, "GeForce", DeviceKind.DISCRETE, "NVIDIA", "fake 1.2.3", "1.3.9", 8 * GB, 7 * GB, gpu=16 * "01"),)
    )


def test_memory_is_what_the_engine_counts(set_vulkan: SetVulkan) -> None:
    set_vulkan("", RADEON, INTEGRATED, SOFTWARE, "2,3,1,1000,4000,1002,3,9,more free than there is")
    radeon, integrated, software, generous = found().devices
    assert (radeon.total_bytes, radeon.free_bytes) == (16 * GB, None)
    assert (integrated.total_bytes, integrated.kind) == (4 * GB + GB // 2, DeviceKind.INTEGRATED)
    assert (software.kind, software.vendor) == (DeviceKind.CPU, "0x10005")
    assert generous.free_bytes == generous.total_bytes == 1000 << 20
    assert [device.is_automatic for device in found().devices] == [True, False, False, True]


def test_what_the_engine_cannot_use_is_told(set_vulkan: SetVulkan) -> None:
    set_vulkan("", "2,1,1,64,-1,1002,3,1,old", "2,3,0,64,-1,1002,3,2,small", "9,3,1,64,-1,1,0,3,strange")
    old, small, strange = found().devices
    assert old.unusable == "it has Vulkan 1.1.9, the engine needs 1.2"
    assert small.unusable == "it has no 16-bit storage, which the engine needs"
    assert (strange.kind, strange.unusable) == (DeviceKind.OTHER, "")
    assert not old.is_automatic


def test_one_gpu_of_two_drivers_is_one_device(set_vulkan: SetVulkan, monkeypatch: pytest.MonkeyPatch) -> None:
    amdvlk, radv = "2,3,1,64,-1,1002,2,7,AMDVLK", "2,3,1,64,-1,1002,3,7,RADV"
    set_vulkan("", amdvlk, radv, "2,3,1,64,-1,1002,3,0,nobody", "2,3,1,64,-1,1002,3,0,nobody")
    assert [device.unusable for device in found().devices] == ["it is Vulkan1 by another driver", "", "", ""]
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    assert [device.unusable for device in found().devices] == ["", *3 * ["hidden by GGML_VK_VISIBLE_DEVICES"]]


@pytest.mark.parametrize(
    ("setting", "visible"), [("1", [1]), ("2,0", [0, 2]), ("0 1", [0, 1]), ("", []), ("1,x,2", [1]), ("-1,0", [])]
)
def test_devices_that_are_hidden_from_the_engine_are_not_used(
    setting: str, visible: list[int], set_vulkan: SetVulkan, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_vulkan("", GEFORCE, RADEON, INTEGRATED)
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", setting)
    assert [device.index for device in found().devices if not device.unusable] == visible


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("abort", "a Vulkan driver crashed (SIGABRT) when it was asked for its devices"),
        ("exit", "the process that asks for GPUs failed with exit code 7"),
        ("fail", "no Vulkan driver was found, or none that works"),
        ("no memory", "vkCreateInstance failed: out of memory, or a driver's description cannot be read"),
        ("old", "the Vulkan loader is of Vulkan 1.1.7, the engine needs 1.2"),
        ("", "the drivers of this machine know no device"),
    ],
)
def test_drivers_that_fail_cost_a_child_and_are_told(mode: str, reason: str, set_vulkan: SetVulkan) -> None:
    set_vulkan(mode)
    assert found() == FoundDevices((), reason)


def test_a_driver_that_hangs_is_given_up(set_vulkan: SetVulkan, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[bytes]] = []

    class Child(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            children.append(self)

    set_vulkan("hang")
    monkeypatch.setattr(subprocess, "Popen", Child)
    assert find_devices(None, limit_s=0.5) == FoundDevices((), "a Vulkan driver did not answer within 0.5 s")
    assert [child.returncode for child in children] == [-9]


def test_no_driver_that_is_asked_alone_is_left_behind_and_few_are_at_once(
    set_vulkan: SetVulkan, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_vulkan()
    children: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(devices, "own_program", lambda: [sys.executable, "-Sc", "import time; time.sleep(600)"])
    monkeypatch.setattr(vulkan_files, "drivers", lambda _environment: [Path(f"/{n}.json") for n in range(5)])
    start = devices._start

    def note(variables: dict[str, str]) -> "subprocess.Popen[bytes]":
        children.append(start(variables))
        return children[-1]

    def interrupt(_pipe: int, _limit_s: float) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(devices, "_start", note)
    monkeypatch.setattr(devices, "_first_line", interrupt)
    with pytest.raises(KeyboardInterrupt):
        devices._blamed(PATIENCE_S)
    assert [child.returncode for child in children] == [-9, -9]


@pytest.mark.parametrize("mode", ["abort", "nonsense"])
def test_a_driver_that_fails_among_others_is_named(
    mode: str, set_vulkan: SetVulkan, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_vulkan(mode, RADEON)
    monkeypatch.setenv("FAKE_FAULTY", "bad")
    drivers = [Path("/good.json"), Path("/bad.json"), Path("/other.json")]
    monkeypatch.setattr(vulkan_files, "drivers", lambda _environment: drivers)
    assert found().reason.endswith(": that of `/bad.json`; VK_DRIVER_FILES can name others")
    monkeypatch.setenv("FAKE_FAULTY", ".json")
    assert "json" not in found().reason, "each of them alone fails"
    drivers[:] = [Path("/only.json")]
    assert "`/only.json`" in found().reason


def test_what_a_driver_prints_is_no_answer(set_vulkan: SetVulkan) -> None:
    set_vulkan("noise", GEFORCE)
    assert [device.description for device in found().devices] == ["GeForce"]


def test_names_reach_no_terminal_as_they_are(set_vulkan: SetVulkan) -> None:
    set_vulkan("", f"2,3,1,64,-1,1002,3,1,\x1b[2J\tname \u202e{'x' * 255}")
    (device,) = found().devices
    assert device.description.startswith("\\x1b[2J\\tname \\u202exxx")
    assert len(device.description) == 200


def test_numbers_that_cannot_be_are_no_device(set_vulkan: SetVulkan) -> None:
    set_vulkan("nonsense", RADEON)
    assert found() == FoundDevices((), "a Vulkan driver answers with nonsense")


def test_a_loader_that_cannot_be_opened_is_told(
    set_vulkan: SetVulkan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_vulkan()
    (tmp_path / "libvulkan.so.1").write_text("no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path), prepend=":")
    answer = found()
    assert answer.devices == ()
    assert answer.reason.startswith("the Vulkan loader cannot be opened: ")


# -- the child's answer ----------------------------------------------------------------------------------------------

FIELDS = {
    "index": 0, "description": "a", "kind": "discrete", "vendor": "AMD", "driver": "", "api_version": "1.3.0",
    "total_bytes": 1, "free_bytes": None, "unusable": "", "backend": "Vulkan", "gpu": "",
}  # fmt: skip


@pytest.fixture
def answer_with(monkeypatch: pytest.MonkeyPatch, set_vulkan: SetVulkan) -> Any:
    """Has a program in Python be the child."""
    set_vulkan()

    def answer(program: str) -> FoundDevices:
        monkeypatch.setattr(devices, "own_program", lambda: [sys.executable, "-Sc", program])
        return found()

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        "", "[", "[]", "{}", '{"devices": []}', '{"devices": {}, "reason": ""}', '{"devices": [1], "reason": ""}',
        '{"devices": [], "reason": 5}', "[" * 100_000, '{"devices": [], "reason": "\xff"}',
        *(json.dumps({"devices": [fields], "reason": ""}) for fields in (
            FIELDS | {"index": -1}, FIELDS | {"index": "0"}, FIELDS | {"kind": "toaster"}, FIELDS | {"vendor": None},
            FIELDS | {"total_bytes": 2**63}, FIELDS | {"free_bytes": 1.5}, FIELDS | {"more": 1}, {"index": 0},
            FIELDS | {"backend": "Metal"},
        )),
        json.dumps({"devices": 65 * [FIELDS], "reason": ""}),
    ],
    ids=range(20),
)  # fmt: skip
def test_answers_are_read_as_something_foreign(answer: str, answer_with: Any) -> None:
    program = f"import sys; sys.stdout.buffer.write({answer!r}.encode('latin-1') + b'\\n')"
    assert answer_with(program) == FoundDevices((), "a Vulkan driver answers with nonsense")


def test_an_answer_without_an_end_is_cut_off(answer_with: Any) -> None:
    program = "import os\nwhile True: os.write(1, b'x' * 65536)"
    assert answer_with(program) == FoundDevices((), "a Vulkan driver answers without an end")


def test_an_answer_that_is_there_counts_after_the_limit() -> None:
    """One driver that hangs takes the time of all that are asked beside it."""
    reading, writing = os.pipe()
    os.write(writing, b"answer\n")
    assert devices._first_line(reading, -1.0) == b"answer\n"
    with pytest.raises(devices._DriverFault):
        devices._first_line(reading, -1.0)
    os.close(reading)
    os.close(writing)


def test_an_answer_counts_when_its_process_does_not_end(answer_with: Any) -> None:
    program = f"import time; print({json.dumps({'devices': [FIELDS], 'reason': ''})!r}, flush=True); time.sleep(600)"
    assert [device.name for device in answer_with(program).devices] == ["Vulkan0"]


def test_a_process_that_answers_nothing_and_stays_is_ended(answer_with: Any) -> None:
    program = "import os, time; os.close(1); time.sleep(600)"
    assert answer_with(program).reason == "the process that asks for GPUs was killed"


def test_a_process_that_cannot_be_started_is_told(
    answer_with: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "executable", lambda: str(tmp_path / "missing"))
    assert answer_with("").reason == "no process could be started to ask for GPUs: No such file or directory"


# -- without a child -------------------------------------------------------------------------------------------------


def test_a_machine_without_a_loader_pays_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vulkan_files, "loader", lambda _environment: None)
    monkeypatch.setattr(hardware, "gpus", lambda _root: [])
    monkeypatch.delattr(subprocess, "Popen")
    assert found(tmp_path) == FoundDevices((), "there is no Vulkan loader (`libvulkan.so.1`)")
    assert list(tmp_path.iterdir()) == []


def test_a_c_library_of_our_own_asks_no_driver(set_vulkan: SetVulkan, monkeypatch: pytest.MonkeyPatch) -> None:
    set_vulkan("", GEFORCE)
    monkeypatch.setenv("_SHIMMY_LIBC", "own")
    monkeypatch.delattr(subprocess, "Popen")
    assert found().devices == ()
    assert "C library of its own" in found().reason


# -- the kept answer -------------------------------------------------------------------------------------------------


def test_an_answer_without_a_usable_device_is_kept(set_vulkan: SetVulkan, tmp_path: Path) -> None:
    set_vulkan("", "2,3,0,64,-1,1002,3,1,small")
    first = found(tmp_path)
    set_vulkan("abort")
    assert found(tmp_path) == first
    assert found(tmp_path, is_enough=lambda _: False).devices == ()


def test_a_device_is_asked_again_for_its_free_memory(set_vulkan: SetVulkan, tmp_path: Path) -> None:
    set_vulkan("", GEFORCE)
    assert [device.free_bytes for device in found(tmp_path).devices] == [7 * GB]
    set_vulkan("", "2,3,1,8192,1024,10de,4,1,GeForce")
    assert [device.free_bytes for device in found(tmp_path, is_enough=lambda _: True).devices] == [None]
    assert [device.free_bytes for device in found(tmp_path).devices] == [GB]


def test_a_fault_is_kept_for_an_hour(set_vulkan: SetVulkan, tmp_path: Path) -> None:
    set_vulkan("abort")
    fault = found(tmp_path)
    set_vulkan("", GEFORCE)
    assert found(tmp_path) == fault
    table = json.loads((tmp_path / devices.TABLE).read_text())
    table["gpu-probe"]["until"] -= 3600
    (tmp_path / devices.TABLE).write_text(json.dumps(table))
    assert [device.description for device in found(tmp_path).devices] == ["GeForce"]


@pytest.mark.parametrize(
    ("program", "kept_s"),
    [("import time; time.sleep(600)", 60), ("import os; os.kill(os.getpid(), 9)", 60), ("raise SystemExit(7)", 3600)],
)
def test_what_may_have_been_the_moment_is_kept_for_a_minute(
    program: str, kept_s: float, set_vulkan: SetVulkan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_vulkan()
    monkeypatch.setattr(devices, "own_program", lambda: [sys.executable, "-Sc", program])
    monkeypatch.setattr(time, "time", lambda: 10.0**9)
    limit_s = 0.2 if "sleep" in program else PATIENCE_S
    assert find_devices(tmp_path, limit_s=limit_s).devices == ()
    table = json.loads((tmp_path / devices.TABLE).read_text())
    assert table["gpu-probe"]["until"] == 10**9 + kept_s


@pytest.mark.parametrize("change", ["driver", "setting"])
def test_a_changed_machine_is_asked_again(
    change: str, set_vulkan: SetVulkan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_vulkan("abort")
    assert found(tmp_path / "cache").devices == ()
    set_vulkan("", GEFORCE)
    if change == "driver":
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        (tmp_path / "vulkan/icd.d").mkdir(parents=True)
        (tmp_path / "vulkan/icd.d/new.json").touch()
    else:
        monkeypatch.setenv("VK_LOADER_DRIVERS_DISABLE", "old*")
    assert [device.description for device in found(tmp_path / "cache").devices] == ["GeForce"]


@pytest.mark.parametrize("content", ["", "[]", '{"gpu-probe": 5}', '{"gpu-probe": {"of": 1, "until": "x"}}'])
def test_a_damaged_table_is_asked_past(content: str, set_vulkan: SetVulkan, tmp_path: Path) -> None:
    (tmp_path / devices.TABLE).write_text(content)
    set_vulkan("", GEFORCE)
    assert [device.description for device in found(tmp_path).devices] == ["GeForce"]


def test_a_kept_answer_is_read_as_something_foreign(set_vulkan: SetVulkan, tmp_path: Path) -> None:
    set_vulkan("fail")
    found(tmp_path)
    table = json.loads((tmp_path / devices.TABLE).read_text())
    table["gpu-probe"]["devices"] = [FIELDS | {"kind": "toaster"}]
    (tmp_path / devices.TABLE).write_text(json.dumps(table))
    assert found(tmp_path) == FoundDevices((), "no Vulkan driver was found, or none that works")
