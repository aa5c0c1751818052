"""The functions of tools/cuda/cublas.cu, computed by the processor: the same text, with threads in place of a GPU's.

What a GPU adds to that, speed and the rounding of its tensor cores, is not tested here.
"""

import ctypes
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tools.cuda.toolkit import Toolkit
from tools.steps import ROOT

F32, F16, BF16 = 0, 2, 14  # cudaDataType
N, T = 0, 1
COMPUTE_16F, COMPUTE_32F = 64, 68
SUCCESS, INVALID_VALUE, NOT_SUPPORTED = 0, 7, 15
RIGHT, UPPER, NON_UNIT = 1, 1, 0

Floats = NDArray[np.float32]


@dataclass
class Library:
    """The library, and a handle in it."""

    c: ctypes.CDLL
    handle: ctypes.c_void_p

    def kernel(self) -> str:
        """The kernel that was started last."""
        return ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(self.c, "last_kernel"))).decode()


@pytest.fixture(scope="session")
def compiled(cuda: Toolkit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("cublas") / "cublas.so"
    source = ROOT / "tools" / "cuda"
    command: list[str | Path] = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-DON_PROCESSOR"]
    command += ["-Wall", "-Werror", "-Wno-unknown-pragmas"]
    command += [f"-I{folder}" for folder in (source / "include", ROOT / "tests" / "cuda", cuda.include)]
    subprocess.run([*command, "-x", "c++", source / "cublas.cu", "-o", library], check=True)
    return library


@pytest.fixture
def library(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """As on a GPU that has tensor cores for all types, and many processors."""
    monkeypatch.setenv("SHIMMY_CUBLAS", "own")
    yield from handles(compiled, generation=8, n_processors=1000)


def handles(compiled: Path, generation: int, n_processors: int) -> Iterator[Library]:
    c = ctypes.CDLL(str(compiled))
    ctypes.c_int.in_dll(c, "gpu_generation").value = generation
    ctypes.c_int.in_dll(c, "gpu_processors").value = n_processors
    handle = ctypes.c_void_p()
    assert c.cublasCreate_v2(ctypes.byref(handle)) == SUCCESS
    yield Library(c, handle)
    assert c.cublasDestroy_v2(handle) == SUCCESS


# -- matrices as cuBLAS has them: column-major, with something between the columns, and in types of two bytes ----------


def stored(matrix: Floats, kind: int) -> NDArray[np.generic]:
    """The values of a matrix in a type."""
    if kind == F16:
        return matrix.astype(np.float16)
    if kind == BF16:
        bits = np.ascontiguousarray(matrix).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return matrix.astype(np.float32)


def values(array: NDArray[np.generic], kind: int) -> Floats:
    """What is stored, as floats."""
    if kind == BF16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


@dataclass
class Matrices:
    """Some matrices of one shape, `leading` and `stride` elements from one column and one matrix to the next."""

    kind: int
    rows: int
    columns: int
    leading: int
    stride: int
    memory: NDArray[np.generic]

    @property
    def address(self) -> int:
        return int(self.memory.ctypes.data)

    @property
    def addresses(self) -> NDArray[np.uint64]:
        step = self.stride * self.memory.itemsize
        return np.arange(len(self.memory) // self.stride, dtype=np.uint64) * np.uint64(step) + np.uint64(self.address)

    def read(self) -> Floats:
        """As an array (matrix, row, column)."""
        per_matrix = values(self.memory, self.kind).reshape(-1, self.stride)
        columns = per_matrix[:, : self.leading * self.columns].reshape(-1, self.columns, self.leading)
        return columns[:, :, : self.rows].swapaxes(1, 2)

    def between(self) -> NDArray[np.generic]:
        """What lies between the columns and behind the last one."""
        kept = self.memory.copy().reshape(-1, self.stride)
        kept[:, : self.leading * self.columns].reshape(-1, self.columns, self.leading)[:, :, : self.rows] = 0
        return kept


def matrices(rng: np.random.Generator, kind: int, shape: tuple[int, int], n: int, gap: int) -> Matrices:
    rows, columns = shape
    leading = rows + gap
    stride = leading * columns + gap
    memory = stored(rng.uniform(-1, 1, stride * n).astype(np.float32), kind)
    return Matrices(kind, rows, columns, leading, stride, memory)


@dataclass(frozen=True)
class Case:
    op_a: int
    op_b: int
    m: int
    n: int
    k: int
    kinds: tuple[int, int] = (F32, F32)  # of the factors, and of the product
    compute: int = COMPUTE_32F
    alpha: float = 0.5
    beta: float = 0.0
    n_batches: int = 1
    gap: int = 3  # 8: what lies at places of 16 bytes

    def made(self) -> tuple[Matrices, Matrices, Matrices]:
        rng = np.random.default_rng(self.m * 131 + self.n * 17 + self.k)
        a_shape = (self.k, self.m) if self.op_a else (self.m, self.k)
        b_shape = (self.n, self.k) if self.op_b else (self.k, self.n)
        a = matrices(rng, self.kinds[0], a_shape, self.n_batches, self.gap)
        b = matrices(rng, self.kinds[0], b_shape, self.n_batches, self.gap)
        c = matrices(rng, self.kinds[1], (self.m, self.n), self.n_batches, self.gap)
        return a, b, c

    def expected(self, a: Matrices, b: Matrices, c: Floats) -> NDArray[np.float64]:
        left = a.read().swapaxes(1, 2) if self.op_a else a.read()
        right = b.read().swapaxes(1, 2) if self.op_b else b.read()
        return self.alpha * (left.astype(np.float64) @ right.astype(np.float64)) + self.beta * c

    def scale(self, value: float) -> ctypes.c_void_p:
        number = np.float16(value) if self.compute == COMPUTE_16F else np.float32(value)
        buffer = ctypes.create_string_buffer(number.tobytes())
        return ctypes.cast(buffer, ctypes.c_void_p)


def words(*numbers: int) -> list[ctypes.c_int]:
    return [ctypes.c_int(number) for number in numbers]


def address(place: int | NDArray[np.uint64]) -> ctypes.c_void_p:
    return ctypes.c_void_p(place if isinstance(place, int) else place.ctypes.data)


def long(number: int) -> ctypes.c_longlong:
    return ctypes.c_longlong(number)


def multiply(library: Library, form: str, case: Case, a: Matrices, b: Matrices, c: Matrices) -> int:
    """Call one of the functions; returns its status."""
    head = [library.handle, *words(case.op_a, case.op_b, case.m, case.n, case.k), case.scale(case.alpha)]
    beta, compute = case.scale(case.beta), words(case.compute, -1)
    lists = a.addresses, b.addresses, c.addresses
    kinds = words(a.kind, b.kind, c.kind)
    leading = words(a.leading, b.leading, c.leading)
    n_batches = words(case.n_batches)
    starts = [address(each.address) for each in (a, b, c)]
    lists_at = [address(each) for each in lists]
    strides = [long(each.stride) for each in (a, b, c)]
    call = getattr(library.c, form)
    if form == "cublasGemmEx":
        tail = [
            *starts[:1],
            kinds[0],
            leading[0],
            starts[1],
            kinds[1],
            leading[1],
            beta,
            starts[2],
            kinds[2],
            leading[2],
        ]
        status = call(*head, *tail, *compute)
    elif form == "cublasGemmStridedBatchedEx":
        tail = [starts[0], kinds[0], leading[0], strides[0], starts[1], kinds[1], leading[1], strides[1], beta]
        tail += [starts[2], kinds[2], leading[2], strides[2], *n_batches]
        status = call(*head, *tail, *compute)
    elif form == "cublasGemmBatchedEx":
        tail = [lists_at[0], kinds[0], leading[0], lists_at[1], kinds[1], leading[1], beta]
        status = call(*head, *tail, lists_at[2], kinds[2], leading[2], *n_batches, *compute)
    elif form == "cublasSgemm_v2":
        status = call(*head, starts[0], leading[0], starts[1], leading[1], beta, starts[2], leading[2])
    elif form == "cublasSgemmStridedBatched":
        tail = [starts[0], leading[0], strides[0], starts[1], leading[1], strides[1], beta]
        status = call(*head, *tail, starts[2], leading[2], strides[2], *n_batches)
    else:
        assert form == "cublasSgemmBatched"
        tail = [lists_at[0], leading[0], lists_at[1], leading[1], beta, lists_at[2], leading[2]]
        status = call(*head, *tail, *n_batches)
    return int(status)


def check(library: Library, form: str, case: Case) -> None:
    """The product is right, and nothing beside it was written."""
    a, b, c = case.made()
    before = c.read()
    if case.beta == 0:  # whatever is in C is not read
        c.memory[:] = stored(np.full(len(c.memory), np.nan, np.float32), c.kind)
    between = c.between()
    assert multiply(library, form, case, a, b, c) == SUCCESS
    # Of sums of k products of at most 1, in float; and of the product's own type.
    of_sums, of_type = 1e-6 * (case.k + 8), {F32: 0, F16: 2**-11, BF16: 2**-8}[c.kind]
    np.testing.assert_allclose(c.read(), case.expected(a, b, before), rtol=of_type, atol=of_sums)
    np.testing.assert_array_equal(c.between(), between)


# -- what ggml calls, and where from -----------------------------------------------------------------------------------

SHAPES: Sequence[tuple[int, int, int]] = ((64, 64, 16), (65, 1, 17), (1, 63, 33), (130, 70, 50))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("op_a", "op_b"), [(N, N), (N, T), (T, N), (T, T)])
def test_floats_multiply_in_all_forms(library: Library, op_a: int, op_b: int, shape: tuple[int, int, int]) -> None:
    check(library, "cublasSgemm_v2", Case(op_a, op_b, *shape, beta=1.0))
    check(library, "cublasSgemmStridedBatched", Case(op_a, op_b, *shape, n_batches=3))
    check(library, "cublasSgemmBatched", Case(op_a, op_b, *shape, beta=0.25, n_batches=3))
    check(library, "cublasGemmEx", Case(op_a, op_b, *shape))
    assert library.kernel().startswith("(tiled")


@pytest.mark.parametrize("kinds", [(F16, F32), (F16, F16), (BF16, F32), (BF16, BF16)])
@pytest.mark.parametrize(("op_a", "op_b"), [(N, N), (N, T), (T, T)])
def test_two_bytes_multiply_by_the_plain_kernel_where_k_does_not_run_in_both(
    library: Library, op_a: int, op_b: int, kinds: tuple[int, int]
) -> None:
    check(library, "cublasGemmEx", Case(op_a, op_b, 66, 70, 40, kinds, beta=1.0))
    check(library, "cublasGemmStridedBatchedEx", Case(op_a, op_b, 30, 20, 33, kinds, n_batches=2))
    assert library.kernel().startswith("(tiled")


# One of a GPU's blocks alone, several in both directions, and edges in m, n and k.
WEIGHTS = [(64, 17, 32), (128, 128, 64), (130, 70, 50), (257, 33, 104), (16, 200, 7), (1, 1, 1), (129, 129, 96)]


@pytest.mark.parametrize("gap", [8, 3])
@pytest.mark.parametrize("kinds", [(F16, F16), (F16, F32), (BF16, F32), (BF16, BF16)])
@pytest.mark.parametrize("shape", WEIGHTS)
def test_weights_and_activations_multiply_on_tensor_cores(
    library: Library, shape: tuple[int, int, int], kinds: tuple[int, int], gap: int
) -> None:
    case = Case(T, N, *shape, kinds, gap=gap)
    check(library, "cublasGemmEx", case)
    assert library.kernel().startswith("(tensor<F, C, 64")


@pytest.mark.parametrize("form", ["cublasGemmStridedBatchedEx", "cublasGemmBatchedEx"])
@pytest.mark.parametrize("kinds", [(F16, F16), (BF16, F32)])
@pytest.mark.parametrize("gap", [8, 3])
def test_batches_multiply_on_tensor_cores_in_large_tiles(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, form: str, kinds: tuple[int, int], gap: int
) -> None:
    monkeypatch.setenv("SHIMMY_CUBLAS", "own")
    compute = COMPUTE_16F if kinds == (F16, F16) else COMPUTE_32F
    for library in handles(compiled, generation=8, n_processors=1):
        check(library, form, Case(T, N, 200, 140, 72, kinds, compute, beta=0.5, n_batches=2, gap=gap))
        assert library.kernel().startswith("(tensor<F, C, 128")


def test_f16_factors_of_the_product_are_read_as_f16(library: Library) -> None:
    check(library, "cublasGemmEx", Case(T, N, 70, 66, 40, (F16, F16), COMPUTE_16F, alpha=-2.0, beta=1.5, gap=8))


@pytest.mark.parametrize(
    ("generation", "kind", "kernel"), [(7, F16, "(tensor"), (7, BF16, "(tiled"), (6, F16, "(tiled")]
)
def test_older_gpus_get_the_kernel_that_they_know(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, generation: int, kind: int, kernel: str
) -> None:
    monkeypatch.setenv("SHIMMY_CUBLAS", "own")
    for library in handles(compiled, generation, n_processors=1):
        check(library, "cublasGemmEx", Case(T, N, 70, 20, 40, (kind, F32)))
        assert library.kernel().startswith(kernel)


@pytest.mark.parametrize(("m", "n"), [(37, 70), (1, 65), (300, 3)])
def test_a_triangular_system_is_solved(library: Library, m: int, n: int) -> None:
    rng = np.random.default_rng(n)
    a = matrices(rng, F32, (n, n), 2, gap=3)
    b = matrices(rng, F32, (m, n), 2, gap=2)
    floats: Floats = a.memory.view(np.float32)
    floats *= 0.1
    for upper in floats.reshape(-1, a.stride):
        upper[: a.leading * n : a.leading + 1] += 1
    before, between = b.read().copy(), b.between()
    alpha, a_list, b_list = ctypes.c_float(2.0), a.addresses, b.addresses
    status = library.c.cublasStrsmBatched(
        library.handle, *words(RIGHT, UPPER, N, NON_UNIT, m, n), ctypes.byref(alpha), address(a_list),
        *words(a.leading), address(b_list), *words(b.leading, 2),
    )  # fmt: skip
    assert status == SUCCESS
    np.testing.assert_allclose(b.read() @ np.triu(a.read()), 2 * before, atol=1e-4)
    np.testing.assert_array_equal(b.between(), between)


@pytest.mark.parametrize("form", [(0, UPPER, N, NON_UNIT), (RIGHT, 0, N, NON_UNIT), (RIGHT, UPPER, T, NON_UNIT)])
def test_other_triangular_systems_are_refused(library: Library, form: tuple[int, int, int, int]) -> None:
    nothing = ctypes.c_void_p()
    status = library.c.cublasStrsmBatched(
        library.handle, *words(*form, 4, 4), nothing, nothing, *words(4), nothing, *words(4, 1)
    )
    assert status == NOT_SUPPORTED


def test_nothing_to_compute_is_no_error_and_negative_sizes_are(library: Library) -> None:
    for m, status in ((0, SUCCESS), (-1, INVALID_VALUE)):
        case = Case(T, N, 4, 4, 4)
        a, b, c = case.made()
        assert multiply(library, "cublasGemmEx", Case(T, N, m, 4, 4), a, b, c) == status


def test_types_that_ggml_does_not_ask_for_are_refused(library: Library) -> None:
    case = Case(T, N, 4, 4, 4, (F32, F16))
    assert multiply(library, "cublasGemmEx", case, *case.made()) == NOT_SUPPORTED


def test_settings_are_taken_and_statuses_have_names(library: Library) -> None:
    c, handle = library.c, library.handle
    assert c.cublasSetStream_v2(handle, ctypes.c_void_p(1)) == SUCCESS
    assert c.cublasSetMathMode(handle, 3) == SUCCESS
    assert c.cublasSetWorkspace_v2(handle, ctypes.c_void_p(), ctypes.c_size_t(0)) == SUCCESS
    c.cublasGetStatusString.restype = ctypes.c_char_p
    assert c.cublasGetStatusString(NOT_SUPPORTED) == b"CUBLAS_STATUS_NOT_SUPPORTED"
    assert c.cublasGetStatusString(99) == b"another CUBLAS_STATUS"
