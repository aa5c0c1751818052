"""MLX: `codes * scales + biases`, the codes without a sign, one string of bits a row. Scales may be negative."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import fused, loops
from shimmy.engine.layouts.arrays import (
    Affine,
    Packed,
    Weights,
    bytes_of_halves,
    facts_of,
    headers,
    hold_floats,
    rounding_error,
)
from shimmy.engine.layouts.bits import unpacked
from shimmy.engine.layouts.loops import Scales
from shimmy.formats.quantised.stored import BLOCK, Holding

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


def check(arrays: Arrays, options: Mapping[str, int]) -> Holding:
    """`scales` and `biases` are [rows, groups]."""
    scales, biases = arrays["scales"], arrays["biases"]
    of_scales, of_biases = facts_of(scales), facts_of(biases, "biases")
    if options["bits"] <= 4 and options["group"] % BLOCK == 0:
        errors = [_error(of_scales), _error(of_biases)]
        if None not in errors:
            return Holding("Q4_1", max(filter(None, errors), default=0.0))
    n_codes = 1 << options["bits"]
    bias = of_biases.largest  # what code 0 means
    held = hold_floats(bias + of_scales.largest * (n_codes - 1), bias)
    if held.kind == "F16":
        return held
    ends = np.maximum(np.abs(biases), np.abs(biases + scales * np.float32(n_codes - 1)))
    return hold_floats(float(ends.max(initial=0)))


def _error(facts: Scales) -> float | None:
    """Only tiny numbers may be rounded: what is left of a sum may be much smaller than its parts."""
    return rounding_error(facts, tiny=True) if facts.are_halves else None


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
