"""AWQ, version GEMM: `scales * (codes - zeros)`, transposed; eight columns of the stored matrix in each word."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts.arrays import Codes, Integers, checked_scales, group_of_columns, hold_integers
from shimmy.formats.quantised.stored import Holding, integer_type

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

_SHIFTS = np.array([0, 16, 4, 20, 8, 24, 12, 28], np.uint32)  # of a word's columns, in their order


def check(arrays: Arrays, options: Mapping[str, int]) -> Holding:
    """`scales` is [groups, rows]; `zeros` its words, packed along the rows."""
    scales = checked_scales(arrays["scales"])
    zeros = _unpacked(arrays["zeros"], scales.shape[1])
    low, high = -int(zeros.max(initial=0)), 15 - int(zeros.min(initial=15))
    return hold_integers(integer_type(low, high, options["n_columns"]), scales, max(-low, high))


def rows(arrays: Arrays, options: Mapping[str, int]) -> Integers:
    """`codes` is [columns, words]."""
    scales = arrays["scales"]
    groups = group_of_columns(options["n_columns"], options["group"])
    codes = np.ascontiguousarray(_unpacked(arrays["codes"], scales.shape[1]).T)
    codes -= _unpacked(arrays["zeros"], scales.shape[1]).T[:, groups]
    return Integers(codes, np.ascontiguousarray(scales.T), groups)


def _unpacked(words: NDArray[Any], n_rows: int) -> Codes:
    found = words.view(np.uint32)[:, :, None] >> _SHIFTS & np.uint32(15)
    return found.astype(np.int16).reshape(words.shape[0], -1)[:, :n_rows]
