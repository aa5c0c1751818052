"""Quantised weights of some rows as arrays, whatever layout they come from, and what they are in F32.

Each class is one formula. All products are in F32, with one rounding each, in the order of the layout's own library.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import loops
from shimmy.engine.layouts.loops import Scales
from shimmy.formats.quantised.stored import BLOCK, EXACT_INTEGERS, ROUNDED, Holding

Floats: TypeAlias = NDArray[np.float32]
Halves: TypeAlias = NDArray[np.float16]
Bytes: TypeAlias = NDArray[np.uint8]
Codes: TypeAlias = NDArray[np.signedinteger[Any]]  # of 8 bits where they are enough, else of 16
Index: TypeAlias = NDArray[np.int64]

_F16_LARGEST, _F16_SMALLEST = 65_504.0, 2.0**-14  # of those with all bits
_LARGE_ENOUGH = 2.0**-10  # a tensor whose largest weight is smaller would lose bits as F16
# E2M1, by code.
E2M1: Floats = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


class BadValuesError(ValueError):
    """Why numbers in a checkpoint are none that the layout allows, in words for a person."""


class Weights(Protocol):
    """Some rows of a weight."""

    def values(self) -> Floats:
        """[rows, row length]."""

    def halves(self) -> Halves:
        """The same in F16; raises BadValuesError for a number that is too large."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Weights that are numbers already."""

    numbers: Floats  # [rows, row length]

    def values(self) -> Floats:
        return self.numbers

    def halves(self) -> Halves:
        return halves(self.numbers)


