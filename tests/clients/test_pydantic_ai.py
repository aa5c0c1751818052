"""Pydantic AI: agents whose answers are models, by tools and by schemas, over both of OpenAI's APIs."""

import asyncio
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

MODEL = "gpt-4o-mini"
QUESTION = "What is the capital of France? Answer in one sentence."


class City(BaseModel):
    name: str = Field(max_length=20)
    continent: Literal["Africa", "America", "Asia", "Australia", "Europe"]


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.param(MODEL)


def test_text(model: Any) -> None:
    agent = Agent(model, instructions="You answer in one sentence.", model_settings={"temperature": 0})
    result = agent.run_sync(QUESTION)
    assert "Paris" in result.output
    assert result.usage.output_tokens > 0
    again = agent.run_sync("And of Italy?", message_history=result.all_messages())
    assert again.output


def test_streamed_text(model: Any) -> None:
    agent = Agent(model, model_settings={"temperature": 0})

    async def text() -> str:
        async with agent.run_stream(QUESTION) as result:
            return "".join([delta async for delta in result.stream_text(delta=True, debounce_by=None)])

    assert asyncio.run(text()) == agent.run_sync(QUESTION).output


@pytest.mark.parametrize("output", [ToolOutput, NativeOutput])
def test_answer_is_a_model(model: Any, output: Any) -> None:
    agent = Agent(model, output_type=output(City), model_settings={"temperature": 0, "parallel_tool_calls": False})
    assert isinstance(agent.run_sync("Paris is a city in Europe.").output, City)


def test_streamed_answer_is_a_model(model: Any) -> None:
    agent = Agent(model, output_type=NativeOutput(City), model_settings={"temperature": 0})

    async def output() -> object:
        async with agent.run_stream("Paris is a city in Europe.") as result:
            return await result.get_output()

    assert isinstance(asyncio.run(output()), City)
