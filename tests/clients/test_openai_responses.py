"""OpenAI's Python client: the Responses API."""

from collections.abc import Iterator
from typing import Literal

import pytest
from openai import NotFoundError, OpenAI
from openai.types.responses import FunctionToolParam, ResponseInputParam
from pydantic import BaseModel, Field

MODEL = "gpt-4o-mini"
QUESTION = "What is the capital of France? Answer in one sentence."
WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class City(BaseModel):
    name: str = Field(max_length=20)
    continent: Literal["Africa", "America", "Asia", "Australia", "Europe"]


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with OpenAI(max_retries=0) as openai:
        yield openai


def test_answer(client: OpenAI) -> None:
    response = client.responses.create(model=MODEL, instructions="You answer in one sentence.", input=QUESTION)
    assert response.status == "completed"
    assert "Paris" in response.output_text
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_answer_that_is_cut(client: OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="Tell me a long story.", max_output_tokens=16)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.output_tokens == 16


def test_stream(client: OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input=QUESTION)
    events = list(client.responses.create(model=MODEL, input=QUESTION, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == whole.output_text
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == whole.output_text


def test_stream_as_the_helper_puts_it_together(client: OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=QUESTION) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text


def test_conversation_is_kept(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input=QUESTION)
    second = client.responses.create(model=MODEL, input="And of Italy?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(second.id).output_text == second.output_text
    assert list(client.responses.input_items.list(second.id))
    client.responses.delete(first.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(first.id)


def test_a_response_that_is_not_stored_is_not_found(client: OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=QUESTION, store=False)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(response.id)


def test_tools_loop(client: OpenAI) -> None:
    items: ResponseInputParam = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.responses.create(
        model=MODEL, input=items, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = (item for item in first.output if item.type == "function_call")
    assert call.name == "get_weather"
    items += [item.to_dict() for item in first.output]  # type: ignore[misc]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees, sunny"})
    second = client.responses.create(model=MODEL, input=items, tools=[WEATHER], tool_choice="none")
    assert second.output_text
    assert not [item for item in second.output if item.type == "function_call"]


def test_streamed_call(client: OpenAI) -> None:
    events = list(
        client.responses.create(
            model=MODEL, input="What is the weather in Paris?", stream=True, tools=[WEATHER],
            tool_choice={"type": "function", "name": "get_weather"}, parallel_tool_calls=False,
        )
    )  # fmt: skip
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (done,) = (event for event in events if event.type == "response.function_call_arguments.done")
    assert "".join(deltas) == done.arguments


def test_answer_parsed_into_a_model(client: OpenAI) -> None:
    response = client.responses.parse(model=MODEL, input="Paris is a city in Europe.", text_format=City)
    assert isinstance(response.output_parsed, City)


def test_input_tokens_are_counted(client: OpenAI) -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input=QUESTION)
    response = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=16)
    assert response.usage is not None
    assert counted.input_tokens == response.usage.input_tokens
