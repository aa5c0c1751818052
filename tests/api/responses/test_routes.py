"""Responses: their shape, their events, what is remembered of them, and what is refused."""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from openai.types.responses.input_token_count_response import InputTokenCountResponse
from openai.types.responses.response_item_list import ResponseItemList
from pydantic import TypeAdapter

from shimmy.api.app import create_app
from shimmy.api.http_exchange import ASGIApp
from shimmy.api.responses.items import sealed
from shimmy.api.responses.store import ResponseStore
from shimmy.errors import ContextExceeded, ShimmyError, WorkerDied
from shimmy.messages.event import Accepted, Candidate, FinishReason, JobOutput, Piece, TokenLogprob
from shimmy.messages.model_info import ModelDefaults
from shimmy.messages.reply import ReplyFormat, ToolFormat
from shimmy.messages.request import ChatPrompt, Grammar, GrammarKind, Message, Tool, ToolCall, ToolChoice
from tests.fakes import FINISHED, SCRIPT, Call, FakeWorker, Reply, fetch, model, on_loop, services

adapter = cache(TypeAdapter)  # to make one takes 50 ms

BODY = {"model": "tiny.q4-1", "input": "hi"}
USAGE = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 15,
}
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
FORMAT = ReplyFormat(
    thinking=("<think>", "</think>"), tools=ToolFormat(call_start="<tool_call>", call_end="</tool_call>")
)
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


def said(*texts: str, reply_format: ReplyFormat = FORMAT) -> list[JobOutput | ShimmyError]:
    """A job that says `texts`, a token each, and ends by itself."""
    return [Accepted(12, reply_format), *(Piece(text, 1) for text in texts), FINISHED]


async def create(app: ASGIApp, **fields: object) -> Reply:
    return await fetch(app, "POST", "/v1/responses", BODY | fields)


async def created(app: ASGIApp, **fields: object) -> dict[str, Any]:
    reply = await create(app, **fields)
    assert reply.status == 200, reply.body
    Response.model_validate(reply.json(), strict=True)
    return reply.json()


async def streamed(app: ASGIApp, **fields: object) -> list[dict[str, Any]]:
    """The events of a stream, checked for what all streams have in common."""
    reply = await create(app, stream=True, **fields)
    assert reply.status == 200
    assert reply.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    *frames, nothing = reply.body.decode().split("\n\n")
    assert not nothing
    events = []
    for number, frame in enumerate(frames):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        adapter(ResponseStreamEvent).validate_python(event, strict=True)
        events.append(event)
    return events


def told_in(body: bytes) -> list[dict[str, Any]]:
    """The events in the bytes of a stream."""
    return [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: ")]


def told(events: Sequence[dict[str, Any]]) -> list[str]:
    """The types of events, several deltas in a row as one."""
    kinds = [event["type"].removeprefix("response.") for event in events]
    return [
        kind for index, kind in enumerate(kinds)
        if not (index and kind.endswith("delta") and kinds[index - 1] == kind)
    ]  # fmt: skip


def error_of(reply: Reply) -> tuple[int, str, str | None]:
    error = reply.json()["error"]
    return reply.status, error["code"], error["param"]


@on_loop
async def test_a_response_has_openais_shape() -> None:
    worker = FakeWorker(SCRIPT)
    body = await created(create_app(services(worker)), max_output_tokens=7, metadata={"a": "b"}, temperature=0.5)

    assert body.pop("id").startswith("resp_")
    assert isinstance(body.pop("created_at"), int)
    assert isinstance(body.pop("completed_at"), int)
    (message,) = body.pop("output")
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": 'Hello "é"\n', "annotations": [], "logprobs": []}],
    }
    assert body == {
        "object": "response",
        "model": "tiny.q4-1",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "background": False,
        "instructions": None,
        "max_output_tokens": 7,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 0.95,
        "truncation": "disabled",
        "usage": USAGE,
        "user": None,
    }
    assert worker.requests[0].prompt == ChatPrompt((Message("user", "hi"),))
    assert worker.requests[0].n_predict == 7


