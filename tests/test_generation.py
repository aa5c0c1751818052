"""The path of a request, with the pool for real and a worker that says what a test tells it to."""

import asyncio
import gc
import logging
from dataclasses import replace

import pytest

from shimmy.errors import (
    BadRequest,
    ContextExceeded,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    ShimmyError,
    WorkerDied,
)
from shimmy.generation import Services, close, embed, generate, generate_all
from shimmy.messages.event import Accepted, Echo, Finished, JobOutput, JobProgress, Piece
from shimmy.messages.reply import ArgumentSyntax, ReplyFormat, ToolFormat
from shimmy.messages.request import ChatPrompt, EmbedRequest, GenerateRequest, TextPrompt, TokenPrompt, Tool
from tests.fakes import FINISHED, SCRIPT, FakeWorker, model, on_loop, services


def request(name: str = "tiny.q4-1") -> GenerateRequest:
    return GenerateRequest(name, TextPrompt("hi"))


def metric(house: Services, line: str) -> float:
    """The value of a line of `/metrics`; 0 while it is not there."""
    samples = (text.rsplit(" ", 1) for text in house.metrics.render().splitlines())
    return next((float(value) for name, value in samples if name == line), 0)


async def events_of(house: Services) -> list[JobProgress | Echo | Piece | Finished]:
    generation = generate(house, request())
    try:
        return [event async for event in generation]
    finally:
        await generation.aclose()


@on_loop
async def test_a_reply_with_reasoning_has_its_stop_strings_in_its_format() -> None:
    form = ReplyFormat(thinking=("<think>", "</think>"))
    for accepted, expected in ((Accepted(1, form), form.with_stop(("END",))), (Accepted(1), ReplyFormat())):
        house = services(FakeWorker((accepted, FINISHED)))
        generation = generate(house, replace(request(), stop=("END",)))
        assert (await generation.accepted()).format == expected
        await generation.aclose()


@on_loop
async def test_the_types_of_arguments_are_for_syntaxes_that_leave_types_or_names_open() -> None:
    tool = Tool("f", "", '{"properties": {"a": {"type": "string"}}}')
    for syntax in ArgumentSyntax:
        form = ReplyFormat(tools=ToolFormat(call_start="<call>", separator="<is>", syntax=syntax))
        house = services(FakeWorker((Accepted(1, form), FINISHED)))
        generation = generate(house, replace(request(), prompt=ChatPrompt((), tools=(tool,))))
        found = (await generation.accepted()).format.argument_types
        assert bool(found) == (syntax in {ArgumentSyntax.TAGGED, ArgumentSyntax.PYTHON})
        await generation.aclose()


@on_loop
async def test_a_job_is_accepted_speaks_and_is_counted() -> None:
    worker = FakeWorker(SCRIPT)
    house = services(worker)
    generation = generate(house, request("TINY.Q4_1"))
    assert generation.model.name == "tiny.q4-1"
    assert await generation.accepted() == Accepted(12)
    assert await generation.accepted() == Accepted(12)
    assert [event async for event in generation] == [Piece('Hello "é"\n', 3), FINISHED]
    await generation.aclose()
    assert worker.requests == [request("TINY.Q4_1")]
    assert not worker.cancelled.is_set(), "it had ended by itself"
    assert metric(house, 'shimmy_prompt_tokens_total{model="tiny.q4-1"}') == 12
    assert metric(house, 'shimmy_cached_tokens_total{model="tiny.q4-1"}') == 8
    assert metric(house, 'shimmy_completion_tokens_total{model="tiny.q4-1"}') == 3
    assert metric(house, 'shimmy_first_token_seconds_count{model="tiny.q4-1"}') == 1
    assert metric(house, 'shimmy_token_seconds_sum{model="tiny.q4-1"}') == 0.01


def test_an_unknown_model_is_refused_at_once_and_no_other_one_answers() -> None:
    with pytest.raises(ModelNotFound, match=r"tiny\.q4-1"):
        generate(services(FakeWorker(SCRIPT)), request("tiny.q4-2"))


@on_loop
async def test_iterating_waits_for_the_yes_by_itself() -> None:
    assert (await events_of(services(FakeWorker(SCRIPT))))[-1] == FINISHED


@pytest.mark.parametrize("error", [BadRequest("no", param="seed"), WorkerDied("gone")])
def test_what_the_worker_says_instead_of_yes_is_raised(error: ShimmyError) -> None:
    async def run() -> None:
        generation = generate(services(FakeWorker((error,))), request())
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                await generation.accepted()
            assert caught.value is error
        await generation.aclose()

    asyncio.run(run())


@on_loop
async def test_a_load_that_fails_is_raised() -> None:
    async def load() -> None:
        raise ModelUnavailable("broken file")

    generation = generate(services(FakeWorker(), load=load), request())
    with pytest.raises(ModelUnavailable, match="broken file"):
        await generation.accepted()
    await generation.aclose()


@on_loop
async def test_a_worker_that_dies_gives_what_it_said_and_then_the_error() -> None:
    script: tuple[JobOutput | ShimmyError, ...] = (Accepted(2), Piece("so far", 2), WorkerDied("signal 9"))
    house = services(FakeWorker(script))
    generation = generate(house, request())
    events = aiter(generation)
    assert await anext(events) == Piece("so far", 2)
    with pytest.raises(WorkerDied, match="signal 9"):
        await anext(events)
    await generation.aclose()
    assert metric(house, 'shimmy_completion_tokens_total{model="tiny.q4-1"}') == 0


