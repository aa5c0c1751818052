"""Our own kernels: each format against its definition, in each CPU variant that this processor runs; and that ggml's
products of matrices are computed by them."""

import ctypes
import random
import struct
from collections.abc import Callable
from ctypes import byref, c_bool, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER

Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, F32 = 2, 3, 6, 7, 8, 9, 0  # ggml_type
BLOCK = 32
LIBRARIES = {name: Path(path) for name, path in variants.libraries(LIBRARY_FOLDER, None)}
# The others have no instructions for it, and ask ggml.
WITH_KERNELS = [name for name, needed in variants.VARIANTS if name in LIBRARIES and "avx2" in needed]
# Sums of products of eight bits each need more than the 16 bits that others add them in: ggml's kernels do these there.
WITH_BYTES = [
    name for name in WITH_KERNELS if not {"avx512_vnni", "avx_vnni"}.isdisjoint(dict(variants.VARIANTS)[name])
]
# Rows of weights and of activations, blocks of a row, threads: one and more panels, tiles and chunks, whole and not.
SHAPES = [(16, 1, 1, 1), (17, 2, 3, 1), (40, 5, 2, 3), (48, 16, 2, 2), (33, 17, 1, 1), (300, 3, 1, 1), (16, 35, 2, 2)]
MAX_BLOCKS = 1024
UNTOUCHED = 12345.0


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
        numbers = [-128 if is_extreme else rng.randint(-128, 127) for _ in range(BLOCK)]
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
    """A block that ggml makes of its own values, and whose sum times the scale is a number that 16 bits can say."""
    numbers = [127] * 16 + [-126] * 16 if is_extreme else [127, *(rng.randint(-60, 60) for _ in range(BLOCK - 1))]
    d = 2.0 ** -rng.randint(4, 9)
    head = struct.pack("<ee", d, d * sum(numbers)) if kind == Q8_1 else struct.pack("<e", d)
    return Block(head + struct.pack("<32b", *numbers), [d * number for number in numbers])


class Matrix:
    """Rows of blocks: as the kernel reads them, with a block behind each that is not of the row, and their numbers."""

    def __init__(self, n_rows: int, n_blocks: int, block: Callable[[], Block]) -> None:
        rows = [[block() for _ in range(n_blocks + 1)] for _ in range(n_rows)]
        self.n_blocks = n_blocks
        self.data = b"".join(each.data for row in rows for each in row)
        self.plain_data = b"".join(each.data for row in rows for each in row[:-1])
        self.rows = [[value for each in row[:-1] for value in each.values] for row in rows]


def kind_beside(kind: int) -> int:
    """Of the activations that weights of `kind` are multiplied with."""
    return Q8_1 if kind in {Q4_1, Q5_1} else Q8_0


@cache
def matrices(kind: int, m: int, n: int, n_blocks: int, *, is_extreme: bool = False) -> tuple[Matrix, Matrix]:
    rng = random.Random(kind)
    a = Matrix(m, n_blocks, lambda: weights(kind, rng, is_extreme=is_extreme))
    return a, Matrix(n, n_blocks, lambda: activations(kind_beside(kind), rng, is_extreme=is_extreme))


def product(variant: str, kind: int, a: Matrix, b: Matrix, n_threads: int = 1) -> list[float]:
    """Rows of `b` times rows of `a`, by all threads one after the other; empty where one of them does not do it."""
    compute = getattr(ctypes.CDLL(str(LIBRARIES[variant])), "__wrap_llamafile_sgemm")
    compute.restype = c_bool
    m, n, n_blocks = len(a.rows), len(b.rows), a.n_blocks
    stride = m + 3
    result = (c_float * (stride * n))(*[UNTOUCHED] * (stride * n))
    for thread in range(n_threads):
        params = ComputeParams(ith=thread, nth=n_threads)
        shape = [c_int64(m), c_int64(n), c_int64(n_blocks)]
        operands = [a.data, c_int64(n_blocks + 1), b.data, c_int64(n_blocks + 1), result, c_int64(stride)]
        if not compute(byref(params), *shape, *operands, c_int(kind), c_int(kind_beside(kind)), c_int(F32)):
            return []
    columns = [result[start : start + stride] for start in range(0, stride * n, stride)]
    assert all(column[m:] == [UNTOUCHED] * 3 for column in columns)
    return list(chain.from_iterable(column[:m] for column in columns))


