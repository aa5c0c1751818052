"""The pool with a start function of the test's own: who waits for which load, and what is told of it."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from shimmy import config
from shimmy.catalog.catalog import CatalogDiff
from shimmy.errors import Internal, ModelUnavailable, ModelUnloaded, Overloaded, ShuttingDown
from shimmy.messages.model_info import LoadProgress, PromptCacheStats, WorkerLoad
from shimmy.pool.model_runtime import ModelRuntime, State
from shimmy.pool.pool import Pool
from shimmy.wire.worker_options import WorkerOptions
from tests.fakes import FakeWorker, on_loop, until
from tests.pool.harness import TINY, Harness, changed, state, version

if TYPE_CHECKING:
    from shimmy.workers.worker_client import Hooks, WorkerClient


@on_loop
async def test_many_callers_cause_one_load_and_get_the_same_worker() -> None:
    harness = Harness()
    callers = [harness.ask() for _ in range(10)]
    client = (await harness.loading()).succeed()
    assert {id(worker) for worker in await asyncio.gather(*callers)} == {id(client)}
    assert id(await harness.pool.ensure_ready(TINY)) == id(client)
    assert harness.start.n_loads == 1


@on_loop
async def test_every_model_has_its_own_worker() -> None:
    harness = Harness()
    clients = [await harness.loaded(name) for name in ("a", "b")]
    assert [client.name for client in clients] == ["a", "b"]
    assert {worker.name for worker in harness.pool.ready()} == {"a", "b"}


@on_loop
async def test_a_worker_is_told_what_the_person_configured() -> None:
    harness = Harness(
        ctx_size="99", parallel="3", batch_size="64", threads="2", cpu_variant="sse42", chat_template="{{ 1 }}",
        lora=["a.gguf=0.5", "b.gguf"], cache_dir="/cache", safetensors_type="q4_0", imatrix="/m.gguf", weights="mapped",
        prompt_cache="1M", worker_timeout="9", load_timeout="1m",
    )  # fmt: skip
    with_sibling = replace(TINY, adapters=(Path("beside.gguf"),))
    caller = asyncio.create_task(harness.pool.ensure_ready(with_sibling))
    load = await harness.loading()
    assert load.options == WorkerOptions(
        "tiny.gguf", 99, 3, 64, 2, "sse42", "{{ 1 }}", (("a.gguf", 0.5), ("b.gguf", 1.0)), ("beside.gguf",),
        cache_dir="/cache", prompt_cache_bytes=10**6, safetensors_type="q4_0", imatrix="/m.gguf", weights="mapped",
        may_tune=True, worker_timeout_s=9.0, load_timeout_s=60.0,
    )  # fmt: skip
    load.succeed()
    await caller


@on_loop
async def test_a_worker_takes_no_memory_for_trials_where_that_is_limited() -> None:
    for harness, may_tune in ((Harness(), True), (Harness(max_memory="64G"), False)):
        caller = harness.ask()
        load = await harness.loading()
        assert (load.options.weights, load.options.may_tune) == ("auto", may_tune)
        load.succeed()
        await caller


@on_loop
async def test_a_failed_load_wakes_every_waiter_with_the_reason_and_the_next_call_tries_again() -> None:
    harness = Harness()
    callers = [harness.ask() for _ in range(5)]
    (await harness.loading()).fail("it is no model")
    for result in await asyncio.gather(*callers, return_exceptions=True):
        assert isinstance(result, ModelUnavailable)
        assert result.message == "it is no model"
    assert harness.pool.ready() == ()
    await harness.loaded()
    assert harness.start.n_loads == 2


@on_loop
async def test_a_load_that_breaks_in_another_way_leaves_nothing_behind() -> None:
    harness = Harness()
    caller = harness.ask()
    (await harness.loading()).outcome.set_exception(OSError("no more processes"))
    with pytest.raises(OSError, match="no more processes"):
        await caller
    await harness.loaded()


@on_loop
async def test_a_load_that_breaks_where_nothing_expects_it_wakes_its_waiters(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    caller = harness.ask()
    load = await harness.loading()
    wake, errors = ModelRuntime.wake, [KeyError("a bug")]

    def broken_once(runtime: ModelRuntime, error: Exception) -> None:
        if errors:
            raise errors.pop()
        wake(runtime, error)

    monkeypatch.setattr(ModelRuntime, "wake", broken_once)
    load.fail("no")
    with pytest.raises(Internal, match="could not be loaded: KeyError"):
        await caller
    await harness.loaded()


# -- models that fail again and again ---------------------------------------------------------------------------------


class ClockedHarness(Harness):
    """One whose pool looks at the test's own time."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        super().__init__(None, lambda: self.now_s)

    async def die_three_times(self) -> None:
        """A worker ends soon after its load, again and again."""
        for _ in range(3):
            (await self.loaded()).die()
            self.now_s += 60


