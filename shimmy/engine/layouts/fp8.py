"""FP8: `E4M3[codes] * scale`, one scale for each block of rows and columns. Other ways to cut are special blocks."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import fused, loops
from shimmy.engine.layouts.arrays import (
    BadValuesError,
    Bytes,
    Floats,
    LookedUp,
    Packed,
    Plain,
    Weights,
    bytes_of_halves,
    checked_scales,
    facts_of,
    grouped,
    hold_floats,
    powers_of_two,
)
from shimmy.formats.quantised.stored import Holding

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
LARGEST = 448
_LEAST_OF_HALVES, _MOST_OF_HALVES = -15, 7  # powers of two with which F16 holds all codes
_LOOKED_AT = 1 << 16  # codes at once
_LOWEST_BIT = -24  # of a number in F16, as a power of two
_LARGEST_NEAR = -8  # power of two with which the largest codes are as large as weights mostly are, or little more
_MOST_OF_FLOATS = 127  # power of two that F32 holds
_SMALLEST_SCALE = 2.0**-117  # under which BF16 holds all codes
_LARGE_ENOUGH = 2.0**-64  # a tensor with a weight of this size loses nothing with those that BF16 does not hold


def _table() -> Floats:
    """By code: sign, 4 bits of exponent (bias 7), 3 bits of mantissa; 0x7F and 0xFF are NaN, nothing is infinite."""
    found = []
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
        found.append(float("nan") if code & 127 == 127 else -size if code & 128 else size)
    return np.array(found, np.float32)


E4M3 = _table()
_NUMBERS: Floats = np.where(np.isnan(E4M3), np.float32(0), E4M3)  # for codes of which none is NaN


def _lowest_bits() -> NDArray[np.int8]:
    """By code: the power of two of its lowest bit; of 0, and of NaN, one that is large enough for all scales."""
    units = (np.abs(_NUMBERS) * 2**9).astype(np.int32)
    return np.where(units, np.frexp(units & -units)[1] - 10, 127).astype(np.int8)


_LOWEST = _lowest_bits()


def checked_codes(codes: Bytes, what: str) -> None:
    """Raises BadValuesError for NaN."""
    if loops.has_nan_e4m3(codes):
        raise _nan(what)


def _nan(what: str) -> BadValuesError:
    return BadValuesError(f"one of its {what} is no number")


def e4m3(codes: Bytes, what: str) -> Floats:
    """The numbers of these codes; raises BadValuesError for NaN."""
    checked_codes(codes, what)
    return LookedUp(codes, _NUMBERS[None], np.zeros((len(codes), 1), np.int64)).values()


def check(arrays: Arrays, options: Mapping[str, int]) -> Holding:
    if options["exponents"]:
        return _check_exponents(arrays, options)
    facts = facts_of(arrays["scale"])
    return Holding("F16") if options.get("apart") else hold_floats(facts.largest * LARGEST)


def _check_exponents(arrays: Arrays, options: Mapping[str, int]) -> Holding:
    """F16 where it holds all weights, since the engine rounds what it multiplies with those in BF16 to BF16, too."""
    exponents, power = arrays["scale"], options.get("power", 0)
    ends = powers_of_two(np.array([exponents.min(initial=127), exponents.max(initial=0)], np.uint8))
    smallest, largest = map(float, ends)
    least, most = 2.0 ** (_LEAST_OF_HALVES + power), 2.0 ** (_MOST_OF_HALVES + power)
    if largest <= most and (smallest >= least or _halves_hold(arrays["codes"].view(np.uint8), exponents, options)):
        return Holding("F16", spare="BF16")
    # Tools give groups of zeros the smallest scale there is. Other codes are off by 2^-134 under such a one.
    is_held = smallest >= _SMALLEST_SCALE or largest * LARGEST >= _LARGE_ENOUGH
    return Holding("BF16") if is_held and largest * LARGEST < 2.0**127 else Holding("F32")


def _halves_hold(codes: Bytes, exponents: Bytes, options: Mapping[str, int]) -> bool:
    """Whether F16 holds all products, although there are scales with which it does not hold all codes. So it is with
    those of zeros; and in other small blocks, only the few codes that are far below the largest have too low bits."""
    power, wide = options.get("power", 0), _of_rows(_grid(exponents), len(codes), options["block_rows"])
    if wide.shape[1] > 1 and codes.shape[1] % options["block_columns"]:
        wide = np.repeat(wide, options["block_columns"], axis=1)[:, : codes.shape[1]]
    is_small = wide < _LEAST_OF_HALVES + 127 + power
    parted = grouped(codes, wide)
    step = max(1, _LOOKED_AT // codes.shape[1])
    return all(
        _hold_small(parted[first : first + step], wide[first : first + step], is_small[first : first + step], power)
        for first in range(0, len(codes), step)  # the first part mostly tells
    )


def _hold_small(codes: Bytes, exponents: Bytes, is_small: NDArray[np.bool_], power: int) -> bool:
    """`codes` are [rows, blocks, columns of a block], the others [rows, blocks]."""
    lowest = _LOWEST[codes[is_small]].min(axis=1, initial=127)
    return bool((lowest + (exponents[is_small].astype(np.int16) - (127 + power)) >= _LOWEST_BIT).all())


def rows(arrays: Arrays, options: Mapping[str, int]) -> Weights:
    codes, block_rows = arrays["codes"].view(np.uint8), options["block_rows"]
    scales = _near(arrays["scale"]) if options.get("apart") else _scales(arrays["scale"], options)
    is_whole = scales.shape[1] == 1 or codes.shape[1] % options["block_columns"] == 0

    def halves() -> Bytes:
        found, has_nan = fused.e4m3_halves(codes, _of_rows(scales, len(codes), block_rows))
        if has_nan:
            raise _nan("FP8 weights")
        return bytes_of_halves(found)

    def brain_floats() -> Bytes:
        found, has_nan = fused.e4m3_brain_floats(codes, _of_rows(scales, len(codes), block_rows))
        if has_nan:
            raise _nan("FP8 weights")
        return found.reshape(-1).view(np.uint8)

    def unpacked() -> Plain | LookedUp:
        if is_whole and options["exponents"]:
            checked_codes(codes, "FP8 weights")
            return _looked_up_by_power(codes, _grid(arrays["scale"]), options)
        if is_whole and codes.size >= 4 * E4M3.size * scales.size:
            checked_codes(codes, "FP8 weights")
            return _looked_up(codes, scales, block_rows)
        found = e4m3(codes, "FP8 weights")
        wide = _of_rows(scales, len(codes), block_rows)
        if is_whole:
            grouped(found, wide)[...] *= wide[:, :, None]
        else:
            found *= np.repeat(wide, options["block_columns"], axis=1)[:, : found.shape[1]]
        return Plain(found)

    encoded = {}
    if is_whole and loops.has("e4m3_halves"):
        encoded["F16"] = halves
    if is_whole and loops.has("e4m3_brain_floats"):
        encoded["BF16"] = brain_floats
    return Packed(unpacked, encoded)


def power_beside(largest: int) -> int:
    """The power of two to divide weights by that F16 does not hold as they are; `largest` of their scales' bytes."""
    return min(largest - 127 - _LARGEST_NEAR, _MOST_OF_FLOATS)


