"""A real worker process with a tiny model, through the parent's own client."""

import asyncio
import contextlib
import math
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from shimmy.errors import (
    BadRequest,
    ContextExceeded,
    ModelUnavailable,
    ShimmyError,
    ShuttingDown,
    TemplateFailed,
    WorkerDied,
)
from shimmy.messages.event import Accepted, Echo, Finished, FinishReason, Piece, Usage
from shimmy.messages.model_info import Adapter
from shimmy.messages.request import (
    ChatPrompt,
    FillPrompt,
    GenerateRequest,
    Grammar,
    GrammarKind,
    Message,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from shimmy.system import cpu
from shimmy.wire.worker_options import CpuShare, WorkerOptions
from shimmy.workers import spawn
from shimmy.workers.start_worker import start_worker
from shimmy.workers.worker_client import Hooks, WorkerClient
from shimmy.workers.worker_streams import JobStream
from tests.fakes import on_loop
from tests.forced_variant import FORCED
from tests.tiny_models import (
    BOS_TOKEN,
    EOS_TOKEN,
    N_EMBD,
    STRING,
    UINT32,
    Tensor,
    vocabulary,
    write_tiny_adapter,
    write_tiny_model,
)

GREEDY = SamplingParams(temperature=0)
HELLO = ChatPrompt((Message("user", "hello"),))
CHATML = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
OTHER_BROKEN_ADAPTERS = ("a folder", "cut off", "damaged", "a model")
# No job comes to the end of this in the time of a test.
VAST = 65536


def options(path: Path, **changes: Any) -> WorkerOptions:
    defaults: dict[str, Any] = {
        "model_path": str(path), "n_ctx": 256, "n_sequences": 4, "n_batch": 64, "n_threads": 1, "cpu_variant": FORCED,
        "chat_template": None,
    }  # fmt: skip
    return WorkerOptions(**defaults | changes)


@contextlib.asynccontextmanager
async def worker(path: Path, **changes: Any) -> AsyncIterator[WorkerClient]:
    """A worker that has loaded the model at `path`, and its end."""
    client = await start_worker("tiny", options(path, **changes), Hooks())
    try:
        yield client
    finally:
        await client.close()


def request(prompt: Prompt | str, sampling: SamplingParams = GREEDY, **changes: Any) -> GenerateRequest:
    prompt = TextPrompt(prompt) if isinstance(prompt, str) else prompt
    return GenerateRequest("tiny", prompt, sampling, **{"n_predict": 8, **changes})


async def outcome(stream: JobStream) -> tuple[str, Finished]:
    """A job's whole text, and its end."""
    texts: list[str] = []
    async for event in stream:
        if isinstance(event, Finished):
            return "".join(texts), event
        assert isinstance(event, Echo | Piece)
        texts.append(event.text)
    raise AssertionError("the stream ended before its job")


async def answer(client: WorkerClient, prompt: Prompt | str, **changes: Any) -> str:
    return (await outcome(client.submit(request(prompt, **changes))))[0]


async def n_tokens(client: WorkerClient, text: str) -> int:
    return len(await client.tokenize(text, add_special=False, parse_special=False))


async def refusal(client: WorkerClient, prompt: Prompt | str, **changes: Any) -> ShimmyError:
    with pytest.raises(ShimmyError) as caught:
        await client.submit(request(prompt, **changes)).accepted()
    return caught.value


# -- jobs ------------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_job_is_accepted_speaks_and_finishes_with_a_true_account(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        prompt = "hello world " * 5
        stream = client.submit(request(prompt))
        n_prompt = 1 + await n_tokens(client, prompt)
        assert await stream.accepted() == Accepted(n_prompt)
        text, finished = await outcome(stream)
        assert text
        assert finished.reason is FinishReason.LENGTH
        assert finished.usage == Usage(n_prompt, n_cached=0, n_completion=8)
        assert min(finished.timings.queue_ms, finished.timings.prompt_ms, finished.timings.predicted_ms) >= 0
        assert client.n_jobs == 0

        again, finished = await outcome(client.submit(request(prompt)))
        assert again == text
        assert finished.usage.n_cached == n_prompt - 1, "all but the token whose logits are needed"
        _, finished = await outcome(client.submit(request(prompt, cache_prompt=False)))
        assert finished.usage.n_cached == 0


@on_loop
async def test_a_prompt_may_be_a_chat_a_text_or_tokens(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        tokens = await client.tokenize(CHATML, add_special=True, parse_special=True)
        texts = [await answer(client, prompt) for prompt in (HELLO, CHATML, TokenPrompt(tuple(tokens)))]
        assert texts[0] == texts[1] == texts[2]
        assert texts[0] != await answer(client, "hello")


@on_loop
async def test_an_empty_prompt_begins_with_the_beginning(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        begin = TokenPrompt((BOS_TOKEN,))
        assert await answer(client, "") == await answer(client, TokenPrompt(())) == await answer(client, begin)


@on_loop
async def test_many_jobs_at_once_each_get_their_own_text(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        prompts = [f"{number} hello {number}" for number in range(12)]
        alone = [await answer(client, prompt) for prompt in prompts]
        together = await asyncio.gather(*(answer(client, prompt, cache_prompt=False) for prompt in prompts))
        assert together == alone
        assert len(set(alone)) > 6


@on_loop
async def test_a_seed_repeats_a_text_and_no_seed_does_not(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        loose = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}

        async def sampled(seed: int | None) -> str:
            return await answer(client, "hello", sampling=SamplingParams(seed=seed, **loose), n_predict=24)  # type: ignore[arg-type]

        assert await sampled(7) == await sampled(7)
        assert len({await sampled(seed) for seed in (7, 8, None, None)}) == 4


@on_loop
async def test_a_stop_string_and_the_models_end_stop_a_job(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        text = await answer(client, "hello", n_predict=20)
        stop = text[5:9]
        shorter, finished = await outcome(client.submit(request("hello", n_predict=20, stop=("nowhere", stop))))
        assert shorter == text[: text.index(stop)]
        assert (finished.reason, finished.stop_string) == (FinishReason.STOP, stop)
        wish = SamplingParams(temperature=0, logit_bias=((EOS_TOKEN, 1000.0),))
        text, finished = await outcome(client.submit(request("hello", wish)))
        assert (text, finished.reason, finished.usage.n_completion) == ("", FinishReason.STOP, 1)
        anyway = SamplingParams(temperature=0, logit_bias=((EOS_TOKEN, 1000.0),), ignore_eos=True)
        text, finished = await outcome(client.submit(request("hello", anyway)))
        assert (finished.reason, finished.usage.n_completion) == (FinishReason.LENGTH, 8)


@on_loop
async def test_a_full_context_ends_a_job_by_length(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        _, finished = await outcome(client.submit(request("hello", n_predict=None)))
        assert finished.reason is FinishReason.LENGTH
        assert finished.usage.n_prompt + finished.usage.n_completion == client.facts.n_ctx == 256


# -- what is refused -------------------------------------------------------------------------------------------------


@on_loop
async def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        error = await refusal(client, TokenPrompt((5,) * 300))
        assert isinstance(error, ContextExceeded)
        assert "300 tokens" in error.message
        assert "256" in error.message
        assert isinstance(await refusal(client, TokenPrompt((5,) * 256)), ContextExceeded), "no room for an answer"
        assert await answer(client, TokenPrompt((5,) * 255), n_predict=1)


@on_loop
async def test_what_the_vocabulary_does_not_have_is_refused_by_field(tiny_model: Path) -> None:
    n_vocab = len(vocabulary())
    refused: list[tuple[str, Prompt, SamplingParams]] = [
        ("logit_bias", TextPrompt("x"), SamplingParams(logit_bias=((n_vocab, 1.0),))),
        ("logit_bias", TextPrompt("x"), SamplingParams(logit_bias=((-1, 1.0),))),
        ("prompt", TokenPrompt((n_vocab,)), GREEDY),
        ("prompt", TokenPrompt((-1,)), GREEDY),
        ("temperature", TextPrompt("x"), SamplingParams(temperature=1e9)),
    ]
    async with worker(tiny_model) as client:
        for param, prompt, sampling in refused:
            error = await refusal(client, prompt, sampling=sampling)
            assert isinstance(error, BadRequest)
            assert error.param == param
        assert await answer(client, "it lives on")


# -- adapters --------------------------------------------------------------------------------------------------------


def write_broken_adapter(folder: Path, weight: float = 1e30) -> Path:
    """An adapter whose weights are damaged, in a sound file."""
    shapes = {"blk.0.attn_v.weight.lora_a": (N_EMBD, 1), "blk.0.attn_v.weight.lora_b": (1, N_EMBD)}
    tensors = [Tensor(name, shape, struct.pack("<f", weight) * N_EMBD) for name, shape in shapes.items()]
    return write_tiny_adapter(folder, "broken", tensors=tensors)


@on_loop
async def test_adapters_apply_at_their_own_scale_or_the_requests(tiny_model: Path, tmp_path: Path) -> None:
    one, two = (str(write_tiny_adapter(tmp_path, str(seed), seed=seed)) for seed in (1, 2))
    async with worker(tiny_model) as client:
        base = await answer(client, "hello", n_predict=24)
        assert client.facts.adapters == ()
    async with worker(tiny_model, lora=((one, 1.0),)) as client:
        with_one = await answer(client, "hello", n_predict=24)
    async with worker(tiny_model, lora=((one, 1.0),), siblings=(one, two)) as client:
        assert client.facts.adapters == (Adapter(one, 1.0), Adapter(two, 0.0)), "each file once"

        async def text(*scales: tuple[int, float]) -> str:
            return await answer(client, "hello", n_predict=24, lora=scales)

        assert await answer(client, "hello", n_predict=24) == await text((0, 1.0)) == with_one
        assert await text((0, 0.0)) == await text() == await text((1, 0.0)) == base
        assert await text((0, 5.0), (0, 1.0)) == with_one, "the last word counts"
        others = {await text((1, 1.0)), await text((0, 0.5)), await text((0, 1.0), (1, 1.0)), base, with_one}
        assert len(others) == 5


@on_loop
async def test_jobs_of_different_scales_at_once_get_what_each_gets_alone(tiny_model: Path, tmp_path: Path) -> None:
    paths = tuple((str(write_tiny_adapter(tmp_path, str(seed), seed=seed)), 0.0) for seed in (1, 2))
    wishes = [None, ((0, 1.0),), ((0, -0.5),), ((0, 1.0), (1, 1.0)), ((1, 1.0),)]
    async with worker(tiny_model, lora=paths, n_ctx=2048, n_sequences=8) as client:
        alone = [await answer(client, "hello", n_predict=40, cache_prompt=False, lora=wish) for wish in wishes]
        assert len(set(alone)) == len(wishes)
        streams = [client.submit(request("hello", n_predict=40, lora=wish)) for wish in wishes * 2]
        ends = await asyncio.gather(*map(outcome, streams))
        assert [text for text, _ in ends] == alone * 2
        for text, wish in zip(alone, wishes, strict=True):
            for _ in range(2):
                again, finished = await outcome(client.submit(request("hello", n_predict=40, lora=wish)))
                assert again == text
            assert finished.usage.n_cached == finished.usage.n_prompt - 1


@on_loop
async def test_an_adapter_that_there_is_not_is_refused_by_its_place(tiny_model: Path, tmp_path: Path) -> None:
    async with worker(tiny_model, siblings=(str(write_tiny_adapter(tmp_path)),)) as client:
        error = await refusal(client, "hello", lora=((0, 1.0), (1, 1.0)))
        assert isinstance(error, BadRequest)
        assert (error.param, error.message) == ("lora[1].id", "lora[1].id: the model has 0 to 0, got 1")
    async with worker(tiny_model) as client:
        error = await refusal(client, "hello", lora=((0, 1.0),))
        assert (error.param, error.message) == ("lora[0].id", "lora[0].id: the model has no adapters, got 0")


@pytest.mark.parametrize(
    "kind",
    ["missing", "would abort", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in OTHER_BROKEN_ADAPTERS)],
)
@on_loop
async def test_a_broken_adapter_ends_the_load_when_asked_for_and_is_passed_over_as_a_sibling(
    kind: str, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny_adapter(tmp_path, "broken")
    match kind:
        case "missing":
            path.unlink()
        case "a folder":
            path.unlink()
            path.mkdir()
        case "cut off":
            path.write_bytes(path.read_bytes()[:1000])
        case "would abort":
            write_tiny_adapter(tmp_path, "broken", changes=[("adapter.lora.alpha", UINT32, 1)])
        case "damaged":
            write_broken_adapter(tmp_path)
        case _:
            path = tiny_model
    with pytest.raises(ModelUnavailable, match=f"the adapter `{path.name}` cannot be applied: "):
        await start_worker("tiny", options(tiny_model, lora=((str(path), 1.0),)), Hooks())
    good = str(write_tiny_adapter(tmp_path, "good", seed=1))
    async with worker(tiny_model, lora=((good, 1.0),)) as client:
        expected = await answer(client, "hello")
    capfd.readouterr()
    async with worker(tiny_model, siblings=(str(path), good)) as client:
        assert client.facts.adapters == (Adapter(good, 0.0),)
        assert await answer(client, "hello", lora=((0, 1.0),)) == expected
    assert f"the adapter `{path.name}` cannot be applied: " in capfd.readouterr().err


@on_loop
async def test_an_adapter_for_another_architecture_is_for_another_model(tiny_model: Path, tmp_path: Path) -> None:
    other = str(write_tiny_adapter(tmp_path, changes=[("general.architecture", STRING, "qwen2")]))
    async with worker(tiny_model, lora=((other, 1.0),)) as client:
        assert client.facts.adapters == ()
        assert await answer(client, "hello")


@on_loop
async def test_a_scale_that_is_too_much_for_the_model_costs_only_its_own_job(tiny_model: Path, tmp_path: Path) -> None:
    adapter = str(write_broken_adapter(tmp_path, 20.0))
    async with worker(tiny_model, lora=((adapter, 0.0),), n_ctx=1024) as client:
        expected = await answer(client, "hello", n_predict=30)
        beside = client.submit(request("hello", n_predict=30))
        with pytest.raises(BadRequest) as caught:
            await outcome(client.submit(request("hello world " * 8, lora=((0, 100.0),))))
        assert caught.value.param == "lora"
        assert (await outcome(beside))[0] == expected
        assert await answer(client, "hello", n_predict=30) == expected


# -- small questions -------------------------------------------------------------------------------------------------


@on_loop
async def test_log_probabilities_of_prompt_and_reply_agree(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        prompt = "hello world " * 9  # more tokens than a decode has rows with logits
        said = [event async for event in client.submit(request(prompt, n_logprobs=3, echo=True))]
        echoes = [event for event in said if isinstance(event, Echo)]
        pieces = [event for event in said if isinstance(event, Piece)]
        assert said[: len(echoes)] == echoes
        assert echoes[0].text == prompt
        in_prompt = [logprob for echo in echoes for logprob in echo.logprobs]
        in_reply = [logprob for piece in pieces for logprob in piece.logprobs]
        tokens = [each.chosen.token for each in (*in_prompt, *in_reply)]
        assert tokens[: len(in_prompt)] == list(await client.tokenize(prompt, add_special=True, parse_special=True))
        assert math.isnan(in_prompt[0].chosen.logprob)
        assert all(each.chosen == each.top[0] for each in in_reply), "greedy takes the most likely token"
        # What was said, read as a prompt, is as likely as it was while it was said.
        again = client.submit(request(TokenPrompt(tuple(tokens)), n_logprobs=0, echo=True, n_predict=0))
        told = [each async for event in again if isinstance(event, Echo) for each in event.logprobs]
        assert [each.chosen.logprob for each in told[1:]] == pytest.approx(
            [each.chosen.logprob for each in (*in_prompt[1:], *in_reply)], abs=2e-2
        )


@on_loop
async def test_a_model_without_marks_for_a_gap_fills_none(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        error = await refusal(client, FillPrompt("before", "behind"))
        assert (error.param, error.status) == ("suffix", 400)


@on_loop
async def test_calls_about_text_and_tokens(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        tokens = await client.tokenize("hello", add_special=False, parse_special=False)
        assert list(await client.tokenize("hello", add_special=True, parse_special=False)) == [BOS_TOKEN, *tokens]
        assert list(await client.tokenize("</s>", add_special=False, parse_special=True)) == [EOS_TOKEN]
        assert await client.detokenize([BOS_TOKEN, *tokens]) == "<s> hello"
        assert await client.tokenize("\ud800\0", add_special=False, parse_special=False)
        assert await client.apply_template(HELLO) == CHATML
        with pytest.raises(BadRequest) as caught:
            await client.detokenize([len(vocabulary())])
        assert caught.value.param == "tokens"


@on_loop
async def test_a_model_without_a_template_gets_chatml_and_says_so(tmp_path: Path) -> None:
    async with worker(write_tiny_model(tmp_path, chat_template=None)) as client:
        assert not client.facts.has_chat_template
        assert await client.apply_template(HELLO) == CHATML
        assert await answer(client, HELLO)


@on_loop
async def test_a_broken_template_refuses_chats_and_completes_text(tmp_path: Path) -> None:
    async with worker(write_tiny_model(tmp_path, chat_template="{% if %}")) as client:
        assert client.facts.has_chat_template
        assert isinstance(await refusal(client, HELLO), TemplateFailed)
        with pytest.raises(TemplateFailed):
            await client.apply_template(HELLO)
        assert await answer(client, "hello")


@on_loop
async def test_a_template_given_by_the_person_replaces_the_models_own(tiny_model: Path) -> None:
    source = "{{ bos_token }}{{ messages[0]['content'] | upper }}{{ raise_exception('no!') if messages | length > 1 }}"
    async with worker(tiny_model, chat_template=source) as client:
        assert await client.apply_template(HELLO) == "<s>HELLO"
        stream = client.submit(request(HELLO))
        assert await stream.accepted() == Accepted(1 + await n_tokens(client, "HELLO"))
        error = await refusal(client, ChatPrompt((Message("user", "a"), Message("user", "b"))))
        assert isinstance(error, TemplateFailed)
        assert "no!" in error.message


@on_loop
async def test_a_draft_model_changes_no_text_and_one_that_does_not_fit_keeps_nothing_from_being_served(
    tiny_model: Path, tmp_path: Path
) -> None:
    other, junk = write_tiny_model(tmp_path, "other", seed=1), write_junk(tmp_path)
    loose = SamplingParams(temperature=3, seed=3, top_p=1, min_p=0)

    async def texts(**changes: Any) -> list[str]:
        async with worker(tiny_model, n_ctx=512, **changes) as client:
            client.share(CpuShare(2))
            guided = Grammar(GrammarKind.REGEX, "[a-z ]{40}")
            return [
                await answer(client, "hello", n_predict=60),
                await answer(client, "hello", n_predict=60, sampling=loose),
                await answer(client, "hello", n_predict=60, grammar=guided),
            ]

    plain = await texts(speculate=False)
    for path in (tiny_model, other, junk):
        assert await texts(draft_model=str(path)) == plain


# -- cancelling and slow readers -------------------------------------------------------------------------------------


@on_loop
async def test_a_cancelled_job_makes_room_for_the_next(tiny_model: Path) -> None:
    async with worker(tiny_model, n_ctx=VAST, n_sequences=1) as client:
        endless = client.submit(request("hello", n_predict=None))
        assert isinstance(await anext(aiter(endless)), Piece)
        assert client.load[:2] == (1, 0)
        assert client.load.n_kv_used > 0
        waiting, next_one = (client.submit(request("hello", n_predict=3)) for _ in range(2))
        waiting.close()
        endless.close()
        _, finished = await outcome(next_one)
        assert finished.usage.n_completion == 3
        assert client.n_jobs == 0


@on_loop
async def test_a_job_cancelled_before_it_was_looked_at_never_runs(tiny_model: Path) -> None:
    async with worker(tiny_model, n_ctx=VAST, n_sequences=1) as client:
        os.kill(client.pid, signal.SIGSTOP)
        cancelled = [client.submit(request("hello", n_predict=None)) for _ in range(5)]
        for stream in cancelled:
            stream.close()
        last = client.submit(request("hello", n_predict=3))
        os.kill(client.pid, signal.SIGCONT)
        assert (await outcome(last))[1].usage.n_completion == 3


@on_loop
async def test_pieces_for_a_slow_reader_are_joined(tiny_model: Path) -> None:
    async with worker(tiny_model, n_sequences=1) as client:
        slow = client.submit(request("hello", n_predict=60))
        expected, _ = await outcome(client.submit(request("hello", n_predict=60)))  # runs after the other
        events = [event async for event in slow]
        assert [type(event) for event in events] == [Piece, Finished]
        assert events[0] == Piece(expected, 60)


@on_loop
async def test_a_slow_reader_does_not_hold_up_the_others(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        slow = client.submit(request("hello", n_predict=100))
        for _ in range(3):
            await answer(client, "hello world")
        assert (await outcome(slow))[1].usage.n_completion == 100


@on_loop
async def test_a_worker_takes_its_part_of_the_processor_in_the_middle_of_a_job(tiny_model: Path) -> None:
    async with worker(tiny_model, n_threads=2) as client:
        alone = await answer(client, "hello", n_predict=100)
        text = ""
        async for event in client.submit(request("hello", n_predict=100, cache_prompt=False)):
            if isinstance(event, Piece):
                client.share(CpuShare(3 if len(text) % 2 else 1))
                text += event.text
        assert text == alone
        await client.until_shared()


# -- how a worker ends -----------------------------------------------------------------------------------------------


@on_loop
async def test_a_killed_worker_fails_every_stream_and_call(tiny_model: Path) -> None:
    deaths: list[WorkerClient] = []
    client = await start_worker("tiny", options(tiny_model), Hooks(deaths.append))
    os.kill(client.pid, signal.SIGSTOP)
    streams = [client.submit(request("hello")) for _ in range(8)]
    call = asyncio.ensure_future(client.detokenize([5]))
    os.kill(client.pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(WorkerDied, match="signal 9"):
            await outcome(stream)
    with pytest.raises(WorkerDied):
        await call
    await client.ended.wait()
    assert deaths == [client]
    with pytest.raises(WorkerDied):
        client.submit(request("hello"))
    await client.close()
    await client.close()
    assert deaths == [client]


@on_loop
async def test_closing_ends_the_process_and_its_jobs_and_may_be_repeated(tiny_model: Path) -> None:
    deaths: list[WorkerClient] = []
    client = await start_worker("tiny", options(tiny_model, n_ctx=VAST), Hooks(deaths.append))
    stream = client.submit(request("hello", n_predict=None))
    await stream.accepted()
    await asyncio.gather(client.close(), client.close())
    with pytest.raises(ShuttingDown):
        await outcome(stream)
    with pytest.raises(ProcessLookupError):
        os.kill(client.pid, 0)
    await client.close()
    assert deaths == [client]


@on_loop
async def test_leaving_during_a_load_ends_the_process(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clients: asyncio.Queue[WorkerClient] = asyncio.Queue()
    send = WorkerClient.open

    def send_and_tell(client: WorkerClient, options: WorkerOptions) -> None:
        send(client, options)
        clients.put_nowait(client)

    monkeypatch.setattr(WorkerClient, "open", send_and_tell)
    load = asyncio.create_task(start_worker("tiny", options(tiny_model), Hooks()))
    client = await clients.get()
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert client.ended.is_set()
    with pytest.raises(ProcessLookupError):
        os.kill(client.pid, 0)


@on_loop
async def test_a_worker_ignores_the_terminals_interrupt(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        os.kill(client.pid, signal.SIGINT)
        assert await answer(client, "hello")


@on_loop
async def test_nonsense_from_the_parent_ends_the_worker(tiny_model: Path) -> None:
    """Whoever writes that into the socket is not our server."""
    async with worker(tiny_model) as client:
        client._transport.write(b"\xff\xff\xff\xff")
        await client.ended.wait()


# -- loads that fail -------------------------------------------------------------------------------------------------


def write_junk(folder: Path) -> Path:
    path = folder / "junk.gguf"
    path.write_bytes(b"GGUF" + bytes(range(200)))
    return path


def name_nothing(folder: Path) -> Path:
    return folder / "missing.gguf"


def cut_short(folder: Path) -> Path:
    path = write_tiny_model(folder, "cut")
    path.write_bytes(path.read_bytes()[:-1000])
    return path


@pytest.mark.parametrize("make", [write_junk, name_nothing, cut_short])
def test_a_file_that_is_no_model_is_refused_with_the_reason(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(ModelUnavailable) as caught:
        asyncio.run(_start(options(path)))
    assert f"`{path.name}`" in caught.value.message
    assert str(tmp_path) not in caught.value.message, "where models lie is nothing for a client"
    assert len(caught.value.message) > len(f"`{path.name}` cannot be loaded: ")


def test_an_unknown_variant_is_refused_with_those_there_are(tiny_model: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"no CPU variant `pentium`; there are: .*haswell"):
        asyncio.run(_start(options(tiny_model, cpu_variant="pentium")))


def test_a_context_that_memory_has_no_room_for_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that cannot grow later.
    path = write_tiny_model(tmp_path, more=[("llama.rope.scaling.original_context_length", UINT32, 1024)])
    command = spawn.worker_command

    def with_one_gigabyte(socket_fd: int, name: str) -> list[str]:
        return ["sh", "-c", 'ulimit -v 1000000 && exec "$@"', "sh", *command(socket_fd, name)]

    monkeypatch.setattr(spawn, "worker_command", with_one_gigabyte)
    with pytest.raises(ModelUnavailable, match=r"no context of 4194304 tokens: .*memory"):
        asyncio.run(_start(options(path, n_ctx=2**22)))


async def _start(wanted: WorkerOptions) -> None:
    client = await start_worker("tiny", wanted, Hooks())
    await client.close()


def test_an_older_variant_answers_the_same(tiny_model: Path) -> None:
    async def run(variant: str) -> tuple[str, str]:
        async with worker(tiny_model, cpu_variant=variant) as client:
            return client.facts.cpu_variant, await answer(client, "hello")

    (name, text), (older, older_text) = asyncio.run(run("sse42")), asyncio.run(run("x64"))
    assert (name, older) == ("sse42", "x64")
    assert older_text == text


def test_a_batch_is_never_smaller_than_the_jobs_that_run(tiny_model: Path) -> None:
    async def run() -> list[str]:
        async with worker(tiny_model, n_sequences=40, n_batch=32, n_ctx=2048) as client:
            return list(await asyncio.gather(*(answer(client, "hello", cache_prompt=False) for _ in range(40))))

    assert len(set(asyncio.run(run()))) == 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux places threads")
@on_loop
async def test_a_worker_that_has_nothing_to_do_may_run_on_any_core(tiny_model: Path) -> None:
    async with worker(tiny_model, n_threads=len(cpu.cores())) as client:
        for _ in range(3):
            await outcome(client.submit(request("hello")))
            await client.tokenize("hello", add_special=True, parse_special=False)
            async with asyncio.timeout(10):
                while os.sched_getaffinity(client.pid) != os.sched_getaffinity(0):  # noqa: ASYNC110 - it is no event
                    await asyncio.sleep(0.01)
