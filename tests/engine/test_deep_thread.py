"""Calls on deep stacks: what they return and raise, and what becomes of those that do not end."""

import threading
from time import sleep, thread_time

import pytest

from shimmy.engine import deep_thread
from shimmy.engine.deep_thread import TooLong
from shimmy.errors import Overloaded

STACK_BYTES = 1 << 20
WAIT_S = 20


def deep(levels: int) -> int:
    return 0 if levels == 0 else 1 + deep(levels - 1)


def test_a_call_returns_and_raises_as_it_does_anywhere() -> None:
    assert deep_thread.call(lambda: deep(500), STACK_BYTES) == 500
    with pytest.raises(ZeroDivisionError):
        deep_thread.call(lambda: 1 // 0, STACK_BYTES)


def test_the_size_of_other_stacks_stays() -> None:
    before = threading.stack_size()
    deep_thread.call(lambda: None, 64 << 20)
    assert threading.stack_size() == before


def test_the_time_of_the_processor_counts_for_the_thread_that_calls() -> None:
    def work() -> None:
        while thread_time() < 0.1:
            pass

    begun_s = deep_thread.processor_s()
    deep_thread.call(lambda: sleep(0.5), STACK_BYTES)
    slept_s = deep_thread.processor_s()
    deep_thread.call(work, STACK_BYTES)
    assert slept_s - begun_s < 0.1 <= deep_thread.processor_s() - slept_s


def test_what_takes_too_long_is_left_behind_but_not_without_end() -> None:
    may_end = threading.Event()
    try:
        for _ in range(2):
            with pytest.raises(TooLong):
                deep_thread.call(lambda: may_end.wait(WAIT_S), STACK_BYTES, deadline_s=0.01)
        with pytest.raises(Overloaded):
            deep_thread.call(lambda: None, STACK_BYTES, deadline_s=WAIT_S)
        assert deep_thread.call(lambda: 1, STACK_BYTES) == 1, "what has no deadline is not held up"
    finally:
        may_end.set()
    for thread in list(deep_thread._left_behind):
        thread.join(WAIT_S)
    assert deep_thread.call(lambda: 2, STACK_BYTES, deadline_s=WAIT_S) == 2