@on_loop
async def test_after_three_deaths_in_a_row_a_model_is_not_loaded_any_more() -> None:
    harness = ClockedHarness()
    await harness.die_three_times()
    with pytest.raises(ModelUnavailable, match=r"3 times in a row, the last time: signal 9.*/models/tiny.q4-1/load"):
        await harness.ask()
    assert harness.start.n_loads == 3
    assert harness.pool.runtime(TINY.name) is None
    failure = harness.pool.failure(TINY.name)
    assert failure is not None
    assert "signal 9" in failure.reason
    harness.pool.update_gauges()
    assert "shimmy_models_quarantined 1" in harness.metrics.render()
    await harness.loaded("other")
    harness.pool.forgive(TINY.name)
    await harness.loaded()
    harness.pool.update_gauges()
    assert "shimmy_models_quarantined 0" in harness.metrics.render()


@on_loop
async def test_a_new_file_ends_the_quarantine() -> None:
    harness = ClockedHarness()
    await harness.die_three_times()
    newer = replace(TINY, mtime_ns=TINY.mtime_ns + 1)
    harness.pool.follow(CatalogDiff(added=(), changed=(newer,), removed=()))
    caller = asyncio.create_task(harness.pool.ensure_ready(newer))
    (await harness.loading()).succeed()
    await caller


@on_loop
async def test_a_death_after_finished_jobs_is_the_first_again() -> None:
    harness = ClockedHarness()
    for _ in range(10):
        client = await harness.loaded()
        client.n_finished = 1
        client.die()
    await harness.loaded()


@on_loop
async def test_deaths_in_the_middle_of_loads_count_and_the_next_load_hears_of_them() -> None:
    harness = ClockedHarness()
    listener = harness.events.listen()
    for _ in range(3):
        caller = harness.ask()
        error = ModelUnavailable("the worker ended while it loaded `tiny` (signal 6)")
        error.is_death = True
        (await harness.loading()).outcome.set_exception(error)
        with pytest.raises(ModelUnavailable, match="signal 6"):
            await caller
        harness.now_s += 60
    with pytest.raises(ModelUnavailable, match="not loaded any more"):
        await harness.ask()
    harness.events.leave(listener)
    listener.end()
    told = [event.details.get("after", "") async for event in listener if event.kind == "loading"]
    assert told == ["", error.message, error.message]


@on_loop
async def test_loads_that_are_refused_are_tried_again_after_ever_longer_times() -> None:
    harness = ClockedHarness()
    for n_before, wait_s in enumerate((0, 1, 2, 4, 8, 16, 32, 60, 60)):
        if wait_s:
            harness.now_s += wait_s - 0.5
            with pytest.raises(ModelUnavailable, match=r"it is no model \(`tiny.q4-1` is tried again in"):
                await harness.ask()
            harness.now_s += 0.6
        caller = harness.ask()
        (await harness.loading()).fail("it is no model")
        with pytest.raises(ModelUnavailable, match=r"^it is no model$"):
            await caller
        assert harness.start.n_loads == n_before + 1
        if not n_before:  # the second time it is tried at once
            caller = harness.ask()
            (await harness.loading()).fail("it is no model")
            with pytest.raises(ModelUnavailable):
                await caller
            harness.start.n_loads -= 1
    harness.now_s += 61
    await harness.loaded()
    harness.pool.unload(TINY.name)
    caller = harness.ask()
    (await harness.loading()).fail("it is no model again")
    with pytest.raises(ModelUnavailable, match=r"^it is no model again$"):
        await caller
    await harness.loaded()


@on_loop
async def test_a_waiter_that_leaves_does_not_end_the_load_for_the_others() -> None:
    harness = Harness()
    leaving, staying = harness.ask(), harness.ask()
    load = await harness.loading()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    client = load.succeed()
    assert id(await staying) == id(client)


@on_loop
async def test_a_load_that_everybody_left_is_there_for_the_next_one() -> None:
    harness = Harness()
    caller = harness.ask()
    load = await harness.loading()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    client = load.succeed()
    assert id(await harness.pool.ensure_ready(TINY)) == id(client)
    assert harness.start.n_loads == 1