@on_loop
async def test_a_stream_of_text_has_openais_events_in_their_order() -> None:
    worker = FakeWorker(said("Hel", "lo"))
    *begun, last = await streamed(create_app(services(worker)))

    assert told([*begun, last]) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert begun[0]["response"] == begun[1]["response"]
    assert begun[0]["response"]["status"] == "in_progress"
    assert begun[0]["response"]["output"] == []
    assert begun[0]["response"]["usage"] is None
    assert begun[2]["item"] | {"id": ""} == {
        "id": "", "type": "message", "role": "assistant", "status": "in_progress", "content": [],
    }  # fmt: skip
    assert begun[3]["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert "".join(event["delta"] for event in begun if "delta" in event) == "Hello"
    done = last["response"]
    assert done["id"] == begun[0]["response"]["id"]
    assert done["status"] == "completed"
    assert done["usage"] == USAGE
    assert done["output"] == [begun[-1]["item"]]
    assert {event["item_id"] for event in begun if "item_id" in event} == {begun[2]["item"]["id"]}


@on_loop
async def test_reasoning_text_and_calls_are_items_of_their_own() -> None:
    texts = ("<think>", "hm, ", "yes", "</think>", "\n\n", "I look.", "\n", CALL, "\n", CALL)
    app = create_app(services(FakeWorker(said(*texts))))
    whole = await created(app, tools=[WEATHER])
    reasoning, message, call, other = whole["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm, yes"}]
    assert reasoning["summary"] == []
    assert "encrypted_content" not in reasoning
    assert message["content"][0]["text"].strip() == "I look."
    assert (call["name"], json.loads(call["arguments"]), call["status"]) == ("weather", {"city": "Rome"}, "completed")
    assert call["call_id"] != other["call_id"]
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] in (1, 2, 3)

    worker = FakeWorker()
    stream = Call(create_app(services(worker)), "POST", "/v1/responses", json.dumps(BODY | {"stream": True}).encode())
    task = stream.start()
    job = await worker.streams.get()
    for event in said(*texts):
        job.put(event)
        await asyncio.sleep(0)
    await task
    events = [json.loads(line[6:]) for line in stream.reply().body.decode().split("\n") if line.startswith("data: ")]
    item = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert told(events) == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
        *item, *item, "completed",
    ]  # fmt: skip
    for event in events:
        adapter(ResponseStreamEvent).validate_python(event, strict=True)
    assert [event["output_index"] for event in events if event["type"] == "response.output_item.added"] == [0, 1, 2, 3]
    output = events[-1]["response"]["output"]
    assert [without_ids(item) for item in output] == [without_ids(item) for item in whole["output"]]


def without_ids(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}


@on_loop
async def test_a_model_that_says_nothing_says_an_empty_message() -> None:
    app = create_app(services(FakeWorker(said())))
    (message,) = (await created(app))["output"]
    assert message["content"][0]["text"] == ""
    assert "output_text.delta" not in told(await streamed(app))


@on_loop
async def test_a_response_that_hits_the_limit_is_incomplete() -> None:
    limited: list[JobOutput | ShimmyError] = [
        Accepted(12),
        Piece("Hel", 1),
        replace(FINISHED, reason=FinishReason.LENGTH),
    ]
    app = create_app(services(FakeWorker(limited)))
    body = await created(app)
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["completed_at"] is None
    assert body["output"][0]["status"] == "incomplete"
    assert (await streamed(app))[-1]["type"] == "response.incomplete"


@on_loop
async def test_a_worker_that_dies_fails_the_response() -> None:
    worker = FakeWorker([Accepted(12), Piece("Hel", 1), WorkerDied("the worker ended (signal 9)")])
    app = create_app(services(worker))
    events = await streamed(app)
    assert events[-1]["type"] == "response.failed"
    failed = events[-1]["response"]
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": "server_error", "message": "the worker ended (signal 9)"}
    assert failed["output"][0]["status"] == "incomplete"
    assert failed["output"][0]["content"][0]["text"] == "Hel"
    assert failed["output"][0] == events[-2]["item"]
    assert (await fetch(app, "GET", f"/v1/responses/{failed['id']}")).json() == failed
    assert error_of(await create(app)) == (502, "worker_died", None)


@pytest.mark.parametrize("texts", [("é", ""), ("é",), ("H", "é", ""), ("H", "é")], ids=repr)
@on_loop
async def test_what_the_limit_leaves_of_a_character_has_no_log_probability(texts: tuple[str, ...]) -> None:
    """The worker's last two pieces may come as one."""
    *before, last = [bytes([byte]) for byte in "".join(texts).encode()] + [b"\xe6"]
    tokens = [TokenLogprob(Candidate(1, data, -0.5), ()) for data in (*before, last)]
    pieces, n_taken = [], 0
    for text in texts:
        n_tokens = len(text.encode()) or 1
        pieces.append(Piece(text, n_tokens, tuple(tokens[n_taken : n_taken + n_tokens])))
        n_taken += n_tokens
    if texts[-1]:
        pieces[-1] = Piece(texts[-1], pieces[-1].n_tokens + 1, (*pieces[-1].logprobs, tokens[-1]))
    cut = replace(FINISHED, reason=FinishReason.LENGTH)
    body = await created(create_app(services(FakeWorker([Accepted(12), *pieces, cut]))), top_logprobs=0)
    (part,) = body["output"][0]["content"]
    assert part["text"] == "".join(texts)
    assert [bytes(token["bytes"]) for token in part["logprobs"]] == before


