"""Models that need the memory of a device which others have, or of which there is less than was thought."""

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from shimmy.catalog.catalog import Model
from shimmy.errors import OutOfDeviceMemory
from shimmy.gpus.devices import FoundDevices
from shimmy.messages.device import Device, DeviceKind
from shimmy.pool.device_choice import RETRY_S
from tests.fakes import model, on_loop, until
from tests.pool.harness import Client, Harness, Load, changed

if TYPE_CHECKING:
    from shimmy.workers.worker_client import WorkerClient

GB = 10**9
CARD = Device(0, "Card", DeviceKind.DISCRETE, "NVIDIA", "driver 1", "1.3.0", 100 * GB, None)
ALL = 40
TOO_LITTLE = OutOfDeviceMemory("unable to allocate Vulkan0 buffer")


def large(name: str = "one") -> Model:
    """Of 39 layers and the output, 10 GB."""
    return replace(model(name), n_layers=ALL - 1, size_bytes=10 * GB, n_params=10 * GB)


class Card:
    """A device with room for so many such models, and a pool that uses it."""

    def __init__(self, n_models: float, **flags: str) -> None:
        self.now_s = 0.0
        self.harness = Harness(None, lambda: self.now_s, self._find, **flags)
        self._total_bytes = int(n_models * 10.5 * GB)

    def _find(self) -> FoundDevices:
        return FoundDevices((replace(CARD, total_bytes=self._total_bytes),))

    def ask(self, name: str = "one", keep_alive_s: float | None = None) -> "asyncio.Task[WorkerClient]":
        return asyncio.create_task(self.harness.pool.ensure_ready(large(name), keep_alive_s))

    async def loading(self) -> Load:
        return await self.harness.loading()

    async def loaded(self, name: str = "one", keep_alive_s: float | None = None) -> Client:
        task = self.ask(name, keep_alive_s)
        client = succeed(await self.loading())
        assert await task is cast("object", client)
        return client

    def n_unloaded(self) -> float:
        return self.harness.metric('shimmy_unloads_total{reason="device_memory"}')

    def n_failures(self, outcome: str, name: str = "one") -> float:
        return self.harness.metric(f'shimmy_gpu_failures_total{{model="{name}",outcome="{outcome}"}}')


def succeed(load: Load) -> Client:
    """As a worker that has done what it was told."""
    offload = load.options.offload
    load.client.facts = replace(
        load.client.facts, device=", ".join(offload.devices), n_layers=ALL, n_device_layers=offload.n_layers
    )
    return load.succeed()


def n_layers(client: Client) -> int:
    return client.facts.n_device_layers


# -- who makes room --------------------------------------------------------------------------------------------------


@on_loop
async def test_two_models_that_fit_share_a_device() -> None:
    card = Card(2)
    one, two = await card.loaded("one"), await card.loaded("two")
    assert (n_layers(one), n_layers(two), one.is_alive) == (ALL, ALL, True)


@on_loop
async def test_the_least_recently_used_idle_model_makes_room_on_a_device() -> None:
    card = Card(2)
    old, young = await card.loaded("old"), await card.loaded("young")
    old.idle_since_s += 10  # it was used again
    third = await card.loaded("third")
    assert (old.is_alive, young.is_alive, n_layers(third)) == (True, False, ALL)
    assert card.n_unloaded() == 1


@on_loop
async def test_a_model_in_use_keeps_what_it_has_and_so_does_one_that_is_pinned() -> None:
    card = Card(2)
    busy, kept = await card.loaded("busy"), await card.loaded("kept", math.inf)
    busy.n_jobs = 1
    third = await card.loaded("third")
    assert (busy.is_alive, kept.is_alive, n_layers(third)) == (True, True, 0)
    assert card.n_unloaded() == 0


@on_loop
async def test_a_model_with_callers_that_wait_keeps_what_it_has() -> None:
    card = Card(1)
    one = card.ask("one")
    load = await card.loading()
    two = card.ask("two")
    other = await card.loading()
    assert other.options.offload.n_layers == 0, "the first one is still loading"
    succeed(load)
    succeed(other)
    assert (await one).is_alive
    assert (await two).is_alive


@on_loop
async def test_most_of_the_layers_are_enough_and_nobody_ends_for_the_rest() -> None:
    card = Card(1.8)
    one, two = await card.loaded("one"), await card.loaded("two")
    assert one.is_alive
    assert 3 / 4 * ALL <= n_layers(two) < ALL


@on_loop
async def test_too_few_layers_are_not_enough() -> None:
    card = Card(1.5)
    one, two = await card.loaded("one"), await card.loaded("two")
    assert (one.is_alive, n_layers(two)) == (False, ALL)


@on_loop
async def test_only_those_end_that_are_needed() -> None:
    card = Card(3.1)
    small = await card.loaded("small")
    large_ones = [await card.loaded("two"), await card.loaded("three")]
    for client in large_ones:
        client.idle_since_s += 10
    fourth = await card.loaded("fourth")
    assert [client.is_alive for client in (small, *large_ones)] == [False, True, True]
    assert n_layers(fourth) == ALL


@on_loop
async def test_a_number_of_layers_makes_others_end_too() -> None:
    card = Card(1.2, gpu_layers="all")
    one, two = await card.loaded("one"), await card.loaded("two")
    assert (one.is_alive, n_layers(two)) == (False, ALL)


