"""Workers that hang, as real processes: stopped while they load, run a job, answer a call, or have nothing to do."""

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shimmy.errors import ModelUnavailable, OutOfMemory, WorkerDied
from shimmy.messages.event import Piece
from shimmy.messages.request import GenerateRequest, TextPrompt
from shimmy.wire.worker_options import WorkerOptions
from shimmy.workers import spawn
from shimmy.workers.start_worker import start_worker
from shimmy.workers.worker_client import Hooks, WorkerClient
from shimmy.workers.worker_stderr import WorkerStderr
from tests.fakes import on_loop, until

if TYPE_CHECKING:
    import subprocess

    from shimmy.workers.worker_streams import JobStream

LIMIT_S = 1.0
ENDLESS = GenerateRequest("tiny", TextPrompt("hello"))


def options(path: Path, **limits: float) -> WorkerOptions:
    limits = {"worker_timeout_s": LIMIT_S, "load_timeout_s": 30.0} | limits
    return WorkerOptions(str(path), 65536, 4, 64, 1, None, None, **limits)  # type: ignore[arg-type]


async def _end_of(stream: "JobStream") -> None:
    """Read it to its end, which is an error."""
    async for _ in stream:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> "list[subprocess.Popen[bytes]]":
    """The processes that are started, each stopped at once: nothing of it has run yet."""
    found: list[subprocess.Popen[bytes]] = []
    start = spawn.start

    def stopped(name: str) -> object:
        child, ours = start(name)
        os.kill(child.pid, signal.SIGSTOP)
        found.append(child)
        return child, ours

    monkeypatch.setattr(spawn, "start", stopped)
    return found


def test_a_worker_that_never_says_a_word_is_a_load_that_failed(
    tiny_model: Path, started: "list[subprocess.Popen[bytes]]"
) -> None:
    async def run() -> None:
        with pytest.raises(ModelUnavailable, match=r"no sign of life for \d+ s \(`--load-timeout`\)") as caught:
            await start_worker("tiny", options(tiny_model, load_timeout_s=LIMIT_S), Hooks())
        assert not isinstance(caught.value, OutOfMemory), "it was killed by us and not by the system"
        assert started[0].returncode == -signal.SIGKILL

    asyncio.run(run())


@on_loop
async def test_a_worker_that_stops_in_the_middle_of_a_load_is_a_load_that_failed(tmp_path: Path) -> None:
    began = asyncio.Event()

    class Loading(WorkerClient):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            began.set()

    child, ours = spawn.start("tiny")
    _, client = await asyncio.get_running_loop().create_unix_connection(
        lambda: Loading("tiny", child, Hooks()), sock=ours
    )
    client.stderr = await WorkerStderr.of(child)
    await began.wait()
    os.kill(child.pid, signal.SIGSTOP)
    client.open(options(tmp_path / "none.gguf"))
    with pytest.raises(ModelUnavailable, match=r"no sign of life for \d+ s \(`--worker-timeout`\)"):
        await client.opened
    await client.ended.wait()


@pytest.mark.parametrize("what", ["a stream", "a call", "nothing"])
def test_a_worker_that_stops_is_killed_and_those_who_wait_are_told(tiny_model: Path, what: str) -> None:
    async def run() -> None:
        client = await start_worker("tiny", options(tiny_model), Hooks())
        stream = client.submit(ENDLESS) if what == "a stream" else None
        if stream is not None:
            assert isinstance(await anext(stream), Piece)
        os.kill(client.pid, signal.SIGSTOP)
        if stream is not None:
            with pytest.raises(WorkerDied, match="no sign of life"):
                await _end_of(stream)
        elif what == "a call":
            with pytest.raises(WorkerDied, match="no sign of life"):
                await client.tokenize("hello", add_special=False, parse_special=False)
        await client.ended.wait()
        assert client.is_idle
        await client.close()

    asyncio.run(run())


@on_loop
async def test_a_stop_shorter_than_the_limit_costs_nothing_but_time(tiny_model: Path) -> None:
    client = await start_worker("tiny", options(tiny_model, worker_timeout_s=30.0), Hooks())
    os.kill(client.pid, signal.SIGSTOP)
    call = asyncio.ensure_future(client.tokenize("hello", add_special=False, parse_special=False))
    await asyncio.sleep(1.0)
    os.kill(client.pid, signal.SIGCONT)
    assert await call
    await client.close()


@on_loop
async def test_another_worker_goes_on_while_one_hangs(tiny_model: Path) -> None:
    hanging = await start_worker("tiny", options(tiny_model), Hooks())
    other = await start_worker("other", options(tiny_model, worker_timeout_s=30.0), Hooks())
    stream = other.submit(ENDLESS)
    os.kill(hanging.pid, signal.SIGSTOP)
    n_tokens = 0

    async def read() -> None:
        nonlocal n_tokens
        async for event in stream:
            if isinstance(event, Piece):
                n_tokens += event.n_tokens

    reading = asyncio.ensure_future(read())
    await hanging.ended.wait()
    n_then = n_tokens
    await until(lambda: n_tokens > n_then)
    assert other.is_alive
    await other.close()
    with pytest.raises(Exception, match="unloaded"):
        await reading


@on_loop
async def test_a_worker_with_nothing_to_do_is_kept_as_long_as_it_beats(tiny_model: Path) -> None:
    client = await start_worker("tiny", options(tiny_model), Hooks())
    await asyncio.sleep(3 * LIMIT_S)
    assert client.is_alive
    stream = client.submit(ENDLESS)
    await asyncio.sleep(3 * LIMIT_S)
    assert client.is_alive
    stream.close()
    await client.close()
