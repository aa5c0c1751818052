"""OpenAI's Python client: chat, completions, streams, log-probabilities, embeddings, many requests at once."""

import asyncio
import math
from collections.abc import Iterator
from operator import mul

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

MODEL = "gpt-4o-mini"
MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "developer", "content": "You answer in one sentence."},
    {"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]},
]


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with OpenAI(max_retries=0) as openai:
        yield openai


def test_chat(client: OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    choice = reply.choices[0]
    assert choice.message.content
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_conversation_goes_on(client: OpenAI) -> None:
    messages = list(MESSAGES)
    for question in ("And of Italy?", "Which of the two is larger?"):
        reply = client.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=48)
        assert reply.choices[0].message.content
        messages += [reply.choices[0].message.to_dict(), {"role": "user", "content": question}]  # type: ignore[list-item]
    usage = client.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=1).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens


def test_stream(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES).choices[0].message.content
    chunks = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for chunk in chunks:
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == whole
    assert usage is not None


def test_stream_of_events(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert "".join(event.delta for event in events if event.type == "content.delta") == final.choices[0].message.content
    assert [event.type for event in events].count("content.done") == 1
    assert final.choices[0].finish_reason == "stop"


def test_a_stream_can_be_left(client: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a long story about a fox."}]
    with client.chat.completions.create(model=MODEL, messages=messages, stream=True) as stream:
        assert next(iter(stream)).choices
    assert client.chat.completions.create(model=MODEL, messages=MESSAGES).choices


def test_several_choices(client: OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, temperature=1.5, seed=3, max_tokens=24)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in reply.choices}) > 1
    chunks = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, n=3, temperature=1.5, seed=3, max_tokens=24, stream=True
    )
    texts = {0: "", 1: "", 2: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    # Not the same texts as before: how many rows a decode has decides near-ties.
    assert all(texts.values())
    assert len(set(texts.values())) > 1


def test_log_probabilities_of_a_chat(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=5, max_completion_tokens=8
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert reply.usage is not None
    assert b"".join(bytes(token.bytes or []) for token in logprobs.content).decode() == reply.choices[0].message.content
    for token in logprobs.content:
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )
        assert token.top_logprobs[0].token == token.token  # what is likeliest comes
        assert 0 < sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-6


def test_completion_with_the_likelihood_of_its_prompt(client: OpenAI) -> None:
    prompt = "The capital of France is"
    reply = client.completions.create(model=MODEL, prompt=prompt, echo=True, logprobs=2, max_tokens=4)
    choice = reply.choices[0]
    assert choice.text.startswith(prompt)
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.token_logprobs is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert [choice.text[start:].startswith(token) for start, token in
            zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True)].count(False) == 0  # fmt: skip
    first, *others = choice.logprobs.token_logprobs
    assert first is None
    assert all(logprob <= 0 for logprob in others)


def test_a_batch_of_completions(client: OpenAI) -> None:
    prompts = ["One, two, three,", "Monday, Tuesday,", "Red, green,"]
    batch = client.completions.create(model=MODEL, prompt=prompts, max_tokens=8)
    alone = [client.completions.create(model=MODEL, prompt=prompt, max_tokens=8) for prompt in prompts]
    assert [choice.text for choice in batch.choices] == [reply.choices[0].text for reply in alone]


def test_embeddings(client: OpenAI) -> None:
    texts = ["A cat sits on the mat.", "A kitten lies on the rug.", "The bank raised its interest rates."]
    reply = client.embeddings.create(model="text-embedding-3-small", input=texts)  # asks for base64
    cat, kitten, bank = (item.embedding for item in reply.data)
    assert len(cat) == 384
    assert sum(map(mul, cat, kitten)) > sum(map(mul, cat, bank))
    floats = client.embeddings.create(model="text-embedding-3-small", input=texts[0], encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(cat, abs=1e-6)


def test_models(client: OpenAI) -> None:
    served = [model.id for model in client.models.list()]
    assert len(served) == 2
    assert client.models.retrieve(served[0]).id == served[0]


def test_async_client_with_many_requests_at_once() -> None:
    async def texts() -> list[str]:
        async with AsyncOpenAI(max_retries=0) as client:

            async def text(number: int) -> str:
                messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": f"Count from {number}."}]
                stream = await client.chat.completions.create(
                    model=MODEL, messages=messages, max_completion_tokens=24, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(text, range(12)))

    assert all(asyncio.run(texts()))