@pytest.mark.parametrize("stream", [True, False])
@on_loop
async def test_a_refusal_of_the_worker_is_a_plain_error_whether_streamed_or_not(stream: bool) -> None:
    worker = FakeWorker([ContextExceeded("the prompt has 9000 tokens, the context 8192")])
    reply = await create(create_app(services(worker)), stream=stream)
    assert error_of(reply) == (400, "context_length_exceeded", None)


@on_loop
async def test_log_probabilities_are_those_of_the_text() -> None:
    def token(text: str) -> TokenLogprob:
        return TokenLogprob(Candidate(1, text.encode(), -0.5), (Candidate(2, b"\xff", float("-inf")),))

    pieces = [Piece(text, 1, (token(text),)) for text in ("<think>", "hm", "</think>", "Hel", "lo")]
    script: list[JobOutput | ShimmyError] = [Accepted(12, FORMAT), *pieces, FINISHED]
    worker = FakeWorker(script)
    app = create_app(services(worker))
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    body = await created(app, **fields)
    found = body["output"][1]["content"][0]["logprobs"]
    assert found == [
        {
            "token": text, "bytes": [*text.encode()], "logprob": -0.5,
            "top_logprobs": [{"token": "\N{REPLACEMENT CHARACTER}", "bytes": [255], "logprob": -9999.0}],
        }
        for text in ("Hel", "lo")
    ]  # fmt: skip
    assert worker.requests[0].n_logprobs == 1
    events = await streamed(app, **fields)
    deltas = [entry for event in events if event["type"] == "response.output_text.delta" for entry in event["logprobs"]]
    assert deltas == found
    await created(app, include=["message.output_text.logprobs"])
    assert worker.requests[-1].n_logprobs == 0
    await created(app)
    assert worker.requests[-1].n_logprobs is None


@on_loop
async def test_sealed_reasoning_comes_back() -> None:
    worker = FakeWorker(said("<think>hm</think>yes"))
    app = create_app(services(worker))
    body = await created(app, include=["reasoning.encrypted_content"], store=False)
    reasoning = body["output"][0]
    assert reasoning["encrypted_content"] == sealed("hm")
    del reasoning["content"]
    await created(app, input=[{"role": "user", "content": "hi"}, *body["output"], {"role": "user", "content": "so?"}])
    assert messages(worker)[1] == Message("assistant", "yes", reasoning_content="hm")


