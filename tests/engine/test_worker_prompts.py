"""Real worker processes with a tiny model, one after the other, and the prompts that outlive them."""

import os
from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import convert
from shimmy.messages.event import Usage
from shimmy.messages.model_info import PromptCacheStats
from shimmy.messages.request import TokenPrompt
from shimmy.workers.start_worker import start_worker
from shimmy.workers.worker_client import Hooks, WorkerClient
from tests.engine.test_main import options, outcome, request
from tests.fakes import on_loop, until
from tests.golden.weights import write_folder
from tests.tiny_models import write_tiny_adapter, write_tiny_mamba, write_tiny_model

PROMPT = [5 + 7 * place % 90 for place in range(300)]
MORE = [*PROMPT, 9, 8, 7]


class Harness:
    """Workers of one folder of stored prompts."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.cache_dir = folder / "cache"
        self.path = path
        self.traffic: list[PromptCacheStats] = []

    async def worker(self, **changes: Any) -> WorkerClient:
        wanted = {"n_ctx": 512, "cache_dir": str(self.cache_dir), "prompt_cache_bytes": 10**8, **changes}
        return await start_worker("tiny", options(self.path, **wanted), Hooks(on_prompts=self.traffic.append))

    async def answer(self, prompt: list[int], **changes: Any) -> tuple[str, Usage]:
        """What a worker of its own says, from its start to its end."""
        client = await self.worker(**changes)
        try:
            text, finished = await outcome(client.submit(request(TokenPrompt(tuple(prompt)))))
        finally:
            await client.close()
        assert client.ended.is_set()
        return text, finished.usage

    @property
    def files(self) -> list[Path]:
        return sorted((self.cache_dir / "prompts").glob("*.prompt"))


@pytest.fixture
def harness(tmp_path: Path, tiny_model: Path) -> Harness:
    return Harness(tmp_path, tiny_model)


@on_loop
async def test_a_prompt_outlives_its_worker_and_the_text_is_the_same(harness: Harness) -> None:
    plain = [await harness.answer(prompt, prompt_cache_bytes=None) for prompt in (PROMPT, MORE)]
    assert not harness.files
    assert plain[0][0] != plain[1][0]

    assert await harness.answer(PROMPT) == plain[0]
    assert len(harness.files) == 1
    text, usage = await harness.answer(MORE)
    assert text == plain[1][0]
    assert usage == Usage(303, 300, 8)
    (miss, hit) = harness.traffic
    assert miss == PromptCacheStats(n_misses=1)
    assert (hit.n_hits, hit.n_tokens) == (1, 300)


@on_loop
async def test_it_is_stored_while_its_worker_has_nothing_to_do(harness: Harness) -> None:
    client = await harness.worker()
    await outcome(client.submit(request(TokenPrompt(tuple(PROMPT)))))
    await until(lambda: any(traffic.written_bytes for traffic in harness.traffic))
    (path,) = harness.files
    assert harness.traffic[-1].written_bytes == harness.traffic[-1].stored_bytes == path.stat().st_size
    # One that has no time to store anything.
    os.kill(client.pid, 9)
    await client.ended.wait()
    assert (await harness.answer(MORE))[1].n_cached == 300


@on_loop
async def test_a_damaged_file_costs_nothing_but_the_time_to_compute_it(harness: Harness) -> None:
    plain, _ = await harness.answer(MORE, prompt_cache_bytes=None)
    await harness.answer(PROMPT)
    (path,) = harness.files
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert await harness.answer(MORE) == (plain, Usage(303, 0, 8))
    assert (await harness.answer(MORE))[1].n_cached == 302


@on_loop
async def test_another_model_in_its_place_gets_nothing_of_it(harness: Harness, tmp_path: Path) -> None:
    harness.path = write_tiny_model(tmp_path, "model")
    status = harness.path.stat()
    await harness.answer(PROMPT)

    assert write_tiny_model(tmp_path, "model", seed=1) == harness.path
    os.utime(harness.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert harness.path.stat().st_size == status.st_size
    plain, _ = await harness.answer(MORE, prompt_cache_bytes=None)
    assert await harness.answer(MORE) == (plain, Usage(303, 0, 8))


@on_loop
async def test_a_recurrent_model_takes_it_whole_or_not_at_all(harness: Harness, tmp_path: Path) -> None:
    harness.path = write_tiny_mamba(tmp_path)
    client = await harness.worker()
    prompt, reply = TokenPrompt(tuple(PROMPT)), await client.tokenize("hello", add_special=False, parse_special=False)
    await outcome(client.submit(request(prompt, n_predict=1)))
    await client.close()
    for question, n_cached in (([*PROMPT, *reply], 300), ([*PROMPT[:290], *reply], 0)):
        plain, _ = await harness.answer(question, prompt_cache_bytes=None)
        assert await harness.answer(question) == (plain, Usage(len(question), n_cached, 8))


@on_loop
async def test_keys_by_which_layers_select_tokens_are_stored_with_the_others(harness: Harness, tmp_path: Path) -> None:
    harness.path = tmp_path / "glm-dsa.gguf"
    convert(write_folder("glm-dsa", tmp_path / "model", "5"), harness.path, lambda _: None)
    plain, _ = await harness.answer(MORE, prompt_cache_bytes=None)
    await harness.answer(PROMPT)
    assert await harness.answer(MORE) == (plain, Usage(303, 300, 8))


@on_loop
async def test_cells_of_an_adapter_are_for_that_adapter(harness: Harness, tmp_path: Path) -> None:
    lora = ((str(write_tiny_adapter(tmp_path)), 1.0),)
    plain, _ = await harness.answer(MORE, lora=lora, prompt_cache_bytes=None)
    await harness.answer(PROMPT)
    assert await harness.answer(MORE, lora=lora) == (plain, Usage(303, 0, 8))
    assert (await harness.answer(MORE, lora=lora))[1].n_cached == 302
    assert (await harness.answer(MORE))[1].n_cached == 300


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_worker_without_a_place_for_them_serves_as_well(
    harness: Harness, capfd: pytest.CaptureFixture[str], has_folder: bool
) -> None:
    harness.cache_dir.write_bytes(b"a file")

    @on_loop
    async def run() -> None:
        cache_dir = str(harness.cache_dir) if has_folder else None
        assert (await harness.answer(PROMPT, cache_dir=cache_dir))[1] == Usage(300, 0, 8)

    run()
    assert capfd.readouterr().err.count("no prompts are kept") == 1
