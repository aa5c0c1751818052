"""Which devices beside the processor this machine has: asked in a child process, whose answer is kept.

Drivers are the code of others, and abort or hang where something is missing: a child has a few seconds, and what it
says is read as anything foreign. Vulkan's drivers and CUDA's are asked by one each; where the machine has no Vulkan
loader, no driver of NVIDIA's, or this build no CUDA, there is no child. Knows processes and what an answer depends on;
nothing of Vulkan or CUDA, and not which device a model gets.
"""

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shimmy.gpus import hardware, system_libraries, vulkan_files
from shimmy.messages.device import Device, DeviceBackend, DeviceKind
from shimmy.system import backends, unpacked_folder
from shimmy.system.remembered import Remembered
from shimmy.system.self_command import environment, executable, own_program
from shimmy.text.printable import shortened
from shimmy.wire import records, values

LIMIT_S = 5.0
MAX_ANSWER_BYTES = 2**17
COMMAND = "gpu-probe"  # the hidden sub-command that the child runs
TABLE = "gpus.json"
CUDA_DRIVER = "libcuda.so.1"

_MAX_DEVICES = 64  # more are not asked for, either
_MAX_LABEL, _MAX_REASON = 200, 1000
_N_AT_ONCE = 2  # of drivers that are asked alone: more of them slow each other down
# How long a driver that failed is left alone while nothing about it changes; the shorter time is for one that was too
# slow or was killed, which may have been the moment.
_FAULT_KEPT_S, _MOMENT_KEPT_S = 3600.0, 60.0
_END_S = 1.0  # for the end of a child that was killed: a driver may hang in the kernel, out of reach
_BOOT = Path("/proc/sys/kernel/random/boot_id")
# How variables begin that change what drivers answer.
_SETTINGS = ("VK_", "GGML_VK_", "MESA_", "DRI_PRIME", "CUDA_", "NVIDIA_")
_NVIDIA_MODULE = Path("/proc/driver/nvidia/version")
_OWN_LIBC = "_SHIMMY_LIBC"  # set by tools/bootloader.c

_NO_LOADER = "there is no Vulkan loader (`libvulkan.so.1`)"
_CANNOT_LOAD = (
    "the program runs with a C library of its own here, which loads no drivers of the system (see docs/gpu.md)"
)


@dataclass(frozen=True, slots=True)
class FoundDevices:
    """What there is. An answer that was kept says nothing of free memory."""

    devices: tuple[Device, ...] = ()
    reason: str = ""  # why there is no device, or not one for each GPU; empty where nothing is to be said


@dataclass(frozen=True, slots=True)
class _Api:
    """Something that devices are asked by."""

    driver: str  # whose fault it is when a child fails
    words: tuple[str, ...]  # of the child's command
    limit_s: float


_VULKAN = _Api("a Vulkan driver", (COMMAND,), LIMIT_S)
# Without a program that keeps it awake, NVIDIA's driver takes seconds for each GPU.
_CUDA = _Api("NVIDIA's driver", (COMMAND, "cuda"), 4 * LIMIT_S)


class _DriverFault(Exception):
    """The child did not answer: `what` the driver did, or, where that is not known, what happened to the child, and for
    how long that holds."""

    def __init__(self, what: str, kept_s: float = _FAULT_KEPT_S, *, is_known: bool = True) -> None:
        super().__init__(what)
        self.kept_s = kept_s
        self._is_known = is_known

    def told(self, driver: str) -> str:
        return f"{driver} {self}" if self._is_known else str(self)


def _is_without_use(kept: FoundDevices) -> bool:
    return all(device.unusable for device in kept.devices)


