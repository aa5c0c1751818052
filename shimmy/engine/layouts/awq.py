"""AWQ, version GEMM: `scales * (codes - zeros)`, transposed; eight columns of the stored matrix in each word."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import fused, loops
from shimmy.engine.layouts.arrays import (
    Codes,
    Integers,
    Packed,
    Weights,
    block_groups,
    facts_of,
    halves,
    hold_floats,
    hold_integers,
    less_zeros,
)
from shimmy.formats.quantised.stored import Holding, integer_type

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


def check(arrays: Arrays, options: Mapping[str, int]) -> Holding:
    """`scales` is [groups, rows]; `zeros` its words, packed along the rows."""
    facts = facts_of(arrays["scales"])
    zeros = _unpacked(arrays["zeros"], arrays["scales"].shape[1])
    low, high = -int(zeros.max(initial=0)), 15 - int(zeros.min(initial=15))
    if block_groups(None, options["n_columns"], options["group"]) is None:
        return hold_floats(facts.largest * max(-low, high))
    return hold_integers(integer_type(low, high, options["n_columns"]), facts, max(-low, high))


def rows(arrays: Arrays, options: Mapping[str, int]) -> Weights:
    """`codes` is [columns, words]."""
    codes, zeros, scales = arrays["codes"], arrays["zeros"], arrays["scales"]

    def integers() -> Integers:
        found = _unpacked(codes, scales.shape[1])
        less_zeros(found, _unpacked(zeros, scales.shape[1]), None)
        return Integers(found, np.ascontiguousarray(scales.T))

    groups = block_groups(None, options["n_columns"], options["group"])
    if groups is None or scales.shape[1] != 8 * codes.shape[1]:  # rows at the end are left out
        return integers()
    return Packed(integers, {"Q5_0": lambda: fused.awq_blocks(codes, halves(scales), zeros, groups)})


def _unpacked(stored: NDArray[Any], n_rows: int) -> Codes:
    """[rows, n] out of [n, words]."""
    return loops.awq_rows(loops.transposed(stored))[:n_rows]
