"""GPTQ: `scales[g_idx] * (codes - zeros[g_idx])`, transposed; codes packed along the columns, zeros along the rows.

Codes are strings of bits, or lie in planes.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import fused, loops
from shimmy.engine.layouts.arrays import (
    BadValuesError,
    Bytes,
    Codes,
    Index,
    Integers,
    Packed,
    Weights,
    block_groups,
    bytes_of_halves,
    facts_of,
    halves,
    hold_floats,
    hold_integers,
    in_blocks,
    less_zeros,
    runs_of_columns,
)
from shimmy.engine.layouts.bits import in_planes, unpacked
from shimmy.formats.quantised.stored import Holding, integer_type

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


def check(arrays: Arrays, options: Mapping[str, int]) -> Holding:
    """`scales` is [groups, rows]; `zeros` its words, packed along the rows; `g_idx` may be missing."""
    facts, groups = facts_of(arrays["scales"]), _groups(arrays, options)
    n_codes = 1 << options["bits"]
    if options["symmetric"]:
        if not _are_in_the_middle(arrays, options):
            raise BadValuesError("its configuration says `sym`, and its zero points do not lie in the middle")
        low, high = -n_codes // 2, n_codes // 2 - 1
    else:
        zeros = _zeros(arrays, options)
        low, high = -int(zeros.max(initial=0)), n_codes - 1 - int(zeros.min(initial=n_codes - 1))
    if not in_blocks(groups, options["n_columns"], options["group"]):
        return hold_floats(facts.largest * max(-low, high))
    return hold_integers(integer_type(low, high, options["n_columns"]), facts, max(-low, high))


def rows(arrays: Arrays, options: Mapping[str, int]) -> Weights:
    """`codes` is [words, rows]. Symmetric zero points have been checked, and lie in the middle."""
    codes, scales, middle = arrays["codes"], arrays["scales"], 1 << options["bits"] - 1
    zeros, groups = None if options["symmetric"] else _zeros(arrays, options), _groups(arrays, options)

    def integers() -> Integers:
        found = _unpacked(loops.transposed(codes), options, options["n_columns"])
        if zeros is None:
            found -= found.dtype.type(middle)
        else:
            less_zeros(found, zeros.T, groups)
        return Integers(found, np.ascontiguousarray(scales.T), groups)

    def encoded(kind: str, groups: Index) -> Bytes:
        return fused.gptq_blocks(kind, codes, halves(scales), zeros, groups)

    def numbers(groups: Index) -> Bytes:
        own = np.full(scales.shape, middle, np.int8) if zeros is None else zeros
        return bytes_of_halves(fused.gptq_halves(codes, scales, own, groups))

    if options["bits"] != 4:
        return integers()
    of_blocks = block_groups(groups, options["n_columns"], options["group"])
    if of_blocks is not None:
        return Packed(integers, {kind: partial(encoded, kind, of_blocks) for kind in ("Q4_0", "Q5_0")})
    if groups is None:
        return integers()
    return Packed(integers, {"F16": lambda: numbers(groups)})


def _zeros(arrays: Arrays, options: Mapping[str, int]) -> Codes:
    """[groups, rows]; version 1 stores them less 1.

    GPTQModel takes the 1 off whole words, so that a zero point of 0 borrows from its neighbour: this is undone.
    """
    words, bits, n_rows = arrays["zeros"].view(np.uint32), options["bits"], arrays["scales"].shape[1]
    if options["less_by_word"] and 32 % bits == 0:
        return unpacked(words + np.uint32((1 << 32) // ((1 << bits) - 1)), bits, n_rows)
    found = _unpacked(words, options, n_rows)
    found += found.dtype.type(options["stored_less"])
    return found & found.dtype.type((1 << bits) - 1) if options["less_by_word"] else found


def _are_in_the_middle(arrays: Arrays, options: Mapping[str, int]) -> bool:
    n_codes, middle = 1 << options["bits"], 1 << options["bits"] - 1
    if options["bits"] not in {2, 4, 8}:
        return bool((_zeros(arrays, options) == middle).all())
    word = (middle - options["stored_less"]) * (((1 << 32) - 1) // (n_codes - 1))  # the same in all of its codes
    return bool((arrays["zeros"].view(np.uint32) == np.uint32(word)).all())


def _unpacked(words: NDArray[np.uint32], options: Mapping[str, int], n: int) -> Codes:
    return (in_planes if options["planes"] else unpacked)(words, options["bits"], n)


def _groups(arrays: Arrays, options: Mapping[str, int]) -> Index | None:
    return runs_of_columns(options["n_columns"], options["group"], arrays.get("g_idx"), arrays["scales"].shape[0])
