"""Tests that run side by side, and those that are alone; threads play the processes."""

import fcntl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import side_by_side
from tests.side_by_side import turn


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are held by the test itself."""
    for name in ("_DOOR", "_MACHINE"):
        (tmp_path / name).touch()
        monkeypatch.setattr(side_by_side, name, tmp_path / name)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_most_run_at_the_same_time() -> None:
    with turn(alone=False), turn(alone=False):
        pass


def test_one_that_is_alone_waits_for_those_that_run_and_holds_up_those_that_come(threads: ThreadPoolExecutor) -> None:
    order: list[str] = []

    def be_alone() -> None:
        with turn(alone=True):
            order.append("alone")

    def come_later() -> None:
        with turn(alone=False):
            order.append("later")

    with ExitStack() as stack:
        stack.enter_context(turn(alone=False))
        alone = threads.submit(be_alone)
        while not is_locked(side_by_side._DOOR):
            time.sleep(0.001)
        later = threads.submit(come_later)
        order.append("first")
    alone.result(10)
    later.result(10)
    assert order == ["first", "alone", "later"]