def find_devices(
    cache_folder: Path | None,
    *,
    is_enough: Callable[[FoundDevices], bool] = _is_without_use,
    limit_s: float | None = None,
) -> FoundDevices:
    """All devices that Vulkan's drivers tell of, usable or not, and before them those of CUDA where this build has it.
    A GPU that both could use is used by CUDA.

    Takes a tenth of a second, and up to three times `limit_s` (None: some seconds) where a driver fails: call it on a
    thread. The answers are kept in the cache folder until a file of the loader or of a driver, a device file, a
    variable or the running system is another one; `is_enough` says of each whether a kept one will do, as it has no
    free memory in it.
    """
    if _OWN_LIBC in os.environ:
        return FoundDevices(reason=_CANNOT_LOAD)
    has_loader = vulkan_files.loader(os.environ) is not None
    wants_cuda = backends.CUDA.is_there()
    cuda, vulkan = FoundDevices(), FoundDevices(reason=_NO_LOADER)
    if wants_cuda and _cuda_driver() is not None:
        cuda = _answer(_CUDA, cache_folder, is_enough, limit_s)
    if has_loader:
        vulkan = _answer(_VULKAN, cache_folder, is_enough, limit_s)
    elif _usable(cuda):
        vulkan = FoundDevices()
    devices = (*cuda.devices, *_apart(vulkan.devices, cuda))
    answering = {device.vendor for device in devices if device.kind != DeviceKind.CPU}
    reasons = [cuda.reason, vulkan.reason]
    reasons += hardware.advice(answering, has_loader=has_loader, wants_cuda=wants_cuda)
    return FoundDevices(devices, "; ".join(filter(None, reasons)))


def _apart(devices: Iterable[Device], cuda: FoundDevices) -> Iterator[Device]:
    """The devices of Vulkan, without use where CUDA has the same GPU."""
    names = {device.gpu: device.name for device in _usable(cuda) if device.gpu}
    for device in devices:
        is_double = not device.unusable and device.gpu in names
        yield replace(device, unusable=f"it is used as {names[device.gpu]}") if is_double else device


def _usable(found: FoundDevices) -> list[Device]:
    return [device for device in found.devices if not device.unusable]


def _cuda_driver() -> Path | None:
    return system_libraries.find(CUDA_DRIVER, os.environ)


# -- the kept answer -------------------------------------------------------------------------------------------------


def _answer(
    api: _Api, cache_folder: Path | None, is_enough: Callable[[FoundDevices], bool], limit_s: float | None
) -> FoundDevices:
    memory = Remembered(cache_folder, TABLE)
    depends_on = _identity()
    kept = _read_kept(memory.get(" ".join(api.words)), depends_on)
    if kept is not None and is_enough(kept):
        return kept
    until = None
    try:
        found = _ask(api, api.limit_s if limit_s is None else limit_s)
    except OSError as exc:
        return FoundDevices(reason=f"no process could be started to ask for GPUs: {exc.strerror}")
    except _DriverFault as exc:
        found, until = FoundDevices(reason=str(exc)), time.time() + exc.kept_s
    told = [records.to_wire(replace(device, free_bytes=None)) for device in found.devices]
    memory.put(" ".join(api.words), {"of": depends_on, "until": until, "devices": told, "reason": found.reason})
    return found


def _read_kept(value: object, depends_on: str) -> FoundDevices | None:
    """The answer, if it is one, still holds, and is about the machine as it is."""
    try:
        kept = values.members(value)
        until = values.optional(values.number)(kept["until"])
        if kept["of"] != depends_on or (until is not None and not 0 < until - time.time() <= _FAULT_KEPT_S):
            return None
        return _read(kept)
    except (KeyError, TypeError, ValueError):
        return None


def _identity() -> str:
    """A digest of what an answer depends on."""
    settings = sorted(entry for entry in os.environ.items() if entry[0].startswith(_SETTINGS))
    texts, states = [], vulkan_files.states(os.environ)
    for path in (_BOOT, _NVIDIA_MODULE):
        with contextlib.suppress(OSError):
            texts.append(path.read_text())
    if (driver := _cuda_driver()) is not None:
        with contextlib.suppress(OSError):
            states.append(system_libraries.state(driver))
    parts = [os.geteuid(), texts, settings, states, hardware.nodes()]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


# -- the child -------------------------------------------------------------------------------------------------------


def _ask(api: _Api, limit_s: float) -> FoundDevices:
    """What a child answers; raises _DriverFault, and OSError where no child can be started."""
    unpacked_folder.restore()
    try:
        return _answer_of(_start(environment(), api.words), limit_s)
    except _DriverFault as exc:
        blamed = _blamed(limit_s) if api is _VULKAN else ""
        raise _DriverFault(f"{exc.told(api.driver)}{blamed}", exc.kept_s, is_known=False) from exc


