"""The pool with a start function of the test's own: who waits for which load, and what is left when one ends."""

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import cast

import pytest

from shimmy import config
from shimmy.catalog.catalog import BROKEN, CatalogDiff, Model, Rejected
from shimmy.errors import Internal, ModelUnavailable, ModelUnloaded, OutOfMemory, Overloaded, ShuttingDown
from shimmy.messages.model_info import PromptCacheStats
from shimmy.metrics import Metrics
from shimmy.model_events import ModelEvents
from shimmy.pool.launch_plan import LaunchPlanner
from shimmy.pool.memory_budget import MemoryBudget
from shimmy.pool.memory_estimate import SERVER_BYTES
from shimmy.pool.model_runtime import ModelRuntime, State
from shimmy.pool.pool import Pool
from shimmy.wire.worker_options import CpuShare, WorkerOptions
from shimmy.workers.worker_client import Hooks, WorkerClient
from tests.fakes import FakeWorker, model, on_loop, until

TINY = model()


class Client:
    """What the pool needs of a WorkerClient; `die` is what the real one does at the end of its process."""

    facts = FakeWorker.facts

    def __init__(self, name: str, on_death: Callable[[WorkerClient], None]) -> None:
        self.name = name
        self.n_running, self.n_waiting, self.n_jobs = 0, 0, 0
        self.is_alive = True
        self.is_closing = False
        self.end_reason = "signal 9"
        self.n_finished = 0
        self.pid = -1
        self.idle_since_s = monotonic()
        self.last_share = CpuShare()
        self.has_shared = asyncio.Event()
        self.has_shared.set()
        self._on_death = on_death

    @property
    def n_asked(self) -> int:
        return self.n_jobs

    def share(self, share: CpuShare) -> None:
        self.last_share = share

    async def until_shared(self) -> None:
        await self.has_shared.wait()

    def die(self) -> None:
        self.is_alive = False
        self._on_death(cast("WorkerClient", self))

    @property
    def is_idle(self) -> bool:
        return not self.n_jobs

    async def until_idle(self) -> None:
        while self.n_jobs:  # noqa: ASYNC110 - a test sets it
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        self.is_closing = True
        if self.is_alive:
            self.die()


class Start:
    """Stands in for `start_worker`: each load waits until the test settles it."""

    def __init__(self) -> None:
        self.loads: asyncio.Queue[Load] = asyncio.Queue()
        self.n_loads = 0

    async def __call__(
        self,
        name: str,
        options: WorkerOptions,
        hooks: Hooks,
    ) -> WorkerClient:
        self.n_loads += 1
        self.on_busy = hooks.on_busy
        load = Load(name, options, hooks)
        self.loads.put_nowait(load)
        return await load.outcome


class Load:
    """One load under way."""

    def __init__(self, name: str, options: WorkerOptions, hooks: Hooks) -> None:
        self.options = options
        self.on_progress = hooks.on_progress
        self.on_prompts = hooks.on_prompts
        self.client = Client(name, hooks.on_death)
        self.outcome: asyncio.Future[WorkerClient] = asyncio.get_running_loop().create_future()

    def succeed(self) -> Client:
        self.outcome.set_result(cast("WorkerClient", self.client))
        return self.client

    def fail(self, reason: str) -> None:
        self.outcome.set_exception(ModelUnavailable(reason))


class House:
    """A pool, its metrics, and the hand on its loads."""

    def __init__(
        self, room: MemoryBudget | None = None, clock: Callable[[], float] = monotonic, /, **flags: str | list[str]
    ) -> None:
        self.metrics = Metrics()
        self.start = Start()
        self.events = ModelEvents()
        self.pool = Pool(config.load(flags, {}), self.metrics, self.events, self.start, room, clock)

    def ask(self, name: str = TINY.name) -> "asyncio.Task[WorkerClient]":
        return asyncio.create_task(self.pool.ensure_ready(model(name)))

    async def loading(self) -> Load:
        return await self.start.loads.get()

    async def loaded(self, name: str = TINY.name) -> Client:
        """A client that has gone the whole way."""
        task = self.ask(name)
        client = (await self.loading()).succeed()
        assert await task is cast("WorkerClient", client)
        return client

    def metric(self, line: str) -> float:
        """The value of a line of `/metrics`; 0 while it is not there."""
        samples = (text.rsplit(" ", 1) for text in self.metrics.render().splitlines())
        return next((float(value) for name, value in samples if name == line), 0)


@on_loop
async def test_many_callers_cause_one_load_and_get_the_same_worker() -> None:
    house = House()
    callers = [house.ask() for _ in range(10)]
    client = (await house.loading()).succeed()
    assert {id(worker) for worker in await asyncio.gather(*callers)} == {id(client)}
    assert id(await house.pool.ensure_ready(TINY)) == id(client)
    assert house.start.n_loads == 1


