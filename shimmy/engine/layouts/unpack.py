"""Quantised weights of a checkpoint as the bytes of a GGUF's tensors, read in chunks of rows.

Knows files and chunks. What the numbers mean is known by the modules of this folder, one for each layout.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import awq, bitsandbytes, buffers, fp4, fp8, gguf_blocks, gptq, loops, mlx, packed
from shimmy.engine.layouts.arrays import BadValuesError, Bytes, Plain, Weights
from shimmy.formats.convert.transforms import TensorOutput, Transform
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised.stored import Holding, Part, StoredMatrix, StoredRows, with_matrices
from shimmy.formats.safetensors.checkpoint import CheckpointTensor, TensorReader
from shimmy.system.cpu import n_physical_cores

CHUNK_BYTES = 1 << 21  # that are computed at once: with fewer, Python takes as long as the loops; more leave the caches
CHECKED_ELEMENTS = 1 << 22  # whose scales are looked at together
MAX_CHUNK_ELEMENTS = 1 << 26  # of any model: far above real ones, and 300 MB
MAX_BYTES = 160 << 20  # that all threads take at once
MAX_THREADS = 4
SLAB_BYTES = 1 << 25  # of codes that lie in columns: rows are read so many at once, and computed in chunks
_COMPUTED_BYTES = 8  # of a weight on its way
_READ_BYTES = 1 << 14  # what can be read in the time that it takes to ask for it

_DTYPES = {
    "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E8M0": "u1", "I32": "<u4", "U32": "<u4", "I64": "<i8",
    "F16": "<f2", "BF16": "<u2", "F32": "<f4",
}  # fmt: skip


class _Layout(Protocol):
    """What each module of a layout has."""

    def check(self, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, int]) -> Holding:
        """What holds the rows of these arrays, whose `codes` are read if they are asked for. Raises BadValuesError."""

    def rows(self, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, int]) -> Weights:
        """The rows of these arrays. Raises BadValuesError."""


_LAYOUTS: dict[str, _Layout] = {
    "awq": awq, "bitsandbytes": bitsandbytes, "fp4": fp4, "fp8": fp8, "gptq": gptq, "mlx": mlx, "packed": packed,
}  # fmt: skip
# Those with one number for all weights, which a GGUF can have beside them.
_NUMBERS_BESIDE = {"fp4": fp4.number_beside, "fp8": fp8.number_beside}


def holding(output: TensorOutput, reader: TensorReader) -> Holding:
    """What holds the tensor, by its scales and zero points, and by its codes where these say too little. Raises
    Unconvertible for numbers that cannot be."""
    with _Named(output):
        matrices = {id(rows.matrix): rows.matrix for rows in output.stored}.values()
        return reduce(Holding.along_with, (_held(matrix, reader) for matrix in matrices))


def nearer(output: TensorOutput, reader: TensorReader) -> TensorOutput:
    """The same weights, each matrix of which F16 does not hold all divided by a power of two with which F16 may."""

    def divided(matrix: StoredMatrix) -> StoredMatrix:
        if _held(matrix, reader).kind == "F16":
            return matrix.divided_by(0)
        scales = (_read(matrix.parts["scale"], start, end, reader) for start, end in _checked_slabs(matrix))
        return matrix.divided_by(fp8.power_beside(max(int(part.max(initial=0)) for part in scales)))

    return replace(output, stored=with_matrices(output.stored, divided))


def chunks(output: TensorOutput, reader: TensorReader) -> Iterator[memoryview]:
    """The bytes of the tensor, in its GGUF type. Raises Unconvertible for numbers that cannot be."""
    if output.info.name.endswith(".scale"):
        with _Named(output):
            numbers = [_number_beside(rows.matrix, reader) for rows in output.stored]
        yield np.array(numbers, "<f4").view(np.uint8).data
        return
    for rows in output.stored:
        with _Named(output):
            for found in _encoded_chunks(rows, output, reader):
                yield found.data


def n_threads(outputs: Sequence[TensorOutput]) -> int:
    """One for each core, as long as what they compute at once stays within MAX_BYTES."""
    most = max((_n_bytes_taken(rows, output) for output in outputs for rows in output.stored), default=1)
    return max(1, min(n_physical_cores(), MAX_THREADS, MAX_BYTES // most))


def end() -> None:
    """Keep nothing for further tensors."""
    buffers.give_memory_back()


def _held(matrix: StoredMatrix, reader: TensorReader) -> Holding:
    check = _LAYOUTS[matrix.layout].check
    found = (check(_Checked(matrix, start, end, reader), matrix.options) for start, end in _checked_slabs(matrix))
    return reduce(Holding.along_with, found)


def _encoded_chunks(rows: StoredRows, output: TensorOutput, reader: TensorReader) -> Iterator[Bytes]:
    matrix, n_together = rows.matrix, _n_together(rows, output)
    columns = np.concatenate([np.arange(first, first + n) for first, n in output.columns]) if output.columns else None
    end = rows.first + rows.n_rows * rows.stride
    n_elements = _chunk_elements(output)
    for first, last in _slabs(matrix, rows.first, end, n_together, n_elements):
        arrays = _arrays(matrix, first, last, reader)
        for start, stop in _steps(matrix, first, last, n_together, n_elements):
            picked: Any = None if rows.stride == 1 else slice(None, None, rows.stride)
            if output.transform is Transform.PERMUTE:
                # As `transforms` does it: within each head, rows of both halves take turns.
                index = np.arange(stop - start).reshape(-1, 2, n_together // 2)
                picked = index.transpose(0, 2, 1).reshape(-1)
            part = {name: _part(array, matrix.parts[name], first, (start, stop)) for name, array in arrays.items()}
            n_rows = min(stop, matrix.shape[0]) - start  # the rows of a stride may end behind the last one
            yield _encoded(matrix, part, n_rows, picked, columns, output)


def _chunk_elements(output: TensorOutput) -> int:
    return CHUNK_BYTES * output.info.n_elements // max(1, output.info.n_bytes)


def _n_together(rows: StoredRows, output: TensorOutput) -> int:
    """Rows that have to be in one chunk."""
    if output.transform is Transform.TRANSPOSE_RUNS:
        return rows.n_rows
    return rows.n_rows // output.n_heads if output.transform is Transform.PERMUTE else rows.stride


def _n_bytes_taken(rows: StoredRows, output: TensorOutput) -> int:
    """How much memory the largest chunk takes, and the slab that it is of."""
    matrix, codes = rows.matrix, rows.matrix.parts["codes"].tensor
    end = rows.first + rows.n_rows * rows.stride
    together, n_elements = _n_together(rows, output), _chunk_elements(output)
    first, last = next(_slabs(matrix, rows.first, end, together, n_elements))
    start, stop = next(_steps(matrix, first, last, together, n_elements))
    return codes.n_bytes * (last - first) // matrix.shape[0] + _COMPUTED_BYTES * (stop - start) * matrix.shape[1]


@np.errstate(over="ignore", invalid="ignore")  # by damaged scales: what is infinite, the engine notices
def _encoded(
    matrix: StoredMatrix,
    arrays: Mapping[str, NDArray[Any]],
    n_rows: int,
    picked: Any,
    columns: Any,
    output: TensorOutput,
) -> Bytes:
    """The rows of these arrays in a GGUF type: all of them, or those that an index or a slice picks."""
    weights = _LAYOUTS[matrix.layout].rows(arrays, matrix.options)
    if columns is not None:
        weights = Plain(weights.values()[:, columns])
    if output.transform is Transform.TRANSPOSE_RUNS:
        weights = Plain(np.ascontiguousarray(weights.values().T))
    found = gguf_blocks.encode(weights, output.info.kind)
    if picked is None:
        return found
    rows = found.reshape(n_rows, -1)
    if isinstance(picked, slice):
        return np.ascontiguousarray(rows[picked]).reshape(-1)
    # All indices are within bounds: to check them again would take a buffer.
    return rows.take(picked, axis=0, out=buffers.empty(rows.shape, np.uint8), mode="clip").reshape(-1)


def _slabs(matrix: StoredMatrix, first: int, end: int, n_together: int, n_elements: int) -> Iterator[tuple[int, int]]:
    """Rows that are read at once: a chunk, or many where they lie in columns, all of which are read for each slab."""
    codes = matrix.parts["codes"]
    if codes.along == 1:
        n_elements = max(n_elements, SLAB_BYTES * math.prod(matrix.shape) // max(1, codes.tensor.n_bytes))
    return _steps(matrix, first, end, n_together, n_elements)


def _checked_slabs(matrix: StoredMatrix) -> Iterator[tuple[int, int]]:
    return _slabs(matrix, 0, matrix.shape[0], 1, CHECKED_ELEMENTS)


def _steps(matrix: StoredMatrix, first: int, end: int, n_together: int, n_elements: int) -> Iterator[tuple[int, int]]:
    """As many rows as have `n_elements`, or as have to be together."""
    step = math.lcm(matrix.row_step, n_together)
    if min(step, end - first) * matrix.shape[1] > MAX_CHUNK_ELEMENTS:
        raise Unconvertible(
            f"its rows of {matrix.shape[1]} weights can only be read {step} at once, which are too many"
        )
    step *= max(1, n_elements // (step * matrix.shape[1]))
    for start in range(first, end, step):
        yield start, min(start + step, end)


def _number_beside(matrix: StoredMatrix, reader: TensorReader) -> np.float32:
    parts = {matrix.apart: matrix.parts[matrix.apart]} if matrix.apart else {}
    arrays = {name: _widened(_read(part, 0, 0, reader), part.tensor.dtype) for name, part in parts.items()}
    return _NUMBERS_BESIDE[matrix.layout](arrays, matrix.options)


def _arrays(
    matrix: StoredMatrix, start: int, end: int, reader: TensorReader, without: str = ""
) -> dict[str, NDArray[Any]]:
    """By part: floats of all widths as F32, but for codes, which may be stored under any type's name."""
    found = {name: _read(part, start, end, reader) for name, part in matrix.parts.items() if name != without}
    return {
        name: array if name == "codes" else _widened(array, matrix.parts[name].tensor.dtype)
        for name, array in found.items()
    }


