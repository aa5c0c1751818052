"""4-bit floats (E2M1): MXFP4 with a power of two for 32 of them, NVFP4 with an 8-bit float for 16 and one for all."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import fused
from shimmy.engine.layouts.arrays import (
    BadValuesError,
    Floats,
    FourBitFloats,
    Packed,
    checked_exponents,
    checked_scales,
    hold_floats,
    largest_size,
    powers_of_two,
)
from shimmy.engine.layouts.fp8 import checked_codes, e4m3
from shimmy.engine.layouts.loops import nibbles
from shimmy.formats.quantised.stored import Holding

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
LARGEST = 6


def check(arrays: Arrays, options: Mapping[str, int]) -> Holding:
    """`scales` are bytes, [rows, groups]."""
    stored = arrays["scales"]
    if options["group"] == 32:
        if options["n_columns"] % 32 == 0:
            checked_exponents(stored)
            return Holding("MXFP4")
    elif (
        options["n_columns"] % 64 == 0
        and (options.get("apart") or "global" not in arrays)
        and not (stored & np.uint8(128)).any()  # a scale in a GGUF has no sign
    ):
        checked_codes(stored, "scales")
        _whole(arrays)
        return Holding("NVFP4")
    return hold_floats(largest_size(_scales(arrays, options)) * LARGEST)


def rows(arrays: Arrays, options: Mapping[str, int]) -> Packed:
    scales = arrays["scales"].reshape(-1, arrays["scales"].shape[-1])
    codes = arrays["codes"].view(np.uint8).reshape(len(scales), -1)
    kind, n_scales = ("MXFP4", 1) if options["group"] == 32 else ("NVFP4", 4)  # of a block
    return Packed(
        lambda: FourBitFloats(nibbles(codes), _scales(arrays, options)),
        {kind: lambda: fused.repacked(kind, scales.reshape(-1, n_scales), codes)},
    )


@np.errstate(over="ignore")
def number_beside(arrays: Arrays, options: Mapping[str, int]) -> np.float32:
    """What weights are to be multiplied with whose one number is apart."""
    number = _whole(arrays)
    assert number is not None
    return np.float32(1) / number if options["reciprocal"] else number


@np.errstate(over="ignore", invalid="ignore")
def _scales(arrays: Arrays, options: Mapping[str, int]) -> Floats:
    stored = arrays["scales"].reshape(-1, arrays["scales"].shape[-1])
    if options["group"] == 32:
        return powers_of_two(stored)
    scales, number = e4m3(stored, "scales"), _whole(arrays)
    if number is not None and not options.get("apart"):
        scales = scales / number if options["reciprocal"] else scales * number
    return scales


def _whole(arrays: Arrays) -> np.float32 | None:
    """The number for all weights, where there is one; raises BadValuesError."""
    if "global" not in arrays:
        return None
    number = np.float32(checked_scales(arrays["global"]).reshape(-1)[0])
    if not number:
        raise BadValuesError("its scale for the whole tensor is 0")
    return number
