"""Replies of several jobs, and what may stand in a choice beside its text: log-probabilities, calls, reasoning."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from shimmy.api.app import create_app
from shimmy.errors import BadRequest, Overloaded, ShimmyError, WorkerDied
from shimmy.messages.event import Accepted, Candidate, Echo, FinishReason, JobOutput, Piece, TokenLogprob
from shimmy.messages.reply import ReplyFormat, ToolFormat
from tests.fakes import FINISHED, SCRIPT, Call, FakeWorker, fetch, on_loop, services, until

CHAT: dict[str, object] = {"model": "tiny.q4-1", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, object] = {"model": "tiny.q4-1", "prompt": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
HERMES = ReplyFormat(("<think>", "</think>"), tools=ToolFormat("", "<tool_call>", "</tool_call>", "\n"))
Script = Sequence[JobOutput | ShimmyError]


def said(text: str, *, n: int = 3, logprob: float = -1.0, reason: FinishReason = FinishReason.STOP) -> Script:
    """A job that says `text` as one token, and counts it as `n`."""
    finished = replace(FINISHED, reason=reason, usage=replace(FINISHED.usage, n_completion=n))
    return (Accepted(12, HERMES), Piece(text, n, (token(text, logprob),)), finished)


def token(text: str | bytes, logprob: float, *top: tuple[str, float]) -> TokenLogprob:
    data = text if isinstance(text, bytes) else text.encode()
    others = tuple(Candidate(0, other.encode(), value) for other, value in top)
    return TokenLogprob(Candidate(0, data, logprob), others)


async def whole(worker: FakeWorker, body: dict[str, object], **more: object) -> dict[str, Any]:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    reply = await fetch(create_app(services(worker)), "POST", path, body | more)
    assert reply.status == 200, reply.body
    value = reply.json()
    if "echo" not in more:  # the types of OpenAI's client forget the null that the API has at its first token
        (ChatCompletion if "messages" in body else Completion).model_validate(value)
    return value


async def chunks(worker: FakeWorker, body: dict[str, object], **more: object) -> list[Any]:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    reply = await fetch(create_app(services(worker)), "POST", path, body | more | {"stream": True})
    *events, done = reply.chunks()
    assert done == "[DONE]"
    for event in events:
        if "messages" in body:
            ChatCompletionChunk.model_validate(event)
    return events


@on_loop
async def test_choices_stand_by_their_index_and_share_a_prompt() -> None:
    worker = FakeWorker(scripts=[said("a", n=2), said("b", n=3), said("c", n=4)])
    reply = await whole(worker, CHAT, n=3, seed=7)
    assert [(choice["index"], choice["message"]["content"]) for choice in reply["choices"]] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
    ]
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (12, 9)
    assert "timings" not in reply, "of which job"
    assert [request.sampling.seed for request in worker.requests] == [7, 8, 9]


@on_loop
async def test_every_prompt_of_a_batch_counts() -> None:
    worker = FakeWorker(scripts=[said("a"), said("b"), said("c"), said("d")])
    reply = await whole(worker, TEXT, prompt=["x", "y"], n=2)
    assert [(choice["index"], choice["text"]) for choice in reply["choices"]] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
        (3, "d"),
    ]
    assert reply["usage"]["prompt_tokens"] == 24
    assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}


@on_loop
async def test_what_is_cached_is_what_the_first_job_of_a_prompt_found() -> None:
    def job(n_cached: int) -> Script:
        return (Accepted(12), replace(FINISHED, usage=replace(FINISHED.usage, n_cached=n_cached)))

    reply = await whole(FakeWorker(scripts=[job(3), job(11)]), TEXT, n=2)
    assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}


@on_loop
async def test_the_best_of_several_are_told_the_likeliest_first() -> None:
    scripts = [said("a", logprob=-3.0), said("b", logprob=-1.0), said("c", logprob=-2.0), (Accepted(12), FINISHED)]
    reply = await whole(FakeWorker(scripts=scripts), TEXT, n=2, best_of=4)
    assert [(choice["index"], choice["text"]) for choice in reply["choices"]] == [(0, "b"), (1, "c")]
    assert [choice["logprobs"] for choice in reply["choices"]] == [None, None]
    assert reply["usage"]["completion_tokens"] == 12, "of all four"


@on_loop
async def test_a_stream_of_choices_begins_each_with_its_role_and_ends_each_with_its_reason() -> None:
    scripts = [said("a"), said("b", reason=FinishReason.LENGTH)]
    *events, usage = await chunks(FakeWorker(scripts=scripts), CHAT, n=2, stream_options={"include_usage": True})
    for index, content, reason in ((0, "a", "stop"), (1, "b", "length")):
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert [choice["delta"] for choice in own] == [{"role": "assistant", "content": content}, {}]
        assert [choice["finish_reason"] for choice in own] == [None, reason]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    assert "timings" not in usage


@on_loop
async def test_choices_are_written_as_they_come() -> None:
    worker = FakeWorker()
    call = Call(
        create_app(services(worker)), "POST", "/v1/completions", json.dumps(TEXT | {"n": 2, "stream": True}).encode()
    )
    task = call.start()
    first, second = await worker.streams.get(), await worker.streams.get()
    for job in (first, second):
        job.put(Accepted(12))
    for job, text in ((second, "b"), (first, "a"), (second, "c")):
        job.put(Piece(text, 1))
        assert f'"text":"{text}"'.encode() in await call.write()
    second.put(FINISHED)
    assert b"[DONE]" not in await call.write()
    first.put(FINISHED)
    assert (await call.write()).endswith(b"data: [DONE]\n\n")
    await task
    assert worker.cancelled_ids == []


@pytest.mark.parametrize("stream", [True, False])
@on_loop
async def test_a_job_that_is_refused_ends_the_others(stream: bool) -> None:
    worker = FakeWorker(scripts=[(Accepted(12),), (BadRequest("no", param="grammar"),), ()])
    reply = await fetch(create_app(services(worker)), "POST", "/v1/completions", TEXT | {"n": 3, "stream": stream})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "grammar")
    assert worker.cancelled_ids == [1, 3]


@on_loop
async def test_a_queue_that_is_full_for_some_refuses_all() -> None:
    worker = FakeWorker(scripts=[said("a"), (Overloaded("the queue is full"),)])
    reply = await fetch(create_app(services(worker)), "POST", "/v1/chat/completions", CHAT | {"n": 2})
    assert reply.status == 503
    assert reply.headers[b"retry-after"].isdigit()


@on_loop
async def test_an_error_of_one_choice_ends_the_stream_and_the_others() -> None:
    worker = FakeWorker(scripts=[(Accepted(12), Piece("a", 1)), (Accepted(12), Piece("b", 1), WorkerDied("gone"))])
    reply = await fetch(create_app(services(worker)), "POST", "/v1/completions", TEXT | {"n": 2, "stream": True})
    assert reply.chunks()[-1]["error"]["code"] == "worker_died"
    assert worker.cancelled_ids == [1]


@pytest.mark.parametrize("stream", [True, False])
@on_loop
async def test_a_client_that_leaves_cancels_every_job(stream: bool) -> None:
    worker = FakeWorker()
    body = json.dumps(CHAT | {"n": 3, "stream": stream}).encode()
    call = Call(create_app(services(worker)), "POST", "/v1/chat/completions", body)
    task = call.start()
    await until(lambda: len(worker.requests) == 3)
    call.leave()
    await task
    assert sorted(worker.cancelled_ids) == [1, 2, 3]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("field", "value"),
    [("grammar", "root ::="), ("response_format", {"type": "json_object"}), ("tools", [TOOL]), ("stop", None)],
)
@on_loop
async def test_an_objection_to_a_grammar_names_its_field(field: str, value: object, stream: bool) -> None:
    worker = FakeWorker([BadRequest("the grammar cannot be enforced: …")])
    body = CHAT | {field: value, "stream": stream}
    reply = await fetch(create_app(services(worker)), "POST", "/v1/chat/completions", body)
    assert (reply.status, reply.json()["error"]["param"]) == (400, value and field)
    later = FakeWorker([Accepted(12), Piece("a", 1), BadRequest("the grammar cannot be followed any further: …")])
    reply = await fetch(create_app(services(later)), "POST", "/v1/chat/completions", body)
    assert (reply.chunks()[-1] if stream else reply.json())["error"]["param"] == (value and field)


ODDS = (token("H", -0.5, ("H", -0.5), ("J", -1.5)), token(b"\xc3", -20000.0), token(b"\xa9", -inf))
WITH_ODDS = (Accepted(12), Piece("Hé", 3, ODDS), FINISHED)
CHAT_LOGPROBS = [
    {
        "token": "H",
        "bytes": [72],
        "logprob": -0.5,
        "top_logprobs": [
            {"token": "H", "bytes": [72], "logprob": -0.5},
            {"token": "J", "bytes": [74], "logprob": -1.5},
        ],
    },
    {"token": "\ufffd", "bytes": [0xC3], "logprob": -9999.0, "top_logprobs": []},
    {"token": "\ufffd", "bytes": [0xA9], "logprob": -9999.0, "top_logprobs": []},
]


@on_loop
async def test_log_probabilities_of_a_chat() -> None:
    worker = FakeWorker(WITH_ODDS)
    reply = await whole(worker, CHAT, logprobs=True, top_logprobs=2)
    assert reply["choices"][0]["logprobs"] == {"content": CHAT_LOGPROBS, "refusal": None}
    assert worker.requests[0].n_logprobs == 2
    events = await chunks(worker, CHAT, logprobs=True, top_logprobs=2)
    told = [event["choices"][0]["logprobs"] for event in events]
    assert told == [None, {"content": CHAT_LOGPROBS, "refusal": None}, None]


@on_loop
async def test_log_probabilities_of_text_that_is_held_back_are_told_with_it_or_before() -> None:
    script = (Accepted(12, HERMES), Piece("a<tool", 2, (token("a", -1.0), token("<tool", -2.0))), FINISHED)
    events = await chunks(FakeWorker(script), CHAT, logprobs=True, tools=[TOOL])
    told = [choice for event in events if (choice := event["choices"][0])["logprobs"]]
    assert [entry["token"] for entry in told[0]["logprobs"]["content"]] == ["a", "<tool"]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "a<tool"


@on_loop
async def test_log_probabilities_of_a_completion() -> None:
    told = {
        "tokens": ["H", "bytes:\\xc3", "bytes:\\xa9"],
        "token_logprobs": [-0.5, -9999.0, -9999.0],
        "top_logprobs": [{"H": -0.5, "J": -1.5}, {"bytes:\\xc3": -9999.0}, {"bytes:\\xa9": -9999.0}],
        "text_offset": [0, 1, 1],
    }
    worker = FakeWorker(WITH_ODDS)
    assert (await whole(worker, TEXT, logprobs=2))["choices"][0]["logprobs"] == told
    events = await chunks(worker, TEXT, logprobs=2)
    assert [event["choices"][0]["logprobs"] for event in events] == [told, None]


@on_loop
async def test_of_candidates_with_one_text_the_likeliest_counts() -> None:
    script = (Accepted(1), Piece("a", 1, (token("a", -3.0, ("a", -1.0), ("b", -2.0)),)), FINISHED)
    reply = await whole(FakeWorker(script), TEXT, logprobs=2)
    assert reply["choices"][0]["logprobs"]["top_logprobs"] == [{"a": -1.0, "b": -2.0}]


ECHOED = (
    Accepted(2),
    Echo("On", (token("On", nan),)),
    Echo("ce", (token("ce", -2.0, ("e", -1.0)),)),
    Piece(" up", 1, (token(" up", -0.25),)),
    FINISHED,
)


@on_loop
async def test_an_echo_comes_first_and_its_first_token_has_no_probability() -> None:
    worker = FakeWorker(ECHOED)
    (choice,) = (await whole(worker, TEXT, echo=True, logprobs=1))["choices"]
    assert choice["text"] == "Once up"
    assert choice["logprobs"] == {
        "tokens": ["On", "ce", " up"],
        "token_logprobs": [None, -2.0, -0.25],
        "top_logprobs": [None, {"e": -1.0, "ce": -2.0}, {" up": -0.25}],
        "text_offset": [0, 2, 4],
    }
    assert worker.requests[0].echo
    events = await chunks(worker, TEXT, echo=True, logprobs=1)
    assert "".join(event["choices"][0]["text"] for event in events) == "Once up"
    parts = [event["choices"][0]["logprobs"] for event in events[:-1]]
    for name, values in choice["logprobs"].items():
        assert [value for part in parts for value in part[name]] == values


@on_loop
async def test_the_text_of_a_prompt_is_its_callers_whatever_its_tokens_spell() -> None:
    """As a tokenizer does that begins prompts with a token and words with a space, and that drops spaces."""
    tokens = [token("<s>", nan), token(" A", -1.0), token(b"\xc3", -1.0), token(b"\xa9", -1.0), token(" b", -1.0)]
    script = (Accepted(5), Echo("Aé   b"), Echo("", tuple(tokens)), Piece("c", 1, (token("c", -1.0),)), FINISHED)
    (choice,) = (await whole(FakeWorker(script), TEXT, echo=True, logprobs=0))["choices"]
    assert choice["text"] == "Aé   bc"
    offsets = [0, 0, 1, 1, 4, 6]
    assert choice["logprobs"]["text_offset"] == offsets
    events = await chunks(FakeWorker(script), TEXT, echo=True, logprobs=0)
    parts = [event["choices"][0]["logprobs"] for event in events[:-1]]
    assert [offset for part in parts for offset in part["text_offset"]] == offsets


@on_loop
async def test_an_echo_need_not_have_probabilities() -> None:
    script = (Accepted(2), Echo("Once"), Piece(" up", 1), FINISHED)
    (choice,) = (await whole(FakeWorker(script), TEXT, echo=True))["choices"]
    assert (choice["text"], choice["logprobs"]) == ("Once up", None)


CALLS = (
    Accepted(12, HERMES),
    Piece("<think>Hm", 2),
    Piece(".</think>Well", 3),
    Piece('<tool_call>{"name": "f", "arguments": {"a"', 5),
    Piece(': 1}}</tool_call>\n<tool_call>{"name": "g", "arguments": {}}</tool_call>', 9),
    FINISHED,
)


@on_loop
async def test_reasoning_and_calls_stand_beside_the_text() -> None:
    (choice,) = (await whole(FakeWorker(CALLS), CHAT, tools=[TOOL]))["choices"]
    message = choice["message"]
    assert (message["content"], message["reasoning_content"], message["refusal"]) == ("Well", "Hm.", None)
    assert [(call["type"], call["function"]) for call in message["tool_calls"]] == [
        ("function", {"name": "f", "arguments": '{"a": 1}'}),
        ("function", {"name": "g", "arguments": "{}"}),
    ]
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert choice["finish_reason"] == "tool_calls"


@on_loop
async def test_calls_are_streamed_as_deltas() -> None:
    worker = FakeWorker()
    body = json.dumps(CHAT | {"tools": [TOOL], "stream": True}).encode()
    call = Call(create_app(services(worker)), "POST", "/v1/chat/completions", body)
    task = call.start()
    job = await worker.streams.get()
    seen = []
    for event in CALLS:
        job.put(event)
        if isinstance(event, Piece):
            seen.append(json.loads((await call.write()).removeprefix(b"data: "))["choices"][0]["delta"])
    end = await call.write()
    await task
    ids = [part.pop("id") for delta in seen for part in delta.get("tool_calls", []) if "id" in part]
    assert len(set(ids)) == 2
    assert seen == [
        {"role": "assistant", "content": None, "reasoning_content": "Hm"},
        {"reasoning_content": ".", "content": "Well"},
        {"tool_calls": [{"index": 0, "type": "function", "function": {"name": "f", "arguments": '{"a"'}}]},
        {
            "tool_calls": [
                {"index": 0, "function": {"arguments": ": 1}"}},
                {"index": 1, "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ]
        },
    ]
    assert b'"finish_reason":"tool_calls"' in end


@on_loop
async def test_a_stream_that_may_have_calls_begins_with_what_it_turns_out_to_be() -> None:
    call = Piece('<tool_call>{"name": "f", "arguments": {}}</tool_call>', 9)
    beginnings = [
        (await chunks(FakeWorker([Accepted(12, HERMES), *said, FINISHED]), CHAT, tools=[TOOL]))[0]["choices"][0][
            "delta"
        ]
        for said in ([call], [Piece("Well", 1)], [])
    ]
    assert [delta["role"] for delta in beginnings] == ["assistant"] * 3
    assert [delta["content"] for delta in beginnings] == [None, "Well", ""]
    assert "tool_calls" in beginnings[0]


@on_loop
async def test_a_call_without_text_has_null_for_content() -> None:
    script = (Accepted(12, HERMES), Piece('<tool_call>{"name": "f", "arguments": {}}</tool_call>', 9), FINISHED)
    (choice,) = (await whole(FakeWorker(script), CHAT, tools=[TOOL]))["choices"]
    assert choice["message"]["content"] is None


@on_loop
async def test_a_reply_that_is_cut_off_says_so_also_within_a_call() -> None:
    finished = replace(FINISHED, reason=FinishReason.LENGTH)
    script = (Accepted(12, HERMES), Piece('<tool_call>{"name": "f", "arguments": {"a', 9), finished)
    (choice,) = (await whole(FakeWorker(script), CHAT, tools=[TOOL]))["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "f"
    assert (await chunks(FakeWorker(script), CHAT, tools=[TOOL]))[-1]["choices"][0]["finish_reason"] == "length"


@on_loop
async def test_calls_of_tools_that_take_a_text_are_told_as_such() -> None:
    text = 'a "b"\n'
    written = '<tool_call>{"name": "t", "arguments": {"input": "a \\"b\\"\\n"}}</tool_call>'
    tools = [TOOL, {"type": "custom", "custom": {"name": "t"}}, {"type": "web_search"}]
    script = (Accepted(12, HERMES), Piece(written, 9), FINISHED)
    reply = await whole(FakeWorker(script), CHAT, tools=tools)
    (call,) = reply["choices"][0]["message"]["tool_calls"]
    assert call == {"id": call["id"], "type": "custom", "custom": {"name": "t", "input": text}}
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    assert "web_search" in reply["warnings"][0]

    worker = FakeWorker()
    body = json.dumps(CHAT | {"tools": tools, "stream": True}).encode()
    stream = Call(create_app(services(worker)), "POST", "/v1/chat/completions", body)
    task = stream.start()
    job = await worker.streams.get()
    said: list[JobOutput] = [Accepted(12, HERMES), *(Piece(char, 1) for char in written), FINISHED]
    for event in said:
        job.put(event)
        await asyncio.sleep(0)
    await task
    deltas = [
        call
        for chunk in stream.reply().chunks()
        if isinstance(chunk, dict)
        for call in chunk["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert (deltas[0]["type"], deltas[0]["custom"]["name"]) == ("custom", "t")
    assert "".join(delta["custom"]["input"] for delta in deltas) == text


@on_loop
async def test_functions_are_answered_in_their_own_form() -> None:
    script = (Accepted(12, HERMES), Piece('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', 9), FINISHED)
    function = {"name": "f", "arguments": '{"a": 1}'}
    (choice,) = (await whole(FakeWorker(script), CHAT, functions=[{"name": "f"}]))["choices"]
    assert choice["message"]["function_call"] == function
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"
    call, last = await chunks(FakeWorker(script), CHAT, functions=[{"name": "f"}])
    assert call["choices"][0]["delta"] == {"role": "assistant", "content": None, "function_call": function}
    assert last["choices"][0]["finish_reason"] == "function_call"


@on_loop
async def test_usage_tells_how_much_was_reasoning() -> None:
    script = (Accepted(12, HERMES), Piece("<think>" + "Hm" * 50, 40), Piece(".</think>Well", 10), FINISHED)
    ended = replace(FINISHED, usage=replace(FINISHED.usage, n_completion=50))
    worker = FakeWorker((*script[:-1], ended))
    usage = (await whole(worker, CHAT))["usage"]
    assert 35 < usage["completion_tokens_details"]["reasoning_tokens"] < 50, "told in one piece"
    told = (await chunks(worker, CHAT, n=2, stream_options={"include_usage": True}))[-1]["usage"]
    assert 70 < told["completion_tokens_details"]["reasoning_tokens"] < 100
    assert "completion_tokens_details" not in (await whole(worker, TEXT))["usage"]


@on_loop
async def test_reasoning_stays_in_the_text_on_request() -> None:
    script = (Accepted(12, HERMES), Piece("<think>Hm.</think>Well", 5), FINISHED)
    message = (await whole(FakeWorker(script), CHAT, reasoning_format="none"))["choices"][0]["message"]
    assert message["content"] == "<think>Hm.</think>Well"
    assert "reasoning_content" not in message
    events = await chunks(FakeWorker(script), CHAT, reasoning_format="none")
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "<think>Hm.</think>Well"


@on_loop
async def test_a_completion_is_text_as_the_model_wrote_it() -> None:
    script = (Accepted(12, HERMES), Piece("<think>Hm.</think>Well", 5), FINISHED)
    assert (await whole(FakeWorker(script), TEXT))["choices"][0]["text"] == "<think>Hm.</think>Well"


@on_loop
async def test_what_was_held_back_comes_before_the_end() -> None:
    script = (Accepted(12, HERMES), Piece("a<tool", 3), FINISHED)
    events = await chunks(FakeWorker(script), CHAT, tools=[TOOL])
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "a<tool"
    assert events[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}


@on_loop
async def test_log_probabilities_are_told_only_where_they_were_asked_for() -> None:
    assert (await whole(FakeWorker(SCRIPT), CHAT))["choices"][0]["logprobs"] is None
    assert (await whole(FakeWorker(said("a")), TEXT, best_of=2))["choices"][0]["logprobs"] is None


# -- warnings --------------------------------------------------------------------------------------------------------


@on_loop
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_what_is_left_to_the_model_is_told_in_the_reply(path: str) -> None:
    warned = Accepted(12, warnings=("tools: `f`: `not` at `#` is not enforced",))
    body = (CHAT if path == "chat/completions" else TEXT) | {"n": 2}
    app = create_app(services(FakeWorker(scripts=[(warned, Piece("a", 1), FINISHED)] * 4)))
    whole = await fetch(app, "POST", f"/v1/{path}", body)
    assert whole.json()["warnings"] == [*warned.warnings]

    streamed = await fetch(app, "POST", f"/v1/{path}", body | {"stream": True})
    told = [chunk for chunk in streamed.chunks() if isinstance(chunk, dict) and "warnings" in chunk]
    assert [chunk["warnings"] for chunk in told] == [[*warned.warnings]]
    assert told[0]["choices"][0]["finish_reason"] == "stop"