def messages(worker: FakeWorker) -> tuple[Message, ...]:
    """Of the last job."""
    prompt = worker.requests[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages


@on_loop
async def test_a_response_is_remembered_until_it_is_deleted() -> None:
    app = create_app(services(FakeWorker(SCRIPT)))
    body = await created(app)
    path = f"/v1/responses/{body['id']}"
    assert (await fetch(app, "GET", path)).json() == body
    streamed_response = (await streamed(app))[-1]["response"]
    assert (await fetch(app, "GET", f"/v1/responses/{streamed_response['id']}")).json() == streamed_response
    cancelled = await fetch(app, "POST", f"{path}/cancel")
    assert cancelled.status == 400
    assert "Cannot cancel a synchronous response" in cancelled.json()["error"]["message"]
    assert error_of(await fetch(app, "GET", f"{path}?stream=true")) == (400, "invalid_value", "stream")

    assert (await fetch(app, "DELETE", path)).json() == {"id": body["id"], "object": "response", "deleted": True}
    for method, gone in (("GET", path), ("DELETE", path), ("POST", f"{path}/cancel"), ("GET", f"{path}/input_items")):
        reply = await fetch(app, method, gone)
        assert error_of(reply) == (404, "not_found", None)
        assert reply.json()["error"]["message"] == f"Response with id '{body['id']}' not found."


@on_loop
async def test_a_response_that_is_not_to_be_stored_is_not() -> None:
    app = create_app(services(FakeWorker(SCRIPT)))
    body = await created(app, store=False)
    assert body["store"] is False
    assert (await fetch(app, "GET", f"/v1/responses/{body['id']}")).status == 404
    assert error_of(await create(app, previous_response_id=body["id"])) == (
        404, "previous_response_not_found", "previous_response_id",
    )  # fmt: skip


@on_loop
async def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    worker = FakeWorker()
    app = create_app(services(worker))
    call = Call(app, "POST", "/v1/responses", json.dumps(BODY | {"stream": True}).encode())
    task = call.start()
    job = await worker.streams.get()
    job.put(Accepted(12))
    created_event = json.loads((await call.write()).split(b"\n")[1].removeprefix(b"data: "))
    call.leave()
    await task
    assert worker.cancelled.is_set()
    assert (await fetch(app, "GET", f"/v1/responses/{created_event['response']['id']}")).status == 404


@on_loop
async def test_a_conversation_goes_on_from_a_response() -> None:
    worker = FakeWorker(said("I look.", CALL))
    app = create_app(services(worker))
    first = await created(app, instructions="be brief", tools=[WEATHER])
    call_id = first["output"][1]["call_id"]
    worker.script = said("<think>rain</think>", "Rain.")
    output = {"type": "function_call_output", "call_id": call_id, "output": "rain"}
    second = await created(app, previous_response_id=first["id"], input=[output])
    assert second["previous_response_id"] == first["id"]
    assert messages(worker) == (
        Message("user", "hi"),  # the instructions of the first are not carried over
        Message("assistant", "I look.", tool_calls=(ToolCall(call_id, "weather", '{"city": "Rome"}'),)),
        Message("tool", "rain", name="weather", tool_call_id=call_id),
    )
    await created(app, previous_response_id=second["id"], input="and now?", instructions="be kind")
    assert [(turn.role, turn.content) for turn in messages(worker)] == [
        ("system", "be kind"), ("user", "hi"), ("assistant", "I look."), ("tool", "rain"), ("assistant", "Rain."),
        ("user", "and now?"),
    ]  # fmt: skip
    await fetch(app, "DELETE", f"/v1/responses/{first['id']}")
    reply = await create(app, previous_response_id=second["id"])
    assert error_of(reply) == (404, "previous_response_not_found", "previous_response_id")
    assert first["id"] in reply.json()["error"]["message"]


@on_loop
async def test_a_conversation_is_no_larger_than_a_body_may_be() -> None:
    app = create_app(services(FakeWorker(SCRIPT), max_body_mb=1))
    first = await created(app, input="x" * 600_000)
    second = await created(app, input="y" * 500_000, previous_response_id=first["id"])
    reply = await create(app, previous_response_id=second["id"])
    assert error_of(reply) == (413, "payload_too_large", "previous_response_id")


@on_loop
async def test_an_item_is_found_by_reference() -> None:
    worker = FakeWorker(SCRIPT)
    app = create_app(services(worker))
    first = await created(app)
    listed = (await fetch(app, "GET", f"/v1/responses/{first['id']}/input_items")).json()
    asked, answered = listed["data"][0]["id"], first["output"][0]["id"]
    references = [{"type": "item_reference", "id": asked}, {"id": answered}, {"role": "user", "content": "so?"}]
    await created(app, input=references)
    assert messages(worker) == (Message("user", "hi"), Message("assistant", 'Hello "é"\n'), Message("user", "so?"))
    reply = await create(app, input=[{"type": "item_reference", "id": "msg_none"}])
    assert error_of(reply) == (404, "not_found", "input")


@on_loop
async def test_items_by_reference_are_no_larger_than_a_body_may_be() -> None:
    app = create_app(services(FakeWorker(SCRIPT), max_body_mb=1))
    first = await created(app, input="x" * 100_000)
    (item,) = (await fetch(app, "GET", f"/v1/responses/{first['id']}/input_items")).json()["data"]
    reference = {"type": "item_reference", "id": item["id"]}
    await created(app, input=[reference] * 8)
    reply = await create(app, input=[reference] * 5_000)  # else 500 MB would be written down
    assert error_of(reply) == (413, "payload_too_large", "input")


@on_loop
async def test_input_items_are_listed_in_pages() -> None:
    app = create_app(services(FakeWorker(SCRIPT)))
    first = await created(app, input=[{"role": "user", "content": str(number)} for number in range(3)])
    second = await created(app, input="last", previous_response_id=first["id"])

    async def listed(query: str) -> tuple[list[str], dict[str, Any]]:
        page = (await fetch(app, "GET", f"/v1/responses/{second['id']}/input_items{query}")).json()
        ResponseItemList.model_validate(page, strict=True)
        for item in page["data"]:
            adapter(ResponseItem).validate_python(item, strict=True)
        assert [page["first_id"], page["last_id"]] == [page["data"][0]["id"], page["data"][-1]["id"]]
        return [item["content"][0]["text"] for item in page["data"]], page

    assert (await listed(""))[0] == ["last", 'Hello "é"\n', "2", "1", "0"]
    texts, page = await listed("?order=asc&limit=2")
    assert (texts, page["has_more"]) == (["0", "1"], True)
    texts, page = await listed(f"?order=asc&after={page['last_id']}")
    assert (texts, page["has_more"]) == (["2", 'Hello "é"\n', "last"], False)
    for query, param in (("order=up", "order"), ("limit=0", "limit"), ("limit=x", "limit"), ("after=x", "after")):
        reply = await fetch(app, "GET", f"/v1/responses/{second['id']}/input_items?{query}")
        assert error_of(reply) == (400, "invalid_value", param)


@on_loop
async def test_old_responses_are_forgotten() -> None:
    app = create_app(services(FakeWorker(SCRIPT)))
    app.state.responses = ResponseStore(n_max=2)
    ids = [(await created(app))["id"] for _ in range(3)]
    assert [(await fetch(app, "GET", f"/v1/responses/{name}")).status for name in ids] == [404, 200, 200]


@on_loop
async def test_input_tokens_are_the_workers_count() -> None:
    worker = FakeWorker([Accepted(37)])
    app = create_app(services(worker))
    reply = await fetch(
        app, "POST", "/v1/responses/input_tokens", BODY | {"instructions": "be brief", "tools": [WEATHER]}
    )
    assert reply.json() == {"object": "response.input_tokens", "input_tokens": 37}
    InputTokenCountResponse.model_validate(reply.json(), strict=True)
    assert worker.cancelled.is_set()  # the job is not run
    assert worker.requests[0].n_predict == 0
    prompt = worker.requests[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert len(prompt.messages) == 2
    assert len(prompt.tools) == 1


@on_loop
async def test_every_field_arrives() -> None:
    worker = FakeWorker(SCRIPT)
    own = model()
    app = create_app(services(worker, models=[replace(own, defaults=ModelDefaults(system="own", stop=("END",)))]))
    body = await created(
        app,
        instructions="be brief",
        tools=[WEATHER, {"type": "function", "name": "time", "parameters": None}],
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
        parallel_tool_calls=False,
        reasoning={"effort": "high", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "a", "schema": {"type": "array"}, "strict": True}},
        truncation="disabled", background=False, service_tier="auto", user="me", max_tool_calls=3,
        top_p=0.5, top_k=3, seed=7, stop=["STOP"], cache_prompt=False,
    )  # fmt: skip
    request = worker.requests[0]
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.messages == (Message("system", "be brief"), Message("user", "hi"))
    assert request.prompt.tools == (
        Tool("weather", "The weather", json.dumps(WEATHER["parameters"], separators=(",", ":")), strict=True),
    )
    assert request.prompt.tool_choice == ToolChoice(required=True, parallel=False)
    assert json.loads(request.prompt.template_arguments)["reasoning_effort"] == "high"
    assert request.grammar == Grammar(GrammarKind.JSON_SCHEMA, '{"type":"array"}')
    assert request.constrained_by == "text.format"
    assert (request.sampling.top_p, request.sampling.top_k, request.sampling.seed) == (0.5, 3, 7)
    assert request.stop == ("STOP",)
    assert not request.cache_prompt
    assert body["text"]["format"]["name"] == "a"
    assert body["tool_choice"]["type"] == "allowed_tools"
    assert body["tools"][0] == WEATHER
    assert body["reasoning"] == {"effort": "high", "summary": "auto"}
    assert (body["user"], body["max_tool_calls"], body["parallel_tool_calls"]) == ("me", 3, False)


@on_loop
async def test_what_is_left_to_the_model_is_told_in_the_response() -> None:
    warned = Accepted(12, warnings=("tools: `f`: `not` at `#` is not enforced",))
    app = create_app(services(FakeWorker([warned, Piece("a", 1), FINISHED])))
    assert (await created(app))["warnings"] == [*warned.warnings]
    events = await streamed(app)
    assert events[0]["response"]["warnings"] == events[-1]["response"]["warnings"] == [*warned.warnings]


@on_loop
async def test_options_that_ask_for_a_manner_are_taken() -> None:
    worker = FakeWorker(SCRIPT)
    body = await created(
        create_app(services(worker)),
        text={"verbosity": "low"},
        truncation="auto",
        stream_options={"include_obfuscation": True},
        include=["web_search_call.action.sources", "file_search_call.results", "computer_call_output.output.image_url"],
        context_management=[{"type": "compaction", "compact_threshold": 1000}],
    )
    assert body["text"]["verbosity"] == "low"
    assert body["truncation"] == "auto"
    prompt = worker.requests[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert json.loads(prompt.template_arguments) == {"verbosity": "low"}


@pytest.mark.parametrize("field", ["summary", "generate_summary"])
@pytest.mark.parametrize("summary", ["auto", "concise", "detailed"])
@on_loop
async def test_a_summary_is_the_reasoning_where_one_is_asked_for(field: str, summary: str) -> None:
    worker = FakeWorker(said("<think>", "hm, ", "yes", "</think>", "Yes."))
    app = create_app(services(worker))
    events = await streamed(app, reasoning={field: summary})
    assert told(events)[2:12] == [
        "output_item.added", "content_part.added", "reasoning_summary_part.added",
        "reasoning_text.delta", "reasoning_summary_text.delta",
        "reasoning_text.done", "content_part.done",
        "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done",
    ]  # fmt: skip
    deltas = [event["delta"] for event in events if event["type"] == "response.reasoning_summary_text.delta"]
    assert "".join(deltas) == "hm, yes"
    response = events[-1]["response"]
    assert response["reasoning"]["summary"] == summary
    item = response["output"][0]
    assert item["summary"] == [{"type": "summary_text", "text": "hm, yes"}]
    assert item["content"] == [{"type": "reasoning_text", "text": "hm, yes"}]

    await created(app, input=[{"role": "user", "content": "hi"}, item, {"role": "user", "content": "and?"}])
    assert messages(worker)[1].reasoning_content == "hm, yes", "once"


@on_loop
async def test_a_stream_says_that_it_is_in_progress_while_its_model_loads_and_while_its_prompt_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shimmy.api.event_stream.ACCEPT_WAIT_S", 0.001)
    monkeypatch.setattr("shimmy.api.client_gone.PING_S", 0.001)
    loaded = asyncio.Event()
    worker = FakeWorker()

    async def load() -> None:
        await loaded.wait()

    body = json.dumps(BODY | {"stream": True}).encode()
    stream = Call(create_app(services(worker, load=load)), "POST", "/v1/responses", body)
    task = stream.start()
    written = [opening := await stream.write()]
    assert opening.startswith(b"event: response.created\n")
    assert b"\n\nevent: response.in_progress\n" in opening
    for step in ("loading", "computing the prompt"):
        for _ in range(3):
            written.append(await stream.write())
            assert written[-1].startswith(b"event: response.in_progress\n"), step
        if step == "loading":
            loaded.set()
            job = await worker.streams.get()
            job.put(Accepted(12))
    job.put(Piece("Hello", 1))
    job.put(FINISHED)
    await task
    events = told_in(b"".join([*written, *(stream.sent.get_nowait()["body"] for _ in range(stream.sent.qsize()))]))
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert [event["type"] for event in events].count("response.created") == 1
    assert events[-1]["type"] == "response.completed"


PATCH = {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}}
OFTEN = [
    {"type": "namespace", "name": "n", "description": "d", "tools": [WEATHER, PATCH]},
    PATCH | {"name": "text", "format": {"type": "text"}},
    {"type": "web_search", "external_web_access": False},
]


@on_loop
async def test_calls_of_tools_in_namespaces_and_of_tools_that_take_a_text_are_told_as_such() -> None:
    calls = (
        '<tool_call>{"name": "n__weather", "arguments": {"city": "Rome"}}</tool_call>\n'
        '<tool_call>{"name": "text", "arguments": {"input": "a \\"b\\"\\n"}}</tool_call>\n'
        '<tool_call>{"name": "n__patch", "arguments": {"input": "x"}}</tool_call>'
    )
    worker = FakeWorker(said(*(calls[start : start + 7] for start in range(0, len(calls), 7))))
    app = create_app(services(worker))
    events = await streamed(app, tools=OFTEN)
    output = events[-1]["response"]["output"]
    plain, text, patch = output
    assert (plain["type"], plain["namespace"], plain["name"]) == ("function_call", "n", "weather")
    assert (text["type"], text["name"], text["input"]) == ("custom_tool_call", "text", 'a "b"\n')
    assert "namespace" not in text
    assert text["id"].startswith("ctc_")
    assert (patch["type"], patch["namespace"], patch["name"], patch["input"]) == (
        "custom_tool_call", "n", "patch", "x",
    )  # fmt: skip
    item = ["output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done"]
    assert told(events)[-9:-1] == [*item, *item]
    done = next(event for event in events if event["type"] == "response.custom_tool_call_input.done")
    assert (done["input"], done["item_id"]) == ('a "b"\n', text["id"])
    assert events[0]["response"]["warnings"] == [
        "tools: `web_search` is not offered to the model: this server runs no tools itself"
    ]

    answers = [{"type": "function_call_output", "call_id": plain["call_id"], "output": "sun"}]
    answers += [
        {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "ok"} for call in (text, patch)
    ]
    whole = await created(app, tools=OFTEN, previous_response_id=events[-1]["response"]["id"], input=answers)
    asked, answered, *others = messages(worker)[1:]
    assert [(call.name, json.loads(call.arguments)) for call in asked.tool_calls] == [
        ("n__weather", {"city": "Rome"}), ("text", {"input": 'a "b"\n'}), ("n__patch", {"input": "x"}),
    ]  # fmt: skip
    assert (answered.name, answered.content) == ("n__weather", "sun")
    assert [(turn.name, turn.content) for turn in others] == [("text", "ok"), ("n__patch", "ok")]
    listed = await fetch(app, "GET", f"/v1/responses/{whole['id']}/input_items")
    assert listed.status == 200


@on_loop
async def test_the_openai_client_puts_calls_of_all_kinds_together() -> None:
    call = '<tool_call>{"name": "text", "arguments": {"input": "a \\"b\\""}}</tool_call>'
    transport = httpx2.ASGITransport(app=create_app(services(FakeWorker(said("<think>hm</think>", call)))))
    async with openai.AsyncOpenAI(
        base_url="http://shimmy/v1", api_key="any", http_client=httpx2.AsyncClient(transport=transport), max_retries=0
    ) as client:
        tools: Any = [{"type": "custom", "name": "text"}, {"type": "web_search"}]
        reasoning: Any = {"summary": "auto"}
        async with client.responses.stream(model="tiny.q4-1", input="hi", tools=tools, reasoning=reasoning) as stream:
            kinds = [event.type async for event in stream]
            response = await stream.get_final_response()
        assert "response.reasoning_summary_text.delta" in kinds
        assert "response.custom_tool_call_input.done" in kinds
        thought, called = response.output
        assert thought.type == "reasoning"
        assert thought.summary[0].text == "hm"
        assert called.type == "custom_tool_call"
        assert called.input == 'a "b"'

        chat = await client.chat.completions.create(
            model="tiny.q4-1",
            messages=[{"role": "user", "content": "hi"}],
            tools=[{"type": "custom", "custom": {"name": "text"}}],
        )
        called_in_chat: Any = chat.choices[0].message.tool_calls
        assert [(each.type, each.custom.input) for each in called_in_chat] == [("custom", 'a "b"')]


@on_loop
async def test_a_tool_that_takes_a_text_can_be_demanded() -> None:
    worker = FakeWorker(SCRIPT)
    await created(create_app(services(worker)), tools=OFTEN, tool_choice={"type": "custom", "name": "text"})
    prompt = worker.requests[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.tool_choice == ToolChoice(required=True, name="text")
    assert [tool.name for tool in prompt.tools] == ["n__weather", "n__patch", "text"]
    assert [tool.lark for tool in prompt.tools] == ["", "start: /x/", ""]


@on_loop
async def test_what_a_model_brings_along_holds_where_nothing_else_is_said() -> None:
    worker = FakeWorker(SCRIPT)
    own = replace(model(), defaults=ModelDefaults(system="own", stop=("END",), n_predict=5))
    body = await created(create_app(services(worker, models=[own])))
    assert messages(worker)[0] == Message("system", "own")
    assert worker.requests[0].stop == ("END",)
    assert body["max_output_tokens"] == 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"tools": [{"type": "web_seach"}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "name": "x", "format": {"type": "grammar"}}]}, "tools[0].format.syntax"),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{}]}]}, "tools[0].tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1]"),
        ({"tools": [WEATHER | {"async": True}]}, "tools[0].async"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "none"}, "tools": [WEATHER]}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object"}}, "regex": "a*"}, "text.format"),
        ({"text": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}}, "text.type"),
        ({"text": {"json_schema": {"name": "a", "schema": {"type": "object"}}}}, "text.json_schema"),
        (
            {"text": {"format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}},
            "text.format.json_schema",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"name": "a", "schema": {}}}}},
            "text.format.schema",
        ),
        ({"text": {"verbosity": "loud"}}, "text.verbosity"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "short"}}, "reasoning.summary"),
        ({"truncation": "always"}, "truncation"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"include": ["message.output_text.logprob"]}, "include[0]"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a" * 65: "b"}}, "metadata"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
        ({"samplers": ["top_k"]}, "samplers"),
        ({"temperature": "hot"}, "temperature"),
        ({"previous_response_id": 5}, "previous_response_id"),
    ],
)
@on_loop
async def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    reply = await create(create_app(services(FakeWorker(SCRIPT))), **fields)
    assert error_of(reply) == (400, "invalid_value", param)


