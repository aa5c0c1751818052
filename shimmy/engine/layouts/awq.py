"""AWQ, version GEMM: `scales * (codes - zeros)`, transposed; eight columns of the stored matrix in each word."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import loops
from shimmy.engine.layouts.arrays import Codes, Integers, checked_scales, hold_integers, less_zeros
from shimmy.formats.quantised.stored import Holding, integer_type

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


def check(arrays: Arrays, options: Mapping[str, int]) -> Holding:
    """`scales` is [groups, rows]; `zeros` its words, packed along the rows."""
    scales = checked_scales(arrays["scales"])
    zeros = _unpacked(arrays["zeros"], scales.shape[1])
    low, high = -int(zeros.max(initial=0)), 15 - int(zeros.min(initial=15))
    return hold_integers(integer_type(low, high, options["n_columns"]), scales, max(-low, high))


def rows(arrays: Arrays, options: Mapping[str, int]) -> Integers:
    """`codes` is [columns, words]."""
    del options
    scales = arrays["scales"]
    codes = _unpacked(arrays["codes"], scales.shape[1])
    less_zeros(codes, _unpacked(arrays["zeros"], scales.shape[1]), None)
    return Integers(codes, np.ascontiguousarray(scales.T))


def _unpacked(stored: NDArray[Any], n_rows: int) -> Codes:
    """[rows, n] out of [n, words]."""
    return loops.awq_rows(loops.transposed(stored))[:n_rows]
