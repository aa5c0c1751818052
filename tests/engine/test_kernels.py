"""Our own kernels: each format against its definition, in each CPU variant that this processor runs."""

import ctypes
import random
import struct
from collections.abc import Callable
from ctypes import byref, c_bool, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import NamedTuple

import pytest

from shimmy.engine import variants
from shimmy.engine.binding import LIBRARY_FOLDER

Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, F32 = 2, 3, 6, 7, 8, 9, 0  # ggml_type
BLOCK = 32
LIBRARIES = {name: Path(path) for name, path in variants.libraries(LIBRARY_FOLDER, None)}
# The others have no instructions for it, and ask ggml.
WITH_KERNELS = [name for name, needed in variants.VARIANTS if name in LIBRARIES and "avx2" in needed]
# Eight-bit weights take instructions that multiply unsigned bytes with signed ones; elsewhere ggml's kernels do these.
WITH_BYTES = [
    name for name in WITH_KERNELS if not {"avx512_vnni", "avx_vnni"}.isdisjoint(dict(variants.VARIANTS)[name])
]
# Rows of weights and of activations, blocks of a row, threads: one and more panels and tiles, whole and not.
SHAPES = [(16, 1, 1, 1), (17, 2, 3, 1), (40, 5, 2, 3), (48, 16, 2, 2), (33, 17, 1, 1), (272, 3, 1, 2), (16, 35, 2, 2)]


class ComputeParams(ctypes.Structure):
    """ggml_compute_params of ggml-cpu-impl.h."""

    _fields_ = (
        ("ith", c_int),
        ("nth", c_int),
        ("wsize", c_size_t),
        ("wdata", c_void_p),
        ("threadpool", c_void_p),
        ("use_ref", c_bool),
    )


class Block(NamedTuple):
    """The bytes of a block, and the 32 numbers that it stands for."""

    data: bytes
    values: list[float]


def half(rng: random.Random, largest: float) -> float:
    value: float = struct.unpack("<e", struct.pack("<e", rng.uniform(-largest, largest)))[0]
    return value


def bytes_of(rng: random.Random, n: int, *, is_extreme: bool) -> bytes:
    return b"\xff" * n if is_extreme else rng.randbytes(n)


def weights(kind: int, rng: random.Random, *, is_extreme: bool) -> Block:
    """A block as ggml-common.h and `dequantize_row_*` of ggml-quants.c define it."""
    d, m = half(rng, 0.1), half(rng, 1.0)
    if kind == Q8_0:
        numbers = [127 if is_extreme else rng.randint(-127, 127) for _ in range(BLOCK)]
        return Block(struct.pack("<e32b", d, *numbers), [d * number for number in numbers])
    qs = bytes_of(rng, BLOCK // 2, is_extreme=is_extreme)
    numbers = [byte & 15 for byte in qs] + [byte >> 4 for byte in qs]
    fifth = b""
    if kind in {Q5_0, Q5_1}:
        fifth = bytes_of(rng, 4, is_extreme=is_extreme)
        bits = int.from_bytes(fifth, "little")
        numbers = [number + 16 * (bits >> place & 1) for place, number in enumerate(numbers)]
    if kind in {Q4_1, Q5_1}:
        return Block(struct.pack("<ee", d, m) + fifth + qs, [d * number + m for number in numbers])
    offset = 8 if kind == Q4_0 else 16
    return Block(struct.pack("<e", d) + fifth + qs, [d * (number - offset) for number in numbers])


def activations(kind: int, rng: random.Random, *, is_extreme: bool) -> Block:
    """A block whose sum times the scale, which Q8_1 has in it, is a number that 16 bits can say."""
    numbers = [127] * 16 + [-126] * 16 if is_extreme else [rng.randint(-63, 63) for _ in range(BLOCK)]
    d = 1 / 128
    head = struct.pack("<ee", d, d * sum(numbers)) if kind == Q8_1 else struct.pack("<e", d)
    return Block(head + struct.pack("<32b", *numbers), [d * number for number in numbers])


class Matrix:
    """Rows of blocks: as the kernel reads them, and the numbers they stand for."""

    def __init__(self, n_rows: int, n_blocks: int, block: Callable[[], Block]) -> None:
        rows = [[block() for _ in range(n_blocks)] for _ in range(n_rows)]
        self.data = b"".join(each.data for row in rows for each in row)
        self.rows = [[value for each in row for value in each.values] for row in rows]


def product(variant: str, kind: int, a: Matrix, b: Matrix, n_blocks: int, n_threads: int) -> list[float]:
    """Rows of `b` times rows of `a`, by all threads one after the other; empty where one of them does not do it."""
    compute = getattr(ctypes.CDLL(str(LIBRARIES[variant])), "__wrap_llamafile_sgemm")
    compute.restype = c_bool
    m, n = len(a.rows), len(b.rows)
    result = (c_float * (m * n))()
    other_kind = Q8_1 if kind in {Q4_1, Q5_1} else Q8_0
    for thread in range(n_threads):
        params = ComputeParams(ith=thread, nth=n_threads)
        shape = [c_int64(m), c_int64(n), c_int64(n_blocks)]
        operands = [a.data, c_int64(n_blocks), b.data, c_int64(n_blocks), result, c_int64(m)]
        if not compute(byref(params), *shape, *operands, c_int(kind), c_int(other_kind), c_int(F32)):
            return []
    return list(result)


@pytest.mark.parametrize("is_extreme", [False, True], ids=["random", "extreme"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0])
def test_products_are_those_of_the_numbers(kind: int, shape: tuple[int, int, int, int], is_extreme: bool) -> None:
    rng = random.Random(kind)
    m, n, n_blocks, n_threads = shape
    other_kind = Q8_1 if kind in {Q4_1, Q5_1} else Q8_0
    a = Matrix(m, n_blocks, lambda: weights(kind, rng, is_extreme=is_extreme))
    b = Matrix(n, n_blocks, lambda: activations(other_kind, rng, is_extreme=is_extreme))
    terms = [[x * y for x, y in zip(left, right, strict=True)] for right in b.rows for left in a.rows]
    for variant in WITH_BYTES if kind == Q8_0 else WITH_KERNELS:
        found = product(variant, kind, a, b, n_blocks, n_threads)
        for number, each in zip(found, terms, strict=True):
            assert abs(number - sum(each)) <= 1e-5 * sum(map(abs, each)), variant


@pytest.mark.parametrize("variant", WITH_KERNELS)
def test_fewer_rows_than_a_panel_are_left_to_ggml(variant: str) -> None:
    rng = random.Random(1)
    a = Matrix(7, 1, lambda: weights(Q4_1, rng, is_extreme=False))
    b = Matrix(3, 1, lambda: activations(Q8_1, rng, is_extreme=False))
    assert product(variant, Q4_1, a, b, 1, 1) == []


@pytest.mark.parametrize("variant", LIBRARIES)
def test_every_variant_asks_our_kernels_first(variant: str) -> None:
    assert hasattr(ctypes.CDLL(str(LIBRARIES[variant])), "__wrap_llamafile_sgemm")
