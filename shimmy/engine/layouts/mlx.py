"""MLX: `codes * scales + biases`, the codes without a sign, one string of bits a row. Scales may be negative."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import fused, loops
from shimmy.engine.layouts.arrays import (
    Affine,
    Floats,
    Packed,
    Weights,
    bytes_of_halves,
    checked_scales,
    headers,
    hold_floats,
    largest_size,
    rounding_error,
)
from shimmy.engine.layouts.bits import unpacked
from shimmy.formats.quantised.stored import BLOCK, Holding

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


def check(arrays: Arrays, options: Mapping[str, int]) -> Holding:
    """`scales` and `biases` are [rows, groups]."""
    scales, biases = checked_scales(arrays["scales"]), checked_scales(arrays["biases"], "bias")
    if options["bits"] <= 4 and options["group"] % BLOCK == 0:
        errors = [_error(scales), _error(biases)]
        if None not in errors:
            return Holding("Q4_1", max(filter(None, errors), default=0.0))
    n_codes = 1 << options["bits"]
    bias = largest_size(biases)  # what code 0 means
    held = hold_floats(bias + largest_size(scales) * (n_codes - 1), bias)
    if held.kind == "F16":
        return held
    ends = np.maximum(np.abs(biases), np.abs(biases + scales * np.float32(n_codes - 1)))
    return hold_floats(float(ends.max(initial=0)))


def _error(numbers: Floats) -> float | None:
    """Only tiny numbers may be rounded: what is left of a sum may be much smaller than its parts."""
    if rounding_error(numbers) == 0:
        return 0.0
    large = numbers[np.abs(numbers) >= np.float32(2.0**-14)]
    return rounding_error(numbers, tiny=True) if rounding_error(large) == 0 else None


def rows(arrays: Arrays, options: Mapping[str, int]) -> Weights:
    codes, scales, biases = arrays["codes"].view(np.uint32), arrays["scales"], arrays["biases"]

    def affine() -> Affine:
        return Affine(unpacked(codes, options["bits"], options["n_columns"]), scales, biases)

    if options["bits"] == 8:
        stored = codes.view(np.uint8)
        return Packed(affine, {"F16": lambda: bytes_of_halves(loops.affine_halves(stored, scales, biases))})
    if options["bits"] != 4:
        return affine()
    return Packed(affine, {"Q4_1": lambda: fused.repacked("Q4_1", headers(scales, biases), codes.view(np.uint8))})