@on_loop
async def test_a_failed_load_that_everybody_left_makes_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness()
    caller = harness.ask()
    load = await harness.loading()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    with caplog.at_level(logging.ERROR):
        load.fail("it is no model")
        await harness.loaded()
    assert [record.name for record in caplog.records] == ["shimmy.pool.swap"]
    assert "it is no model" in caplog.text


@on_loop
async def test_what_a_worker_reads_and_writes_of_prompts_is_counted() -> None:
    harness = Harness()
    caller = harness.ask()
    load = await harness.loading()
    load.succeed()
    await caller
    load.on_prompts(PromptCacheStats(n_hits=1, n_tokens=400, read_bytes=1000))
    load.on_prompts(PromptCacheStats(n_misses=1))
    load.on_prompts(PromptCacheStats(n_misses=1, written_bytes=2000, stored_bytes=5000))
    assert harness.metric('shimmy_stored_prompt_lookups_total{model="tiny.q4-1",outcome="hit"}') == 1
    assert harness.metric('shimmy_stored_prompt_lookups_total{model="tiny.q4-1",outcome="miss"}') == 2
    assert harness.metric('shimmy_stored_prompt_tokens_total{model="tiny.q4-1"}') == 400
    assert harness.metric('shimmy_stored_prompt_bytes_total{model="tiny.q4-1",direction="read"}') == 1000
    assert harness.metric('shimmy_stored_prompt_bytes_total{model="tiny.q4-1",direction="written"}') == 2000
    assert harness.metric("shimmy_stored_prompts_size_bytes") == 5000
    load.on_prompts(PromptCacheStats(n_hits=1))
    assert harness.metric("shimmy_stored_prompts_size_bytes") == 5000


@on_loop
async def test_a_dead_worker_is_replaced_and_counted() -> None:
    harness = Harness()
    first = await harness.loaded()
    first.die()
    assert harness.pool.ready() == ()
    second = await harness.loaded()
    assert second is not first
    assert harness.metric('shimmy_worker_deaths_total{model="tiny.q4-1"}') == 1
    assert harness.metric("shimmy_models_loaded") == 1


@on_loop
async def test_a_worker_whose_connection_is_gone_is_handed_out_to_nobody() -> None:
    """Between the end of the connection and the end of the process a worker is dead already."""
    harness = Harness()
    first = await harness.loaded()
    first.is_alive = False
    caller = harness.ask()
    # Either the caller gets an answer at once, or there is a second load to wait for.
    load = asyncio.ensure_future(harness.loading())
    await asyncio.wait({caller, load}, return_when=asyncio.FIRST_COMPLETED)
    assert load.done(), "the dead worker was handed out"
    second = load.result().succeed()
    assert id(await caller) == id(second)
    first.die()
    assert id(await harness.pool.ensure_ready(TINY)) == id(second), "the old worker's burial took the new one along"


@on_loop
async def test_a_worker_that_dies_while_it_loads_is_the_loads_business() -> None:
    harness = Harness()
    caller = harness.ask()
    load = await harness.loading()
    load.client.die()
    load.fail("the worker ended while it loaded")
    with pytest.raises(ModelUnavailable):
        await caller
    assert harness.metric("shimmy_models_loaded") == 0
    assert harness.metric('shimmy_worker_deaths_total{model="tiny.q4-1"}') == 0


@on_loop
async def test_a_worker_that_dies_between_its_yes_and_the_loads_end_is_not_kept() -> None:
    harness = Harness()
    caller = harness.ask()
    load = await harness.loading()
    load.succeed().die()
    await asyncio.wait({caller})
    caller.exception()  # whether this caller gets an error or the dead worker is not the point here
    second = harness.ask()
    again = asyncio.ensure_future(harness.loading())
    await asyncio.wait({second, again}, return_when=asyncio.FIRST_COMPLETED)
    assert again.done(), "the dead worker was kept"
    again.result().succeed()
    await second


@on_loop
async def test_close_ends_workers_that_run_and_refuses_new_callers() -> None:
    harness = Harness()
    client = await harness.loaded()
    await harness.pool.close()
    assert not client.is_alive
    assert harness.pool.ready() == ()
    assert harness.metric("shimmy_models_loaded") == 0
    assert harness.metric('shimmy_worker_deaths_total{model="tiny.q4-1"}') == 0, "it was asked to end"
    with pytest.raises(ShuttingDown):
        await harness.pool.ensure_ready(TINY)
    await harness.pool.close()


