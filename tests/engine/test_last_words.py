"""What fails in a worker, from its first import on, reaches those who wait for it with its reason."""

import asyncio
import errno
import os
import re
import threading
from pathlib import Path
from time import perf_counter

import pytest

from shimmy import log
from shimmy.engine import last_words, threads
from shimmy.errors import (
    BadRequest,
    Internal,
    ModelUnavailable,
    OutOfDeviceMemory,
    OutOfMemory,
    ShimmyError,
    WorkerDied,
)
from shimmy.messages.request import GenerateRequest, TextPrompt
from shimmy.wire.worker_options import WorkerOptions
from shimmy.workers import spawn
from shimmy.workers.start_worker import start_worker
from shimmy.workers.worker_client import Hooks, WorkerClient
from tests.fakes import on_loop

ROOT = Path(__file__).resolve().parents[2]
REQUEST = GenerateRequest("tiny", TextPrompt("hello"), n_predict=4)


def options(path: Path) -> WorkerOptions:
    return WorkerOptions(str(path), 256, 4, 64, 1, None, None)


def sabotage(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str) -> None:
    """Have every Python that is started run `source` first."""
    (folder / "sitecustomize.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(folder), str(ROOT))))


def failing_import(module: str, error: str) -> str:
    return f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise {error}
sys.meta_path.insert(0, Finder())
"""


async def failed_load(path: Path) -> ModelUnavailable:
    with pytest.raises(ModelUnavailable) as caught:
        await start_worker("tiny", options(path), Hooks())
    return caught.value


def test_a_damaged_engine_is_told_without_a_traceback(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    libraries = tmp_path / "llama_cpp" / "lib"
    libraries.mkdir(parents=True)
    (libraries.parent / "__init__.py").touch()
    (libraries / "libllama.so.z").write_bytes(b"damaged")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(ROOT))))
    told = asyncio.run(failed_load(tiny_model))
    assert "the program's own file is damaged: fetch it again" in told.message
    assert not told.is_death
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "module", ["shimmy.engine.main", "shimmy.engine.llama.binding", "shimmy.engine.prepare_prompt"]
)
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("OSError(28, 'No space left on device', '/tmp/x')", ModelUnavailable, "No space left on device: `/tmp/x`"),
        ("OSError(12, 'Cannot allocate memory')", OutOfMemory, "Cannot allocate memory"),
        ("MemoryError()", OutOfMemory, "Cannot allocate memory"),
        ("ImportError('libgomp.so.1: cannot open shared object file')", ModelUnavailable, "libgomp.so.1: cannot open"),
        ('RuntimeError("can\'t start new thread")', ModelUnavailable, "allows no more threads"),
    ],
    ids=["room", "memory", "python's memory", "library", "threads"],
)
def test_what_fails_while_a_worker_imports_reaches_the_caller(
    module: str, error: str, kind: type[ShimmyError], message: str,
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sabotage(monkeypatch, tmp_path, failing_import(module, error))
    told = asyncio.run(failed_load(tiny_model))
    assert type(told) is kind
    assert message in told.message
    assert "exit code" not in told.message
    assert not told.is_death, "no fault of the model"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("terminate called after throwing an instance of 'vk::OutOfDeviceMemoryError'", OutOfDeviceMemory),
        ("libc++abi: terminating due to uncaught exception of type vk::OutOfDeviceMemoryError", OutOfDeviceMemory),
        ("terminate called after throwing an instance of 'vk::DeviceLostError'", ModelUnavailable),
    ],
)
def test_an_exception_of_a_device_without_memory_is_told_from_others(
    said: str, kind: type[ShimmyError], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = f"os.write(2, {said.encode()!r}), os.abort()"
    sabotage(monkeypatch, tmp_path, f"import os, shimmy.engine.loading as l; l.load = lambda *_: ({end})")
    told = asyncio.run(failed_load(tiny_model))
    assert type(told) is kind
    assert told.is_death


@pytest.mark.parametrize(
    "source",
    [
        "import shimmy.engine.schedule.scheduler as s; s.Scheduler.step = lambda *_: {}['no']",
        "import shimmy.wire.reports as r; r.step_frames = lambda *_: {}['no']",
    ],
    ids=["the thread that decodes", "the thread that sends"],
)
def test_a_thread_that_fails_ends_the_worker_and_its_jobs(
    source: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch, tmp_path, source)

    async def run() -> WorkerClient:
        client = await start_worker("tiny", options(tiny_model), Hooks())
        with pytest.raises(WorkerDied, match="KeyError, which is a bug"):
            async for _ in client.submit(REQUEST):
                pass
        await client.ended.wait()
        return client

    assert "KeyError" in asyncio.run(run()).end_reason


def test_what_the_engine_says_as_it_gives_up_reaches_those_who_wait(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(
        monkeypatch,
        tmp_path,
        """
import shimmy.engine.schedule.scheduler as scheduler
def step(*_):
    from shimmy.engine.llama.binding import llama
    llama._lib.ggml_abort(b"/somewhere/ggml.c", 5, b"GGML_ASSERT(%s) failed", b"boom")
scheduler.Scheduler.step = step
""",
    )

    async def run() -> None:
        client = await start_worker("tiny", options(tiny_model), Hooks())
        with pytest.raises(WorkerDied, match=r"the engine gave up: GGML_ASSERT\(boom\) failed"):
            async for _ in client.submit(REQUEST):
                pass
        await client.ended.wait()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'cannot open shared object file' >&2; exit 127", r"exit code 127: cannot open shared object file"),
        ("echo one >&2; echo two >&2; printf 'three \\033[31m' >&2; kill -6 $$", r"signal 6: one; two; three .\[31m"),
        ("echo '12:00:00 INFO    a record of the log' >&2; exit 3", r"exit code 3\)"),
        ("exec 2>&-; exit 3", r"exit code 3\)"),
    ],
)
def test_what_a_process_writes_to_stderr_at_last_is_told_where_nothing_else_is(
    script: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "worker_command", lambda _fd, _name: ["sh", "-c", script])
    told = asyncio.run(failed_load(Path("x")))
    assert re.search(message, told.message), told.message
    assert told.is_death


def test_a_flood_on_stderr_is_cut_and_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "head -c 3000000 /dev/zero | tr '\\0' 'x' >&2; yes | head -n 300000 >&2; echo the end >&2; exit 3"
    monkeypatch.setattr(spawn, "worker_command", lambda _fd, _name: ["sh", "-c", script])
    n_before = log.n_dropped()

    async def run() -> str:
        longest_s = 0.0

        async def tick() -> None:
            nonlocal longest_s
            while True:
                started_s = perf_counter()
                await asyncio.sleep(0.005)
                longest_s = max(longest_s, perf_counter() - started_s)

        ticking = asyncio.create_task(tick())
        told = await failed_load(Path("x"))
        ticking.cancel()
        assert longest_s < 0.5  # ten times what may be
        return told.message

    assert "the end" in asyncio.run(run())
    assert log.n_dropped() >= n_before


@on_loop
async def test_a_process_that_cannot_be_started_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(error: OSError) -> None:
        raise error

    for number, message in ((errno.EAGAIN, "allows no more processes"), (errno.EPERM, "allows no more processes")):
        monkeypatch.setattr(spawn, "start", lambda _, number=number: cannot(OSError(number, os.strerror(number))))
        assert message in (await failed_load(Path("x"))).message
    monkeypatch.setattr(spawn, "start", lambda _: cannot(OSError(errno.ENOMEM, "Cannot allocate memory")))
    assert isinstance(await failed_load(Path("x")), OutOfMemory)


def test_an_error_of_ours_is_told_as_it_is_and_another_one_tells_no_internals() -> None:
    error = BadRequest("no")
    assert last_words.reason(error) is error
    told = last_words.reason(ValueError("/secret/path"))
    assert isinstance(told, Internal)
    assert "secret" not in told.message


def test_nobody_hears_last_words_when_the_server_has_left() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    last_words.say(theirs, MemoryError())
    os.close(theirs)


def test_as_many_threads_as_the_system_allows_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    start, left = threading.Thread.start, [3]

    def limited(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    assert threads.n_startable(5) == 5
    n_before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", limited)
    assert threads.n_startable(5) == 3
    assert threading.active_count() == n_before
    with pytest.raises(ModelUnavailable, match="allows no more threads"):
        threads.start(print, name="none")
