"""Large arrays in memory that is used again: fresh pages take longer than what is computed with them.

Knows where in a page bytes should lie, and nothing of what is in an array.
"""

import math
import threading
import weakref
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

_PAGE_BYTES, _LINE_BYTES = 1 << 12, 1 << 6
_LARGE_BYTES = 1 << 17  # of an array that would have pages of its own
_MAX_FREE_BYTES = 1 << 26  # of memory that waits to be used again by a thread


class _Memory(threading.local):
    """Each thread has its own, which is in the cache of its core."""

    def __init__(self) -> None:
        self._free: dict[int, list[memoryview]] = {}  # by their sizes, powers of two; each begins with a page
        self._n_free = 0  # bytes of them
        self._taken: dict[int, tuple[weakref.ref[Array], memoryview]] = {}

    def empty(self, n_bytes: int, place: int) -> NDArray[np.uint8]:
        """Its memory is free again when neither this array nor one that shares it is there any more."""
        size = 1 << (n_bytes - 1).bit_length()
        try:
            block = self._free[size].pop()
            self._n_free -= size
        except (KeyError, IndexError):
            whole = np.empty(size + 2 * _PAGE_BYTES, np.uint8)  # with one for `place`
            first = -whole.__array_interface__["data"][0] % _PAGE_BYTES
            block = whole[first : first + size + _PAGE_BYTES].data
        array = np.frombuffer(block, np.uint8, n_bytes, place)
        taken = weakref.ref(array, self._give)  # `weakref.finalize` takes longer than many a loop
        self._taken[id(taken)] = taken, block
        return array

    def clear(self) -> None:
        self._free.clear()
        self._n_free = 0

    def _give(self, taken: "weakref.ref[Array]") -> None:
        _, block = self._taken.pop(id(taken), (None, None))
        if block is None:  # another thread ended the array, as that of an error: the memory ends with its own thread
            return
        size = len(block) - _PAGE_BYTES
        if self._n_free + size <= _MAX_FREE_BYTES:
            self._free.setdefault(size, []).append(block)
            self._n_free += size


_memory = _Memory()


def empty(shape: int | tuple[int, ...], dtype: Any) -> Array:
    """An array as `np.empty` makes it."""
    n_bytes = np.dtype(dtype).itemsize * math.prod((shape,) if isinstance(shape, int) else shape)
    if n_bytes < _LARGE_BYTES:
        return np.empty(shape, dtype)
    found: Array = _memory.empty(n_bytes, 0).view(dtype).reshape(shape)
    return found


def empty_apart(n_bytes: int, source: int) -> NDArray[np.uint8]:
    """Bytes to be read from `source` on, a place in a file, and half a page from where they lie in a page of that.

    Where they would lie a few bytes behind in a page, some processors take six times as long to copy them (AMD's Zen 3
    and 4 with `rep movsb`, which Linux copies with).
    """
    if n_bytes < _LARGE_BYTES:
        return np.empty(n_bytes, np.uint8)
    return _memory.empty(n_bytes, (source + _PAGE_BYTES // 2) % _PAGE_BYTES & -_LINE_BYTES)


def give_memory_back() -> None:
    """Keep no memory for further arrays."""
    _memory.clear()
