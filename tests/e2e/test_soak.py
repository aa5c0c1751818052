"""A short soak with tiny models: everything at once, as `python -m tests.bench.soak` does it for longer."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.soak.__main__ import memory_limit
from tests.bench.soak.client import Models
from tests.bench.soak.soak import Soak
from tests.e2e.conftest import StartServer
from tests.e2e.processes import DEADLINE_S
from tests.tiny_models import write_tiny_bert, write_tiny_model

N_CLIENTS, SEED = 6, 1
N_WINDOWS, N_REQUESTS = 4, 80  # of each window, the first of which belongs to the warming up


@pytest.fixture
def models(tmp_path: Path) -> Models:
    served, sources = tmp_path / "served", tmp_path / "sources"
    served.mkdir()
    sources.mkdir()
    write_tiny_model(served, "steady", n_ctx_train=2048)
    files = [write_tiny_model(sources, f"source-{seed}", n_ctx_train=2048, seed=seed) for seed in (1, 2)]
    place = served / "other.gguf"
    place.hardlink_to(files[0])
    write_tiny_bert(served, "encoder", n_ctx_train=512)
    return Models("steady", "other", "encoder", place, files, n_long_words=60, n_too_many_words=2500)


@pytest.mark.alone
@pytest.mark.timeout(180)
def test_everything_at_once_leaves_everything_as_it_was(
    start: StartServer, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without huge pages, which the worker's malloc else asks for: one of them would look like a leak of 2 MiB.
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0:glibc.malloc.mmap_threshold=4194304")
    folder = models.place.parent
    limit = memory_limit(start("--model-path", folder), models)
    server = start("--model-path", folder, "--max-memory", str(limit), "--prompt-cache", "16M")
    soak = Soak(server, models, N_CLIENTS, SEED, DEADLINE_S, rest_s=0)

    def over_after(n_requests: int) -> Callable[[], bool]:
        return lambda: soak.n_asked >= n_requests

    async def run() -> None:
        await soak.begin()
        for number in range(1, N_WINDOWS + 1):
            await soak.window(over_after(number * N_REQUESTS))

    asyncio.run(run())
    soak.end()
    assert soak.is_good(), soak.report()