class _Checked(dict[str, NDArray[Any]]):
    """The same; codes, which are many, are only read if somebody asks for them."""

    def __init__(self, matrix: StoredMatrix, start: int, end: int, reader: TensorReader) -> None:
        super().__init__(_arrays(matrix, start, end, reader, without="codes"))
        self._read_codes = partial(_read, matrix.parts["codes"], start, end, reader)

    def __missing__(self, name: str) -> NDArray[Any]:
        if name != "codes":
            raise KeyError(name)
        return self._read_codes()


def _widened(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype == "BF16":
        return loops.brain_floats(array)
    return loops.floats(array) if dtype == "F16" else array


def _read(part: Part, start: int, end: int, reader: TensorReader) -> NDArray[Any]:
    """What rows `start` to `end` of the weight need of a tensor."""
    tensor, dtype = part.tensor, np.dtype(_DTYPES[part.tensor.dtype])
    if part.along is None or not tensor.shape:
        found = buffers.empty_apart(tensor.n_bytes, tensor.offset)
        reader.read(tensor, 0, found.data)
        shape = tensor.shape
    else:
        first, last = _items(part, start, end)
        n_bytes = tensor.n_bytes // math.prod(tensor.shape[: part.along + 1])  # of one item
        shape = (*tensor.shape[: part.along], last - first, *tensor.shape[part.along + 1 :])
        n_lines = math.prod(tensor.shape[: part.along])
        found = _columns(tensor, n_lines, first * n_bytes, last * n_bytes, reader)
    return found.view(dtype).reshape(shape)


def _items(part: Part, start: int, end: int) -> tuple[int, int]:
    """What rows `start` to `end` need along their dimension."""
    assert part.along is not None
    return start * part.items // part.rows, min(-(-end * part.items // part.rows), part.tensor.shape[part.along])


def _part(array: NDArray[Any], part: Part, first: int, rows: tuple[int, int]) -> NDArray[Any]:
    """What these rows need of an array whose rows begin with `first`."""
    if part.along is None or not part.tensor.shape:
        return array
    start, stop = (item - _items(part, first, first)[0] for item in _items(part, *rows))
    return array[(slice(None),) * part.along + (slice(start, stop),)]


def _columns(tensor: CheckpointTensor, n_lines: int, start: int, end: int, reader: TensorReader) -> NDArray[np.uint8]:
    """Bytes `start` to `end` of each of the equally long lines of a tensor."""
    line, length = tensor.n_bytes // n_lines, end - start
    found = buffers.empty_apart(n_lines * length, tensor.offset + start)
    rows, view = found.reshape(n_lines, length), found.data
    if length == line:
        reader.read(tensor, 0, view)
        return found
    if n_lines == 1 or line - length > _READ_BYTES:
        for index in range(n_lines):
            reader.read(tensor, index * line + start, view[index * length : (index + 1) * length])
        return found
    n_together = max(1, CHUNK_BYTES // line)
    for index in range(0, n_lines, n_together):
        lines = buffers.empty_apart(min(n_together, n_lines - index) * line, tensor.offset + index * line)
        reader.read(tensor, index * line, lines.data)
        rows[index : index + n_together] = lines.reshape(-1, line)[:, start:end]
    return found


class _Named:
    """Says of which tensor bad values are."""

    def __init__(self, output: TensorOutput) -> None:
        self._name = output.info.name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, BadValuesError):
            raise Unconvertible(f"its quantised weights of `{self._name}` are broken: {exc}") from exc
