"""Tasks that fail are heard of and begin anew, and work gets done where no thread is to be had."""

import asyncio
import logging
import threading

import pytest

from shimmy import background
from tests.fakes import on_loop, until


class Chore:
    """Fails as often as a test wants, then waits to be cancelled."""

    def __init__(self, n_failures: int) -> None:
        self.n_left = n_failures
        self.n_runs = 0

    async def run(self) -> None:
        self.n_runs += 1
        if self.n_left:
            self.n_left -= 1
            raise KeyError("a bug")
        await asyncio.Event().wait()


@on_loop
async def test_a_chore_that_fails_is_logged_and_begins_anew_after_ever_longer_times() -> None:
    waits_s: list[float] = []

    async def sleep(seconds: float) -> None:
        waits_s.append(seconds)

    chore = Chore(9)
    task = asyncio.create_task(background.keep_running("watching", chore.run, sleep))
    await until(lambda: chore.n_runs == 10)
    assert waits_s == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_what_failed_and_why_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async def sleep(_: float) -> None:
            raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await background.keep_running("watching model folders", Chore(1).run, sleep)

    asyncio.run(run())
    (record,) = caplog.records
    assert "watching model folders failed" in record.getMessage()
    assert record.exc_info is not None


@on_loop
async def test_a_chore_that_returns_is_done() -> None:
    async def chore() -> None:
        pass

    await background.keep_running("nothing", chore)


def test_a_task_that_fails_tells_those_who_wait_for_it(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        told: list[Exception] = []
        for fails in (True, False):
            task = asyncio.create_task(Chore(int(fails)).run())
            background.watch(task, "loading", told.append)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await asyncio.sleep(0)
        assert [type(error) for error in told] == [KeyError]

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == ["loading failed"]


@on_loop
async def test_work_is_done_beside_the_loop() -> None:
    assert await background.in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ValueError, match="no"):
        await background.in_thread(int, "no")


def test_work_is_done_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[int] = []

    def work(number: int) -> int:
        done.append(number)
        return threading.get_ident()

    def cannot_start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        monkeypatch.setattr(background, "_executor", None)
        monkeypatch.setattr(background, "_has_warned", False)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", cannot_start)
            for number in range(2):
                assert await background.in_thread(work, number) == here
        assert await background.in_thread(threading.get_ident) != here, "there are threads again"
        assert done == [0, 1], "each once"

    here = threading.get_ident()
    asyncio.run(run())
    (record,) = caplog.records
    assert "allows no more threads" in record.getMessage()
