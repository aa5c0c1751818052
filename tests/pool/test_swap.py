"""A file that changes while its model is served: which worker answers, and what is left when a load ends."""

import asyncio
import math
from typing import TYPE_CHECKING, cast

import pytest

from shimmy.catalog.catalog import BROKEN, CatalogDiff, Rejected
from shimmy.errors import ModelUnloaded
from shimmy.pool.model_runtime import State
from shimmy.wire.worker_options import CpuShare
from tests.fakes import model, on_loop, until
from tests.pool.harness import TINY, Harness, changed, removed, state, version

if TYPE_CHECKING:
    from shimmy.workers.worker_client import WorkerClient


@on_loop
async def test_a_changed_file_is_served_by_a_second_worker_as_soon_as_that_is_ready() -> None:
    harness = Harness()
    old = await harness.loaded()
    old.n_jobs = 1
    harness.pool.follow(changed(version(2)))
    load = await harness.loading()
    assert state(harness) is State.SWAPPING
    assert await harness.pool.ensure_ready(version(2)) is cast("WorkerClient", old), "the old one answers meanwhile"
    new = load.succeed()
    await until(lambda: state(harness) is State.READY)
    assert await harness.pool.ensure_ready(version(2)) is cast("WorkerClient", new)
    assert old.is_alive, "it has a job"
    assert harness.pool.n_jobs == 1
    old.n_jobs = 0
    await until(lambda: not old.is_alive)
    assert harness.pool.ready() == (cast("WorkerClient", new),)
    assert harness.metric(f'shimmy_swaps_total{{model="{TINY.name}",outcome="done"}}') == 1
    assert harness.metric("shimmy_models_loaded") == 1
    assert harness.metric(f'shimmy_worker_deaths_total{{model="{TINY.name}"}}') == 0


@on_loop
async def test_a_new_file_that_fails_leaves_the_old_one_serving_and_says_why() -> None:
    harness = Harness()
    old = await harness.loaded()
    harness.pool.follow(changed(version(2)))
    (await harness.loading()).fail("it is broken")
    await until(lambda: state(harness) is State.READY)
    assert await harness.pool.ensure_ready(version(2)) is cast("WorkerClient", old)
    failure = harness.pool.failure(TINY.name)
    assert failure is not None
    assert (failure.model, failure.reason) == (version(2), "it is broken")
    assert harness.start.n_loads == 2, "the same file is not tried again"
    harness.pool.follow(changed(version(3)))
    assert harness.pool.failure(TINY.name) is None
    (await harness.loading()).succeed()
    await until(lambda: not old.is_alive)


@on_loop
async def test_rapid_changes_end_in_the_last() -> None:
    harness = Harness()
    await harness.loaded()
    harness.pool.follow(changed(version(2)))
    second = await harness.loading()
    for number in range(3, 11):
        harness.pool.follow(changed(version(number)))
    passed_over = second.succeed()
    last = (await harness.loading()).succeed()
    await until(lambda: state(harness) is State.READY)
    assert await harness.pool.ensure_ready(version(10)) is cast("WorkerClient", last)
    await until(lambda: not passed_over.is_alive)
    assert harness.start.n_loads == 3


@on_loop
async def test_a_change_during_the_first_load_is_followed() -> None:
    harness = Harness()
    task = harness.ask()
    first = await harness.loading()
    harness.pool.follow(changed(version(2)))
    old = first.succeed()
    assert await task is cast("WorkerClient", old), "which answers as long as the new one is loading"
    new = (await harness.loading()).succeed()
    await until(lambda: state(harness) is State.READY)
    assert await harness.pool.ensure_ready(version(2)) is cast("WorkerClient", new)


@on_loop
async def test_an_old_worker_that_dies_during_the_swap_makes_its_callers_wait_for_the_new_one() -> None:
    harness = Harness()
    old = await harness.loaded()
    harness.pool.follow(changed(version(2)))
    load = await harness.loading()
    old.die()
    task = asyncio.create_task(harness.pool.ensure_ready(version(2)))
    await asyncio.sleep(0)
    new = load.succeed()
    assert await task is cast("WorkerClient", new)


