"""Integers of compressed-tensors: `(codes - zeros) * scales`, the codes packed along the columns or one to a byte."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import fused
from shimmy.engine.layouts.arrays import (
    BadValuesError,
    Codes,
    Floats,
    Index,
    Integers,
    Packed,
    Weights,
    facts_of,
    halves,
    headers,
    hold_floats,
    hold_integers,
    in_blocks,
    less_zeros,
    runs_of_columns,
)
from shimmy.engine.layouts.bits import in_whole_words, unpacked
from shimmy.formats.quantised.stored import Holding, integer_type

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


def check(arrays: Arrays, options: Mapping[str, int]) -> Holding:
    """`scales` is [rows, groups] or one number; `zeros` are packed along the rows, or one to a byte."""
    if "shape" in arrays and arrays["shape"].tolist() != [options["n_rows"], options["n_columns"]]:
        raise BadValuesError("its `weight_shape` is not the shape that its configuration implies")
    facts, groups = facts_of(arrays["scales"]), _groups(arrays, options)
    middle = 1 << options["bits"] - 1
    low, high = -middle, middle - 1
    if "zeros" in arrays:
        zeros = _zeros(arrays, options)
        low, high = low - int(zeros.max(initial=-middle)), high - int(zeros.min(initial=middle))
    if not in_blocks(groups, options["n_columns"], options["group"]):
        return hold_floats(facts.largest * max(-low, high))
    return hold_integers(integer_type(low, high, options["n_columns"]), facts, max(-low, high))


def rows(arrays: Arrays, options: Mapping[str, int]) -> Weights:
    groups, stored = _groups(arrays, options), arrays["codes"]
    scales = _of_rows(_scales(arrays), len(stored))
    zeros = _of_rows(_zeros(arrays, options), len(stored)) if "zeros" in arrays else None

    def integers() -> Integers:
        codes = _codes(arrays, options)
        if zeros is not None:
            less_zeros(codes, zeros, groups)
        return Integers(codes, scales, groups)

    if options["bits"] != 4 or groups is not None:
        return integers()
    packed = stored.view(np.uint8)
    if zeros is None:
        return Packed(integers, {"Q4_0": lambda: fused.repacked("Q4_0", headers(scales), packed)})
    shifted = (zeros.reshape(-1) + 8).astype(np.int8)  # as the codes are stored
    return Packed(integers, {"Q5_0": lambda: fused.repacked_q5_0(halves(scales).reshape(-1), shifted, packed)})


def _of_rows(numbers: NDArray[Any], n_rows: int) -> NDArray[Any]:
    """[rows, groups], where one row may stand for all."""
    return numbers if len(numbers) == n_rows else np.repeat(numbers, n_rows, axis=0)


def _codes(arrays: Arrays, options: Mapping[str, int]) -> Codes:
    """[rows, row length], with a sign, before zero points are taken off."""
    stored = arrays["codes"]
    if stored.dtype == np.int8:
        return stored.astype(np.int16) if "zeros" in arrays else stored
    unpack = in_whole_words if options["whole_words"] else unpacked
    codes = unpack(stored.view(np.uint32), options["bits"], options["n_columns"])
    return codes - codes.dtype.type(1 << options["bits"] - 1)


def _scales(arrays: Arrays) -> Floats:
    """[rows, groups]."""
    found: Floats = arrays["scales"]
    return found if found.ndim == 2 else found.reshape(-1, 1)


def _zeros(arrays: Arrays, options: Mapping[str, int]) -> Codes:
    """[rows, groups], with a sign."""
    stored = arrays["zeros"]
    if stored.dtype == np.int8:
        return stored.astype(np.int16).reshape(-1, stored.shape[-1] if stored.ndim == 2 else 1)
    n_rows = _scales(arrays).shape[0]
    columns = np.ascontiguousarray(stored.T).view(np.uint32)
    unpack = in_whole_words if options["whole_words"] else unpacked
    found = unpack(columns, options["bits"], n_rows).T
    return found - found.dtype.type(1 << options["bits"] - 1)


def _groups(arrays: Arrays, options: Mapping[str, int]) -> Index | None:
    n_groups = _scales(arrays).shape[1]
    return runs_of_columns(options["n_columns"], options["group"], arrays.get("g_idx"), n_groups)
