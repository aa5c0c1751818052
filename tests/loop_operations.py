"""`python -m tests.loop_operations [LIBRARY]`: what loops over weights give, each with a digest of its result, as JSON.

The same lines have to come out of numpy, which works without a library, and of any build of the library.
"""

import ctypes
import hashlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import loops

# Zeros, the smallest numbers of F32 and F16, halfway between two of F16, the largest of F16, and their neighbours.
_SIZES = (
    0.0,
    1e-45,
    2.0**-126,
    2.0**-25,
    2.0**-24,
    1.5 * 2.0**-24,
    2.0**-14,
    1.0,
    1 + 2.0**-11,
    1 + 3 * 2.0**-11,
    65_504.0,
)


def _extreme() -> NDArray[np.float32]:
    sizes = np.array(_SIZES, np.float32)
    near = np.concatenate([(sizes.view(np.uint32) + np.uint32(step)).view(np.float32) for step in range(3)])
    near = np.concatenate((near, (sizes[1:].view(np.uint32) - np.uint32(1)).view(np.float32)))
    found: NDArray[np.float32] = np.concatenate((near, -near))
    return found


def _bytes(seed: int, n: int) -> NDArray[np.uint8]:
    """The same everywhere, whatever the version of numpy."""
    return np.frombuffer(hashlib.shake_128(str(seed).encode()).digest(n), np.uint8)


def _floats(seed: int, *shape: int) -> NDArray[np.float32]:
    """Of all sizes that are finite in F16, and smaller ones."""
    bits = _bytes(seed, 4 * int(np.prod(shape))).view(np.uint32)
    sizes = bits % np.uint32(0x47000000 - 0x30000000) + np.uint32(0x30000000)
    return (sizes | bits & np.uint32(1 << 31)).view(np.float32).reshape(shape)


def _operations() -> Iterator[tuple[str, Any]]:
    for rows, columns in ((1, 1), (16, 16), (33, 70), (128, 48)):
        words = _bytes(rows, 4 * rows * columns).view(np.int32).reshape(rows, columns)
        yield f"transposed {rows} x {columns}", loops.transposed(words)
        yield f"AWQ {rows} x {columns}", loops.awq_rows(words.view(np.uint32))
        yield f"nibbles {rows} x {columns}", loops.nibbles(words.view(np.uint8))
        yield f"high nibbles {rows} x {columns}", loops.nibbles(words.view(np.uint8), high_first=True)
    for bits in (2, 3, 5, 6, 7):
        strings = _bytes(bits, 4 * 5 * bits * 3).view(np.uint32).reshape(5, -1)
        for n in (96, 95):
            yield f"{n} codes of {bits} bits", loops.bit_string(strings, bits, n)
    for code_type in (np.int8, np.int16):
        name = np.dtype(code_type).name
        codes = _bytes(1, 6 * 96 * np.dtype(code_type).itemsize).view(code_type).reshape(6, 96)
        for length in (1, 3, 32, 96):
            n_groups = 96 // length
            less = codes.copy()
            loops.subtract(less, _bytes(2, 6 * n_groups).astype(code_type).reshape(6, n_groups))
            yield f"{name} less zeros of {length}", less
            scales, biases = _floats(3, 6, n_groups) / np.float32(4e4), _floats(4, 6, n_groups) / np.float32(2)
            yield f"{name} scaled by {length}", loops.affine_halves(codes, scales)
            yield f"{name} scaled by {length}, biased", loops.affine_halves(codes, scales, biases)
            groups = _bytes(5, 96).astype(np.int64) % n_groups
            less = codes.copy()
            loops.subtract(less, _bytes(2, 6 * n_groups).astype(code_type).reshape(6, n_groups), groups)
            yield f"{name} less zeros of {n_groups} mixed groups", less
            yield f"{name} in {n_groups} mixed groups", loops.scaled_halves(codes, scales, groups)
        large = np.full((6, 1), 65_504, np.float32)
        yield f"{name} too large", loops.affine_halves(codes, large)
        yield f"{name} too large in mixed groups", loops.scaled_halves(codes, large, np.zeros(96, np.int64))
    for kind, n_bytes, low, high in (
        ("Q4_0", 2, -8, 7), ("Q4_1", 4, 0, 15), ("Q5_0", 2, -16, 15), ("Q8_0", 2, -128, 127), ("MXFP4", 1, 0, 15),
        ("NVFP4", 4, 0, 15),
    ):  # fmt: skip
        n_elements = 7 * (64 if kind == "NVFP4" else 32)
        span = (_bytes(6, n_elements).astype(np.int16) % (high - low + 1) + low).astype(np.int8)
        yield f"blocks of {kind}", loops.blocks(kind, _bytes(7, 7 * n_bytes).reshape(7, -1), span)
    codes = _bytes(8, 8 * 128).reshape(8, 128)
    for n_codes in (16, 256):
        for length in (1, 16, 128):
            places = _bytes(9, 8 * 128 // length).astype(np.int64).reshape(8, -1) % 5
            for tables in (_floats(10, 5, n_codes), _floats(10, 5, n_codes).view(np.uint32).astype(np.uint16)):
                found = loops.looked_up(codes % np.uint8(n_codes - 1), tables, places)
                yield f"{tables.dtype.name} out of {n_codes} by {length}", found
    yield "halves", loops.halves(_floats(11, 7, 999))
    yield "extreme halves", loops.halves(_extreme())
    for bits in (0x477FEFFF, 0x477FF000, 0x47800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0xFF800000):
        number = np.array([1, bits], np.uint32).view(np.float32)
        yield f"halves of {bits:#x}", loops.halves(number)
    yield "halves of nothing", loops.halves(np.empty((0, 4), np.float32))


def results(library: ctypes.CDLL | None) -> dict[str, str]:
    """By operation: shape, type and a digest of what comes out; "None" where nothing does."""
    before, loops.library = loops.library, library
    try:
        found = {}
        for name, result in _operations():
            digest = None if result is None else hashlib.sha256(np.ascontiguousarray(result).tobytes()).hexdigest()
            found[name] = "None" if result is None else f"{result.shape} {result.dtype} {digest}"
        return found
    finally:
        loops.library = before


if __name__ == "__main__":
    json.dump(results(ctypes.CDLL(sys.argv[1]) if sys.argv[1:] else None), sys.stdout)