@on_loop
async def test_every_model_has_its_own_worker() -> None:
    house = House()
    clients = [await house.loaded(name) for name in ("a", "b")]
    assert [client.name for client in clients] == ["a", "b"]
    assert {worker.name for worker in house.pool.ready()} == {"a", "b"}


@on_loop
async def test_a_worker_is_told_what_the_person_configured() -> None:
    house = House(
        ctx_size="99", parallel="3", batch_size="64", threads="2", cpu_variant="sse42", chat_template="{{ 1 }}",
        lora=["a.gguf=0.5", "b.gguf"], cache_dir="/cache", safetensors_type="q8_0", weights="mapped",
        prompt_cache="1M", worker_timeout="9", load_timeout="1m",
    )  # fmt: skip
    with_sibling = replace(TINY, adapters=(Path("beside.gguf"),))
    caller = asyncio.create_task(house.pool.ensure_ready(with_sibling))
    load = await house.loading()
    assert load.options == WorkerOptions(
        "tiny.gguf", 99, 3, 64, 2, "sse42", "{{ 1 }}", (("a.gguf", 0.5), ("b.gguf", 1.0)), ("beside.gguf",),
        cache_dir="/cache", prompt_cache_bytes=10**6, safetensors_type="q8_0", weights="mapped", may_tune=True,
        worker_timeout_s=9.0, load_timeout_s=60.0,
    )  # fmt: skip
    load.succeed()
    await caller


@on_loop
async def test_a_worker_takes_no_memory_for_trials_where_that_is_limited() -> None:
    for house, may_tune in ((House(), True), (House(max_memory="64G"), False)):
        caller = house.ask()
        load = await house.loading()
        assert (load.options.weights, load.options.may_tune) == ("auto", may_tune)
        load.succeed()
        await caller


@on_loop
async def test_a_failed_load_wakes_every_waiter_with_the_reason_and_the_next_call_tries_again() -> None:
    house = House()
    callers = [house.ask() for _ in range(5)]
    (await house.loading()).fail("it is no model")
    for result in await asyncio.gather(*callers, return_exceptions=True):
        assert isinstance(result, ModelUnavailable)
        assert result.message == "it is no model"
    assert house.pool.ready() == ()
    await house.loaded()
    assert house.start.n_loads == 2


@on_loop
async def test_a_load_that_breaks_in_another_way_leaves_nothing_behind() -> None:
    house = House()
    caller = house.ask()
    (await house.loading()).outcome.set_exception(OSError("no more processes"))
    with pytest.raises(OSError, match="no more processes"):
        await caller
    await house.loaded()


