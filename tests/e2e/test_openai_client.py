"""OpenAI's own client against the program: replies, streams, models, and errors as the types it has for them."""

import asyncio
from collections.abc import Iterator

import pytest
from openai import (
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
)
from openai.types.chat import ChatCompletionUserMessageParam

from tests.e2e.conftest import StartServer
from tests.e2e.harness import PROMPTS, Server

MESSAGES: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "hello world"}]


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="any", max_retries=0) as openai:
        yield openai


def test_chat(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="alpha", messages=MESSAGES, max_tokens=8, temperature=0)
    choice = reply.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert reply.model == "alpha"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 8
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 8


@pytest.mark.smoke
def test_streamed_chat_has_the_text_of_the_whole_one(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="alpha", messages=MESSAGES, max_tokens=24, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="alpha", messages=MESSAGES, max_tokens=24, temperature=0,
            stream=True, stream_options={"include_usage": True},
        )
    )  # fmt: skip
    *with_choices, last = chunks
    assert with_choices[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in with_choices) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in with_choices if chunk.choices[0].finish_reason] == ["length"]
    assert all(chunk.usage is None for chunk in with_choices)
    assert not last.choices
    assert last.usage is not None
    assert last.usage.completion_tokens == 24
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.smoke
def test_completion_streamed_and_whole(client: OpenAI) -> None:
    whole = client.completions.create(model="alpha", prompt="hello world", max_tokens=24, temperature=0)
    assert whole.choices[0].text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24
    chunks = client.completions.create(model="alpha", prompt="hello world", max_tokens=24, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_usage_says_how_much_of_a_prompt_was_known(client: OpenAI) -> None:
    prompt = [*range(300, 400)]
    for n_known in (0, 99):  # the last token of a prompt is computed each time: what follows depends on it
        usage = client.completions.create(model="alpha", prompt=prompt, max_tokens=2).usage
        assert usage is not None
        assert usage.prompt_tokens == 100
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == n_known


def test_stop_string_ends_the_text_before_it(client: OpenAI) -> None:
    whole = client.completions.create(model="alpha", prompt="hello", max_tokens=24, temperature=0).choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    stopped = client.completions.create(model="alpha", prompt="hello", max_tokens=24, temperature=0, stop=stop)
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == whole[: whole.index(stop)]


def test_a_seed_repeats_a_sampled_text(client: OpenAI) -> None:
    def text(seed: int) -> str:
        return client.completions.create(model="alpha", prompt="hello", max_tokens=24, seed=seed).choices[0].text

    assert text(7) == text(7)
    assert text(7) != text(8)


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["alpha", "beta"]
    assert client.models.retrieve("beta").id == "beta"


def test_unknown_model_is_not_found_and_close_names_are_told(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="`alpha`") as caught:
        client.chat.completions.create(model="alfa", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    with pytest.raises(NotFoundError, match="`beta`"):
        client.models.retrieve("betta")
    with pytest.raises(NotFoundError):
        client.moderations.create(model="alpha", input="hello")


def test_a_wrong_field_is_a_bad_request_that_names_it(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="temperature") as caught:
        client.chat.completions.create(model="alpha", messages=MESSAGES, temperature="hot")  # type: ignore[call-overload]
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="alpha", messages=MESSAGES, n=0)
    assert caught.value.param == "n"


def test_choices_with_a_seed_are_those_of_the_seeds_that_follow_it(client: OpenAI) -> None:
    def texts(n: int, seed: int) -> list[str]:
        reply = client.completions.create(
            model="alpha", prompt=["a b", "c"], max_tokens=8, n=n, seed=seed, temperature=1
        )
        assert [choice.index for choice in reply.choices] == list(range(2 * n))
        return [choice.text for choice in reply.choices]

    three, later = texts(3, 5), texts(1, 7)
    assert [three[2], three[5]] == later
    assert len({*three}) > 2, "they differ"


def test_a_stream_of_choices_is_whole_for_each(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="alpha", messages=MESSAGES, max_tokens=20, n=5, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    for index in range(5):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["length"]
        assert "".join(choice.delta.content or "" for choice in own)
    assert last.usage is not None
    assert last.usage.completion_tokens == 100


def test_an_echo_is_the_prompt_with_its_log_probabilities(client: OpenAI) -> None:
    prompt = "a b é c"
    reply = client.completions.create(model="alpha", prompt=prompt, echo=True, logprobs=2, max_tokens=3, temperature=0)
    (choice,) = reply.choices
    assert choice.text.startswith(prompt)
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.text_offset is not None
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    first, *tokens = zip(logprobs.tokens, logprobs.text_offset, strict=True)
    assert first == ("<s>", 0), "it begins the prompt, and is in no text"
    for token, offset in tokens:
        assert token.startswith("bytes:") or choice.text[offset:].startswith((token, token.lstrip(" ")))


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(client: OpenAI, *, stream: bool) -> None:
    with pytest.raises(BadRequestError, match=r"\b4321\b.*\b4096\b") as caught:
        client.completions.create(model="alpha", prompt=[300] * 4321, stream=stream)
    assert caught.value.code == "context_length_exceeded"


def test_the_text_ends_where_the_context_is_full(client: OpenAI) -> None:
    reply = client.completions.create(model="alpha", prompt=[300] * 4090, temperature=0)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.total_tokens <= 4096 + 1


def test_an_api_key_is_asked_for(start: StartServer) -> None:
    server = start("--api-key", "right", "--api-key", "also-right")
    with (
        OpenAI(base_url=server.url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(AuthenticationError, match="API key") as caught,
    ):
        stranger.models.list()
    assert caught.value.code == "invalid_api_key"
    for key in ("right", "also-right"):
        with OpenAI(base_url=server.url, api_key=key, max_retries=0) as friend:
            assert friend.chat.completions.create(model="alpha", messages=MESSAGES, max_tokens=2).choices
    assert server.get("/health").status == 200
    assert server.get("/metrics").status == 401


def test_a_model_that_does_not_load_is_a_server_error(start: StartServer) -> None:
    server = start("--cpu-variant", "abacus")
    with (
        OpenAI(base_url=server.url, api_key="any", max_retries=0) as client,
        pytest.raises(InternalServerError, match="abacus") as caught,
    ):
        client.chat.completions.create(model="alpha", messages=MESSAGES)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"]


def test_async_client_with_many_requests_at_once(server: Server) -> None:
    async def texts() -> list[str]:
        async with AsyncOpenAI(base_url=server.url, api_key="any", max_retries=0) as client:

            async def text(prompt: str) -> str:
                messages: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": prompt}]
                stream = await client.chat.completions.create(
                    model="alpha", messages=messages, max_tokens=64, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(text, PROMPTS[:16]))

    assert asyncio.run(texts()) == [server.chat(prompt) for prompt in PROMPTS[:16]]
