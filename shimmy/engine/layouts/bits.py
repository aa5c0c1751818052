"""Codes of a few bits out of 32-bit words. The lowest bits come first."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts.arrays import Codes


def unpacked(words: NDArray[np.uint32], bits: int, n: int) -> Codes:
    """[rows, n] codes out of [rows, words], each row one string of bits: a code may lie in two words."""
    if 32 % bits == 0:
        return in_whole_words(words, bits, n)
    start = np.arange(n) * bits
    index, offset = start // 32, (start % 32).astype(np.uint64)
    ends = np.minimum(index + 1, words.shape[1] - 1)
    pairs = words[:, index].astype(np.uint64) | words[:, ends].astype(np.uint64) << np.uint64(32)
    return (pairs >> offset & np.uint64((1 << bits) - 1)).astype(np.int8 if bits < 5 else np.int16)


def in_whole_words(words: NDArray[np.uint32], bits: int, n: int) -> Codes:
    """The same where no code crosses the end of a word; what is left over of a word is unused."""
    if bits == 4:
        return nibbles(words.view(np.uint8)).view(np.int8)[:, :n]
    if bits == 8:
        return words.view(np.uint8).astype(np.int16)[:, :n]
    found = np.empty((*words.shape, 32 // bits), np.int8)
    for index in range(32 // bits):
        found[:, :, index] = words >> np.uint32(index * bits) & np.uint32((1 << bits) - 1)
    return found.reshape(words.shape[0], -1)[:, :n]


def nibbles(packed: NDArray[Any]) -> NDArray[np.uint8]:
    """[rows, 2 n] out of [rows, n] bytes: the even element is the low half."""
    found = np.empty((*packed.shape, 2), np.uint8)
    found[..., 0] = packed & np.uint8(15)
    found[..., 1] = packed >> np.uint8(4)
    return found.reshape(packed.shape[0], -1)
