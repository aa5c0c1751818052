"""OpenAI's Python client: tools that the model must call, their results, and answers that are Pydantic models."""

import json
from collections.abc import Iterator
from typing import Literal

import pytest
from openai import OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionNamedToolChoiceParam, ChatCompletionToolParam
from pydantic import BaseModel, Field

MODEL = "gpt-4o-mini"
QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What will the weather be in Paris tomorrow?"}
]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
CLOCK: ChatCompletionToolParam = {"type": "function", "function": {"name": "get_time", "description": "The time now"}}
TOOLS = [WEATHER, CLOCK]
CHOOSE_WEATHER: ChatCompletionNamedToolChoiceParam = {"type": "function", "function": {"name": "get_weather"}}


class GetWeather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome", "Oslo"]
    days: int = Field(ge=1, le=7)


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)
    role: Literal["engineer", "doctor", "painter"]
    languages: list[Literal["English", "French", "Japanese"]] = Field(min_length=1, max_length=3)


class Team(BaseModel):
    lead: Person
    deputy: Person | None


PEOPLE: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Extract what the text says."},
    {"role": "user", "content": "Ada is a 36 year old engineer who speaks English and French."},
]


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with OpenAI(max_retries=0) as openai:
        yield openai


def weather(arguments: str) -> str:
    """What an application would have: it relies on the arguments being what it asked for."""
    asked = GetWeather.model_validate_json(arguments)
    return json.dumps({"city": asked.city, "forecast": ["sunny"] * asked.days})


def test_tools_loop(client: OpenAI) -> None:
    messages = list(QUESTION)
    reply = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice=CHOOSE_WEATHER, parallel_tool_calls=False
    )
    message = reply.choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    messages.append(message.to_dict())  # type: ignore[arg-type]
    messages.append({"role": "tool", "tool_call_id": call.id, "content": weather(call.function.arguments)})
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None
    alone = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice="none", max_completion_tokens=1
    )
    assert answer.usage is not None
    assert alone.usage is not None
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens  # call and result are in the prompt


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_required_call(client: OpenAI, temperature: float) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice="required", parallel_tool_calls=False,
        temperature=temperature, seed=5,
    )  # fmt: skip
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name in {"get_weather", "get_time"}
    assert isinstance(json.loads(call.function.arguments), dict)
    assert call.id


def test_auto_is_text_or_calls(client: OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=[WEATHER])
    choice = reply.choices[0]
    for call in choice.message.tool_calls or []:
        assert call.type == "function"
        if choice.finish_reason == "tool_calls":
            assert weather(call.function.arguments)
    assert choice.message.content or choice.message.tool_calls


def test_streamed_call_is_the_whole_one(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice=CHOOSE_WEATHER)
    assert whole.choices[0].message.tool_calls is not None
    expected = whole.choices[0].message.tool_calls[0]
    assert expected.type == "function"
    chunks = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice=CHOOSE_WEATHER, stream=True
    )
    deltas = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
    first, *others = (delta for delta in deltas if delta.index == 0)
    assert first.id
    assert first.type == "function"
    assert first.function is not None
    assert first.function.name == "get_weather"
    assert others
    assert all(delta.id is None for delta in others)
    text = "".join((delta.function and delta.function.arguments) or "" for delta in (first, *others))
    assert text == expected.function.arguments


def test_streamed_call_as_events(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, tools=[pydantic_function_tool(GetWeather)], tool_choice="required",
        parallel_tool_calls=False,
    ) as stream:  # fmt: skip
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.name for event in done] == ["GetWeather"]
    assert isinstance(done[0].parsed_arguments, GetWeather)


def test_call_parsed_into_a_model(client: OpenAI) -> None:
    reply = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, tools=[pydantic_function_tool(GetWeather)], tool_choice="required",
        parallel_tool_calls=False,
    )  # fmt: skip
    (call,) = reply.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_functions_of_old(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=QUESTION, function_call={"name": "get_weather"},
        functions=[{"name": "get_weather", "parameters": GetWeather.model_json_schema()}],
    )  # fmt: skip
    message = reply.choices[0].message
    assert message.function_call is not None
    assert message.function_call.name == "get_weather"
    assert weather(message.function_call.arguments)


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("model", [Person, Team])
def test_answer_parsed_into_a_model(client: OpenAI, model: type[BaseModel], temperature: float) -> None:
    reply = client.chat.completions.parse(
        model=MODEL, messages=PEOPLE, response_format=model, temperature=temperature, seed=5
    )
    assert isinstance(reply.choices[0].message.parsed, model)
    assert reply.choices[0].finish_reason == "stop"


def test_streamed_answer_parsed_into_a_model(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=PEOPLE, response_format=Person) as stream:
        events = [event for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(events) > 1
    assert isinstance(events[-1].parsed, dict)
    assert isinstance(final.choices[0].message.parsed, Person)


def test_several_answers_parsed_into_models(client: OpenAI) -> None:
    reply = client.chat.completions.parse(
        model=MODEL, messages=PEOPLE, response_format=Person, n=3, temperature=1, seed=1, logprobs=True
    )
    assert len(reply.choices) == 3
    for choice in reply.choices:
        assert isinstance(choice.message.parsed, Person)
        assert choice.logprobs is not None
        assert choice.logprobs.content


def test_json_object(client: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": "Describe Ada in JSON with name and age."}
    ]
    reply = client.chat.completions.create(
        model=MODEL, messages=messages, response_format={"type": "json_object"}, max_completion_tokens=200
    )
    choice = reply.choices[0]
    assert choice.message.content is not None
    assert choice.message.content.lstrip().startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
