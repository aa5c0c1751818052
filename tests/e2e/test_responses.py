"""Responses as OpenAI's own client uses them against the program: streamed, continued, with tools, parsed, stored."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types.responses import FunctionToolParam, ResponseFunctionToolCall, ResponseInputParam
from pydantic import BaseModel

from tests.e2e.harness import PROMPTS, Server

if TYPE_CHECKING:
    from openai.types.responses.response_input_param import FunctionCallOutput

# What the model writes in them has an end, whatever it has learned: it is small and knows nothing.
WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}, "tomorrow": {"type": "boolean"}},
        "required": ["city", "tomorrow"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Forecast(BaseModel):
    city: Literal["Rome", "Oslo"]
    sky: Literal["clear", "cloudy", "overcast"]
    is_warm: bool


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="any", max_retries=0) as openai:
        yield openai


@pytest.mark.smoke
def test_a_response_streamed_and_whole(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "alpha", "input": "hello world", "max_output_tokens": 24, "temperature": 0}
    whole = client.responses.create(**asked)
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 24
    assert whole.usage.total_tokens == whole.usage.input_tokens + 24

    events = list(client.responses.create(stream=True, **asked))
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert [event.type for event in events[:4]] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text != ""
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == text


def test_the_text_is_that_of_a_chat(client: OpenAI, server: Server) -> None:
    response = client.responses.create(model="alpha", input=PROMPTS[0], max_output_tokens=64, temperature=0)
    assert response.output_text == server.chat(PROMPTS[0])


def test_a_conversation_that_goes_on_is_the_one_that_is_sent_whole(client: OpenAI) -> None:
    first = client.responses.create(model="alpha", input=PROMPTS[0], max_output_tokens=8, temperature=0)
    second = client.responses.create(
        model="alpha", input=PROMPTS[1], previous_response_id=first.id, instructions="tell the user", temperature=0,
        max_output_tokens=16,
    )  # fmt: skip
    turns: ResponseInputParam = [
        {"role": "user", "content": PROMPTS[0]},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": PROMPTS[1]},
    ]
    sent_whole = client.responses.create(
        model="alpha", input=turns, instructions="tell the user", temperature=0, max_output_tokens=16, store=False
    )
    assert second.output_text == sent_whole.output_text
    assert second.usage is not None
    assert sent_whole.usage is not None
    assert second.usage.input_tokens == sent_whole.usage.input_tokens
    counted = client.responses.input_tokens.count(model="alpha", input=turns, instructions="tell the user")
    assert counted.input_tokens == sent_whole.usage.input_tokens
    with pytest.raises(NotFoundError):
        client.responses.retrieve(sent_whole.id)


def test_a_response_is_stored_listed_and_deleted(client: OpenAI) -> None:
    first = client.responses.create(model="alpha", input=PROMPTS[2], max_output_tokens=4)
    second = client.responses.create(
        model="alpha", input=PROMPTS[3], previous_response_id=first.id, max_output_tokens=4
    )
    assert client.responses.retrieve(second.id) == second
    # In pages of one: the client asks for the next until there is none.
    items = [item.to_dict() for item in client.responses.input_items.list(second.id, limit=1, order="asc")]
    assert [item["type"] for item in items] == ["message"] * 3
    assert [item["role"] for item in items] == ["user", "assistant", "user"]
    assert items[1]["id"] == first.output[0].id

    client.responses.delete(first.id)
    with pytest.raises(NotFoundError, match=first.id):
        client.responses.retrieve(first.id)
    with pytest.raises(NotFoundError, match=first.id) as caught:
        client.responses.create(model="alpha", input="so?", previous_response_id=second.id)
    assert caught.value.code == "previous_response_not_found"
    with pytest.raises(BadRequestError, match="synchronous"):
        client.responses.cancel(second.id)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match=r"\b512\b") as caught:
        client.responses.create(model="beta", input="hello " * 2000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(BadRequestError, match=r"\b512\b"):
        client.responses.input_tokens.count(model="beta", input="hello " * 2000)


def test_what_is_not_served_is_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="web_search"):
        client.responses.create(
            model="alpha", input="hi", tools=[{"type": "web_search"}], tool_choice={"type": "web_search_preview"}
        )
    with pytest.raises(BadRequestError, match="background"):
        client.responses.create(model="alpha", input="hi", background=True)
    with pytest.raises(NotFoundError, match="does not serve `/v1/batches`"):
        client.batches.list()
    with pytest.raises(NotFoundError, match="does not serve `/v1/files`"):
        client.files.list()


PATCH: Any = {
    "type": "custom",
    "name": "patch",
    "format": {
        "type": "grammar",
        "syntax": "lark",
        "definition": 'start: line{1,3}\nline: ("+" | "-") /[a-z ]{1,8}/ LF\n%import common.LF',
    },
}


def test_a_tool_that_takes_a_text_is_held_to_its_grammar(client: OpenAI) -> None:
    with client.responses.stream(
        model="alpha", input="hi", tools=[PATCH, {"type": "web_search"}], tool_choice="required", extra_body={"seed": 3}
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "response.custom_tool_call_input.delta"]
        response = stream.get_final_response()
    (call,) = [item for item in response.output if item.type == "custom_tool_call"][:1]
    assert call.name == "patch"
    assert re.fullmatch(r"([+-][a-z ]{1,8}\n){1,3}", call.input)
    assert "".join(deltas).startswith(call.input)
    answered: Any = [
        {"role": "user", "content": "hi"},
        call.to_dict(),
        {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"},
    ]
    assert client.responses.create(model="alpha", input=answered, tools=[PATCH], max_output_tokens=3).status


@pytest.mark.parametrize("strict", [False, None])
def test_tools_as_bridges_to_other_protocols_write_them_are_taken(client: OpenAI, *, strict: bool | None) -> None:
    parameters = {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b"]}, "maxItems": 2},
            "pattern": {"type": "string", "format": "regex", "maxLength": 3},
        },
        "required": ["tags"],
        "additionalProperties": False,
        "if": {"required": ["pattern"]},
        "then": {"maxProperties": 2},
    }
    tool: Any = {"type": "function", "name": "f", "parameters": parameters, "strict": strict}
    response = client.responses.create(model="alpha", input="hi", tools=[tool], tool_choice="required", temperature=0)
    (call,) = [item for item in response.output if item.type == "function_call"][:1]
    assert set(json.loads(call.arguments)["tags"]) <= {"a", "b"}
    warnings: Any = response.to_dict()["warnings"]
    assert [warning.partition("`: ")[2] for warning in warnings] == [
        "`if` at `#` is not enforced", "`then` at `#` is not enforced",
        "`uniqueItems` at `#/properties/tags` is not enforced",
    ]  # fmt: skip
    with pytest.raises(BadRequestError, match=r"tools: the parameters of `f`: `if` at `#` cannot be enforced"):
        client.responses.create(model="alpha", input="hi", tools=[tool | {"strict": True}])


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_of_tools(client: OpenAI, *, stream: bool) -> None:
    conversation: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
    asked: dict[str, Any] = {"model": "alpha", "input": conversation, "tools": [WEATHER], "tool_choice": "required"}
    if stream:
        with client.responses.stream(**asked, parallel_tool_calls=False, max_output_tokens=512) as events:
            arguments = "".join(
                event.delta for event in events if event.type == "response.function_call_arguments.delta"
            )
            response: Any = events.get_final_response()
    else:
        response = client.responses.create(**asked, parallel_tool_calls=False, max_output_tokens=512)
        arguments = ""
    (call,) = [item for item in response.output if isinstance(item, ResponseFunctionToolCall)]
    assert call.name == "weather"
    assert set(json.loads(call.arguments)) == {"city", "tomorrow"}
    assert arguments == (call.arguments if stream else "")

    answer: FunctionCallOutput = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    chained = client.responses.create(
        model="alpha", input=[answer], previous_response_id=response.id, tools=[WEATHER], tool_choice="none",
        max_output_tokens=16, temperature=0,
    )  # fmt: skip
    sent_back = client.responses.create(
        model="alpha", input=[*conversation, *response.output, answer], tools=[WEATHER], tool_choice="none",
        max_output_tokens=16, temperature=0,
    )  # fmt: skip
    assert chained.output_text == sent_back.output_text
    assert not [item for item in chained.output if item.type == "function_call"]


def test_a_reply_is_parsed_into_a_model(client: OpenAI) -> None:
    for temperature in (0.0, 1.5):
        response = client.responses.parse(
            model="alpha", input="What is the weather?", text_format=Forecast, temperature=temperature
        )
        assert response.status == "completed"
        assert isinstance(response.output_parsed, Forecast)
        assert Forecast.model_validate_json(response.output_text) == response.output_parsed


def test_a_stream_is_parsed_into_a_model(client: OpenAI) -> None:
    with client.responses.stream(model="alpha", input="What is the weather?", text_format=Forecast) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_response().output_parsed, Forecast)


def test_log_probabilities_of_a_response(client: OpenAI) -> None:
    response = client.responses.create(
        model="alpha", input="hello", max_output_tokens=8, temperature=0, top_logprobs=2,
        include=["message.output_text.logprobs"],
    )  # fmt: skip
    message = response.output[0]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert len(part.logprobs) == 8
    for entry in part.logprobs:
        assert len(entry.top_logprobs) == 2
        assert entry.logprob == max(candidate.logprob for candidate in entry.top_logprobs)


def test_async_client_with_many_responses_at_once(server: Server) -> None:
    async def texts() -> list[str]:
        async with AsyncOpenAI(base_url=server.url, api_key="any", max_retries=0) as client:

            async def text(prompt: str) -> str:
                stream = await client.responses.create(
                    model="alpha", input=prompt, max_output_tokens=64, temperature=0, stream=True
                )
                return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])

            return await asyncio.gather(*map(text, PROMPTS[:16]))

    assert asyncio.run(texts()) == [server.chat(prompt) for prompt in PROMPTS[:16]]