@dataclass(frozen=True, slots=True)
class Integers:
    """`codes * scales`, and then `* factor` where there is one."""

    codes: Codes  # [rows, row length]
    scales: Floats  # [rows, groups]
    groups: Index | None = None  # [row length]: the group of each column; None: all groups are equally long runs
    factor: np.float32 | None = None

    def values(self) -> Floats:
        found = self.codes.astype(np.float32)
        if self.groups is not None:
            found *= self.scales[:, self.groups]
        else:
            grouped(found, self.scales)[...] *= self.scales[:, :, None]
        if self.factor is not None:
            found *= self.factor
        return found

    def halves(self) -> Halves:
        if self.factor is not None:
            return halves(self.values())
        if self.groups is not None:
            return not_too_large(loops.scaled_halves(self.codes, self.scales, self.groups))
        return not_too_large(loops.affine_halves(self.codes, self.scales))

    def block_scales(self) -> Halves:
        """[rows, blocks]: the scale of each block of 32 columns, which all have the same; raises BadValuesError."""
        scales = halves(self.scales if self.factor is None else self.scales * self.factor)
        if self.groups is not None:
            return scales[:, self.groups[::BLOCK]]
        return spread(scales, self.codes.shape[1] // BLOCK)


@dataclass(frozen=True, slots=True)
class Affine:
    """`codes * scales + biases`, the codes without a sign."""

    codes: Codes  # [rows, row length]
    scales: Floats  # [rows, groups]
    biases: Floats  # [rows, groups]

    def values(self) -> Floats:
        found = self.codes.astype(np.float32)
        runs = grouped(found, self.scales)
        runs *= self.scales[:, :, None]
        runs += self.biases[:, :, None]
        return found

    def halves(self) -> Halves:
        return not_too_large(loops.affine_halves(self.codes, self.scales, self.biases))


@dataclass(frozen=True, slots=True)
class FourBitFloats:
    """`E2M1[codes] * scales`."""

    codes: Bytes  # [rows, row length]
    scales: Floats  # [rows, groups]

    def values(self) -> Floats:
        found: Floats = E2M1[self.codes]
        grouped(found, self.scales)[...] *= self.scales[:, :, None]
        return found

    def halves(self) -> Halves:
        return halves(self.values())


@dataclass(frozen=True, slots=True)
class LookedUp:
    """`tables[places][codes]`: where groups are large, to multiply and round a table of all codes is less work."""

    codes: Bytes  # [rows, row length]
    tables: Floats  # [tables, codes]
    places: Index  # [rows, groups]: which table

    def values(self) -> Floats:
        found: Floats = self.among(self.tables)
        return found

    def halves(self) -> Halves:
        found: Halves = self.among(halves(self.tables))
        return found

    def among(self, tables: NDArray[Any]) -> NDArray[Any]:
        """The values out of tables with the same numbers in another type."""
        return loops.looked_up(self.codes, tables, self.places)


@dataclass(frozen=True, slots=True)
class Packed:
    """Weights whose codes stay packed as the file has them, until a type is asked for that takes them as numbers."""

    unpacked: Callable[[], Weights]
    encoded: Mapping[str, Callable[[], Bytes]]  # all rows in a GGUF type, straight out of the packed codes

    def values(self) -> Floats:
        return self.unpacked().values()

    def halves(self) -> Halves:
        return self.unpacked().halves()


def halves(numbers: Floats) -> Halves:
    """The nearest numbers in F16; raises BadValuesError for one that is too large."""
    return not_too_large(loops.halves(numbers))


def headers(numbers: Floats, others: Floats | None = None) -> Bytes:
    """[n, bytes]: each of these numbers in F16, with that of the others behind it."""
    found = halves(numbers)
    pairs = found.reshape(-1, 1) if others is None else loops.pairs(found, halves(others))
    return pairs.view(np.uint8)


def bytes_of_halves(found: Halves | None) -> Bytes:
    """All bytes of numbers in F16; raises BadValuesError where one is too large."""
    return not_too_large(found).reshape(-1).view(np.uint8)


def not_too_large(found: Halves | None) -> Halves:
    if found is None:
        raise BadValuesError("one of its weights is too large")
    return found


def grouped(numbers: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
    """The same memory as [rows, groups, columns of a group], with as many groups as there are scales of a row."""
    return numbers.reshape(*scales.shape, -1)


def spread(scales: Halves, n: int) -> Halves:
    """[rows, n] out of [rows, groups]: each number as often as its group is long; all are equally long."""
    return np.repeat(scales, n // scales.shape[1], axis=1)


def block_groups(groups: Index | None, n_columns: int, group: int) -> Index | None:
    """The group of each block of 32 columns; None unless all columns of each are of one group."""
    if not in_blocks(groups, n_columns, group):
        return None
    return np.arange(0, n_columns, BLOCK) // group if groups is None else groups[::BLOCK]


def runs_of_columns(n_columns: int, group: int, stored: Index | None, n_groups: int) -> Index | None:
    """[columns]: the group of each; None where groups of this length follow each other. BadValuesError for a wrong one.

    `stored` is what the file says of it, None where it says nothing.
    """
    plain = _runs(n_columns, group)
    if stored is None or (len(stored) == n_columns and (stored == plain).all()):
        return None if n_columns % group == 0 else plain
    if ((stored < 0) | (stored >= n_groups)).any():
        raise BadValuesError("an index of a group of columns is out of range")
    return stored.astype(np.int64)


@lru_cache(maxsize=2)  # for one chunk after the other
def _runs(n_columns: int, group: int) -> Index:
    found = np.arange(n_columns) // group
    found.flags.writeable = False
    return found


def less_zeros(codes: Codes, zeros: Codes, groups: Index | None) -> None:
    """Take the zero point of its group, [rows, groups], off each code, [rows, columns]."""
    loops.subtract(codes, zeros, groups)


def in_blocks(groups: Index | None, n_columns: int, group: int) -> bool:
    """Whether all columns of each block of 32 are of one group."""
    if n_columns % BLOCK or groups is None:
        return n_columns % BLOCK == 0 and group % BLOCK == 0
    blocks = groups.reshape(-1, BLOCK)
    return bool((blocks == blocks[:, :1]).all())


def facts_of(scales: Floats, what: str = "scales") -> Scales:
    """What is known of finite numbers; raises BadValuesError for others."""
    found = loops.looked_at(scales)
    if not found.are_finite:
        raise BadValuesError(f"one of its {what} is no finite number")
    return found


def checked_scales(scales: Floats, what: str = "scales") -> Floats:
    """Finite numbers; raises BadValuesError."""
    facts_of(scales, what)
    return scales


def checked_exponents(exponents: Bytes) -> Bytes:
    """Those of numbers; raises BadValuesError."""
    if exponents.max(initial=0) == 255:
        raise BadValuesError("one of its scales is no number")
    return exponents


def powers_of_two(exponents: Bytes) -> Floats:
    """2^(e - 127); the byte 255 is NaN, and refused."""
    bits = checked_exponents(exponents).astype(np.uint32) << np.uint32(23)
    if not exponents.all():
        bits[exponents == 0] = 1 << 22  # 2^-127 is a subnormal number
    return bits.view(np.float32)


def rounding_error(found: Scales, *, tiny: bool = False) -> float | None:
    """The largest relative error of numbers as F16: 0, or at most 2^-11; None where it is larger.

    With `tiny`, numbers below 2^-14 may be off by 2^-25 instead, where there are larger ones beside them.
    """
    if not found.fit_halves or (tiny and not found.small_are_halves and found.largest < _F16_SMALLEST):
        return None
    if found.are_halves and found.small_are_halves:
        return 0.0
    return ROUNDED if tiny or found.small_are_halves else None


def hold_integers(kind: str, scales: Scales, largest_code: int) -> Holding:
    """`kind` where the scales fit into F16; else what holds the products."""
    if kind in EXACT_INTEGERS:
        error = rounding_error(scales, tiny=kind != "Q8_0")
        if error is not None:
            return Holding(kind, error)
    return hold_floats(scales.largest * largest_code)


def largest_size(scales: Floats) -> float:
    """The size of the largest one; 0 of none."""
    return loops.looked_at(scales).largest


def hold_floats(largest: float, least: float | None = None) -> Holding:
    """What holds numbers of which `largest` is an upper bound, and one at least as large as `least`; None: as that."""
    if largest == 0 or ((largest if least is None else least) >= _LARGE_ENOUGH and largest <= _F16_LARGEST):
        return Holding("F16", ROUNDED)
    return Holding("F32")