@on_loop
async def test_what_a_worker_still_has_that_is_ending_is_waited_for() -> None:
    """It was unloaded, and the next model loaded at once, for the processor."""
    card = Card(1)
    one = await card.loaded("one")
    closing = asyncio.Event()
    close = one.close

    async def close_later() -> None:
        await closing.wait()
        await close()

    one.close = close_later  # type: ignore[method-assign]
    card.harness.pool.unload("one")
    task = card.ask("two")
    await asyncio.sleep(0.05)
    assert card.harness.start.loads.empty()
    closing.set()
    two = succeed(await card.loading())
    await task
    assert n_layers(two) == ALL


@on_loop
async def test_memory_that_is_freed_for_one_load_goes_to_no_other() -> None:
    card = Card(1)
    await card.loaded("old")
    first, second = card.ask("first"), card.ask("second")
    loads = [await card.loading(), await card.loading()]
    found = {load.client.name: load.options.offload.n_layers for load in loads}
    assert found == {"first": ALL, "second": 0}
    for load in loads:
        succeed(load)
    await asyncio.gather(first, second)


@on_loop
async def test_a_swap_without_room_for_two_on_the_device_drains_the_old_one_first() -> None:
    card = Card(1.2)
    old = await card.loaded()
    old.n_jobs = 1
    card.harness.pool.follow(changed(replace(large(), mtime_ns=2)))
    await until(lambda: card.harness.pool._workers.is_retiring(cast("WorkerClient", old)))
    asking = card.ask()
    await asyncio.sleep(0.05)
    assert card.harness.start.loads.empty(), "the device has no room yet"
    assert old.is_alive, "its job goes on"
    old.n_jobs = 0
    new = succeed(await card.loading())
    assert await asking is cast("object", new)
    assert (old.is_alive, n_layers(new)) == (False, ALL)


@on_loop
async def test_a_swap_that_waits_for_the_last_jobs_of_its_old_worker_lets_others_load() -> None:
    card = Card(1.2)
    old = await card.loaded()
    old.n_jobs = 1
    card.harness.pool.follow(changed(replace(large(), mtime_ns=2)))
    await until(lambda: card.harness.pool._workers.is_retiring(cast("WorkerClient", old)))
    other = await card.loaded("other")
    assert (old.is_alive, n_layers(other)) == (True, 0)
    old.n_jobs = 0
    succeed(await card.loading())


@on_loop
async def test_a_swap_with_room_for_two_on_the_device_lets_the_old_one_serve() -> None:
    card = Card(2)
    old = await card.loaded()
    card.harness.pool.follow(changed(replace(large(), mtime_ns=2)))
    load = await card.loading()
    assert await card.ask() is cast("object", old)
    succeed(load)
    await until(lambda: not old.is_alive)


# -- less memory than was thought ------------------------------------------------------------------------------------


@on_loop
async def test_a_load_without_memory_on_its_device_is_tried_with_fewer_layers() -> None:
    card = Card(2)
    task = card.ask()
    (await card.loading()).outcome.set_exception(TOO_LITTLE)
    (await card.loading()).outcome.set_exception(TOO_LITTLE)
    load = await card.loading()
    assert load.options.offload.layers == (ALL // 2,)
    assert load.options.offload.note == "Vulkan0 had no memory for 30 layers: unable to allocate Vulkan0 buffer"
    succeed(load)
    await task
    assert (card.n_failures("fewer_layers"), card.n_failures("processor")) == (2, 0)
    card.harness.pool.unload("one")
    await until(lambda: not card.harness.pool.ready())
    again = await card.loaded()
    assert n_layers(again) == ALL // 2, "what has failed is not tried again so soon"
    card.harness.pool.unload("one")
    await until(lambda: not card.harness.pool.ready())
    card.now_s += RETRY_S
    assert n_layers(await card.loaded()) == ALL


@pytest.mark.parametrize("flags", [{}, {"gpu_layers": "all"}, {"device": "Vulkan0"}])
@on_loop
async def test_the_processor_has_a_model_at_last_for_which_a_device_never_has_memory(flags: dict[str, str]) -> None:
    card = Card(2, **flags)
    task = card.ask()
    tried = []
    while (load := await card.loading()).options.offload.devices:
        tried.append(load.options.offload.n_layers)
        load.outcome.set_exception(TOO_LITTLE)
    assert tried == [40, 30, 20, 10]
    assert load.options.offload.note == "it failed on Vulkan0: unable to allocate Vulkan0 buffer"
    succeed(load)
    await task
    assert card.n_failures("processor") == 1


@on_loop
async def test_with_a_required_device_fewer_layers_are_tried_and_the_processor_is_not() -> None:
    card = Card(2, device_required="true")
    task = card.ask()
    for _ in range(4):
        (await card.loading()).outcome.set_exception(TOO_LITTLE)
    with pytest.raises(OutOfDeviceMemory):
        await task
    assert card.harness.start.n_loads == 4


@on_loop
async def test_idle_models_end_before_a_load_gets_fewer_layers() -> None:
    """The driver's word was wrong, or another program has taken its memory."""
    card = Card(2)
    idle = await card.loaded("idle")
    task = card.ask()
    (await card.loading()).outcome.set_exception(TOO_LITTLE)
    load = await card.loading()
    assert (idle.is_alive, load.options.offload.n_layers) == (False, ALL)
    succeed(load)
    await task


@on_loop
async def test_a_worker_that_ends_later_for_want_of_memory_has_fewer_layers_next_time() -> None:
    card = Card(2)
    for expected in (40, 30, 20, 10, 0):
        client = await card.loaded()
        assert n_layers(client) == expected
        client.lacked_device_memory = True
        client.end_reason = "signal 6"
        client.die()
    assert card.n_failures("fewer_layers") == 3