@on_loop
async def test_close_during_a_load_tells_its_waiters_so() -> None:
    harness = Harness()
    callers = [harness.ask() for _ in range(3)]
    load = await harness.loading()
    await harness.pool.close()
    assert load.outcome.cancelled(), "the load itself has ended"
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [ShuttingDown] * 3


@on_loop
async def test_close_waits_for_the_worker_of_a_load_that_is_called_off_already() -> None:
    # As after Ctrl-C, which cancels every task of a command.
    harness = Harness()
    began, ends = asyncio.Event(), []

    async def start(name: str, _options: WorkerOptions, _hooks: "Hooks") -> "WorkerClient":
        began.set()
        try:
            return await asyncio.Future()
        finally:
            await asyncio.sleep(0.01)
            ends.append(name)

    harness.pool = Pool(config.load({}, {}), harness.metrics, harness.events, start)
    caller = harness.ask()
    await began.wait()
    for task in asyncio.all_tasks() - {caller, asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
    await harness.pool.close()
    assert ends == [TINY.name]
    await asyncio.gather(caller, return_exceptions=True)


@on_loop
async def test_a_waiter_that_leaves_during_close_is_still_just_cancelled() -> None:
    harness = Harness()
    client = await harness.loaded()
    await harness.pool.close()
    assert not client.is_alive
    caller = harness.ask()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


@on_loop
async def test_gauges_tell_what_runs_and_forget_what_died() -> None:
    harness = Harness()
    client = await harness.loaded()
    client.load, client.n_jobs = WorkerLoad(3, 2, 400), 5
    harness.pool.update_gauges()
    assert harness.metric('shimmy_jobs_running{model="tiny.q4-1"}') == 3
    assert harness.metric('shimmy_jobs_queued{model="tiny.q4-1"}') == 2
    assert harness.metric('shimmy_kv_used_tokens{model="tiny.q4-1"}') == 400
    assert harness.metric('shimmy_kv_tokens{model="tiny.q4-1"}') == 2048
    assert harness.pool.n_jobs == 5
    client.die()
    harness.pool.update_gauges()
    assert harness.metric('shimmy_jobs_running{model="tiny.q4-1"}') == 0
    assert harness.metric('shimmy_jobs_queued{model="tiny.q4-1"}') == 0
    assert harness.metric('shimmy_kv_used_tokens{model="tiny.q4-1"}') == 0
    assert harness.metric('shimmy_kv_tokens{model="tiny.q4-1"}') == 0
    assert harness.pool.n_jobs == 0


@on_loop
async def test_a_load_counts_only_when_it_succeeds() -> None:
    harness = Harness()
    caller = harness.ask()
    load = await harness.loading()
    assert harness.pool.ready() == (), "a worker that loads is not ready"
    load.fail("no")
    with pytest.raises(ModelUnavailable):
        await caller
    assert harness.metric('shimmy_model_load_seconds_count{model="tiny.q4-1"}') == 0
    await harness.loaded()
    assert harness.metric('shimmy_model_load_seconds_count{model="tiny.q4-1"}') == 1
    assert harness.metric("shimmy_models_loaded") == 1


# -- queues ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_queue_that_is_full_is_said_and_another_models_is_not() -> None:
    harness = Harness(parallel="1", max_queue="2")
    callers = [harness.ask() for _ in range(3)]
    load = await harness.loading()
    with pytest.raises(Overloaded, match="try again later"):
        await harness.pool.ensure_ready(TINY)
    other = harness.ask("other")
    (await harness.loading()).succeed()
    await other
    client = load.succeed()
    await asyncio.gather(*callers)
    client.n_jobs = 3
    with pytest.raises(Overloaded):
        await harness.pool.ensure_ready(TINY)
    client.n_jobs = 2
    await harness.pool.ensure_ready(TINY)


@on_loop
async def test_jobs_that_wait_for_a_load_are_in_the_gauge() -> None:
    harness = Harness()
    callers = [harness.ask() for _ in range(3)]
    load = await harness.loading()
    harness.pool.update_gauges()
    assert harness.metric('shimmy_jobs_queued{model="tiny.q4-1"}') == 3
    load.succeed()
    await asyncio.gather(*callers)
    harness.pool.update_gauges()
    assert harness.metric('shimmy_jobs_queued{model="tiny.q4-1"}') == 0


# -- what is told ----------------------------------------------------------------------------------------------------


@on_loop
async def test_a_models_life_is_told_as_it_happens() -> None:
    harness = Harness()
    listener = harness.events.listen()
    await harness.loaded()
    harness.pool.follow(changed(version(2)))
    (await harness.loading()).fail("it is cut off")
    await until(lambda: harness.pool.failure(TINY.name) is not None)
    harness.pool.follow(changed(version(3)))
    (await harness.loading()).succeed()
    await until(lambda: len(harness.pool.ready()) == 1 and state(harness) is State.READY)
    harness.pool.unload(TINY.name)
    await until(lambda: not harness.pool.ready())
    caller = harness.ask()
    (await harness.loading()).succeed().die()
    caller.cancel()
    await until(lambda: state(harness) is None)
    harness.events.close()
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
    assert harness.metric('shimmy_swap_seconds_count{model="tiny.q4-1",phase="drain"}') == 1
    assert harness.metric('shimmy_swap_seconds_count{model="tiny.q4-1",phase="switch"}') == 1


@on_loop
async def test_a_new_file_whose_template_does_not_work_does_not_replace_one_that_does() -> None:
    harness = Harness()
    old = await harness.loaded()
    harness.pool.follow(changed(version(2)))
    load = await harness.loading()
    load.client.facts = replace(FakeWorker.facts, template_error="it raises")
    broken = load.succeed()
    await until(lambda: harness.pool.failure(TINY.name) is not None)
    assert await harness.pool.ensure_ready(TINY) is cast("WorkerClient", old)
    await until(lambda: not broken.is_alive)
    failure = harness.pool.failure(TINY.name)
    assert failure is not None
    assert "it raises" in failure.reason


@on_loop
async def test_adapters_beside_a_model_are_offered_and_its_own_are_applied() -> None:
    harness = Harness(lora="/asked.gguf=0.5")
    beside = replace(TINY, adapters=(Path("/beside.gguf"),))
    for wanted, lora, siblings in (
        (beside, (("/asked.gguf", 0.5),), ("/beside.gguf",)),
        (replace(beside, name="own", needs_adapters=True), (("/beside.gguf", 1.0), ("/asked.gguf", 0.5)), ()),
    ):
        task = asyncio.create_task(harness.pool.ensure_ready(wanted))
        load = await harness.loading()
        assert (load.options.lora, load.options.siblings) == (lora, siblings)
        load.succeed()
        await task


@on_loop
async def test_the_progress_of_a_conversion_is_told_by_the_percent() -> None:
    harness = Harness()
    listener = harness.events.listen()
    asking = harness.ask()
    load = await harness.loading()
    for share in (0.0, 0.001, 0.42, 0.421, 0.4, 1.0):
        load.on_progress(LoadProgress(share))
    runtime = harness.pool.runtime(TINY.name)
    assert runtime is not None
    assert runtime.progress == LoadProgress(1.0)
    load.succeed()
    await asking
    assert runtime.progress is None
    harness.events.close()
    told = [event.details["percent"] async for event in listener if event.kind == "converting"]
    assert told == [0, 42, 100]


@on_loop
async def test_what_is_read_of_a_model_is_told_once_for_each_percent_and_comes_after_a_conversion() -> None:
    harness = Harness()
    listener = harness.events.listen()
    asking = harness.ask()
    load = await harness.loading()
    for share, total in ((0.5, None), (0.1, 1000), (0.105, 1000), (0.9, None), (0.05, 1000), (1.0, 1000), (0.2, 1000)):
        load.on_progress(LoadProgress(share, total))
    load.succeed()
    await asking
    harness.events.close()
    told = [(event.kind, event.details) async for event in listener if "percent" in event.details]
    assert told == [
        ("converting", {"percent": 50}),
        ("reading", {"percent": 10, "completed_bytes": 100, "total_bytes": 1000}),
        ("reading", {"percent": 100, "completed_bytes": 1000, "total_bytes": 1000}),
    ]


@on_loop
async def test_a_model_that_is_unloaded_while_it_loads_is_told() -> None:
    harness = Harness()
    listener = harness.events.listen()
    asking = harness.ask()
    await harness.loading()
    harness.pool.unload(TINY.name)
    with pytest.raises(ModelUnloaded):
        await asking
    harness.events.close()
    assert [event.kind async for event in listener] == ["loading", "unloaded"]
