"""Replies and streams of OpenAI's dialect: their shapes, their order, their bytes, and what ends them early."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest
from openai.types import Completion, CompletionChoice
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.model import Model as OpenAIModel

from shimmy import __version__
from shimmy.api import client_gone
from shimmy.api import event_stream as stream_module
from shimmy.api.app import create_app
from shimmy.errors import ContextExceeded, ModelUnavailable, WorkerDied
from shimmy.messages.event import Accepted, Piece, PromptProgress, QueuePlace
from shimmy.messages.model_info import LoadProgress, ModelDefaults
from shimmy.messages.request import ChatPrompt, Message, TextPrompt
from tests.fakes import FINISHED, SCRIPT, Call, FakeWorker, fetch, model, on_loop, services

CHAT = {"model": "tiny.q4-1", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "tiny.q4-1", "prompt": "hi"}
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 3,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 8},
}
TIMINGS = {
    "cache_n": 8,
    "prompt_n": 4,
    "prompt_ms": 8.0,
    "prompt_per_token_ms": 2.0,
    "prompt_per_second": 500.0,
    "predicted_n": 3,
    "predicted_ms": 30.0,
    "predicted_per_token_ms": 10.0,
    "predicted_per_second": 100.0,
}


@on_loop
async def test_a_chat_reply_has_openais_shape() -> None:
    worker = FakeWorker(SCRIPT)
    reply = await fetch(create_app(services(worker)), "POST", "/v1/chat/completions", CHAT | {"max_tokens": 7})

    assert reply.status == 200
    body = reply.json()
    ChatCompletion.model_validate(body, strict=True)
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    message = {"role": "assistant", "content": 'Hello "é"\n', "refusal": None}
    assert body == {
        "object": "chat.completion",
        "model": "tiny.q4-1",
        "system_fingerprint": f"shimmy-{__version__}",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
        "timings": TIMINGS,
    }
    assert worker.requests[0].prompt == ChatPrompt((Message("user", "hi"),))
    assert worker.requests[0].n_predict == 7


@on_loop
async def test_a_completion_reply_has_openais_shape() -> None:
    worker = FakeWorker(SCRIPT)
    body = (await fetch(create_app(services(worker)), "POST", "/v1/completions", TEXT)).json()

    Completion.model_validate(body, strict=True)
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": 'Hello "é"\n', "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"] == USAGE
    assert body["timings"] == TIMINGS
    assert worker.requests[0].prompt == TextPrompt("hi")


@on_loop
async def test_a_chat_stream_is_role_content_finish_done() -> None:
    app = create_app(services(FakeWorker(SCRIPT)))
    reply = await fetch(app, "POST", "/v1/chat/completions", CHAT | {"stream": True})

    assert reply.status == 200
    assert reply.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    *chunks, done = reply.chunks()
    assert done == "[DONE]"
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        assert "usage" not in chunk
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": 'Hello "é"\n'},  # the pieces were there before anybody read them, so they came joined
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert ["timings" in chunk for chunk in chunks] == [False, False, True]
    assert chunks[-1]["timings"] == TIMINGS


@on_loop
async def test_usage_is_in_a_chunk_of_its_own_before_done() -> None:
    app = create_app(services(FakeWorker(SCRIPT)))
    asked = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage_chunk, done = (await fetch(app, "POST", "/v1/chat/completions", asked)).chunks()

    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * 3
    ChatCompletionChunk.model_validate(usage_chunk, strict=True)
    assert usage_chunk["choices"] == []
    assert usage_chunk["usage"] == USAGE
    assert usage_chunk["timings"] == TIMINGS


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", TEXT)])
@on_loop
async def test_a_stream_tells_its_place_and_how_much_is_read_where_that_is_asked_for(
    path: str, body: dict[str, Any], usage: bool
) -> None:
    read = PromptProgress(12, 4, 4, 0.0), PromptProgress(12, 4, 12, 20.4)
    worker = FakeWorker([Accepted(12), QueuePlace(2), QueuePlace(0), *read, Piece("Hello", 1), FINISHED])
    asked = body | {"stream": True, "return_progress": True, "stream_options": {"include_usage": usage}}
    *chunks, _ = (await fetch(create_app(services(worker)), "POST", f"/v1/{path}", asked)).chunks()

    waits = [chunk for chunk in chunks if {"queue_position", "prompt_progress"} & chunk.keys()]
    assert [chunk.get("queue_position") for chunk in waits] == [1, None, None]  # the places came unread
    assert [chunk.get("prompt_progress") for chunk in waits] == [
        None,
        {"total": 12, "cache": 4, "processed": 4, "time_ms": 0},
        {"total": 12, "cache": 4, "processed": 12, "time_ms": 20},
    ]
    assert all("usage" in chunk for chunk in waits) == usage
    said: dict[str, object] = {"delta": {}} if body is CHAT else {"text": ""}
    silent = {"index": 0, "logprobs": None, "finish_reason": None, **said}
    assert [chunk["choices"] for chunk in waits] == [[silent]] * 3
    for chunk in waits if body is CHAT else ():
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert worker.requests[0].tells_progress


@pytest.mark.parametrize("fields", [{"return_progress": True}, {"stream": True}, {"return_progress": None}])
@on_loop
async def test_a_job_tells_no_progress_unless_a_stream_asks_for_it(fields: dict[str, Any]) -> None:
    worker = FakeWorker(SCRIPT)
    assert (await fetch(create_app(services(worker)), "POST", "/v1/chat/completions", CHAT | fields)).status == 200
    assert not worker.requests[0].tells_progress


@on_loop
async def test_a_completion_stream_has_no_role() -> None:
    app = create_app(services(FakeWorker(SCRIPT)))
    *chunks, done = (await fetch(app, "POST", "/v1/completions", TEXT | {"stream": True})).chunks()

    assert done == "[DONE]"
    for chunk in chunks:
        CompletionChoice.model_validate(chunk["choices"][0] | {"finish_reason": "stop"}, strict=True)
        assert chunk["object"] == "text_completion"
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ['Hello "é"\n', ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]


@on_loop
async def test_each_step_is_one_write_and_the_end_is_one() -> None:
    worker = FakeWorker()
    call = Call(
        create_app(services(worker)), "POST", "/v1/chat/completions", json.dumps(CHAT | {"stream": True}).encode()
    )
    task = call.start()
    job = await worker.streams.get()
    job.put(Accepted(12))
    assert b'"role":"assistant"' in await call.write()

    for text in ("a", "\u2028 \x00", "😀"):
        job.put(Piece(text, 1))
        event = await call.write()
        assert event.startswith(b"data: {")
        assert event.endswith(b"}\n\n")
        assert json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"] == {"content": text}
    job.put(Piece("", 1))  # text held back: nothing to say
    job.put(FINISHED)
    end = await call.write()
    assert end.count(b"data: ") == 2
    assert end.endswith(b"data: [DONE]\n\n")
    await task
    assert call.sent.empty()
    assert not worker.cancelled.is_set()


@pytest.mark.parametrize("stream", [True, False])
@on_loop
async def test_a_refusal_is_a_plain_error_whether_streamed_or_not(stream: bool) -> None:
    worker = FakeWorker([ContextExceeded("the prompt has 9000 tokens, the context 8192", param="messages")])
    reply = await fetch(create_app(services(worker)), "POST", "/v1/chat/completions", CHAT | {"stream": stream})

    assert reply.status == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert reply.json()["error"]["param"] == "messages"


@on_loop
async def test_a_model_that_cannot_be_loaded_is_a_503_with_retry_after() -> None:
    async def fail() -> None:
        raise ModelUnavailable("`tiny.q4-1` could not be loaded: bad magic")

    reply = await fetch(create_app(services(load=fail)), "POST", "/v1/chat/completions", CHAT | {"stream": True})
    assert reply.status == 503
    assert reply.headers[b"retry-after"].isdigit()
    assert reply.json()["error"]["code"] == "model_unavailable"


@on_loop
async def test_an_unknown_model_is_a_404_with_close_names() -> None:
    reply = await fetch(create_app(services()), "POST", "/v1/chat/completions", CHAT | {"model": "tony.q4-1"})
    assert reply.status == 404
    assert reply.json()["error"]["code"] == "model_not_found"
    assert "tiny.q4-1" in reply.json()["error"]["message"]


@on_loop
async def test_a_worker_that_dies_mid_stream_ends_it_with_an_error_event() -> None:
    worker = FakeWorker([Accepted(12), Piece("Hel", 1), WorkerDied("the worker ended (signal 9)")])
    reply = await fetch(create_app(services(worker)), "POST", "/v1/chat/completions", CHAT | {"stream": True})

    *_, content, error = reply.chunks()
    assert content["choices"][0]["delta"] == {"content": "Hel"}
    assert error == {
        "error": {
            "message": "the worker ended (signal 9)",
            "type": "server_error",
            "param": None,
            "code": "worker_died",
        }
    }


@on_loop
async def test_the_openai_client_raises_on_an_error_event() -> None:
    worker = FakeWorker([Accepted(12), Piece("Hel", 1), WorkerDied("the worker ended (signal 9)")])
    transport = httpx2.ASGITransport(app=create_app(services(worker)))
    async with openai.AsyncOpenAI(
        base_url="http://shimmy/v1", api_key="any", http_client=httpx2.AsyncClient(transport=transport)
    ) as client:
        stream = await client.chat.completions.create(
            model="tiny.q4-1", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(openai.APIError, match="signal 9") as caught:
            async for _ in stream:
                pass
    assert caught.value.code == "worker_died"


@on_loop
async def test_a_worker_that_dies_before_a_whole_reply_is_a_502() -> None:
    worker = FakeWorker([Accepted(12), Piece("Hel", 1), WorkerDied("the worker ended (signal 9)")])
    reply = await fetch(create_app(services(worker)), "POST", "/v1/completions", TEXT)
    assert reply.status == 502
    assert reply.json()["error"]["code"] == "worker_died"


@pytest.mark.parametrize("has_begun", [True, False])
@pytest.mark.parametrize("stream", [True, False])
@on_loop
async def test_a_client_that_leaves_cancels_its_job(stream: bool, has_begun: bool) -> None:
    worker = FakeWorker()
    all_services = services(worker)
    call = Call(
        create_app(all_services), "POST", "/v1/chat/completions", json.dumps(CHAT | {"stream": stream}).encode()
    )
    task = call.start()
    job = await worker.streams.get()
    if has_begun:
        job.put(Accepted(12))
        job.put(Piece("Hel", 1))
        if stream:
            await call.write()
            await call.write()
    call.leave()
    await task

    assert worker.cancelled.is_set()
    status = "200" if stream and has_begun else "499"
    assert f'shimmy_requests_total{{route="/v1/chat/completions",status="{status}"}} 1' in all_services.metrics.render()


@on_loop
async def test_a_client_that_leaves_while_the_model_loads_gets_no_job() -> None:
    loads, loaded = asyncio.Event(), asyncio.Event()

    async def load() -> None:
        loads.set()
        await loaded.wait()

    worker = FakeWorker()
    all_services = services(worker, load=load)
    call = Call(create_app(all_services), "POST", "/v1/chat/completions", json.dumps(CHAT | {"stream": True}).encode())
    task = call.start()
    await loads.wait()
    call.leave()
    await task
    loaded.set()
    await all_services.pool.ensure_ready(model())  # the load goes on for others
    assert worker.requests == []


@on_loop
async def test_a_cancelled_handler_cancels_its_job() -> None:
    worker = FakeWorker()
    call = Call(
        create_app(services(worker)), "POST", "/v1/chat/completions", json.dumps(CHAT | {"stream": True}).encode()
    )
    task = call.start()
    await worker.streams.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert worker.cancelled.is_set()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "ACCEPT_WAIT_S", 0.001)
    monkeypatch.setattr(client_gone, "PING_S", 0.001)


@pytest.mark.usefixtures("_impatient")
@on_loop
async def test_a_stream_pings_while_its_model_loads_and_while_its_prompt_runs() -> None:
    loaded = asyncio.Event()
    worker = FakeWorker()

    async def load() -> None:
        await loaded.wait()

    call = Call(
        create_app(services(worker, load=load)),
        "POST",
        "/v1/chat/completions",
        json.dumps(CHAT | {"stream": True}).encode(),
    )
    task = call.start()
    for _ in range(3):
        assert await call.write() == b": ping\n\n"
    loaded.set()
    job = await worker.streams.get()
    job.put(Accepted(12))
    while (event := await call.write()) == b": ping\n\n":
        pass
    assert b'"role":"assistant"' in event
    for _ in range(3):  # the prompt runs
        assert await call.write() == b": ping\n\n"
    job.put(Piece("Hello", 1))
    job.put(FINISHED)
    await task
    rest = [call.sent.get_nowait()["body"] for _ in range(call.sent.qsize())]
    assert rest[-1].endswith(b"data: [DONE]\n\n")


@pytest.mark.usefixtures("_impatient")
@on_loop
async def test_a_stream_tells_how_far_the_conversion_of_its_model_is() -> None:
    loaded = asyncio.Event()

    async def load() -> None:
        await loaded.wait()

    all_services = services(FakeWorker(SCRIPT), load=load)
    call = Call(create_app(all_services), "POST", "/v1/completions", json.dumps(TEXT | {"stream": True}).encode())
    task = call.start()
    assert await call.write() == b": ping\n\n"
    runtime = all_services.pool.runtime(model().name)
    assert runtime is not None
    runtime.progress = LoadProgress(0.425)
    while (event := await call.write()) == b": ping\n\n":
        pass
    assert event == b": the model is being converted, 42 %\n\n"
    runtime.progress = LoadProgress(0.1, 1000)
    while (event := await call.write()) in (b": ping\n\n", b": the model is being converted, 42 %\n\n"):
        pass
    assert event == b": the model is being read, 10 %\n\n"
    loaded.set()
    await task


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.usefixtures("_impatient")
@on_loop
async def test_a_model_that_fails_to_load_after_the_first_ping_is_an_error_event(n: int) -> None:
    fails = asyncio.Event()

    async def load() -> None:
        await fails.wait()
        raise ModelUnavailable("no room")

    call = Call(
        create_app(services(load=load)),
        "POST",
        "/v1/chat/completions",
        json.dumps(CHAT | {"stream": True, "n": n}).encode(),
    )
    task = call.start()
    assert await call.write() == b": ping\n\n"
    fails.set()
    await task
    last: Any = None
    while not call.sent.empty():
        last = call.sent.get_nowait()
    assert json.loads(last["body"].removeprefix(b"data: "))["error"]["code"] == "model_unavailable"
    assert last["more_body"] is False


@on_loop
async def test_models_are_listed_and_found_by_any_of_their_names() -> None:
    app = create_app(services(models=[model("b.q4-1"), model("a.q8-0")]))
    listing = (await fetch(app, "GET", "/v1/models")).json()
    assert listing["object"] == "list"
    assert [entry["id"] for entry in listing["data"]] == ["a.q8-0", "b.q4-1"]

    reply = await fetch(app, "GET", "/v1/models/B:Q4_1")
    assert reply.status == 200
    OpenAIModel.model_validate(reply.json(), strict=True)
    assert reply.json()["id"] == "b.q4-1"
    assert reply.json()["created"] == 1_700_000_000
    assert reply.json()["meta"] == {
        "architecture": "llama",
        "quantization": "Q4_1",
        "n_params": 135,
        "n_ctx_train": 2048,
        "size": 1000,
    }
    assert (await fetch(app, "GET", "/v1/models/org/none:x")).json()["error"]["code"] == "model_not_found"


@on_loop
async def test_what_a_model_brings_reaches_its_worker() -> None:
    worker = FakeWorker(SCRIPT)
    brought = ModelDefaults((("temperature", 0.3),), n_predict=9, stop=("END",), system="Be brief.")
    app = create_app(services(worker, models=[replace(model(), defaults=brought)]))
    messages = [{"role": "user", "content": "hi"}]
    await fetch(app, "POST", "/v1/chat/completions", {"model": model().name, "messages": messages})
    await fetch(app, "POST", "/v1/completions", {"model": model().name, "prompt": "hi"})
    chat, text = worker.requests
    assert isinstance(chat.prompt, ChatPrompt)
    assert [turn.content for turn in chat.prompt.messages] == ["Be brief.", "hi"]
    assert text.prompt == TextPrompt("hi")
    for request in (chat, text):
        assert (request.sampling.temperature, request.n_predict, request.stop) == (0.3, 9, ("END",))
    rendered = await fetch(app, "POST", "/apply-template", {"messages": messages})
    assert rendered.json() == {"prompt": "<system>Be brief.<user>hi"}
