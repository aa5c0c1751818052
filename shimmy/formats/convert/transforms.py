"""How the bytes of one tensor of a GGUF come out of a checkpoint: copied, reordered, widened to F32, in small chunks.

Knows nothing of architectures. No numpy: slices of bytes and arrays do all of it at the speed of C, and the chunks
bound the memory, however large a tensor is. Everything is little-endian, as both formats are.
"""

import math
import operator
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from shimmy.formats.gguf.writer import TensorInfo
from shimmy.formats.quantised.stored import StoredRows
from shimmy.formats.safetensors.checkpoint import CheckpointTensor, TensorReader

CHUNK_BYTES = 1 << 20
TRANSPOSED_BYTES = 32 << 20  # of the columns that one pass over a tensor gathers

ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class Transform(Enum):
    """What happens to the rows of a tensor on the way."""

    COPY = auto()
    PERMUTE = auto()  # within each head, rows of both halves take turns: rotated pairs are neighbours in llama.cpp
    TRANSPOSE = auto()
    TRANSPOSE_RUNS = auto()  # each run of rows by itself
    SQUEEZE = auto()  # without dimensions of 1: the same bytes
    ADD_ONE = auto()  # Gemma's norms are stored as their distance from 1
    NEGATIVE_EXP = auto()  # how fast a state decays is stored as a logarithm; becomes F32
    PRODUCT = auto()  # the numbers of the first piece times those of the second one; becomes F32


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """A run of bytes of a tensor in a checkpoint."""

    tensor: CheckpointTensor
    start: int
    n_bytes: int
    stride: int = 1  # of the elements in it, the first and then every n-th
    is_turned: bool = False  # it begins in the first of some columns of a matrix, which become rows
    scale: float = 1.0  # by which all of it is multiplied in the end; another one than 1 makes the tensor F32


@dataclass(frozen=True, slots=True)
class TensorOutput:
    """One tensor of the GGUF, and what it is made of: `pieces`, one after the other, or else computed `values`.

    Or else `stored`: quantised weights, which the worker unpacks with numpy (`engine/layouts`).
    """

    info: TensorInfo
    pieces: tuple[TensorSlice, ...] = ()
    transform: Transform = Transform.COPY
    n_heads: int = 1  # that PERMUTE finds in a tensor
    values: tuple[float, ...] = ()
    stored: tuple[StoredRows, ...] = ()
    columns: Sequence[tuple[int, int]] = ()  # runs of the elements of each row, in their new order; none: as they are

    @property
    def dtype(self) -> str:
        """The checkpoint's type of all pieces."""
        return self.pieces[0].tensor.dtype

    @property
    def is_reordered(self) -> bool:
        """Whether numbers of one row change places: a block of a quantised type, which lies in a row, is none then."""
        return bool(self.columns) or self.transform is Transform.TRANSPOSE_RUNS

    @property
    def first(self) -> CheckpointTensor:
        """The tensor that its bytes begin with; only of what comes from a file."""
        return self.stored[0].matrix.parts["codes"].tensor if self.stored else self.pieces[0].tensor


def chunks(output: TensorOutput, reader: TensorReader) -> Iterator[memoryview]:
    """The tensor's bytes, in order. A chunk is good until the next one is asked for."""
    if not output.pieces:
        yield memoryview(struct.pack(f"<{len(output.values)}f", *output.values))
        return
    if output.transform is Transform.PRODUCT:
        yield _product(output.pieces, reader)
        return
    is_widened = output.dtype != "F32" and output.info.n_bytes == 4 * output.info.n_elements
    offset = 1 if output.transform is Transform.ADD_ONE else 0
    for piece in output.pieces:
        found = _arranged(piece, output, reader)
        if is_widened:
            found = _widened(found, output.dtype)
        if output.transform is Transform.NEGATIVE_EXP:
            found = _negative_exp(found)
        if offset or piece.scale != 1:
            found = _computed(found, offset, piece.scale)
        yield from found


def _product(pieces: Sequence[TensorSlice], reader: TensorReader) -> memoryview:
    """Of two small tensors, number by number, in F32."""
    factors = []
    for piece in pieces:
        found = _copied(piece, reader)
        wide = found if piece.tensor.dtype == "F32" else _widened(found, piece.tensor.dtype)
        numbers = array("f")
        for chunk in wide:
            numbers.frombytes(chunk)
        factors.append(numbers)
    return memoryview(array("f", map(operator.mul, *factors))).cast("B")


def single_number(tensor: CheckpointTensor, reader: TensorReader) -> float:
    """The number in a tensor that has no other."""
    content = bytearray(tensor.n_bytes)
    reader.read(tensor, 0, memoryview(content))
    (wide,) = (memoryview(content),) if tensor.dtype == "F32" else _widened((memoryview(content),), tensor.dtype)
    (number,) = struct.unpack("<f", wide)
    return float(number)


def _arranged(piece: TensorSlice, output: TensorOutput, reader: TensorReader) -> Iterator[memoryview]:
    if output.transform is Transform.PERMUTE:
        return _permuted(piece, output.n_heads, reader)
    if output.transform is Transform.TRANSPOSE:
        return _transposed(TensorSlice(piece.tensor, 0, piece.tensor.n_bytes), output.info.shape[1], reader)
    if output.transform is Transform.TRANSPOSE_RUNS or piece.is_turned:
        return _transposed(piece, output.info.shape[1], reader)
    if output.columns:
        return _with_columns(piece, output.info.shape[0], output.columns, reader)
    return _copied(piece, reader)