@on_loop
async def test_a_load_that_breaks_where_nothing_expects_it_wakes_its_waiters(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    caller = house.ask()
    load = await house.loading()
    wake, errors = ModelRuntime.wake, [KeyError("a bug")]

    def broken_once(slot: ModelRuntime, error: Exception) -> None:
        if errors:
            raise errors.pop()
        wake(slot, error)

    monkeypatch.setattr(ModelRuntime, "wake", broken_once)
    load.fail("no")
    with pytest.raises(Internal, match="could not be loaded: KeyError"):
        await caller
    await house.loaded()


# -- models that fail again and again ---------------------------------------------------------------------------------


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@on_loop
async def test_after_three_deaths_in_a_row_a_model_is_not_loaded_any_more() -> None:
    clock = Clock()
    house = House(None, clock)
    for _ in range(3):
        (await house.loaded()).die()
        clock.now_s += 60
    with pytest.raises(ModelUnavailable, match=r"3 times in a row, the last time: signal 9.*/models/tiny.q4-1/load"):
        await house.ask()
    assert house.start.n_loads == 3
    assert house.pool.slot(TINY.name) is None
    failure = house.pool.failure(TINY.name)
    assert failure is not None
    assert "signal 9" in failure.reason
    house.pool.update_gauges()
    assert "shimmy_models_quarantined 1" in house.metrics.render()
    await house.loaded("other")
    house.pool.forgive(TINY.name)
    await house.loaded()
    house.pool.update_gauges()
    assert "shimmy_models_quarantined 0" in house.metrics.render()


@on_loop
async def test_a_new_file_ends_the_quarantine() -> None:
    clock = Clock()
    house = House(None, clock)
    for _ in range(3):
        (await house.loaded()).die()
        clock.now_s += 60
    newer = replace(TINY, mtime_ns=TINY.mtime_ns + 1)
    house.pool.follow(CatalogDiff(added=(), changed=(newer,), removed=()))
    caller = asyncio.create_task(house.pool.ensure_ready(newer))
    (await house.loading()).succeed()
    await caller


@on_loop
async def test_a_death_after_finished_jobs_is_the_first_again() -> None:
    clock = Clock()
    house = House(None, clock)
    for _ in range(10):
        client = await house.loaded()
        client.n_finished = 1
        client.die()
    await house.loaded()


@on_loop
async def test_deaths_in_the_middle_of_loads_count_and_the_next_load_hears_of_them() -> None:
    clock = Clock()
    house = House(None, clock)
    listener = house.events.listen()
    for _ in range(3):
        caller = house.ask()
        error = ModelUnavailable("the worker ended while it loaded `tiny` (signal 6)")
        error.is_death = True
        (await house.loading()).outcome.set_exception(error)
        with pytest.raises(ModelUnavailable, match="signal 6"):
            await caller
        clock.now_s += 60
    with pytest.raises(ModelUnavailable, match="not loaded any more"):
        await house.ask()
    house.events.leave(listener)
    listener.end()
    told = [event.details.get("after", "") async for event in listener if event.kind == "loading"]
    assert told == ["", error.message, error.message]


@on_loop
async def test_loads_that_are_refused_are_tried_again_after_ever_longer_times() -> None:
    clock = Clock()
    house = House(None, clock)
    for n_before, wait_s in enumerate((0, 1, 2, 4, 8, 16, 32, 60, 60)):
        if wait_s:
            clock.now_s += wait_s - 0.5
            with pytest.raises(ModelUnavailable, match=r"it is no model \(`tiny.q4-1` is tried again in"):
                await house.ask()
            clock.now_s += 0.6
        caller = house.ask()
        (await house.loading()).fail("it is no model")
        with pytest.raises(ModelUnavailable, match=r"^it is no model$"):
            await caller
        assert house.start.n_loads == n_before + 1
        if not n_before:  # the second time it is tried at once
            caller = house.ask()
            (await house.loading()).fail("it is no model")
            with pytest.raises(ModelUnavailable):
                await caller
            house.start.n_loads -= 1
    clock.now_s += 61
    await house.loaded()
    house.pool.unload(TINY.name)
    caller = house.ask()
    (await house.loading()).fail("it is no model again")
    with pytest.raises(ModelUnavailable, match=r"^it is no model again$"):
        await caller
    await house.loaded()


@on_loop
async def test_a_waiter_that_leaves_does_not_end_the_load_for_the_others() -> None:
    house = House()
    leaving, staying = house.ask(), house.ask()
    load = await house.loading()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    client = load.succeed()
    assert id(await staying) == id(client)


@on_loop
async def test_a_load_that_everybody_left_is_there_for_the_next_one() -> None:
    house = House()
    caller = house.ask()
    load = await house.loading()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    client = load.succeed()
    assert id(await house.pool.ensure_ready(TINY)) == id(client)
    assert house.start.n_loads == 1


@on_loop
async def test_a_failed_load_that_everybody_left_makes_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    caller = house.ask()
    load = await house.loading()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    with caplog.at_level(logging.ERROR):
        load.fail("it is no model")
        await house.loaded()
    assert [record.name for record in caplog.records] == ["shimmy.pool.pool"]
    assert "it is no model" in caplog.text


@on_loop
async def test_what_a_worker_reads_and_writes_of_prompts_is_counted() -> None:
    house = House()
    caller = house.ask()
    load = await house.loading()
    load.succeed()
    await caller
    load.on_prompts(PromptCacheStats(n_hits=1, n_tokens=400, read_bytes=1000))
    load.on_prompts(PromptCacheStats(n_misses=1))
    load.on_prompts(PromptCacheStats(n_misses=1, written_bytes=2000, stored_bytes=5000))
    assert house.metric('shimmy_stored_prompt_lookups_total{model="tiny.q4-1",outcome="hit"}') == 1
    assert house.metric('shimmy_stored_prompt_lookups_total{model="tiny.q4-1",outcome="miss"}') == 2
    assert house.metric('shimmy_stored_prompt_tokens_total{model="tiny.q4-1"}') == 400
    assert house.metric('shimmy_stored_prompt_bytes_total{model="tiny.q4-1",direction="read"}') == 1000
    assert house.metric('shimmy_stored_prompt_bytes_total{model="tiny.q4-1",direction="written"}') == 2000
    assert house.metric("shimmy_stored_prompts_size_bytes") == 5000
    load.on_prompts(PromptCacheStats(n_hits=1))
    assert house.metric("shimmy_stored_prompts_size_bytes") == 5000


@on_loop
async def test_a_dead_worker_is_replaced_and_counted() -> None:
    house = House()
    first = await house.loaded()
    first.die()
    assert house.pool.ready() == ()
    second = await house.loaded()
    assert second is not first
    assert house.metric('shimmy_worker_deaths_total{model="tiny.q4-1"}') == 1
    assert house.metric("shimmy_models_loaded") == 1


@on_loop
async def test_a_worker_whose_connection_is_gone_is_handed_out_to_nobody() -> None:
    """Between the end of the connection and the end of the process a worker is dead already."""
    house = House()
    first = await house.loaded()
    first.is_alive = False
    caller = house.ask()
    # Either the caller gets an answer at once, or there is a second load to wait for.
    load = asyncio.ensure_future(house.loading())
    await asyncio.wait({caller, load}, return_when=asyncio.FIRST_COMPLETED)
    assert load.done(), "the dead worker was handed out"
    second = load.result().succeed()
    assert id(await caller) == id(second)
    first.die()
    assert id(await house.pool.ensure_ready(TINY)) == id(second), "the old worker's burial took the new one along"


@on_loop
async def test_a_worker_that_dies_while_it_loads_is_the_loads_business() -> None:
    house = House()
    caller = house.ask()
    load = await house.loading()
    load.client.die()
    load.fail("the worker ended while it loaded")
    with pytest.raises(ModelUnavailable):
        await caller
    assert house.metric("shimmy_models_loaded") == 0
    assert house.metric('shimmy_worker_deaths_total{model="tiny.q4-1"}') == 0


@on_loop
async def test_a_worker_that_dies_between_its_yes_and_the_loads_end_is_not_kept() -> None:
    house = House()
    caller = house.ask()
    load = await house.loading()
    load.succeed().die()
    await asyncio.wait({caller})
    caller.exception()  # whether this caller gets an error or the dead worker is not the point here
    second = house.ask()
    again = asyncio.ensure_future(house.loading())
    await asyncio.wait({second, again}, return_when=asyncio.FIRST_COMPLETED)
    assert again.done(), "the dead worker was kept"
    again.result().succeed()
    await second


@on_loop
async def test_close_ends_workers_that_run_and_refuses_new_callers() -> None:
    house = House()
    client = await house.loaded()
    await house.pool.close()
    assert not client.is_alive
    assert house.pool.ready() == ()
    assert house.metric("shimmy_models_loaded") == 0
    assert house.metric('shimmy_worker_deaths_total{model="tiny.q4-1"}') == 0, "it was asked to end"
    with pytest.raises(ShuttingDown):
        await house.pool.ensure_ready(TINY)
    await house.pool.close()


@on_loop
async def test_close_during_a_load_tells_its_waiters_so() -> None:
    house = House()
    callers = [house.ask() for _ in range(3)]
    load = await house.loading()
    await house.pool.close()
    assert load.outcome.cancelled(), "the load itself has ended"
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [ShuttingDown] * 3


@on_loop
async def test_a_waiter_that_leaves_during_close_is_still_just_cancelled() -> None:
    house = House()
    client = await house.loaded()
    await house.pool.close()
    assert not client.is_alive
    caller = house.ask()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


@on_loop
async def test_gauges_tell_what_runs_and_forget_what_died() -> None:
    house = House()
    client = await house.loaded()
    client.n_running, client.n_waiting, client.n_jobs = 3, 2, 5
    house.pool.update_gauges()
    assert house.metric('shimmy_jobs_running{model="tiny.q4-1"}') == 3
    assert house.metric('shimmy_jobs_queued{model="tiny.q4-1"}') == 2
    assert house.pool.n_jobs == 5
    client.die()
    house.pool.update_gauges()
    assert house.metric('shimmy_jobs_running{model="tiny.q4-1"}') == 0
    assert house.metric('shimmy_jobs_queued{model="tiny.q4-1"}') == 0
    assert house.pool.n_jobs == 0


@on_loop
async def test_a_load_counts_only_when_it_succeeds() -> None:
    house = House()
    caller = house.ask()
    load = await house.loading()
    assert house.pool.ready() == (), "a worker that loads is not ready"
    load.fail("no")
    with pytest.raises(ModelUnavailable):
        await caller
    assert house.metric('shimmy_model_load_seconds_count{model="tiny.q4-1"}') == 0
    await house.loaded()
    assert house.metric('shimmy_model_load_seconds_count{model="tiny.q4-1"}') == 1
    assert house.metric("shimmy_models_loaded") == 1


# -- a file that changes while it is served ------------------------------------------------------------------------


def version(number: int) -> Model:
    return replace(TINY, mtime_ns=number)


def changed(*models: Model) -> CatalogDiff:
    return CatalogDiff(added=(), changed=models, removed=())


def removed(*models: Model) -> CatalogDiff:
    return CatalogDiff(added=(), changed=(), removed=models)


def state(house: House) -> State | None:
    slot = house.pool.slot(TINY.name)
    return slot.state if slot else None


@on_loop
async def test_a_changed_file_is_served_by_a_second_worker_as_soon_as_that_is_ready() -> None:
    house = House()
    old = await house.loaded()
    old.n_jobs = 1
    house.pool.follow(changed(version(2)))
    load = await house.loading()
    assert state(house) is State.SWAPPING
    assert await house.pool.ensure_ready(version(2)) is cast("WorkerClient", old), "the old one answers meanwhile"
    new = load.succeed()
    await until(lambda: state(house) is State.READY)
    assert await house.pool.ensure_ready(version(2)) is cast("WorkerClient", new)
    assert old.is_alive, "it has a job"
    assert house.pool.n_jobs == 1
    old.n_jobs = 0
    await until(lambda: not old.is_alive)
    assert house.pool.ready() == (cast("WorkerClient", new),)
    assert house.metric(f'shimmy_swaps_total{{model="{TINY.name}",outcome="done"}}') == 1
    assert house.metric("shimmy_models_loaded") == 1
    assert house.metric(f'shimmy_worker_deaths_total{{model="{TINY.name}"}}') == 0


@on_loop
async def test_a_new_file_that_fails_leaves_the_old_one_serving_and_says_why() -> None:
    house = House()
    old = await house.loaded()
    house.pool.follow(changed(version(2)))
    (await house.loading()).fail("it is broken")
    await until(lambda: state(house) is State.READY)
    assert await house.pool.ensure_ready(version(2)) is cast("WorkerClient", old)
    failure = house.pool.failure(TINY.name)
    assert failure is not None
    assert (failure.model, failure.reason) == (version(2), "it is broken")
    assert house.start.n_loads == 2, "the same file is not tried again"
    house.pool.follow(changed(version(3)))
    assert house.pool.failure(TINY.name) is None
    (await house.loading()).succeed()
    await until(lambda: not old.is_alive)


@on_loop
async def test_rapid_changes_end_in_the_last() -> None:
    house = House()
    await house.loaded()
    house.pool.follow(changed(version(2)))
    second = await house.loading()
    for number in range(3, 11):
        house.pool.follow(changed(version(number)))
    passed_over = second.succeed()
    last = (await house.loading()).succeed()
    await until(lambda: state(house) is State.READY)
    assert await house.pool.ensure_ready(version(10)) is cast("WorkerClient", last)
    await until(lambda: not passed_over.is_alive)
    assert house.start.n_loads == 3


@on_loop
async def test_a_change_during_the_first_load_is_followed() -> None:
    house = House()
    task = house.ask()
    first = await house.loading()
    house.pool.follow(changed(version(2)))
    old = first.succeed()
    assert await task is cast("WorkerClient", old), "which answers as long as the new one is loading"
    new = (await house.loading()).succeed()
    await until(lambda: state(house) is State.READY)
    assert await house.pool.ensure_ready(version(2)) is cast("WorkerClient", new)


@on_loop
async def test_an_old_worker_that_dies_during_the_swap_makes_its_callers_wait_for_the_new_one() -> None:
    house = House()
    old = await house.loaded()
    house.pool.follow(changed(version(2)))
    load = await house.loading()
    old.die()
    task = asyncio.create_task(house.pool.ensure_ready(version(2)))
    await asyncio.sleep(0)
    new = load.succeed()
    assert await task is cast("WorkerClient", new)


@on_loop
async def test_a_model_whose_file_is_gone_finishes_its_jobs() -> None:
    house = House()
    client = await house.loaded()
    client.n_jobs = 1
    house.pool.follow(removed(TINY))
    await asyncio.sleep(0.1)
    assert client.is_alive
    assert state(house) is None
    client.n_jobs = 0
    await until(lambda: not client.is_alive)


@on_loop
async def test_unloading_during_a_load_tells_its_waiters_so() -> None:
    house = House()
    task = house.ask()
    await house.loading()
    assert house.pool.unload(TINY.name)
    with pytest.raises(ModelUnloaded, match="unloaded"):
        await task
    assert not house.pool.unload(TINY.name)


@on_loop
async def test_a_model_is_unloaded_when_it_had_nothing_to_do_for_long_enough() -> None:
    house = House(keep_alive="0.2")
    busy, idle = await house.loaded("busy"), await house.loaded("idle")
    kept = asyncio.create_task(house.pool.ensure_ready(model("kept"), keep_alive_s=math.inf))
    (await house.loading()).succeed()
    busy.n_jobs = 1
    chore = asyncio.create_task(house.pool.unload_idle())
    await until(lambda: not idle.is_alive)
    assert busy.is_alive
    assert (await kept).is_alive
    assert house.metric('shimmy_unloads_total{reason="idle"}') == 1
    chore.cancel()


@on_loop
async def test_close_ends_old_and_new_workers() -> None:
    house = House()
    old = await house.loaded()
    old.n_jobs = 1
    house.pool.follow(changed(version(2)))
    new = (await house.loading()).succeed()
    await until(lambda: state(house) is State.READY)
    house.pool.follow(changed(version(3)))
    await house.loading()
    await house.pool.close()
    assert not old.is_alive
    assert not new.is_alive


@on_loop
async def test_busy_workers_share_the_processor() -> None:
    house = House()
    clients = [await house.loaded(name) for name in ("one", "two", "three")]
    for n_busy, client in enumerate(clients, 1):
        client.n_jobs = 1
        house.start.on_busy()
        assert [other.last_share for other in clients[:n_busy]] == [CpuShare(n_busy)] * n_busy
    clients[0].n_jobs = 0
    house.start.on_busy()
    assert [other.last_share for other in clients[1:]] == [CpuShare(2)] * 2


@on_loop
async def test_a_load_takes_a_core_from_those_that_decode_and_begins_with_its_part() -> None:
    house = House()
    busy = await house.loaded("busy")
    busy.n_jobs = 1
    busy.has_shared.clear()
    asking = house.ask("other")
    await asyncio.sleep(0.05)
    assert house.start.loads.empty(), "the core is still in use"
    assert busy.last_share == CpuShare(1, 1)
    busy.has_shared.set()
    load = await house.loading()
    assert load.options.share == CpuShare(2)
    load.succeed()
    await asking
    assert busy.last_share == CpuShare(1)


@on_loop
async def test_a_new_file_that_cannot_be_served_is_a_failed_swap(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    broken = CatalogDiff((), (), (), (Rejected(TINY.name, TINY.path, BROKEN, "it is cut off", ()),))
    failed = f'shimmy_swaps_total{{model="{TINY.name}",outcome="failed"}}'
    house.pool.follow(broken)
    assert house.metric(failed) == 0, "nothing is loaded that could be swapped"
    client = await house.loaded()
    house.pool.follow(broken)
    assert house.metric(failed) == 1
    assert f"`{TINY.name}` has a new file, the old one stays: it is cut off" in caplog.text
    assert client.is_alive
    assert await house.ask() is cast("WorkerClient", client)


# -- memory ----------------------------------------------------------------------------------------------------------

MB = 10**6


def crowded(n_models: int, **flags: str) -> House:
    """A house with memory for so many models."""
    n_bytes = House(**flags).pool.need(TINY).total
    return House(MemoryBudget(SERVER_BYTES + n_models * n_bytes, lambda: None), **flags)


async def served(house: House, *names: str) -> list[Client]:
    return [await house.loaded(name) for name in names]


@on_loop
async def test_the_least_recently_used_idle_model_makes_room() -> None:
    house = crowded(2)
    old, young = await served(house, "old", "young")
    old.idle_since_s += 10  # it was used again
    third = await house.loaded("third")
    assert (old.is_alive, young.is_alive, third.is_alive) == (True, False, True)
    assert house.metric('shimmy_unloads_total{reason="memory"}') == 1


@on_loop
async def test_a_busy_model_makes_room_when_its_jobs_have_ended_and_others_do_not() -> None:
    house = crowded(2)
    busy, idle = await served(house, "busy", "idle")
    busy.n_jobs = idle.n_jobs = 1
    idle.idle_since_s += 1
    asking = house.ask("third")
    await asyncio.sleep(0.05)
    assert house.start.loads.empty(), "there is no room yet"
    assert busy.is_alive
    assert idle.is_alive
    busy.n_jobs = 0
    (await house.loading()).succeed()
    await asking
    assert (busy.is_alive, idle.is_alive) == (False, True)


@on_loop
async def test_a_model_asked_for_while_it_drains_gets_its_turn_again() -> None:
    house = crowded(1)
    (first,) = await served(house, "first")
    first.n_jobs = 1
    second_asking = house.ask("second")
    await asyncio.sleep(0.01)
    first_asking = house.ask("first")
    await asyncio.sleep(0.01)
    first.n_jobs = 0
    load = await house.loading()
    assert load.client.name == "second"
    second = load.succeed()
    assert await second_asking is cast("WorkerClient", second)
    load = await house.loading()
    assert load.client.name == "first"
    again = load.succeed()
    assert await first_asking is cast("WorkerClient", again)
    assert not second.is_alive


@on_loop
async def test_those_who_waited_for_a_model_get_their_jobs_in_before_it_is_evicted() -> None:
    house = crowded(1)
    jobs: list[Client] = []

    async def work(name: str) -> None:
        worker = cast("Client", await house.pool.ensure_ready(model(name)))
        assert worker.is_alive
        worker.n_jobs += 1
        jobs.append(worker)

    workers = [asyncio.create_task(work(name)) for name in ("a", "a", "b", "b", "a")]
    for _ in range(2):
        client = (await house.loading()).succeed()
        await asyncio.sleep(0.02)
        assert client.n_jobs == (3 if client.name == "a" else 2)
        assert client.is_alive
        client.n_jobs = 0
    await asyncio.gather(*workers)
    assert len(jobs) == 5


@on_loop
async def test_a_model_that_changed_while_it_loaded_makes_room_for_who_is_before_it_in_the_line() -> None:
    """Its callers waited for the newer file, and the other model for them."""
    house = crowded(1)
    first_asking = house.ask()
    first = await house.loading()
    second_asking = house.ask("second")
    await asyncio.sleep(0.01)
    house.pool.follow(changed(version(2)))
    old = first.succeed()
    assert await first_asking is cast("WorkerClient", old)
    second = (await house.loading()).succeed()
    assert second.name == "second"
    assert await second_asking is cast("WorkerClient", second)


@on_loop
async def test_a_pinned_model_is_never_evicted_and_the_numbers_are_told() -> None:
    house = crowded(1)
    asking = asyncio.create_task(house.pool.ensure_ready(model("kept"), math.inf))
    kept = (await house.loading()).succeed()
    await asking
    with pytest.raises(OutOfMemory, match=r"there is no memory for it: `other` takes .* of `--max-memory`"):
        await house.pool.ensure_ready(model("other"))
    assert kept.is_alive
    failure = house.pool.failure("other")
    assert failure is not None
    assert "no memory" in failure.reason


@on_loop
async def test_nothing_is_evicted_for_a_model_that_would_not_fit_anyway() -> None:
    house = crowded(2)
    (client,) = await served(house, "small")
    with pytest.raises(OutOfMemory):
        await house.pool.ensure_ready(replace(model("huge"), size_bytes=10**12))
    assert client.is_alive


@on_loop
async def test_a_load_that_fails_for_memory_is_tried_once_more_without_idle_models() -> None:
    house = House()
    idle, busy = await served(house, "idle", "busy")
    busy.n_jobs = 1
    asking = house.ask("third")
    (await house.loading()).outcome.set_exception(OutOfMemory("no context of 8192 tokens"))
    load = await house.loading()
    assert (idle.is_alive, busy.is_alive) == (False, True)
    load.outcome.set_exception(OutOfMemory("no context of 8192 tokens"))
    with pytest.raises(OutOfMemory, match=r"no context of 8192 tokens; `third` takes "):
        await asking
    assert house.start.n_loads == 4


@on_loop
async def test_a_swap_without_room_for_two_ends_the_old_one_first() -> None:
    house = crowded(1)
    old = await house.loaded()
    old.n_jobs = 1
    house.pool.follow(changed(version(2)))
    await asyncio.sleep(0.05)
    asking = house.ask()
    await asyncio.sleep(0.05)
    assert house.start.loads.empty()
    assert old.is_alive
    old.n_jobs = 0
    new = (await house.loading()).succeed()
    assert await asking is cast("WorkerClient", new)
    assert not old.is_alive


@pytest.mark.parametrize(
    ("n_ctx_train", "n_ctx", "n_booked"), [(512, 512, 512), (20_000, 20_000, 8192), (0, 8192, 8192)]
)
@on_loop
async def test_the_context_is_the_training_length_and_memory_is_set_aside_for_the_beginning_of_it(
    n_ctx_train: int, n_ctx: int, n_booked: int
) -> None:
    house = House()
    trained = replace(TINY, n_ctx_train=n_ctx_train)
    asking = asyncio.create_task(house.pool.ensure_ready(trained))
    load = await house.loading()
    assert (load.options.n_ctx, load.options.n_booked) == (n_ctx, n_booked)
    assert house.pool.need(trained).kv == TINY.n_kv * n_booked * 2
    load.succeed()
    await asking


@on_loop
async def test_the_default_context_shrinks_to_what_fits_and_one_asked_for_does_not() -> None:
    wide = replace(TINY, n_ctx_train=8192, n_kv=10_000)
    for flags, n_ctx in (({}, 2048), ({"ctx_size": "2048"}, 2048)):
        launch = LaunchPlanner(config.load(flags, {}))
        least = launch.need(wide, launch.options(wide, 2048))
        house = House(MemoryBudget(SERVER_BYTES + least.total, lambda: None), **flags)
        asking = asyncio.create_task(house.pool.ensure_ready(wide))
        load = await house.loading()
        assert load.options.n_ctx == n_ctx
        load.succeed()
        await asking
    house = House(MemoryBudget(SERVER_BYTES + least.total, lambda: None), ctx_size="8192")
    with pytest.raises(OutOfMemory):
        await house.pool.ensure_ready(wide)


# -- queues ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_queue_that_is_full_is_said_and_another_models_is_not() -> None:
    house = House(parallel="1", max_queue="2")
    callers = [house.ask() for _ in range(3)]
    load = await house.loading()
    with pytest.raises(Overloaded, match="try again later"):
        await house.pool.ensure_ready(TINY)
    other = house.ask("other")
    (await house.loading()).succeed()
    await other
    client = load.succeed()
    await asyncio.gather(*callers)
    client.n_jobs = 3
    with pytest.raises(Overloaded):
        await house.pool.ensure_ready(TINY)
    client.n_jobs = 2
    await house.pool.ensure_ready(TINY)


@on_loop
async def test_jobs_that_wait_for_a_load_are_in_the_gauge() -> None:
    house = House()
    callers = [house.ask() for _ in range(3)]
    load = await house.loading()
    house.pool.update_gauges()
    assert house.metric('shimmy_jobs_queued{model="tiny.q4-1"}') == 3
    load.succeed()
    await asyncio.gather(*callers)
    house.pool.update_gauges()
    assert house.metric('shimmy_jobs_queued{model="tiny.q4-1"}') == 0


# -- what is told ----------------------------------------------------------------------------------------------------


@on_loop
async def test_a_models_life_is_told_as_it_happens() -> None:
    house = House()
    listener = house.events.listen()
    await house.loaded()
    house.pool.follow(changed(version(2)))
    (await house.loading()).fail("it is cut off")
    await until(lambda: house.pool.failure(TINY.name) is not None)
    house.pool.follow(changed(version(3)))
    (await house.loading()).succeed()
    await until(lambda: len(house.pool.ready()) == 1 and state(house) is State.READY)
    house.pool.unload(TINY.name)
    await until(lambda: not house.pool.ready())
    caller = house.ask()
    (await house.loading()).succeed().die()
    caller.cancel()
    await until(lambda: state(house) is None)
    house.events.close()
    told = [(event.kind, event.details.get("reason")) async for event in listener]
    assert told[:9] == [
        ("loading", None),
        ("loaded", None),
        ("loading", None),
        ("failed", "it is cut off"),
        ("loading", None),
        ("swapped", None),
        ("unloaded", "swapped"),
        ("unloaded", "asked"),
        ("loading", None),
    ]
    assert house.metric('shimmy_swap_seconds_count{model="tiny.q4-1",phase="drain"}') == 1
    assert house.metric('shimmy_swap_seconds_count{model="tiny.q4-1",phase="switch"}') == 1


@on_loop
async def test_a_new_file_whose_template_does_not_work_does_not_replace_one_that_does() -> None:
    house = House()
    old = await house.loaded()
    house.pool.follow(changed(version(2)))
    load = await house.loading()
    load.client.facts = replace(FakeWorker.facts, template_error="it raises")
    broken = load.succeed()
    await until(lambda: house.pool.failure(TINY.name) is not None)
    assert await house.pool.ensure_ready(TINY) is cast("WorkerClient", old)
    await until(lambda: not broken.is_alive)
    failure = house.pool.failure(TINY.name)
    assert failure is not None
    assert "it raises" in failure.reason


@on_loop
async def test_adapters_beside_a_model_are_offered_and_its_own_are_applied() -> None:
    house = House(lora="/asked.gguf=0.5")
    beside = replace(TINY, adapters=(Path("/beside.gguf"),))
    for wanted, lora, siblings in (
        (beside, (("/asked.gguf", 0.5),), ("/beside.gguf",)),
        (replace(beside, name="own", needs_adapters=True), (("/beside.gguf", 1.0), ("/asked.gguf", 0.5)), ()),
    ):
        task = asyncio.create_task(house.pool.ensure_ready(wanted))
        load = await house.loading()
        assert (load.options.lora, load.options.siblings) == (lora, siblings)
        load.succeed()
        await task


@on_loop
async def test_the_progress_of_a_conversion_is_told_by_the_percent() -> None:
    house = House()
    listener = house.events.listen()
    asking = house.ask()
    load = await house.loading()
    for fraction in (0.0, 0.001, 0.42, 0.421, 0.4, 1.0):
        load.on_progress(fraction)
    slot = house.pool.slot(TINY.name)
    assert slot is not None
    assert slot.progress == 1.0
    load.succeed()
    await asking
    assert slot.progress is None
    house.events.close()
    told = [event.details["percent"] async for event in listener if event.kind == "converting"]
    assert told == [0, 42, 100]
