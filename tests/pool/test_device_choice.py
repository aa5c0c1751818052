"""Which devices a load is given, what is reserved there, and what follows when a model fails on them."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from shimmy import config
from shimmy.errors import ModelUnavailable
from shimmy.gpus import device_trials, devices
from shimmy.gpus.devices import FoundDevices
from shimmy.messages.device import Device, DeviceBackend, DeviceKind
from shimmy.messages.device_verdict import FAULT_KEPT_S, TABLE, DeviceVerdict
from shimmy.pool.device_choice import RETRY_S, DeviceChoice
from shimmy.pool.launch_plan import LaunchPlanner
from shimmy.pool.memory_budget import MemoryBudget
from shimmy.system import backends
from shimmy.system.remembered import Remembered
from shimmy.wire.records import to_wire
from shimmy.wire.worker_options import Offload, WorkerOptions
from tests.fakes import on_loop, until
from tests.pool.harness import TINY, Client, Harness, Load, changed, version

GB = 10**9
CARD = Device(0, "Card", DeviceKind.DISCRETE, "NVIDIA", "driver 1", "1.3.0", 24 * GB, None)
ALL = 3  # layers of TINY, with its output


class Machine:
    """A clock, and devices that can be changed."""

    def __init__(self, *devices: Device) -> None:
        self.now_s = 0.0
        self.found = FoundDevices(devices)
        self.n_looks = 0

    def find(self) -> FoundDevices:
        self.n_looks += 1
        return self.found

    def harness(self, **flags: str) -> Harness:
        return Harness(None, lambda: self.now_s, self.find, **flags)


def succeed(load: Load) -> Client:
    """As a worker that has done what it was told."""
    offload = load.options.offload
    load.client.facts = replace(
        load.client.facts,
        device=", ".join(offload.devices),
        device_note=offload.note,
        n_layers=ALL,
        n_device_layers=offload.n_layers,
    )
    return load.succeed()


@on_loop
async def test_a_model_goes_to_the_card_and_not_to_main_memory() -> None:
    harness = Machine(CARD).harness()
    before = harness.pool.estimate(TINY)
    task = harness.ask()
    load = await harness.loading()
    assert load.options.offload.devices == ("Vulkan0",)
    assert load.options.offload.n_layers == ALL
    assert not load.options.may_tune
    client = succeed(load)
    assert await task is cast("object", client)
    estimate = harness.pool.estimate(TINY)
    assert estimate.kv == 0 < before.kv
    assert estimate.weights <= before.weights
    assert [name for name, _ in estimate.on_devices] == ["Vulkan0"]
    harness.pool.update_gauges()
    line = f'shimmy_model_gpu_layers{{model="{TINY.name}",device="Vulkan0"}}'
    assert harness.metric(line) == ALL
    client.die()
    assert harness.metric(line) == 0


@on_loop
async def test_what_models_have_on_a_device_is_not_given_twice() -> None:
    machine = Machine(CARD)
    harness = machine.harness()
    one = harness.ask("one")
    load = await harness.loading()
    (needed,) = load.options.offload.n_bytes
    load.fail("enough is known")
    (await harness.loading()).fail("and no more is wanted")
    with pytest.raises(ModelUnavailable):
        await one
    machine.found = FoundDevices((replace(CARD, total_bytes=needed + 10),))
    harness = machine.harness()
    one = harness.ask("one")
    load = await harness.loading()
    two = harness.ask("two")
    other = await harness.loading()
    assert load.options.offload.n_layers == ALL
    assert other.options.offload.n_layers == 0
    assert "0 of 3 layers fit" in other.options.offload.note
    client = succeed(load)
    succeed(other)
    await asyncio.gather(one, two)
    client.die()
    three = harness.ask("three")
    load = await harness.loading()
    assert load.options.offload.n_layers == ALL
    succeed(load)
    await three


@on_loop
async def test_a_load_that_ends_before_it_has_memory_keeps_nothing_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ModelUnavailable("no options")

    machine = Machine(CARD)
    harness = machine.harness()
    monkeypatch.setattr(LaunchPlanner, "fitting", fail)
    with pytest.raises(ModelUnavailable, match="no options"):
        await harness.ask("one")
    assert harness.pool._device_choice._pending == {}


@on_loop
async def test_a_model_with_adapters_goes_to_the_card_as_others_do() -> None:
    for model, flags in ((TINY, {}), (TINY, {"embeddings": "true"}), (replace(TINY, n_state=9), {})):
        harness = Machine(CARD).harness(lora="/adapter.gguf", **flags)
        task = asyncio.create_task(harness.pool.ensure_ready(model))
        load = await harness.loading()
        assert load.options.offload.devices == ("Vulkan0",)
        succeed(load)
        await task


@on_loop
async def test_what_others_use_is_left_to_them() -> None:
    harness = Machine(replace(CARD, free_bytes=0)).harness()
    harness.ask()
    load = await harness.loading()
    assert load.options.offload.devices == ()
    assert "Vulkan0 has 0 MB free" in load.options.offload.note
    succeed(load)


@on_loop
async def test_without_a_device_nothing_is_told_and_without_a_wish_nothing_looked_for() -> None:
    machine = Machine()
    for flags in ({}, {"device": "none"}, {"gpu_layers": "0"}):
        harness = machine.harness(**flags)
        task = harness.ask()
        load = await harness.loading()
        assert load.options.offload == Offload()
        succeed(load)
        await task
    assert machine.n_looks == 1


@on_loop
async def test_a_model_that_fails_on_its_device_is_loaded_for_the_processor_and_later_tried_again() -> None:
    machine = Machine(CARD)
    harness = machine.harness(keep_alive="0")
    task = harness.ask()
    (await harness.loading()).fail("the driver crashed")
    load = await harness.loading()
    assert load.options.offload == Offload(note="it failed on Vulkan0: the driver crashed")
    succeed(load)
    await task
    harness.pool.unload(TINY.name)
    await until(lambda: not harness.pool.ready())
    task = harness.ask()
    load = await harness.loading()
    assert load.options.offload.devices == ()
    succeed(load)
    await task
    harness.pool.unload(TINY.name)
    await until(lambda: not harness.pool.ready())
    machine.now_s += RETRY_S
    harness.ask()
    assert (await harness.loading()).options.offload.devices == ("Vulkan0",)


@on_loop
async def test_a_model_that_fails_everywhere_is_at_fault_itself() -> None:
    harness = Machine(CARD).harness()
    task = harness.ask()
    (await harness.loading()).fail("it is damaged")
    (await harness.loading()).fail("it is damaged, too")
    with pytest.raises(ModelUnavailable, match="damaged, too"):
        await task
    harness.ask()
    assert (await harness.loading()).options.offload.devices == ("Vulkan0",)


@on_loop
async def test_a_worker_that_dies_later_on_its_device_leaves_the_model_to_the_processor() -> None:
    harness = Machine(CARD).harness()
    task = harness.ask()
    client = succeed(await harness.loading())
    await task
    client.end_reason = "signal 6"
    client.die()
    task = harness.ask()
    load = await harness.loading()
    assert load.options.offload == Offload(note="it failed on Vulkan0: signal 6")
    client = succeed(load)
    await task
    harness.pool.forgive(TINY.name)
    harness.pool.unload(TINY.name)
    await until(lambda: not harness.pool.ready())
    harness.ask()
    assert (await harness.loading()).options.offload.devices == ("Vulkan0",), "a person wants it tried"


@on_loop
async def test_a_changed_file_is_tried_on_the_device_again() -> None:
    harness = Machine(CARD).harness()
    task = harness.ask()
    (await harness.loading()).fail("the driver crashed")
    old = succeed(await harness.loading())
    await task
    harness.pool.follow(changed(version(2)))
    load = await harness.loading()
    assert load.options.offload.devices == ("Vulkan0",)
    succeed(load)
    await until(lambda: not old.is_alive)


@pytest.mark.parametrize(("required", "answer"), [("true", False), ("false", True)])
def test_a_required_device_is_asked_for_although_a_fault_is_kept(
    required: str, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def find_devices(_folder: object, *, is_enough: Callable[[FoundDevices], bool]) -> FoundDevices:
        told.append(is_enough(FoundDevices(reason="a Vulkan driver crashed")))
        return FoundDevices()

    monkeypatch.setattr(devices, "find_devices", find_devices)
    monkeypatch.setattr(backends, "has_one_for_gpus", lambda: True)
    DeviceChoice(config.load({"device_required": required}, {}), MemoryBudget(None))._look()
    assert told == [answer]


@on_loop
async def test_a_required_device_is_never_replaced_by_the_processor() -> None:
    machine = Machine(CARD)
    harness = machine.harness(device_required="true")
    task = harness.ask()
    (await harness.loading()).fail("the driver crashed")
    with pytest.raises(ModelUnavailable, match="the driver crashed"):
        await task
    machine.found = FoundDevices(reason="there is no Vulkan loader")
    with pytest.raises(ModelUnavailable, match=r"needs a device .*there is no Vulkan loader"):
        await machine.harness(device_required="true").ask()
    assert harness.start.n_loads == 1


# -- devices that may be slower than the processor -------------------------------------------------------------------

IRIS = Device(0, "Iris", DeviceKind.INTEGRATED, "Intel", "driver 1", "1.3.0", 24 * GB, None)
OF_TINY = (TINY.architecture, TINY.quantization, TINY.n_params)


def remember(folder: Path, verdict: DeviceVerdict) -> None:
    Remembered(folder, TABLE).put(device_trials.key(IRIS, *OF_TINY), to_wire(verdict))


async def loaded(machine: Machine, **flags: str) -> WorkerOptions:
    harness = machine.harness(**flags)
    task = harness.ask()
    load = await harness.loading()
    succeed(load)
    await task
    return load.options


@pytest.mark.parametrize("kind", [DeviceKind.INTEGRATED, DeviceKind.VIRTUAL])
@on_loop
async def test_a_device_that_may_be_slower_is_left_to_a_trial(kind: DeviceKind, tmp_path: Path) -> None:
    device = replace(IRIS, kind=kind)
    options = await loaded(Machine(device), cache_dir=str(tmp_path))
    assert options.offload.devices == ()
    assert "or where a trial finds that faster" in options.offload.note
    assert (options.rival.devices, options.rival.n_layers, options.may_tune) == (("Vulkan0",), ALL, True)
    assert options.rival_key == device_trials.key(device, *OF_TINY)


@on_loop
async def test_a_device_that_was_found_faster_is_used_and_its_memory_is_the_systems(tmp_path: Path) -> None:
    remember(tmp_path, DeviceVerdict(device_s=1.0, processor_s=2.0))
    options = await loaded(Machine(IRIS), cache_dir=str(tmp_path))
    assert (options.offload.devices, options.offload.n_layers, options.rival.devices) == (("Vulkan0",), ALL, ())
    assert options.offload.n_system_bytes == sum(options.offload.n_bytes) > 0
    planner = LaunchPlanner(config.load({"cache_dir": str(tmp_path)}, {}))
    before = planner.estimate(TINY, planner.options(TINY)).total
    assert planner.estimate(TINY, options).total > before


@pytest.mark.parametrize(
    ("verdict", "note"),
    [
        (DeviceVerdict(2.0, 1.0), "in a trial it took 2 s for what the processor does in 1 s"),
        (DeviceVerdict(1.0, 1.04), "in a trial it took 1 s for what the processor does in 1.04 s"),
        (DeviceVerdict(0.0, 0.0, "signal 6", time.time()), "a trial of it failed: signal 6"),
    ],
)
@on_loop
async def test_a_device_that_was_not_found_faster_is_not_used_nor_tried_again(
    verdict: DeviceVerdict, note: str, tmp_path: Path
) -> None:
    remember(tmp_path, verdict)
    options = await loaded(Machine(IRIS), cache_dir=str(tmp_path))
    assert (options.offload.devices, options.rival.devices) == ((), ())
    assert note in options.offload.note


@on_loop
async def test_a_device_whose_trial_failed_a_while_ago_is_tried_again(tmp_path: Path) -> None:
    remember(tmp_path, DeviceVerdict(0.0, 0.0, "signal 6", time.time() - FAULT_KEPT_S))
    options = await loaded(Machine(IRIS), cache_dir=str(tmp_path))
    assert (options.offload.devices, options.rival.devices) == ((), ("Vulkan0",))


@on_loop
async def test_nothing_is_tried_nor_promised_where_no_trial_will_run(tmp_path: Path) -> None:
    options = await loaded(Machine(IRIS), cache_dir=str(tmp_path), max_memory="8G")
    assert (options.offload.devices, options.rival.devices, options.rival_key) == ((), (), "")
    assert "no trial finds out whether that is faster: `--max-memory`" in options.offload.note


@on_loop
async def test_a_gpu_that_is_named_as_vulkans_is_used_by_cuda_where_that_has_it() -> None:
    cuda = replace(CARD, backend=DeviceBackend.CUDA, gpu="1")
    vulkan = replace(CARD, gpu="1", unusable="it is used as CUDA0")
    options = await loaded(Machine(cuda, vulkan), device="Vulkan0")
    assert (options.offload.devices, options.offload.note) == (("CUDA0",), "Vulkan0 is used as CUDA0")
    both = await loaded(Machine(cuda, vulkan), device="Vulkan0,CUDA0", tensor_split="1,1")
    assert both.offload == options.offload  # one GPU has both shares


@on_loop
async def test_no_trial_is_needed_where_a_person_or_a_better_device_decides(tmp_path: Path) -> None:
    folder = str(tmp_path)
    named = await loaded(Machine(IRIS), cache_dir=folder, device="Vulkan0")
    required = await loaded(Machine(IRIS), cache_dir=folder, device_required="true")
    better = await loaded(Machine(IRIS, replace(CARD, index=1)), cache_dir=folder)
    found = [(options.offload.devices, options.rival.devices) for options in (named, required, better)]
    assert found == [(("Vulkan0",), ()), (("Vulkan0",), ()), (("Vulkan1",), ())]


@on_loop
async def test_a_device_has_no_more_of_the_systems_memory_than_is_left() -> None:
    machine = Machine(IRIS)
    budget = MemoryBudget(None, lambda: 10**6)
    choice = DeviceChoice(config.load({"device": "Vulkan0"}, {}), budget, find=machine.find)
    planner = LaunchPlanner(config.load({}, {}))
    decision = await choice.choose(TINY, planner.whole(TINY), has_adapters=False)
    assert decision.offload.devices == ()
    assert "Vulkan0 has 1 MB free" in decision.offload.note