@on_loop
async def test_a_job_without_a_token_has_no_first_token() -> None:
    house = services(FakeWorker((Accepted(1), FINISHED)))
    assert await events_of(house) == [FINISHED]
    assert metric(house, 'shimmy_first_token_seconds_count{model="tiny.q4-1"}') == 0


@on_loop
async def test_the_first_token_is_counted_once() -> None:
    worker = FakeWorker((Accepted(1), Piece("a", 1)))
    house = services(worker)
    generation = generate(house, request())
    events = aiter(generation)
    assert await anext(events) == Piece("a", 1)
    stream = await worker.streams.get()
    stream.put(Piece("b", 1))
    assert await anext(events) == Piece("b", 1)
    stream.put(FINISHED)
    assert await anext(events) == FINISHED
    assert metric(house, 'shimmy_first_token_seconds_count{model="tiny.q4-1"}') == 1


@on_loop
async def test_closing_cancels_a_running_job_once() -> None:
    worker = FakeWorker((Accepted(1), Piece("a", 1)))
    generation = generate(services(worker), request())
    await generation.accepted()
    await generation.aclose()
    await generation.aclose()
    assert worker.cancelled.is_set()


@on_loop
async def test_closing_while_the_model_loads_submits_nothing_and_lets_the_load_go_on() -> None:
    loading, go_on = asyncio.Event(), asyncio.Event()

    async def load() -> None:
        loading.set()
        await go_on.wait()

    worker = FakeWorker(SCRIPT)
    house = services(worker, load=load)
    generation = generate(house, request())
    await loading.wait()
    waiting = asyncio.create_task(generation.accepted())
    await generation.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    await house.pool.ensure_ready(model())
    assert worker.requests == []


@on_loop
async def test_closing_while_the_worker_thinks_cancels_the_job() -> None:
    worker = FakeWorker()
    generation = generate(services(worker), request())
    await worker.streams.get()
    await generation.aclose()
    assert worker.cancelled.is_set()


@on_loop
async def test_a_caller_that_stops_waiting_does_not_stop_the_job() -> None:
    """As `asyncio.wait_for(generation.accepted(), …)` does between two pings."""
    worker = FakeWorker()
    generation = generate(services(worker), request())
    stream = await worker.streams.get()
    impatient = asyncio.create_task(generation.accepted())
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    stream.put(Accepted(7))
    assert await generation.accepted() == Accepted(7)
    assert not worker.cancelled.is_set()
    await generation.aclose()


@on_loop
async def test_a_refusal_nobody_waited_for_makes_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """The client may leave before anybody asked whether the job was accepted."""
    worker = FakeWorker()
    generation = generate(services(worker), request())
    stream = await worker.streams.get()
    stream.put(BadRequest("no"))
    with caplog.at_level(logging.ERROR):
        await asyncio.wait({generation._submission._streams})
        await generation.aclose()
        del generation, stream
        gc.collect()
    assert caplog.records == []


@on_loop
async def test_tokens_that_cannot_fit_are_refused_before_the_model_is_loaded() -> None:
    loads = 0

    async def load() -> None:
        nonlocal loads
        loads += 1

    worker = FakeWorker(SCRIPT)
    house = services(worker, load=load)
    for prompt in (TokenPrompt((1,) * 2048), TokenPrompt((1,) * 3_000_000)):
        generation = generate(house, replace(request(), prompt=prompt))
        with pytest.raises(ContextExceeded, match=f"the prompt has {len(prompt.tokens)} tokens.* is 2048 tokens"):
            await generation.accepted()
        await generation.aclose()
    with pytest.raises(ContextExceeded, match="`input` has 2049 tokens"):
        await embed(services(worker, load=load, embeddings="true"), EmbedRequest("tiny.q4-1", ((1,) * 2049,)))
    assert (loads, worker.requests) == (0, [])
    generation = generate(house, replace(request(), prompt=TokenPrompt((1,) * 2047)))
    await generation.accepted()
    await generation.aclose()


@on_loop
async def test_text_that_cannot_fit_is_refused_before_it_is_sent() -> None:
    worker = FakeWorker(SCRIPT)
    worker.facts = replace(worker.facts, longest_token_bytes=16)
    generation = generate(services(worker), replace(request(), prompt=TextPrompt("x" * 2048 * 16)))
    with pytest.raises(ContextExceeded, match="at least 2048 tokens"):
        await generation.accepted()
    await generation.aclose()
    assert worker.requests == []


@on_loop
async def test_jobs_of_one_request_reach_their_worker_together_and_each_may_leave() -> None:
    loading, go_on = asyncio.Event(), asyncio.Event()

    async def load() -> None:
        loading.set()
        await go_on.wait()

    worker = FakeWorker((Accepted(1), Piece("a", 1)))
    house = services(worker, load=load)
    generations = generate_all(house, [request()] * 3)
    await loading.wait()
    await generations[1].aclose()
    go_on.set()
    assert await generations[0].accepted() == await generations[2].accepted() == Accepted(1)
    assert len(worker.requests) == 3
    assert worker.cancelled_ids == [2]
    await generations[0].aclose()
    await generations[0].aclose()
    assert worker.cancelled_ids == [2, 1]
    assert await anext(generations[2]) == Piece("a", 1)
    await close(generations)
    assert worker.cancelled_ids == [2, 1, 3]


@on_loop
async def test_each_job_of_a_request_counts_for_the_queue() -> None:
    house = services(FakeWorker(SCRIPT), parallel=2, max_queue=2)
    refused = generate_all(house, [request()] * 5)
    with pytest.raises(Overloaded):
        await refused[0].accepted()
    await close(refused)
    taken = generate_all(house, [request()] * 4)
    assert await taken[3].accepted() == Accepted(12)
    await close(taken)