def _copied(piece: TensorSlice, reader: TensorReader) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(piece.n_bytes, CHUNK_BYTES)))
    for start in range(0, piece.n_bytes, CHUNK_BYTES):
        chunk = buffer[: piece.n_bytes - start]
        reader.read(piece.tensor, piece.start + start, chunk)
        if piece.stride == 1:
            yield chunk
        else:  # a chunk has a whole number of strides, as both are powers of two
            elements = array("I" if ELEMENT_BYTES[piece.tensor.dtype] == 4 else "H", bytes(chunk))
            yield memoryview(elements[:: piece.stride]).cast("B")


def _with_columns(
    piece: TensorSlice, row_length: int, runs: Sequence[tuple[int, int]], reader: TensorReader
) -> Iterator[memoryview]:
    """Its rows, with runs of their elements in another order."""
    n_bytes = ELEMENT_BYTES[piece.tensor.dtype]
    row_bytes = row_length * n_bytes
    n_together = max(1, CHUNK_BYTES // row_bytes)
    rows, mixed = (memoryview(bytearray(n_together * row_bytes)) for _ in range(2))
    for start in range(0, piece.n_bytes, n_together * row_bytes):
        size = min(n_together * row_bytes, piece.n_bytes - start)
        reader.read(piece.tensor, piece.start + start, rows[:size])
        for row in range(0, size, row_bytes):
            end = row
            for first, length in runs:
                begin, end = end, end + length * n_bytes
                mixed[begin:end] = rows[row + first * n_bytes : row + (first + length) * n_bytes]
        yield mixed[:size]


def _permuted(piece: TensorSlice, n_heads: int, reader: TensorReader) -> Iterator[memoryview]:
    """`w.reshape(n_heads, 2, n_rows // n_heads // 2, -1).swapaxes(1, 2)`, as llama.cpp's converter does it."""
    tensor = piece.tensor
    row_bytes = tensor.n_bytes // tensor.shape[0]
    n_rows = piece.n_bytes // row_bytes
    n_half = n_rows // n_heads // 2
    n_pairs = max(1, min(n_half, CHUNK_BYTES // 2 // row_bytes))
    halves = memoryview(bytearray(2 * n_pairs * row_bytes))
    mixed = memoryview(bytearray(2 * n_pairs * row_bytes))
    for head_start in range(piece.start, piece.start + piece.n_bytes, 2 * n_half * row_bytes):
        for pair in range(0, n_half, n_pairs):
            n_bytes = min(n_pairs, n_half - pair) * row_bytes
            reader.read(tensor, head_start + pair * row_bytes, halves[:n_bytes])
            reader.read(tensor, head_start + (n_half + pair) * row_bytes, halves[n_bytes : 2 * n_bytes])
            for start in range(0, n_bytes, row_bytes):
                middle, end = 2 * start + row_bytes, 2 * start + 2 * row_bytes
                mixed[2 * start : middle] = halves[start : start + row_bytes]
                mixed[middle:end] = halves[n_bytes + start : n_bytes + start + row_bytes]
            yield mixed[: 2 * n_bytes]


def _transposed(piece: TensorSlice, n_wanted: int, reader: TensorReader) -> Iterator[memoryview]:
    """The first `n_wanted` columns of its rows as rows. The last row may be no longer than that."""
    n_bytes, n_columns = ELEMENT_BYTES[piece.tensor.dtype], piece.tensor.shape[-1]
    n_rows = -(-piece.n_bytes // (n_columns * n_bytes))
    n_taken = max(1, min(n_wanted, TRANSPOSED_BYTES // (n_rows * n_bytes)))
    for column in range(0, n_wanted, n_taken):
        width = min(n_taken, n_wanted - column)
        block = array("I" if n_bytes == 4 else "H", bytes(n_rows * width * n_bytes))
        rows = memoryview(block).cast("B")
        row_bytes = width * n_bytes
        if width == n_columns:
            reader.read(piece.tensor, piece.start, rows)
        else:
            for row in range(n_rows):
                start = piece.start + (row * n_columns + column) * n_bytes
                reader.read(piece.tensor, start, rows[row * row_bytes : (row + 1) * row_bytes])
        rows.release()
        for index in range(width):
            yield memoryview(block[index::width]).cast("B")


def _widened(found: Iterable[memoryview], dtype: str) -> Iterator[memoryview]:
    """As F32, exactly: a BF16 is the upper half of one."""
    for chunk in found:
        if dtype == "BF16":
            wide = bytearray(2 * chunk.nbytes)
            wide[2::4], wide[3::4] = chunk[::2], chunk[1::2]
        else:
            n_elements = chunk.nbytes // 2
            wide = bytearray(struct.pack(f"<{n_elements}f", *struct.unpack(f"<{n_elements}e", chunk)))
        yield memoryview(wide)


def _negative_exp(found: Iterable[memoryview]) -> Iterator[memoryview]:
    for chunk in found:
        numbers = struct.unpack(f"<{chunk.nbytes // 4}f", chunk)
        yield memoryview(array("f", [-math.exp(min(number, 100.0)) for number in numbers])).cast("B")


def _computed(found: Iterable[memoryview], offset: int, scale: float) -> Iterator[memoryview]:
    """What is too large becomes infinite, where struct would raise OverflowError."""
    for chunk in found:
        numbers = struct.unpack(f"<{chunk.nbytes // 4}f", chunk)
        yield memoryview(array("f", [(number + offset) * scale for number in numbers])).cast("B")