@on_loop
async def test_no_depth_of_a_body_is_too_great_for_its_reply() -> None:
    app = create_app(services(FakeWorker(SCRIPT)))
    statuses = set()
    for n_deep in range(100, 140):
        nested = b'{"a":' * n_deep + b"1" + b"}" * n_deep
        body = b'{"model":"tiny.q4-1","input":"hi","text":{"format":{"type":"text","x":%b}},"stream":%b}'
        for stream in (b"false", b"true"):
            reply = await fetch(app, "POST", "/v1/responses", body % (nested, stream))
            statuses.add(reply.status)
            assert b"response.failed" not in reply.body
            if reply.status == 200:
                response_id = re.search(rb"resp_[0-9a-f]+", reply.body)
                assert response_id is not None
                assert (await create(app, previous_response_id=response_id[0].decode())).status == 200
    assert statuses == {200, 400}


@on_loop
async def test_the_openai_client_reads_what_is_written() -> None:
    worker = FakeWorker(said("<think>hm</think>", "Hel", "lo"))
    transport = httpx2.ASGITransport(app=create_app(services(worker)))
    async with openai.AsyncOpenAI(
        base_url="http://shimmy/v1", api_key="any", http_client=httpx2.AsyncClient(transport=transport), max_retries=0
    ) as client:
        whole = await client.responses.create(model="tiny.q4-1", input="hi")
        assert whole.output_text == "Hello"
        async with client.responses.stream(model="tiny.q4-1", input="hi") as stream:
            text = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert "".join(text) == final.output_text == "Hello"
        assert (await client.responses.retrieve(final.id)).output_text == "Hello"
        assert (await client.responses.input_tokens.count(model="tiny.q4-1", input="hi")).input_tokens == 12
        assert [item.id async for item in client.responses.input_items.list(final.id)]
        await client.responses.delete(final.id)
        with pytest.raises(openai.NotFoundError, match="not found"):
            await client.responses.retrieve(final.id)
        with pytest.raises(openai.BadRequestError, match="Cannot cancel"):
            await client.responses.cancel(whole.id)