@pytest.mark.parametrize("is_extreme", [False, True], ids=["random", "extreme"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0])
def test_products_are_those_of_the_numbers(kind: int, shape: tuple[int, int, int, int], is_extreme: bool) -> None:
    m, n, n_blocks, n_threads = shape
    a, b = matrices(kind, m, n, n_blocks, is_extreme=is_extreme)
    terms = [[x * y for x, y in zip(left, right, strict=True)] for right in b.rows for left in a.rows]
    for variant in WITH_BYTES if kind == Q8_0 else WITH_KERNELS:
        found = product(variant, kind, a, b, n_threads)
        for number, each in zip(found, terms, strict=True):
            assert abs(number - sum(each)) <= 1e-5 * sum(map(abs, each)), variant


@pytest.mark.parametrize("variant", WITH_KERNELS)
def test_what_is_too_small_or_too_large_is_left_to_ggml(variant: str) -> None:
    assert product(variant, Q4_1, *matrices(Q4_1, 7, 3, 1)) == [], "less than a panel"
    assert product(variant, Q4_1, *matrices(Q4_1, 16, 1, MAX_BLOCKS + 1)) == []


def test_the_longest_rows() -> None:
    a, b = matrices(Q4_1, 16, 2, MAX_BLOCKS)
    terms = [[x * y for x, y in zip(left, right, strict=True)] for right in b.rows for left in a.rows]
    wanted = [(sum(each), 1e-5 * sum(map(abs, each))) for each in terms]
    for variant in WITH_KERNELS:
        for number, (exact, tolerance) in zip(product(variant, Q4_1, a, b), wanted, strict=True):
            assert abs(number - exact) <= tolerance, variant


# -- within ggml -----------------------------------------------------------------------------------------------------


class Ggml:
    """ggml with one variant, as far as a product of two matrices takes it."""

    def __init__(self, variant: str) -> None:
        self._base = ctypes.CDLL(str(LIBRARY_FOLDER / "libggml-base.so.0"))
        registry = ctypes.CDLL(str(LIBRARY_FOLDER / "libggml.so.0")).ggml_backend_load
        registry.restype = c_void_p
        device = self._call(
            "ggml_backend_reg_dev_get", c_void_p(registry(str(LIBRARIES[variant]).encode())), c_size_t(0)
        )
        self._backend = self._call("ggml_backend_dev_init", device, None)

    def _call(self, name: str, *arguments: object) -> c_void_p:
        function = getattr(self._base, name)
        function.restype = c_void_p
        return c_void_p(function(*arguments))

    def product(self, kind: int, a: Matrix, b: Matrix) -> list[float]:
        class InitParams(ctypes.Structure):
            _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))

        context = self._call("ggml_init", InitParams(1 << 20, None, True))
        length, m, n = c_int64(BLOCK * a.n_blocks), len(a.rows), len(b.rows)
        left = self._call("ggml_new_tensor_2d", context, c_int(kind), length, c_int64(m))
        right = self._call("ggml_new_tensor_2d", context, c_int(F32), length, c_int64(n))
        out = self._call("ggml_mul_mat", context, left, right)
        buffer = self._call("ggml_backend_alloc_ctx_tensors", context, self._backend)
        values = struct.pack(f"<{len(b.rows) * len(b.rows[0])}f", *chain.from_iterable(b.rows))
        for tensor, data in ((left, a.plain_data), (right, values)):
            self._call("ggml_backend_tensor_set", tensor, data, c_size_t(0), c_size_t(len(data)))
        graph = self._call("ggml_new_graph", context)
        self._call("ggml_build_forward_expand", graph, out)
        self._call("ggml_backend_graph_compute", self._backend, graph)
        result = (c_float * (m * n))()
        self._call("ggml_backend_tensor_get", out, result, c_size_t(0), c_size_t(4 * m * n))
        self._call("ggml_backend_buffer_free", buffer)
        self._call("ggml_free", context)
        return list(result)

    def close(self) -> None:
        self._call("ggml_backend_free", self._backend)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("variant", WITH_KERNELS)
def test_ggml_asks_them_for_its_products(variant: str, n: int) -> None:
    """To the last bit: others add in another order."""
    ggml = Ggml(variant)
    for kind in (Q4_0, Q4_1, Q5_0, Q5_1, *([Q8_0] if variant in WITH_BYTES else [])):
        a, b = matrices(kind, 64, n, 24)
        assert ggml.product(kind, a, b) == product(variant, kind, a, b), kind
    ggml.close()