@on_loop
async def test_a_model_whose_file_is_gone_finishes_its_jobs() -> None:
    harness = Harness()
    client = await harness.loaded()
    client.n_jobs = 1
    harness.pool.follow(removed(TINY))
    await asyncio.sleep(0.1)
    assert client.is_alive
    assert state(harness) is None
    client.n_jobs = 0
    await until(lambda: not client.is_alive)


@on_loop
async def test_unloading_during_a_load_tells_its_waiters_so() -> None:
    harness = Harness()
    task = harness.ask()
    await harness.loading()
    assert harness.pool.unload(TINY.name)
    with pytest.raises(ModelUnloaded, match="unloaded"):
        await task
    assert not harness.pool.unload(TINY.name)


@on_loop
async def test_a_model_is_unloaded_when_it_had_nothing_to_do_for_long_enough() -> None:
    harness = Harness(keep_alive="0.2")
    busy, idle = await harness.loaded("busy"), await harness.loaded("idle")
    kept = asyncio.create_task(harness.pool.ensure_ready(model("kept"), keep_alive_s=math.inf))
    (await harness.loading()).succeed()
    busy.n_jobs = 1
    chore = asyncio.create_task(harness.pool.unload_idle())
    await until(lambda: not idle.is_alive)
    assert busy.is_alive
    assert (await kept).is_alive
    assert harness.metric('shimmy_unloads_total{reason="idle"}') == 1
    chore.cancel()


@on_loop
async def test_close_ends_old_and_new_workers() -> None:
    harness = Harness()
    old = await harness.loaded()
    old.n_jobs = 1
    harness.pool.follow(changed(version(2)))
    new = (await harness.loading()).succeed()
    await until(lambda: state(harness) is State.READY)
    harness.pool.follow(changed(version(3)))
    await harness.loading()
    await harness.pool.close()
    assert not old.is_alive
    assert not new.is_alive


@on_loop
async def test_busy_workers_share_the_processor() -> None:
    harness = Harness()
    clients = [await harness.loaded(name) for name in ("one", "two", "three")]
    for n_busy, client in enumerate(clients, 1):
        client.n_jobs = 1
        harness.start.on_busy()
        assert [other.last_share for other in clients[:n_busy]] == [CpuShare(n_busy)] * n_busy
    clients[0].n_jobs = 0
    harness.start.on_busy()
    assert [other.last_share for other in clients[1:]] == [CpuShare(2)] * 2


@on_loop
async def test_a_load_takes_a_core_from_those_that_decode_and_begins_with_its_part() -> None:
    harness = Harness()
    busy = await harness.loaded("busy")
    busy.n_jobs = 1
    busy.has_shared.clear()
    asking = harness.ask("other")
    await asyncio.sleep(0.05)
    assert harness.start.loads.empty(), "the core is still in use"
    assert busy.last_share == CpuShare(1, 1)
    busy.has_shared.set()
    load = await harness.loading()
    assert load.options.share == CpuShare(2)
    load.succeed()
    await asking
    assert busy.last_share == CpuShare(1)


@on_loop
async def test_a_new_file_that_cannot_be_served_is_a_failed_swap(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness()
    broken = CatalogDiff((), (), (), (Rejected(TINY.name, TINY.path, BROKEN, "it is cut off", ()),))
    failed = f'shimmy_swaps_total{{model="{TINY.name}",outcome="failed"}}'
    harness.pool.follow(broken)
    assert harness.metric(failed) == 0, "nothing is loaded that could be swapped"
    client = await harness.loaded()
    harness.pool.follow(broken)
    assert harness.metric(failed) == 1
    assert f"`{TINY.name}` has a new file, the old one stays: it is cut off" in caplog.text
    assert client.is_alive
    assert await harness.ask() is cast("WorkerClient", client)