@on_loop
async def test_the_openai_client_raises_where_a_stream_ends_before_its_response_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shimmy.api.event_stream.ACCEPT_WAIT_S", 0.0)
    worker = FakeWorker([])
    transport = httpx2.ASGITransport(app=create_app(services(worker)))
    async with openai.AsyncOpenAI(
        base_url="http://shimmy/v1", api_key="any", http_client=httpx2.AsyncClient(transport=transport), max_retries=0
    ) as client:
        asked = asyncio.create_task(client.responses.create(model="tiny.q4-1", input="hi", stream=True))
        job = await worker.streams.get()
        await asyncio.sleep(0.05)  # until the stream has its 200
        job.put(ContextExceeded("the prompt has 9000 tokens, the context 8192"))
        with pytest.raises(openai.APIError, match="9000 tokens") as caught:
            async for _ in await asked:
                pass
    assert caught.value.code == "context_length_exceeded"


@on_loop
async def test_a_response_that_pings_have_told_of_is_failed_where_it_never_comes_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shimmy.api.event_stream.ACCEPT_WAIT_S", 0.001)
    worker = FakeWorker()
    stream = Call(create_app(services(worker)), "POST", "/v1/responses", json.dumps(BODY | {"stream": True}).encode())
    task = stream.start()
    job = await worker.streams.get()
    written = [await stream.write()]
    job.put(ContextExceeded("the prompt has 9000 tokens, the context 8192"))
    await task
    events = told_in(b"".join([*written, *(stream.sent.get_nowait()["body"] for _ in range(stream.sent.qsize()))]))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "error",
        "failed",
    ]
    assert events[2]["error"]["code"] == events[3]["response"]["error"]["code"] == "context_length_exceeded"
