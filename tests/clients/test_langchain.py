"""LangChain's OpenAI package: chats, streams, an agent with a tool, structured output, embeddings."""

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict, Field

MODEL = "gpt-4o-mini"
QUESTION = "What is the capital of France? Answer in one sentence."


class City(BaseModel):
    """A city and where it lies."""

    # Not every agent asks for the strict form, and without it a small model may go on with members of its own.
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    continent: Literal["Africa", "America", "Asia", "Australia", "Europe"]


@pytest.fixture
def chat() -> Any:
    return ChatOpenAI(model=MODEL, temperature=0, max_retries=0)


def test_invoke(chat: Any) -> None:
    message = chat.invoke([("system", "You answer in one sentence."), ("human", QUESTION)])
    assert "Paris" in message.content
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.usage_metadata["total_tokens"] > message.usage_metadata["input_tokens"] > 0


def test_stream(chat: Any) -> None:
    # Away from OpenAI it has to be told to ask for the usage.
    chunks = list(chat.stream(QUESTION, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == chat.invoke(QUESTION).content
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0


def test_batch(chat: Any) -> None:
    texts = [f"Say the number {number}." for number in range(4)]
    limited = chat.bind(max_tokens=16)
    assert all(message.content for message in limited.batch(texts))
    assert all(message.content for message in asyncio.run(limited.abatch(texts)))


def test_responses_api() -> None:
    chat = ChatOpenAI(model=MODEL, temperature=0, max_retries=0, use_responses_api=True, use_previous_response_id=True)
    first = chat.invoke(QUESTION)
    assert "Paris" in first.text
    second = chat.invoke([("human", QUESTION), first, ("human", "And of Italy?")])
    assert second.text
    assert "".join(chunk.text for chunk in chat.stream(QUESTION)) == first.text


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("strict", [True, None])
def test_structured_output(chat: Any, method: str, *, strict: bool | None) -> None:
    answer = chat.with_structured_output(City, method=method, strict=strict).invoke("Paris is a city in Europe.")
    assert isinstance(answer, City)


def test_streamed_structured_output(chat: Any) -> None:
    *_, last = chat.with_structured_output(City).stream("Paris is a city in Europe.")
    assert isinstance(last, City)


def test_bound_tools(chat: Any) -> None:
    with_tools = chat.bind_tools([City], tool_choice="any", parallel_tool_calls=False)
    (call,) = with_tools.invoke("Paris is a city in Europe.").tool_calls
    assert City(**call["args"]).name
    streamed = None
    for chunk in with_tools.stream("Paris is a city in Europe."):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert [(each["name"], each["args"]) for each in streamed.tool_calls] == [(call["name"], call["args"])]


def test_agent_with_a_tool(chat: Any) -> None:
    asked: list[str] = []

    def get_weather(city: Literal["Paris", "Rome", "Oslo"]) -> str:
        """The weather of a city."""
        asked.append(city)
        return f"It is sunny in {city}."

    def call_once(request: Any, handler: Callable[[Any], Any]) -> Any:
        """What a small model does not do by itself: ask for the tool first, and answer then."""
        is_answered = any(message.type == "tool" for message in request.messages)
        return handler(
            request.override(
                tool_choice="none" if is_answered else "required", model_settings={"parallel_tool_calls": False}
            )
        )

    agent = create_agent(chat, [get_weather], middleware=[wrap_model_call(call_once)])
    state = agent.invoke({"messages": [("user", "What is the weather in Paris?")]})
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert asked == [state["messages"][1].tool_calls[0]["args"]["city"]]
    assert state["messages"][-1].content


def test_agent_left_to_itself_comes_to_an_end(chat: Any) -> None:
    def get_time() -> str:
        """The time now."""
        return "12:00"

    agent = create_agent(chat.bind(max_tokens=32), [get_time])
    messages = agent.invoke({"messages": [("user", QUESTION)]}, {"recursion_limit": 50})["messages"]
    assert messages[-1].type == "ai"


def test_agent_with_a_structured_answer(chat: Any) -> None:
    agent = create_agent(chat, [], response_format=City)
    state = agent.invoke({"messages": [("user", "Paris is a city in Europe.")]})
    assert isinstance(state["structured_response"], City)


def test_embeddings() -> None:
    # Otherwise it sends the tokens of OpenAI's own models, which it would have to fetch, too.
    embeddings = OpenAIEmbeddings(model="text-embedding-3-small", check_embedding_ctx_length=False)
    assert [len(vector) for vector in embeddings.embed_documents(["one", "two"])] == [384, 384]
    assert embeddings.embed_query("one") == pytest.approx(embeddings.embed_documents(["one"])[0], abs=1e-6)
