"""Arrays of weights as the bytes of GGUF's types (ggml/src/ggml-common.h): each row a run of blocks.

Nothing is quantised here: codes stay what they are, and only a scale may be rounded to F16.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import loops
from shimmy.engine.layouts.arrays import (
    Affine,
    Bytes,
    Floats,
    FourBitFloats,
    Integers,
    LookedUp,
    Weights,
    halves,
    spread,
)
from shimmy.formats.quantised.stored import BLOCK, EXACT_INTEGERS


def encode(weights: Weights, kind: str) -> Bytes:
    """All rows as `kind`, a type that holds them."""
    if kind in EXACT_INTEGERS and isinstance(weights, Integers):
        return _integers(weights, kind)
    if kind == "Q4_1" and isinstance(weights, Affine):
        return _q4_1(weights)
    if kind in {"MXFP4", "NVFP4"} and isinstance(weights, FourBitFloats):
        return loops.blocks(kind, weights.scale_bytes.reshape(-1, 1 if kind == "MXFP4" else 4), weights.codes)
    return _floats(weights, kind)


def _floats(weights: Weights, kind: str) -> Bytes:
    if kind == "F32":
        return _bytes(weights.values())
    if kind == "F16":
        return _bytes(weights.halves())
    assert kind == "BF16", kind
    if isinstance(weights, LookedUp):
        return _bytes(weights.among(_brain_floats(weights.tables)))
    return _bytes(_brain_floats(weights.values()))


def _brain_floats(values: Floats) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    bits = bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))  # to the nearest, ties to even
    return (bits >> np.uint32(16)).astype(np.uint16)


def _bytes(numbers: NDArray[Any]) -> Bytes:
    return numbers.reshape(-1).view(np.uint8)


def _integers(weights: Integers, kind: str) -> Bytes:
    return loops.blocks(kind, _header(weights.block_scales()), weights.codes.astype(np.int8, copy=False))


def _q4_1(weights: Affine) -> Bytes:
    n_blocks = weights.codes.shape[1] // BLOCK
    return loops.blocks(
        "Q4_1", _header(spread(weights.scales, n_blocks), spread(weights.biases, n_blocks)), weights.codes
    )


def _header(*numbers: Floats) -> Bytes:
    """[blocks, bytes]: for each block one of each of these numbers, in F16."""
    return np.concatenate([halves(one).reshape(-1, 1) for one in numbers], axis=1).view(np.uint8)