def _blamed(limit_s: float) -> str:
    """Which drivers fail when each is asked alone, as the rest of a sentence; empty where that tells nothing."""
    last_s = time.monotonic() + limit_s  # for the start of a child
    drivers = vulkan_files.drivers(os.environ)
    n_asked, faulty = 0, []
    while n_asked < len(drivers) and time.monotonic() < last_s:
        batch = drivers[n_asked : n_asked + _N_AT_ONCE]
        n_asked += len(batch)
        faulty += [shortened(str(path), _MAX_LABEL) for path in _faulty(batch, limit_s)]
    if not faulty or len(faulty) == n_asked > 1:
        return ""
    return f": that of `{'` and `'.join(faulty)}`; VK_DRIVER_FILES can name others"


def _faulty(drivers: Iterable[Path], limit_s: float) -> list[Path]:
    """Those of a few drivers that fail when each is asked alone, and all at once; no child is left behind."""
    end_s = time.monotonic() + limit_s
    children, faulty = {}, []
    try:
        for path in drivers:
            only = {"VK_DRIVER_FILES": str(path), "VK_ICD_FILENAMES": str(path), "VK_ADD_DRIVER_FILES": ""}
            with contextlib.suppress(OSError):
                children[path] = _start(environment() | only)
        for path, process in children.items():
            try:
                _answer_of(process, end_s - time.monotonic())
            except _DriverFault:
                faulty.append(path)
    finally:
        for process in children.values():
            _end(process)
    return faulty


def _start(variables: dict[str, str], words: Iterable[str] = _VULKAN.words) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*own_program(), *words],
        executable=executable(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=variables,
        start_new_session=True,  # what a driver starts ends with it
    )


def _answer_of(process: "subprocess.Popen[bytes]", limit_s: float) -> FoundDevices:
    """What a child answers, which is ended; raises _DriverFault."""
    assert process.stdout is not None
    try:
        line = _first_line(process.stdout.fileno(), limit_s)
    finally:
        _end(process)
    if not line.endswith(b"\n"):
        raise _fault(process.returncode)
    try:
        return _read(values.members(json.loads(line)))
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _DriverFault("answers with nonsense") from None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Have the process and what it has started end."""
    assert process.stdout is not None
    process.stdout.close()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # one that has closed its stdout has ended, as a rule
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)


def _first_line(pipe: int, limit_s: float) -> bytes:
    """What is said up to the end of a line, or of everything; raises _DriverFault where there is no end."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    end_s = time.monotonic() + limit_s
    said = b""
    while not said.endswith(b"\n"):
        if not poll.poll(1000 * max(0.0, end_s - time.monotonic())):  # what is there already counts
            raise _DriverFault(f"did not answer within {limit_s:g} s", _MOMENT_KEPT_S)
        piece = os.read(pipe, MAX_ANSWER_BYTES)
        said += piece
        if not piece:
            break
        if len(said) > MAX_ANSWER_BYTES:
            raise _DriverFault("answers without an end")
    return said


def _fault(code: int | None) -> _DriverFault:
    """Why there is no answer from a child that ended like this; None: it cannot be ended."""
    if code is None or code == -signal.SIGKILL:
        return _DriverFault("the process that asks for GPUs was killed", _MOMENT_KEPT_S, is_known=False)
    if code >= 0:
        return _DriverFault(f"the process that asks for GPUs failed with exit code {code}", is_known=False)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return _DriverFault(f"crashed ({name}) when it was asked for its devices")


def _read(answer: dict[str, Any]) -> FoundDevices:
    """The devices and the reason in an answer; raises KeyError, TypeError or ValueError for what is none."""
    told = values.items(answer["devices"])
    if len(told) > _MAX_DEVICES:
        raise ValueError("too many devices")
    devices = tuple([values.made(Device, fields, _READERS) for fields in told])
    reason = shortened(values.text(answer["reason"]), _MAX_REASON)
    if not devices and not reason:
        reason = "the drivers of this machine know no device"
    return FoundDevices(devices, reason)


def _label(value: object) -> str:
    return shortened(values.text(value), _MAX_LABEL)


_READERS: dict[object, Callable[[Any], object]] = {
    int: values.large_count,
    str: _label,
    DeviceKind: DeviceKind,
    DeviceBackend: DeviceBackend,
    int | None: values.optional(values.large_count),
}
