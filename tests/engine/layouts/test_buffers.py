"""Memory is used again, and where in a page it lies."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from shimmy.engine.layouts import buffers


def address(array: Any) -> int:
    found: int = array.__array_interface__["data"][0]
    return found


def test_memory_is_used_again_once_nothing_shares_it() -> None:
    first = buffers.empty((3, 1 << 16), np.float32)
    assert first.shape == (3, 1 << 16)
    before = address(first)
    part = first[1:].view(np.uint32).reshape(-1)
    del first
    second = buffers.empty(3 << 18, np.uint8)
    assert address(second) != before
    part[:] = 7
    del part
    assert address(buffers.empty(3 << 18, np.uint8)) == before
    assert address(second) != before
    buffers.give_memory_back()
    assert not buffers._memory._free


def test_memory_of_an_array_that_another_thread_ends_is_not_used_again() -> None:
    with ThreadPoolExecutor(1) as thread:
        arrays = [thread.submit(buffers.empty, 3 << 18, np.uint8).result()]
        before = address(arrays[0])
        arrays.clear()  # what this raises in a callback fails the test
        later = thread.submit(buffers.empty, 3 << 18, np.uint8).result()
        assert address(later) != before
        assert address(buffers.empty(3 << 18, np.uint8)) != before


@pytest.mark.parametrize("source", [0, 8, 1000, 2047, 2048, 4095, 5 * 4096 + 40])
@pytest.mark.parametrize("n_bytes", [1 << 17, (1 << 20) - 1, 1 << 20])
def test_what_is_read_lies_elsewhere_in_a_page_than_in_the_file(source: int, n_bytes: int) -> None:
    found = buffers.empty_apart(n_bytes, source)
    found[:] = 1  # as much as was asked for is there
    assert address(found) % 64 == 0
    assert 1024 <= (address(found) - source) % 4096 <= 3072
    assert buffers.empty_apart(100, source).size == 100
