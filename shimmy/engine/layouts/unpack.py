"""Quantised weights of a checkpoint as the bytes of a GGUF's tensors, read in chunks of rows.

Knows files and chunks. What the numbers mean is known by the modules of this folder, one for each layout.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import awq, bitsandbytes, fp4, fp8, gguf_blocks, gptq, mlx, packed
from shimmy.engine.layouts.arrays import BadValuesError, Bytes, Plain, Weights
from shimmy.formats.convert.transforms import TensorOutput, Transform
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised.stored import Holding, Part, StoredMatrix, StoredRows
from shimmy.formats.safetensors.checkpoint import CheckpointTensor, TensorReader
from shimmy.system.cpu import n_physical_cores

CHUNK_ELEMENTS = 1 << 20
MAX_CHUNK_ELEMENTS = 1 << 26  # of any model: far above real ones, and 300 MB
MAX_ELEMENTS_AHEAD = 1 << 24  # in chunks that are computed at once: less than 200 MB
MAX_THREADS = 4
_PASSES = 4  # a chunk of what lies in columns is so many times as large, since for each one all columns are read
_READ_BYTES = 1 << 14  # what can be read in the time that it takes to ask for it

_DTYPES = {
    "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E8M0": "u1", "I32": "<u4", "U32": "<u4", "I64": "<i8",
    "F16": "<f2", "BF16": "<u2", "F32": "<f4",
}  # fmt: skip


class _Layout(Protocol):
    """What each module of a layout has."""

    def check(self, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, int]) -> Holding:
        """What holds the rows of these arrays, which lack `codes`. Raises BadValuesError."""

    def rows(self, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, int]) -> Weights:
        """The rows of these arrays. Raises BadValuesError."""


_LAYOUTS: dict[str, _Layout] = {
    "awq": awq, "bitsandbytes": bitsandbytes, "fp4": fp4, "fp8": fp8, "gptq": gptq, "mlx": mlx, "packed": packed,
}  # fmt: skip


def holding(output: TensorOutput, reader: TensorReader) -> Holding:
    """What holds the tensor, by its scales and zero points. Raises Unconvertible for numbers that cannot be."""
    found: Holding | None = None
    for matrix in {id(rows.matrix): rows.matrix for rows in output.stored}.values():
        layout = _LAYOUTS[matrix.layout]
        with _Named(output):
            for start, end in _steps(matrix, 0, matrix.shape[0], 1):
                arrays = _arrays(matrix, start, end, reader, without="codes")
                one = layout.check(arrays, matrix.options)
                found = one if found is None else found.along_with(one)
    assert found is not None
    return found


def chunks(output: TensorOutput, reader: TensorReader) -> Iterator[memoryview]:
    """The bytes of the tensor, in its GGUF type. Raises Unconvertible for numbers that cannot be."""
    if output.info.name.endswith(".scale"):
        numbers = [_apart(rows.matrix, reader) for rows in output.stored]
        yield np.array(numbers, "<f4").view(np.uint8).data
        return
    for rows in output.stored:
        with _Named(output):
            yield from _in_turn(_computations(rows, output, reader), _n_ahead(rows, output))


def _in_turn(computations: Iterable[Callable[[], Bytes]], n_ahead: int) -> Iterator[memoryview]:
    """The results in order. Threads compute `n_ahead` of them, while this one reads on and the caller writes."""
    with ThreadPoolExecutor(max(1, n_ahead), "unpack") as threads:
        begun: deque[Future[Bytes]] = deque()
        for computation in computations:
            begun.append(threads.submit(computation))
            if len(begun) > n_ahead:
                yield begun.popleft().result().data
        for one in begun:
            yield one.result().data


def _computations(rows: StoredRows, output: TensorOutput, reader: TensorReader) -> Iterator[Callable[[], Bytes]]:
    """For each chunk of rows what has to be computed, when all of it has been read."""
    matrix = rows.matrix
    columns = np.concatenate([np.arange(first, first + n) for first, n in output.columns]) if output.columns else None
    for start, stop in _chunks_of_rows(rows, output):
        picked: Any = None if rows.stride == 1 else slice(None, None, rows.stride)
        if output.transform is Transform.PERMUTE:
            # As `transforms` does it: within each head, rows of both halves take turns.
            index = np.arange(stop - start).reshape(-1, 2, rows.n_rows // output.n_heads // 2)
            picked = index.transpose(0, 2, 1).reshape(-1)
        yield partial(_encoded, matrix, _arrays(matrix, start, stop, reader), picked, columns, output.info.kind)


def _chunks_of_rows(rows: StoredRows, output: TensorOutput) -> Iterator[tuple[int, int]]:
    n_head_rows = rows.n_rows // output.n_heads if output.transform is Transform.PERMUTE else 1
    end = rows.first + rows.n_rows * rows.stride
    return _steps(rows.matrix, rows.first, end, n_head_rows * rows.stride)


def _n_ahead(rows: StoredRows, output: TensorOutput) -> int:
    """How many chunks may be computed at once; none where they are so large that one has to be enough."""
    start, stop = next(_chunks_of_rows(rows, output))
    return min(n_physical_cores(), MAX_THREADS, MAX_ELEMENTS_AHEAD // ((stop - start) * rows.matrix.shape[1]))


def _encoded(matrix: StoredMatrix, arrays: Mapping[str, NDArray[Any]], picked: Any, columns: Any, kind: str) -> Bytes:
    found = _LAYOUTS[matrix.layout].rows(arrays, matrix.options)
    if columns is not None:
        found = Plain(found.values()[:, columns])
    return gguf_blocks.encode(found if picked is None else found.taken(picked), kind)


def _steps(matrix: StoredMatrix, first: int, end: int, n_together: int) -> Iterator[tuple[int, int]]:
    step = math.lcm(matrix.row_step, n_together)
    if min(step, end - first) * matrix.shape[1] > MAX_CHUNK_ELEMENTS:
        raise Unconvertible(
            f"its rows of {matrix.shape[1]} weights can only be read {step} at once, which are too many"
        )
    n_elements = CHUNK_ELEMENTS * (_PASSES if matrix.parts["codes"].along == 1 else 1)
    step *= max(1, n_elements // (step * matrix.shape[1]))
    for start in range(first, end, step):
        yield start, min(start + step, end)


def _apart(matrix: StoredMatrix, reader: TensorReader) -> np.float32:
    number = np.float32(_read(matrix.parts[matrix.apart], 0, 0, reader).reshape(-1)[0])
    return np.float32(1) / number if matrix.options.get("reciprocal") else number


def _arrays(
    matrix: StoredMatrix, start: int, end: int, reader: TensorReader, without: str = ""
) -> dict[str, NDArray[Any]]:
    return {name: _read(part, start, end, reader) for name, part in matrix.parts.items() if name != without}


def _read(part: Part, start: int, end: int, reader: TensorReader) -> NDArray[Any]:
    """What rows `start` to `end` of the weight need of a tensor; floats of all widths as F32."""
    tensor, dtype = part.tensor, np.dtype(_DTYPES[part.tensor.dtype])
    if part.along is None or not tensor.shape:
        found = _bytes(tensor.n_bytes)
        reader.read(tensor, 0, found.data)
        shape = tensor.shape
    else:
        first, last = start * part.items // part.rows, min(-(-end * part.items // part.rows), tensor.shape[part.along])
        n_bytes = tensor.n_bytes // math.prod(tensor.shape[: part.along + 1])  # of one item
        shape = (*tensor.shape[: part.along], last - first, *tensor.shape[part.along + 1 :])
        n_lines = math.prod(tensor.shape[: part.along])
        found = _columns(tensor, n_lines, first * n_bytes, last * n_bytes, reader)
    array = found.view(dtype).reshape(shape)
    if tensor.dtype == "BF16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32) if tensor.dtype == "F16" else array


def _columns(tensor: CheckpointTensor, n_lines: int, start: int, end: int, reader: TensorReader) -> NDArray[np.uint8]:
    """Bytes `start` to `end` of each of the equally long lines of a tensor."""
    line, length = tensor.n_bytes // n_lines, end - start
    found = _bytes(n_lines * length)
    rows, view = found.reshape(n_lines, length), found.data
    if n_lines == 1 or line - length > _READ_BYTES:
        for index in range(n_lines):
            reader.read(tensor, index * line + start, view[index * length : (index + 1) * length])
        return found
    n_together = max(1, CHUNK_ELEMENTS // line)
    for index in range(0, n_lines, n_together):
        lines = _bytes(min(n_together, n_lines - index) * line)
        reader.read(tensor, index * line, lines.data)
        rows[index : index + n_together] = lines.reshape(-1, line)[:, start:end]
    return found


def _bytes(n: int) -> NDArray[np.uint8]:
    return np.empty(n, np.uint8)


class _Named:
    """Says of which tensor bad values are."""

    def __init__(self, output: TensorOutput) -> None:
        self._name = output.info.name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, BadValuesError):
            raise Unconvertible(f"its quantised weights of `{self._name}` are broken: {exc}") from exc
