"""Threads on cores of their own, with real threads on the processors of this machine."""

import os
import threading
from collections.abc import Iterator

import pytest

from shimmy.engine.tune import cpu_affinity
from shimmy.engine.tune.cpu_affinity import Placement, engine_threads

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux places threads")
ALLOWED = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
FIRST, LAST = min(ALLOWED), max(ALLOWED)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The id of another thread, on a machine with two cores; it may be that both are one processor."""
    monkeypatch.setattr(cpu_affinity, "cores", lambda: [{FIRST}, {LAST}])
    is_over = threading.Event()
    thread = threading.Thread(target=is_over.wait)
    thread.start()
    assert thread.native_id is not None
    yield thread.native_id
    is_over.set()
    thread.join()
    os.sched_setaffinity(0, ALLOWED)


@pytest.mark.parametrize(("here", "elsewhere"), [(FIRST, LAST), (LAST, FIRST)])
def test_the_caller_stays_and_the_other_thread_has_the_other_core(other: int, here: int, elsewhere: int) -> None:
    placed = Placement([other], lambda: here)
    placed.hold(2)
    assert os.sched_getaffinity(0) == {here}
    assert os.sched_getaffinity(other) == {elsewhere}
    placed.release()
    assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == {FIRST, LAST}


def test_what_is_held_stays_where_it_is(other: int) -> None:
    asked = iter([FIRST])
    placed = Placement([other], lambda: next(asked))
    placed.hold(2)
    placed.hold(2)
    assert os.sched_getaffinity(0) == {FIRST}
    placed.release()


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_that_are_not_all_at_work_are_left_alone(other: int, n_threads: int) -> None:
    placed = Placement([other])
    placed.hold(n_threads)
    placed.release()
    assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == ALLOWED


def test_threads_that_are_fewer_or_more_than_the_cores_are_left_alone(other: int) -> None:
    for others in ([], [other, other]):
        placed = Placement(others)
        placed.hold(1 + len(others))
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == ALLOWED


def test_a_thread_that_has_ended_is_passed_over(other: int) -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert thread.native_id is not None
    placed = Placement([thread.native_id], lambda: FIRST)
    placed.hold(2)
    placed.release()
    assert os.sched_getaffinity(0) == {FIRST, LAST}
    assert os.sched_getaffinity(other) == ALLOWED


def test_threads_of_python_are_not_the_engines(other: int) -> None:
    assert not {other, threading.get_native_id()} & set(engine_threads())
