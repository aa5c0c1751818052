"""LiteLLM with its `openai/` provider, as it is used for servers of one's own."""

import asyncio
import json
from typing import Any, Literal

import litellm
import pytest
from pydantic import BaseModel, Field

MODEL = "openai/gpt-4o-mini"
MESSAGES = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}


class City(BaseModel):
    name: str = Field(max_length=20)
    continent: Literal["Africa", "America", "Asia", "Australia", "Europe"]


def test_completion() -> None:
    reply = litellm.completion(model=MODEL, messages=MESSAGES, temperature=0, num_retries=0)
    assert "Paris" in reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_stream() -> None:
    chunks = list(
        litellm.completion(model=MODEL, messages=MESSAGES, temperature=0, stream=True,
                           stream_options={"include_usage": True})
    )  # fmt: skip
    rebuilt = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    whole = litellm.completion(model=MODEL, messages=MESSAGES, temperature=0)
    assert rebuilt.choices[0].message.content == whole.choices[0].message.content
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens


def test_many_at_once() -> None:
    async def replies() -> list[Any]:
        return await asyncio.gather(
            *(litellm.acompletion(model=MODEL, messages=MESSAGES, max_tokens=8) for _ in range(8))
        )

    assert all(reply.choices[0].message.content for reply in asyncio.run(replies()))


def test_text_completion() -> None:
    reply = litellm.text_completion(
        model="text-completion-openai/gpt-3.5-turbo-instruct", prompt="One, two,", max_tokens=8
    )
    assert reply.choices[0].text


def test_embedding() -> None:
    reply = litellm.embedding(model="openai/text-embedding-3-small", input=["one", "two"])
    assert [len(item["embedding"]) for item in reply.data] == [384, 384]


def test_errors_have_their_types() -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/no-such-model", messages=MESSAGES)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(model=MODEL, messages=[{"role": "user", "content": "one two " * 20_000}])


def test_tools_loop() -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = litellm.completion(
        model=MODEL, messages=messages, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = first.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in {"Paris", "Rome"}
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    second = litellm.completion(model=MODEL, messages=messages, tools=[WEATHER], tool_choice="none")
    assert second.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_answer_in_a_schema(*, stream: bool) -> None:
    reply = litellm.completion(
        model=MODEL, messages=[{"role": "user", "content": "Paris is in Europe."}], response_format=City, stream=stream
    )
    text = (
        "".join(chunk.choices[0].delta.content or "" for chunk in reply)
        if stream else reply.choices[0].message.content
    )  # fmt: skip
    assert City.model_validate_json(text).name


def test_responses() -> None:
    response = litellm.responses(model=MODEL, input=MESSAGES[0]["content"], temperature=0)
    assert "Paris" in response.output[0].content[0].text
