"""A worker whose callers ask for what takes long to prepare: the others get on, and no prompt ends it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shimmy.errors import BadRequest, ContextExceeded, TemplateFailed
from shimmy.messages.request import ChatPrompt, Grammar, GrammarKind, Message, TextPrompt
from shimmy.workers.worker_client import WorkerClient
from tests.engine.test_main import VAST, answer, outcome, refusal, request, worker
from tests.fakes import on_loop
from tests.tiny_models import CHATML, write_tiny_bpe, write_tiny_model

MESSAGES = "<|im_start|>user\nhi<|im_end|>\n" * 40_000
# A second of compiling, for which the lock of Python's is not held.
LARGE_SCHEMA = (
    '{"type":"object","properties":{' + ",".join(f'"property{n}":{{"type":"string"}}' for n in range(2000)) + "}}"
)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


async def tokenize_much(client: WorkerClient) -> object:
    return await client.tokenize(MESSAGES, add_special=True, parse_special=True)


async def render_endlessly(client: WorkerClient) -> object:
    return await refusal(client, ChatPrompt((Message("user", "forever"),)))


async def compile_much(client: WorkerClient) -> object:
    return await answer(client, "hello", grammar=Grammar(GrammarKind.JSON_SCHEMA, LARGE_SCHEMA, True))


async def ask_for_a_long_prompt(client: WorkerClient) -> object:
    return await refusal(client, TextPrompt(MESSAGES))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose template never ends for those who say so."""
    template = "{% if messages[0].content == 'forever' %}" + ENDLESS + "{% endif %}" + CHATML
    return write_tiny_model(tmp_path_factory.mktemp("models"), n_ctx_train=VAST, chat_template=template)


@pytest.mark.alone  # what is long has to be longer than what others ask for
@pytest.mark.parametrize("long", [tokenize_much, render_endlessly, compile_much])
@on_loop
async def test_others_are_answered_while_one_is_prepared(
    long: Callable[[WorkerClient], Awaitable[object]], model: Path
) -> None:
    """A prompt of 10,000 messages had everybody wait for six seconds."""
    async with worker(model) as client:
        slow = asyncio.ensure_future(long(client))
        await asyncio.sleep(0.05)
        assert await answer(client, "hello", n_predict=1)
        assert await client.tokenize("hello", add_special=False, parse_special=False)
        chat = ChatPrompt((Message("user", "hello"),))
        assert await answer(client, chat, n_predict=1)
        assert not slow.done()
        await slow


@on_loop
async def test_streams_go_on_while_prompts_are_prepared(model: Path) -> None:
    async with worker(model, n_ctx=VAST) as client:
        stream = client.submit(request("hello", n_predict=VAST))
        await stream.accepted()
        slow = [asyncio.ensure_future(each(client)) for each in (tokenize_much, render_endlessly, compile_much)]
        n_pieces = 0
        async for _ in stream:
            n_pieces += 1
            if all(each.done() for each in slow):
                break
        assert n_pieces > 50
        stream.close()


@on_loop
async def test_what_nobody_waits_for_is_not_tokenized_to_its_end(model: Path) -> None:
    async with worker(model) as client:
        slow = [asyncio.ensure_future(tokenize_much(client)) for _ in range(20)]  # half a minute of work
        await asyncio.sleep(0.05)
        for each in slow:
            each.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert len(await client.tokenize(MESSAGES[:3000], add_special=True, parse_special=True)) > 100
        await asyncio.wait_for(ask_for_a_long_prompt(client), 15)


@on_loop
async def test_a_prompt_that_cannot_fit_is_refused_by_its_length(model: Path) -> None:
    async with worker(model) as client:
        error = await refusal(client, TextPrompt("x" * 16_000_000))
        assert isinstance(error, ContextExceeded)
        assert "maximum context length" in error.message


@pytest.mark.parametrize(
    "pre", ["gpt-4o", *(pytest.param(pre, marks=pytest.mark.thorough) for pre in ("tekken", "deepseek-v3"))]
)
@on_loop
async def test_no_prompt_ends_a_worker(pre: str, tmp_path: Path) -> None:
    """`std::regex` recursed over the stack: 26,000 letters, or 60,000 of other characters, were the end."""
    async with worker(write_tiny_bpe(tmp_path, pre=pre)) as client:
        for character, length in (("A", 200_000), (" ", 60_000), ("-", 60_000), ("漢", 60_000), ("ж", 60_000)):
            error = await refusal(client, TextPrompt(character * length))
            assert isinstance(error, BadRequest)
            assert await client.tokenize(character * length, add_special=False, parse_special=False)
        wish = Grammar(GrammarKind.JSON_SCHEMA, '{"const":"' + "A" * 200_000 + '"}', True)
        text, _ = await outcome(client.submit(request("hello", grammar=wish)))
        assert set(text) <= {'"', "A"}
        assert client.is_alive


@on_loop
async def test_a_template_cannot_hold_the_lock_of_python_past_its_deadline(tmp_path: Path) -> None:
    """The check of its formats took time that doubled with each: 11 seconds for this one, and no token meanwhile."""
    template = "{% if messages[0].content == 'forever' %}{{ ('%000d' * 24 ~ '%') % 1 }}{% endif %}" + CHATML
    async with worker(write_tiny_model(tmp_path, chat_template=template)) as client:
        error = await asyncio.wait_for(refusal(client, ChatPrompt((Message("user", "forever"),))), 20)
        assert isinstance(error, TemplateFailed)
        assert "format" in error.message