def number_beside(arrays: Arrays, options: Mapping[str, int]) -> np.float32:
    """What weights are to be multiplied with whose one scale is apart, or which are divided by a power of two."""
    if "power" in options:
        return np.float32(2.0 ** options["power"])
    number: np.float32 = (arrays["scale"].reshape(1, 1) / _near(arrays["scale"]))[0, 0]
    return number


def _near(scale: NDArray[Any]) -> Floats:
    """[1, 1]: the power of two below the scale, or the nearest one with which F16 holds all codes.

    Codes alone reach 448, and where the engine adds products up in F16 (ARM, GPUs), sums with such leave its range.
    """
    power = np.frexp(scale.reshape(1, 1))[1] - 1
    found: Floats = np.ldexp(np.float32(1), np.clip(power, _LEAST_OF_HALVES, _MOST_OF_HALVES))
    return found


def _of_rows(scales: NDArray[Any], n_rows: int, block_rows: int) -> NDArray[Any]:
    """[rows, groups], where one row may stand for all."""
    return np.repeat(scales, n_rows if len(scales) == 1 else block_rows, axis=0)[:n_rows]


def _looked_up(codes: Bytes, scales: Floats, block_rows: int) -> LookedUp:
    n_row_blocks, n_column_blocks = scales.shape
    row_blocks = np.arange(len(codes)) // (block_rows if n_row_blocks > 1 else len(codes))
    places = row_blocks[:, None] * n_column_blocks + np.arange(n_column_blocks)
    with np.errstate(over="ignore"):  # by codes that do not occur
        tables: Floats = _NUMBERS * scales.reshape(-1, 1)
    return LookedUp(codes, tables, places)


def _looked_up_by_power(codes: Bytes, exponents: Bytes, options: Mapping[str, int]) -> LookedUp:
    """With a table for each of the few powers of two that there are, however small the blocks."""
    is_there = np.zeros(256, bool)
    is_there[exponents] = True
    powers, places = _powers(is_there.nonzero()[0].astype(np.uint8), options), is_there.cumsum() - 1
    with np.errstate(over="ignore"):  # by codes that do not occur
        tables: Floats = _NUMBERS * powers[:, None]
    return LookedUp(codes, tables, _of_rows(places[exponents], len(codes), options["block_rows"]))


def _scales(stored: NDArray[Any], options: Mapping[str, int]) -> Floats:
    """[blocks of rows, blocks of columns]."""
    return _grid(_powers(stored, options) if options["exponents"] else checked_scales(stored))


def _powers(exponents: Bytes, options: Mapping[str, int]) -> Floats:
    """Without the power that is apart."""
    found = powers_of_two(exponents)
    return found * np.ldexp(np.float32(1), -options["power"]) if options.get("power") else found


def _grid(scales: NDArray[Any]) -> NDArray[Any]:
    return scales.reshape(-1, scales.shape[1] if scales.ndim == 2 else 1)
