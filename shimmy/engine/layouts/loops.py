"""Loops over all weights that numpy does at less than the speed of copying: in C, and in numpy with the same result.

The C library (tools/kernels/weight_loops.c) trusts its caller: every size and index is checked here. Where the library
is missing or cannot be loaded, numpy does the work; the tests compare both. Knows no layout and no file.
"""

import ctypes
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts.buffers import empty
from shimmy.engine.llama.unpack_libraries import LOOPS_ARCHIVE, LOOPS_LIBRARY, in_memory, part_content
from shimmy.system import unpacked_folder

logger = logging.getLogger(__name__)

Array: TypeAlias = NDArray[Any]
Halves: TypeAlias = NDArray[np.float16]

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of its eight rows each four bits of a word are
BLOCK = 32
HEADER_BYTES = {"Q4_0": 2, "Q4_1": 4, "Q5_0": 2, "Q8_0": 2, "MXFP4": 1, "NVFP4": 4}  # of a block: its scales
_PAYLOAD_BYTES = {"Q5_0": 20, "Q8_0": 32}  # of a block whose elements have more than 4 bits
_WIDE = {"NVFP4": 64}  # elements of a block that are not 32
_LARGEST, _SMALLEST = 65_504, 2.0**-14  # of the numbers of F16 that have all bits
_STRINGS = (2, 3, 5, 6, 7)  # bits of a code that the library knows
_PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}  # by bits of a code: how many of them each plane has


class Library:
    """The C library: of each loop the build for this processor, or with `is_plain` the one for any of its kind."""

    def __init__(self, path: str | Path, *, is_plain: bool = False) -> None:
        self._library = ctypes.CDLL(str(path))
        self._suffixes = ("_avx2", "") if self._library.has_avx2() and not is_plain else ("",)
        self._found: dict[str, Any] = {}

    def function(self, name: str) -> Any:
        """The function; None where it is not there, as some are for special instructions alone."""
        if name not in self._found:
            names = (f"{name}{suffix}" for suffix in self._suffixes)
            self._found[name] = next(
                (getattr(self._library, one) for one in names if hasattr(self._library, one)), None
            )
        return self._found[name]


def _load() -> Library | None:
    try:
        if unpacked_folder.folder() is not None:
            with in_memory("weight_loops", part_content(LOOPS_ARCHIVE)) as path:
                return Library(path)
        return Library(Path(sys.prefix, "lib", LOOPS_LIBRARY))
    except (OSError, AttributeError) as exc:  # the second one is that of an older build of a source tree
        logger.info("conversions take longer, as the library for them cannot be loaded: %s", exc)
        return None


library = _load()


def transposed(words: Array) -> NDArray[np.uint32]:
    """[columns, rows] out of [rows, columns] of 32 bits each."""
    if library is None:
        return np.ascontiguousarray(words.T).view(np.uint32)
    found = empty(words.shape[::-1], np.uint32)
    run("transpose_words", found, dense(words.view(np.uint32), np.uint32), *words.shape)
    return found


def nibbles(packed: NDArray[np.uint8], *, high_first: bool = False) -> NDArray[np.uint8]:
    """[..., 2 n] codes out of [..., n] bytes; the even element is the low half, or else the high one."""
    found = empty((*packed.shape, 2), np.uint8)
    if library is None:
        found[..., int(high_first)] = packed & np.uint8(15)
        found[..., int(not high_first)] = packed >> np.uint8(4)
    else:
        run("unpack_high_nibbles" if high_first else "unpack_nibbles", found, dense(packed, np.uint8), packed.size)
    return found.reshape(*packed.shape[:-1], -1)


