"""bitsandbytes: 4-bit codes of a table times the largest size in their block, and int8 with one scale for a row.

Blocks run over the flattened matrix. The even element is the high half of a byte. The tables come from the file.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import fused
from shimmy.engine.layouts.arrays import (
    BadValuesError,
    Floats,
    Integers,
    Packed,
    Plain,
    Weights,
    bytes_of_halves,
    checked_scales,
    facts_of,
    hold_floats,
    hold_integers,
)
from shimmy.engine.layouts.loops import nibbles
from shimmy.formats.quantised.stored import Holding, integer_type

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
_MAX_OFFSET = 2**64  # as an integer
_INVERSE = np.float32(0.007874015718698502)  # of 127, as the library has it


def check(arrays: Arrays, options: Mapping[str, int]) -> Holding:
    if options["bits"] == 8:
        if arrays["format"].any():
            raise BadValuesError("its `weight_format` is another one than rows")
        facts = facts_of(checked_scales(arrays["scales"]) * _INVERSE)
        return hold_integers(integer_type(-128, 127, options["n_columns"]), facts, 128)
    table = checked_scales(arrays["table"], "table's numbers")
    return hold_floats(float(np.abs(_sizes(arrays, options)).max(initial=0)) * float(np.abs(table).max()))


def rows(arrays: Arrays, options: Mapping[str, int]) -> Weights:
    if options["bits"] == 8:
        return Integers(arrays["codes"].astype(np.int16), arrays["scales"].reshape(-1, 1), factor=_INVERSE)
    stored, n_columns, block = arrays["codes"].reshape(-1).view(np.uint8), options["n_columns"], options["block"]
    n = len(stored) * 2 // n_columns * n_columns
    table, sizes = arrays["table"], _sizes(arrays, options)
    sizes = sizes[: -(-n // block)]
    stored = stored[: -(-n // 2)]

    def plain() -> Plain:
        found: Floats = table[nibbles(stored, high_first=True)][:n]
        found *= np.repeat(sizes, block)[:n]
        return Plain(found.reshape(-1, n_columns))

    return Packed(plain, {"F16": lambda: bytes_of_halves(fused.table_halves(stored, table, sizes, block))[: 2 * n]})


def _sizes(arrays: Arrays, options: Mapping[str, int]) -> Floats:
    """The largest size of a number in each block."""
    state = _state(arrays["state"], options)
    if "nested_sizes" not in arrays:
        return checked_scales(arrays["sizes"])
    offset = state.get("nested_offset")
    is_number = type(offset) is float or (type(offset) is int and abs(offset) < _MAX_OFFSET)
    if state.get("nested_blocksize") != options["nested_block"] or not is_number:
        raise BadValuesError("its `quant_state` says nothing usable of the nested quantisation")
    sizes = checked_scales(arrays["nested_table"])[arrays["sizes"]]
    sizes *= np.repeat(arrays["nested_sizes"], options["nested_block"])[: len(sizes)]
    with np.errstate(over="ignore"):
        return checked_scales(sizes + np.float32(offset))


def _state(stored: NDArray[Any], options: Mapping[str, int]) -> dict[str, Any]:
    try:
        state = json.loads(stored.tobytes().decode())
    except (ValueError, RecursionError) as exc:
        raise BadValuesError("its `quant_state` is no JSON") from exc
    if not isinstance(state, dict):
        raise BadValuesError("its `quant_state` is no object")
    if state.get("blocksize") != options["block"]:
        raise BadValuesError("its `quant_state` has another block size than its scales")
    if state.get("shape") != [options["n_rows"], options["n_columns"]]:
        raise BadValuesError("its `quant_state` has another shape than its configuration implies")
    if state.get("quant_type") != ("nf4", "fp4")[options["fp4"]]:
        raise BadValuesError("its `quant_state` has another type than its name")
    return state
