"""Packed codes of 4 bits as blocks of GGUF or as halves, in one pass: in C, or in numpy, which unpacks them on the way.

As in `loops`, whose library it is, every size and index is checked here. Knows no file.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import loops
from shimmy.engine.layouts.buffers import empty
from shimmy.engine.layouts.loops import BLOCK, HEADER_BYTES, Halves, dense, run

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Words: TypeAlias = NDArray[np.uint32]
Indices: TypeAlias = NDArray[np.integer[Any]]

_N_CODES = 16
_MIDDLE = np.int8(_N_CODES // 2)
_BLOCK_BYTES = {"Q4_0": 18, "Q5_0": 22}


def repacked(kind: str, headers: Bytes, packed: Bytes) -> Bytes:
    """Blocks of GGUF's type `kind`: the codes of `packed`, two in a byte, the low half first, in the order of blocks.

    `headers` are [n, bytes], each of as many blocks. The codes of Q4_0 are 0 to 15 here, and mean -8 to 7.
    """
    n, n_bytes = len(headers), 32 if kind == "NVFP4" else BLOCK // 2
    n_blocks = packed.size // max(1, n * n_bytes)
    if packed.size != n * n_blocks * n_bytes or headers.shape != (n, HEADER_BYTES[kind]):
        raise ValueError(f"{packed.size} bytes and headers of the shape {headers.shape} are no blocks of {kind}")
    if loops.library is None:
        codes = loops.nibbles(packed.reshape(-1)).view(np.int8)
        return loops.blocks(kind, np.repeat(headers, n_blocks, axis=0), codes - np.int8(8 * (kind == "Q4_0")))
    found = empty(n * n_blocks * (HEADER_BYTES[kind] + n_bytes), np.uint8)
    run(f"repack_{kind.lower()}", found, dense(headers, np.uint8), dense(packed, np.uint8), n, n_blocks)
    return found


def repacked_q5_0(scales: Halves, zeros: NDArray[np.int8], packed: Bytes) -> Bytes:
    """The same as blocks of Q5_0: `scales` are [n], each of as many blocks, and `zeros` as well, from 0 to 16."""
    n = len(scales)
    n_blocks = packed.size // max(1, n * BLOCK // 2)
    if packed.size != n * n_blocks * BLOCK // 2 or scales.shape != (n,) or zeros.shape != (n,):
        raise ValueError(f"{packed.size} bytes do not belong to {scales.shape} scales and {zeros.shape} zero points")
    if loops.library is None:
        codes = loops.nibbles(packed.reshape(-1)).view(np.int8).reshape(n, -1) - zeros[:, None]
        return loops.blocks("Q5_0", np.repeat(scales, n_blocks).reshape(-1, 1).view(np.uint8), codes)
    found = empty(n * n_blocks * _BLOCK_BYTES["Q5_0"], np.uint8)
    arrays = (dense(scales, np.float16), dense(16 - zeros, np.uint8), dense(packed, np.uint8))
    run("repack_q5_0", found, *arrays, n, n_blocks)
    return found


def gptq_blocks(kind: str, words: Words, scales: Halves, zeros: NDArray[np.int8] | None, groups: Indices) -> Bytes:
    """Blocks of Q4_0 or Q5_0: `words` are [lines, rows], each with eight codes of one row.

    `groups` has the group of each block of a row, `scales` and `zeros` are [groups, rows]: from 0 to 16. Without zero
    points, all are 8, as they have to be with Q4_0.
    """
    n_lines, n_rows = words.shape
    n_blocks = len(groups)
    _check_groups(groups, len(scales))
    if n_lines != 4 * n_blocks or scales.shape[1] != n_rows or (zeros is not None and zeros.shape != scales.shape):
        raise ValueError(f"{words.shape} words and these zero points do not belong to {scales.shape} scales")
    if kind == "Q4_0":
        if zeros is not None and (zeros != _MIDDLE).any():
            raise ValueError("Q4_0 has no zero points")
        zeros = None
    if loops.library is None:
        codes = loops.nibbles(loops.transposed(words).view(np.uint8)).view(np.int8)
        codes -= _MIDDLE if zeros is None else np.repeat(zeros[groups].T, BLOCK, axis=1)
        return loops.blocks(kind, _of_blocks(scales, groups), codes)
    found = empty(n_rows * n_blocks * _BLOCK_BYTES[kind], np.uint8)
    lines, pitch = _lines(words)
    if zeros is not None:
        more = dense(16 - zeros, np.uint8)
    else:  # which Q4_0 does not read
        more = np.full(scales.shape if kind == "Q5_0" else 1, 16 - _MIDDLE, np.uint8)
    arrays = (dense(scales, np.float16), more, lines, dense(groups, np.uint32))
    run(f"gptq_{kind.lower()}", found, *arrays, n_rows, n_blocks, pitch)
    return found


def gptq_halves(words: Words, scales: Floats, zeros: NDArray[np.int8], groups: Indices) -> Halves | None:
    """`(codes - zeros) * scales` in F16, as `gptq_blocks` otherwise; `groups` has the group of each column.

    None where a number would not be finite.
    """
    n_lines, n_rows = words.shape
    n_columns = len(groups)
    _check_groups(groups, len(scales))
    if n_columns != 8 * n_lines or scales.shape[1] != n_rows or zeros.shape != scales.shape:
        raise ValueError(f"{words.shape} words do not belong to {scales.shape} scales and {zeros.shape} zero points")
    if loops.library is None:
        codes = loops.nibbles(loops.transposed(words).view(np.uint8)).view(np.int8)
        return loops.scaled_halves(codes - zeros[groups].T, scales.T, groups)
    found = empty((n_rows, n_columns), np.float16)
    lines, pitch = _lines(words)
    arrays = (dense(scales, np.float32), dense(zeros, np.int32), lines, dense(groups, np.uint32))
    return None if run("gptq_scaled", found, *arrays, n_rows, n_lines, pitch) else found


def awq_blocks(words: Words, scales: Halves, zeros: Words, groups: Indices) -> Bytes:
    """Blocks of Q5_0: `words` are [columns, n], each with eight rows of one column in AWQ's order.

    `groups` has the group of each block of a row, `scales` are [groups, 8 n], and `zeros` [groups, n], packed as well.
    """
    n_columns, n_words = words.shape
    n_blocks = len(groups)
    _check_groups(groups, len(scales))
    if n_columns != BLOCK * n_blocks or scales.shape != (len(zeros), 8 * n_words) or zeros.shape[1] != n_words:
        raise ValueError(f"{words.shape} words do not belong to {scales.shape} scales and {zeros.shape} zero points")
    if loops.library is None:
        codes = loops.awq_rows(loops.transposed(words))
        codes -= np.repeat(loops.awq_rows(loops.transposed(zeros))[:, groups], BLOCK, axis=1)
        return loops.blocks("Q5_0", _of_blocks(scales, groups), codes)
    found = empty(8 * n_words * n_blocks * _BLOCK_BYTES["Q5_0"], np.uint8)
    lines, pitch = _lines(words)
    arrays = (dense(scales, np.float16), dense(zeros, np.uint32), lines, dense(groups, np.uint32))
    run("awq_q5_0", found, *arrays, n_words, n_blocks, pitch)
    return found


def table_halves(packed: Bytes, table: Floats, sizes: Floats, block: int) -> Halves | None:
    """`table[codes] * sizes` in F16: codes out of [n] bytes, the high half first, and a size for each `block` of them.

    None where a number would not be finite, be it that of a code which does not occur.
    """
    n = 2 * len(packed)
    if table.shape != (_N_CODES,) or block % 2 or sizes.shape != (-(-n // block),):
        raise ValueError(f"{n} codes do not belong to {sizes.shape} sizes of {block}")
    if loops.library is None:
        with np.errstate(over="ignore"):
            numbers = table[loops.nibbles(packed, high_first=True)] * np.repeat(sizes, block)[:n]
        return loops.halves(numbers)
    found = empty(n, np.float16)
    arrays = (dense(packed, np.uint8), dense(table, np.float32), dense(sizes, np.float32))
    return None if run("table_halves", found, *arrays, len(packed), block // 2) else found


def e4m3_halves(codes: Bytes, scales: Floats) -> tuple[Halves | None, bool]:
    """The numbers that these codes of FP8 mean times scales, in F16; None where one would not be finite, and whether
    there is a code that is no number. Codes are [rows, columns], scales [rows, groups].

    Only for processors of which the library `has` it: the others look all products up.
    """
    runs = codes.reshape(*scales.shape, -1)
    found = empty(codes.shape, np.float16)
    arrays = (found, dense(codes, np.uint8), dense(scales, np.float32))
    faults = run("e4m3_halves", *arrays, scales.size, runs.shape[2])
    return None if faults & 1 else found, bool(faults & 2)


def e4m3_brain_floats(codes: Bytes, scales: Floats) -> tuple[NDArray[np.uint16], bool]:
    """The same in BF16, where all scales are so small that no product is infinite. Only where the library `has` it."""
    runs = codes.reshape(*scales.shape, -1)
    found = empty(codes.shape, np.uint16)
    arrays = (found, dense(codes, np.uint8), dense(scales, np.float32))
    return found, bool(run("e4m3_brain_floats", *arrays, scales.size, runs.shape[2]))


def _check_groups(groups: Indices, n_groups: int) -> None:
    if groups.ndim != 1 or (len(groups) and not 0 <= groups.min() <= groups.max() < n_groups):
        raise IndexError("a group is out of range")


def _of_blocks(scales: Halves, groups: Indices) -> Bytes:
    return np.ascontiguousarray(scales[groups].T).reshape(-1, 1).view(np.uint8)


def _lines(words: Words) -> tuple[Words, int]:
    """Words that are dense within each line, and how many of them lie between the starts of two lines."""
    width = 4 * words.shape[1]
    if words.dtype != np.uint32 or words.strides[1] != 4 or words.strides[0] < width or words.strides[0] % 4:
        words = dense(words, np.uint32)
    return words, words.strides[0] // 4