def bit_string(words: NDArray[np.uint32], bits: int, n: int) -> NDArray[np.int8]:
    """[rows, n] codes of 2 to 7 bits out of [rows, words]: a code may lie in two words."""
    if library is not None and bits in _STRINGS and n % 8 == 0 and n * bits == words.shape[1] * 32:
        found = empty((len(words), n), np.int8)
        run("unpack_bits", found, dense(words, np.uint32), found.size // 8, bits)
        return found
    start = np.arange(n) * bits
    index, offset = start // 32, (start % 32).astype(np.uint64)
    ends = np.minimum(index + 1, words.shape[1] - 1)
    pairs = words[:, index].astype(np.uint64) | words[:, ends].astype(np.uint64) << np.uint64(32)
    return (pairs >> offset & np.uint64((1 << bits) - 1)).astype(np.int8)


def bit_planes(words: NDArray[np.uint32], bits: int) -> NDArray[np.int8]:
    """[rows, columns] codes of 3, 5, 6 or 7 bits out of [rows, words], of which `bits` have 32 codes.

    Each plane of these has some bits of all 32 in whole words, the lowest bits first.
    """
    n_rows, n_words = words.shape
    n_blocks, left = divmod(n_words, bits)
    if left:
        raise ValueError(f"{n_words} words are no blocks of {bits} words")
    found = empty((n_rows, 32 * n_blocks), np.int8)
    if has("unpack_planes"):
        run("unpack_planes", found, dense(words, np.uint32), n_rows * n_blocks, bits)
        return found
    codes, blocks = found.reshape(n_rows, n_blocks, 32), words.reshape(n_rows, n_blocks, bits)
    codes[:] = 0
    first = 0
    for width in _PLANES[bits]:
        plane, n_each = codes.reshape(n_rows, n_blocks, width, 32 // width), 32 // width
        for place in range(n_each):
            own = blocks[:, :, first : first + width] >> np.uint32(width * place) & np.uint32((1 << width) - 1)
            plane[:, :, :, place] |= (own << np.uint32(first)).astype(np.int8)
        first += width
    return found


def awq_rows(words: NDArray[np.uint32]) -> NDArray[np.int8]:
    """[8 n, columns] codes out of [n, columns], in AWQ's order."""
    found = empty((words.shape[0], 8, words.shape[1]), np.int8)
    if library is None:
        for index, row in enumerate(_AWQ_ORDER):
            found[:, row] = words >> np.uint32(4 * index) & np.uint32(15)
    else:
        run("unpack_awq", found, dense(words, np.uint32), *words.shape)
    return found.reshape(-1, words.shape[1])


def subtract(codes: Array, zeros: Array, groups: NDArray[np.integer[Any]] | None = None) -> None:
    """Take [rows, groups] off [rows, columns]; both of 8 bits or both of 16.

    `groups` has the group of each column; without it, they are equally long.
    """
    n_groups = zeros.shape[1]
    if codes.dtype != zeros.dtype or len(codes) != len(zeros):
        raise ValueError("these zero points are not those of these codes")
    if groups is not None:
        _check_groups(groups, codes.shape[1], n_groups)
    length = codes.reshape(*zeros.shape, -1).shape[2] if groups is None else 0
    if library is None or not codes.flags.c_contiguous:
        codes -= np.repeat(zeros, length, axis=1) if groups is None else zeros[:, groups]
    elif groups is None:
        run(_sized("subtract", codes), codes, dense(zeros, zeros.dtype), zeros.size, length)
    else:
        arrays = (codes, dense(zeros, zeros.dtype), dense(groups, np.uint32))
        run(_sized("subtract_mixed", codes), *arrays, *codes.shape, n_groups)


def blocks(kind: str, headers: NDArray[np.uint8], codes: Array) -> NDArray[np.uint8]:
    """Blocks of GGUF's type `kind`: [n, bytes] of scales and the like, and codes of 8 bits as that type has them.

    Those of Q4_0 are -8 to 7, of Q5_0 -16 to 15, of Q8_0 -128 to 127; the others have no sign.
    """
    n = len(headers)
    n_elements = _WIDE.get(kind, BLOCK)
    if headers.shape != (n, HEADER_BYTES[kind]) or codes.size != n * n_elements or codes.itemsize != 1:
        raise ValueError(f"{codes.size} codes and headers of the shape {headers.shape} are no blocks of {kind}")
    if library is None:
        return _blocks(kind, headers, codes.view(np.uint8))
    found = empty(n * (HEADER_BYTES[kind] + _PAYLOAD_BYTES.get(kind, n_elements // 2)), np.uint8)
    run(f"pack_{kind.lower()}", found, dense(headers, np.uint8), dense(codes, codes.dtype), n)
    return found


def _blocks(kind: str, headers: NDArray[np.uint8], codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of each run: element j in the low half of byte j, the element half a run behind it in the high one."""
    if kind == "Q8_0":
        return np.concatenate((headers, codes.reshape(-1, BLOCK)), axis=1).reshape(-1)
    half = 8 if kind == "NVFP4" else BLOCK // 2
    runs = np.ascontiguousarray(codes.reshape(-1, 2 * half))
    if kind == "Q4_0":
        runs = runs ^ np.uint8(8)
    low = runs & np.uint8(15)
    packed = (low[:, :half] | low[:, half:] << np.uint8(4)).reshape(len(headers), -1)
    if kind != "Q5_0":
        return np.concatenate((headers, packed), axis=1).reshape(-1)
    # Bit j of four bytes is the fifth bit of element j: one product moves those of eight bytes into the upper one.
    fifth = (~runs >> np.uint8(7)).view("<u8") * np.uint64(0x0102040810204080) >> np.uint64(56)
    return np.concatenate((headers, fifth.astype(np.uint8), packed), axis=1).reshape(-1)


def looked_up(codes: NDArray[np.uint8], tables: Array, places: NDArray[np.integer[Any]]) -> Array:
    """`tables[places][codes]`: [rows, columns] out of [tables, codes], of 16 or 32 bits; `places` is [rows, groups]."""
    runs = codes.reshape(*places.shape, -1)
    n_tables, n_codes = tables.shape
    if codes.size == 0:
        return empty(codes.shape, tables.dtype)
    if not 0 <= places.min() <= places.max() < n_tables or (n_codes < 256 and codes.max() >= n_codes):
        raise IndexError("a code or the place of its table is out of range")
    if library is None:
        at = (places * n_codes).astype(np.uint16 if tables.size <= 1 << 16 else np.uint32)
        found: Array = tables.reshape(-1)[runs + at[:, :, None]]
        return found.reshape(codes.shape)
    made = empty(codes.shape, tables.dtype)
    run(
        _sized("look_up", tables),
        *(made, dense(codes, np.uint8), dense(tables, tables.dtype), dense(places, np.uint32)),
        *(places.size, runs.shape[2], n_codes),
    )
    return made


def halves(numbers: NDArray[np.float32]) -> Halves | None:
    """The nearest numbers in F16; None where one of them would not be finite."""
    if library is None:
        with np.errstate(over="ignore"):
            return _finite(numbers.astype(np.float16))
    found = empty(numbers.shape, np.float16)
    return None if run("to_halves", found, dense(numbers, np.float32), numbers.size) else found


def pairs(first: Halves, second: Halves) -> Halves:
    """[n, 2]: the numbers of two arrays side by side."""
    if first.shape != second.shape:
        raise ValueError(f"numbers of the shapes {first.shape} and {second.shape} are no pairs")
    if not has("pair_halves"):
        return np.stack((first.reshape(-1), second.reshape(-1)), axis=1)
    found = empty((first.size, 2), np.float16)
    run("pair_halves", found, dense(first, np.float16), dense(second, np.float16), first.size)
    return found


def floats(numbers: Halves) -> NDArray[np.float32]:
    """The same numbers in F32."""
    if library is None:
        return numbers.astype(np.float32)
    found = empty(numbers.shape, np.float32)
    run("to_floats", found, dense(numbers, np.float16), numbers.size)
    return found


def brain_floats(numbers: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers of which these are the upper halves."""
    if library is None:
        return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
    found = empty(numbers.shape, np.uint32)
    run("widen_brain_floats", found, dense(numbers, np.uint16), numbers.size)
    return found.view(np.float32)


@dataclass(frozen=True, slots=True)
class Scales:
    """What has to be known of all scales."""

    largest: float  # size of one
    are_finite: bool
    fit_halves: bool  # none is too large for F16
    are_halves: bool  # those that fit, but for those below 2^-14, which is the smallest one with all bits
    small_are_halves: bool  # those below it


def looked_at(scales: NDArray[np.float32]) -> Scales:
    """`largest` is infinite, or no number, where one of them is."""
    if library is None:
        sizes = np.abs(scales)
        with np.errstate(over="ignore"):
            is_off = (scales.astype(np.float16) != scales) & (sizes <= _LARGEST)
        is_small = sizes < _SMALLEST
        largest = float(sizes.max(initial=0))
        facts = not np.isfinite(largest), not largest <= _LARGEST, (is_off & ~is_small).any(), (is_off & is_small).any()
        return Scales(largest, *(not fact for fact in facts))
    most = np.zeros(1, np.float32)
    bits = run("look_at_scales", most, dense(scales, np.float32), scales.size)
    return Scales(float(most[0]), *(not bits >> index & 1 for index in range(4)))


def has_nan_e4m3(codes: NDArray[np.uint8]) -> bool:
    """Whether one of these codes of FP8 is no number."""
    if library is None:
        return bool(((codes & np.uint8(127)) == np.uint8(127)).any())
    return bool(run("has_nan_e4m3", dense(codes, np.uint8), codes.size))


def affine_halves(
    codes: Array, scales: NDArray[np.float32], biases: NDArray[np.float32] | None = None
) -> Halves | None:
    """`codes * scales + biases` in F16; codes of 8 bits or of 16 with a sign, the others [rows, groups].

    Computed in F32, one rounding each. None where one would not be finite.
    """
    runs = codes.reshape(*scales.shape, -1)
    if library is None:
        with np.errstate(over="ignore"):
            products = runs * scales[:, :, None]
            if biases is not None:
                products += biases[:, :, None]
            return _finite(products.astype(np.float16).reshape(codes.shape))
    if biases is None:
        biases = np.full(scales.shape, -0.0, np.float32)  # which changes no sum
    elif biases.shape != scales.shape:
        raise ValueError(f"there are {biases.shape} biases and {scales.shape} scales")
    found = empty(codes.shape, np.float16)
    arrays = (found, dense(codes, codes.dtype), dense(scales, np.float32), dense(biases, np.float32))
    name = "affine_u8" if codes.dtype == np.uint8 else _sized("affine", codes)
    return None if run(name, *arrays, scales.size, runs.shape[2]) else found


def scaled_halves(codes: Array, scales: NDArray[np.float32], groups: NDArray[np.integer[Any]]) -> Halves | None:
    """`codes * scales[:, groups]` in F16, otherwise as `affine_halves`; `groups` is [columns]."""
    if len(scales) != len(codes):
        raise ValueError("these scales are not those of these codes")
    _check_groups(groups, codes.shape[1], scales.shape[1])
    if library is None:
        with np.errstate(over="ignore"):
            return _finite((codes * scales[:, groups]).astype(np.float16))
    found = empty(codes.shape, np.float16)
    arrays = (found, dense(codes, codes.dtype), dense(scales, np.float32), dense(groups, np.uint32))
    return None if run(_sized("scaled", codes), *arrays, *codes.shape, scales.shape[1]) else found


def _check_groups(groups: NDArray[np.integer[Any]], n_columns: int, n_groups: int) -> None:
    if groups.shape != (n_columns,) or not 0 <= groups.min() <= groups.max() < n_groups:
        raise IndexError("the group of a column is out of range")


def _finite(found: Halves) -> Halves | None:
    return found if np.isfinite(found).all() else None


def _sized(name: str, array: Array) -> str:
    return f"{name}_{8 * array.itemsize}"


def dense(array: Array, dtype: Any) -> Array:
    return np.ascontiguousarray(array, dtype)


def run(name: str, *arguments: Array | int) -> int:
    """Call a function of the library with dense arrays and sizes."""
    assert library is not None
    function = library.function(name)
    if function.argtypes is None:
        function.argtypes = (ctypes.c_size_t,) * len(arguments)  # an address is as wide as a size
    result: int = function(*[one if isinstance(one, int) else one.__array_interface__["data"][0] for one in arguments])
    return result


def has(name: str) -> bool:
    """Whether the library has this function for this processor."""
    return library is not None and library.function(name) is not None
