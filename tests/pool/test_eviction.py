"""Models that need the memory of others: who is unloaded, and who waits."""

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from shimmy import config
from shimmy.errors import OutOfMemory
from shimmy.pool.launch_plan import LaunchPlanner
from shimmy.pool.memory_budget import MemoryBudget
from shimmy.pool.memory_estimate import SERVER_BYTES
from tests.fakes import model, on_loop
from tests.pool.harness import TINY, Client, Harness, changed, crowded, served, version

if TYPE_CHECKING:
    from shimmy.workers.worker_client import WorkerClient


@on_loop
async def test_the_least_recently_used_idle_model_makes_room() -> None:
    harness = crowded(2)
    old, young = await served(harness, "old", "young")
    old.idle_since_s += 10  # it was used again
    third = await harness.loaded("third")
    assert (old.is_alive, young.is_alive, third.is_alive) == (True, False, True)
    assert harness.metric('shimmy_unloads_total{reason="memory"}') == 1


@on_loop
async def test_a_busy_model_makes_room_when_its_jobs_have_ended_and_others_do_not() -> None:
    harness = crowded(2)
    busy, idle = await served(harness, "busy", "idle")
    busy.n_jobs = idle.n_jobs = 1
    idle.idle_since_s += 1
    asking = harness.ask("third")
    await asyncio.sleep(0.05)
    assert harness.start.loads.empty(), "there is no room yet"
    assert busy.is_alive
    assert idle.is_alive
    busy.n_jobs = 0
    (await harness.loading()).succeed()
    await asking
    assert (busy.is_alive, idle.is_alive) == (False, True)


@on_loop
async def test_a_model_asked_for_while_it_drains_gets_its_turn_again() -> None:
    harness = crowded(1)
    (first,) = await served(harness, "first")
    first.n_jobs = 1
    second_asking = harness.ask("second")
    await asyncio.sleep(0.01)
    first_asking = harness.ask("first")
    await asyncio.sleep(0.01)
    first.n_jobs = 0
    load = await harness.loading()
    assert load.client.name == "second"
    second = load.succeed()
    assert await second_asking is cast("WorkerClient", second)
    load = await harness.loading()
    assert load.client.name == "first"
    again = load.succeed()
    assert await first_asking is cast("WorkerClient", again)
    assert not second.is_alive


@on_loop
async def test_those_who_waited_for_a_model_get_their_jobs_in_before_it_is_evicted() -> None:
    harness = crowded(1)
    jobs: list[Client] = []

    async def work(name: str) -> None:
        worker = cast("Client", await harness.pool.ensure_ready(model(name)))
        assert worker.is_alive
        worker.n_jobs += 1
        jobs.append(worker)

    workers = [asyncio.create_task(work(name)) for name in ("a", "a", "b", "b", "a")]
    for _ in range(2):
        client = (await harness.loading()).succeed()
        await asyncio.sleep(0.02)
        assert client.n_jobs == (3 if client.name == "a" else 2)
        assert client.is_alive
        client.n_jobs = 0
    await asyncio.gather(*workers)
    assert len(jobs) == 5


@on_loop
async def test_a_model_that_changed_while_it_loaded_makes_room_for_who_is_before_it_in_the_line() -> None:
    """Its callers waited for the newer file, and the other model for them."""
    harness = crowded(1)
    first_asking = harness.ask()
    first = await harness.loading()
    second_asking = harness.ask("second")
    await asyncio.sleep(0.01)
    harness.pool.follow(changed(version(2)))
    old = first.succeed()
    assert await first_asking is cast("WorkerClient", old)
    second = (await harness.loading()).succeed()
    assert second.name == "second"
    assert await second_asking is cast("WorkerClient", second)


@on_loop
async def test_a_pinned_model_is_never_evicted_and_the_numbers_are_told() -> None:
    harness = crowded(1)
    asking = asyncio.create_task(harness.pool.ensure_ready(model("kept"), math.inf))
    kept = (await harness.loading()).succeed()
    await asking
    with pytest.raises(OutOfMemory, match=r"there is no memory for it: `other` takes .* of `--max-memory`"):
        await harness.pool.ensure_ready(model("other"))
    assert kept.is_alive
    failure = harness.pool.failure("other")
    assert failure is not None
    assert "no memory" in failure.reason


@on_loop
async def test_nothing_is_evicted_for_a_model_that_would_not_fit_anyway() -> None:
    harness = crowded(2)
    (client,) = await served(harness, "small")
    with pytest.raises(OutOfMemory):
        await harness.pool.ensure_ready(replace(model("huge"), size_bytes=10**12))
    assert client.is_alive


@on_loop
async def test_a_load_that_fails_for_memory_is_tried_once_more_without_idle_models() -> None:
    harness = Harness()
    idle, busy = await served(harness, "idle", "busy")
    busy.n_jobs = 1
    asking = harness.ask("third")
    (await harness.loading()).outcome.set_exception(OutOfMemory("no context of 8192 tokens"))
    load = await harness.loading()
    assert (idle.is_alive, busy.is_alive) == (False, True)
    load.outcome.set_exception(OutOfMemory("no context of 8192 tokens"))
    with pytest.raises(OutOfMemory, match=r"no context of 8192 tokens; `third` takes "):
        await asking
    assert harness.start.n_loads == 4


@on_loop
async def test_a_swap_without_room_for_two_ends_the_old_one_first() -> None:
    harness = crowded(1)
    old = await harness.loaded()
    old.n_jobs = 1
    harness.pool.follow(changed(version(2)))
    await asyncio.sleep(0.05)
    asking = harness.ask()
    await asyncio.sleep(0.05)
    assert harness.start.loads.empty()
    assert old.is_alive
    old.n_jobs = 0
    new = (await harness.loading()).succeed()
    assert await asking is cast("WorkerClient", new)
    assert not old.is_alive


@pytest.mark.parametrize(
    ("n_ctx_train", "n_ctx", "n_booked"), [(512, 512, 512), (20_000, 20_000, 8192), (0, 8192, 8192)]
)
@on_loop
async def test_the_context_is_the_training_length_and_memory_is_set_aside_for_the_beginning_of_it(
    n_ctx_train: int, n_ctx: int, n_booked: int
) -> None:
    harness = Harness()
    trained = replace(TINY, n_ctx_train=n_ctx_train)
    asking = asyncio.create_task(harness.pool.ensure_ready(trained))
    load = await harness.loading()
    assert (load.options.n_ctx, load.options.n_booked) == (n_ctx, n_booked)
    assert harness.pool.estimate(trained).kv == TINY.n_kv * n_booked * 2
    load.succeed()
    await asking


@on_loop
async def test_the_default_context_shrinks_to_what_fits_and_one_asked_for_does_not() -> None:
    wide = replace(TINY, n_ctx_train=8192, n_kv=10_000)
    for flags, n_ctx in (({}, 2048), ({"ctx_size": "2048"}, 2048)):
        launch = LaunchPlanner(config.load(flags, {}))
        least = launch.estimate(wide, launch.options(wide, 2048))
        harness = Harness(MemoryBudget(SERVER_BYTES + least.total, lambda: None), **flags)
        asking = asyncio.create_task(harness.pool.ensure_ready(wide))
        load = await harness.loading()
        assert load.options.n_ctx == n_ctx
        load.succeed()
        await asking
    harness = Harness(MemoryBudget(SERVER_BYTES + least.total, lambda: None), ctx_size="8192")
    with pytest.raises(OutOfMemory):
        await harness.pool.ensure_ready(wide)
