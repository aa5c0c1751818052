"""Codes of a few bits out of 32-bit words. The lowest bits come first."""

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import loops
from shimmy.engine.layouts.arrays import Codes


def unpacked(words: NDArray[np.uint32], bits: int, n: int) -> Codes:
    """[rows, n] codes out of [rows, words], each row one string of bits: a code may lie in two words."""
    return in_whole_words(words, bits, n) if bits in {4, 8} else loops.bit_string(words, bits, n)


def in_planes(words: NDArray[np.uint32], bits: int, n: int) -> Codes:
    """The same where 32 codes are as many words as they have bits: 4 bits of each or 2, and then the bits above."""
    return loops.bit_planes(words, bits)[:, :n]


def in_whole_words(words: NDArray[np.uint32], bits: int, n: int) -> Codes:
    """The same where no code crosses the end of a word; what is left over of a word is unused."""
    if bits == 4:
        return loops.nibbles(words.view(np.uint8)).view(np.int8)[:, :n]
    if bits == 8:
        return words.view(np.uint8).astype(np.int16)[:, :n]
    found = np.empty((*words.shape, 32 // bits), np.int8)
    for index in range(32 // bits):
        found[:, :, index] = words >> np.uint32(index * bits) & np.uint32((1 << bits) - 1)
    return found.reshape(words.shape[0], -1)[:, :n]
