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
    Integers,
    LookedUp,
    Packed,
    Weights,
    headers,
)
from shimmy.formats.quantised.stored import BLOCK, EXACT_INTEGERS


def encode(weights: Weights, kind: str) -> Bytes:
    """All rows as `kind`, a type that holds them."""
    if isinstance(weights, Packed):
        encoded = weights.encoded.get(kind)
        return encode(weights.unpacked(), kind) if encoded is None else encoded()
    if kind in EXACT_INTEGERS and isinstance(weights, Integers):
        return _integers(weights, kind)
    if kind == "Q4_1" and isinstance(weights, Affine):
        return _q4_1(weights)
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
    scales = weights.block_scales().reshape(-1, 1).view(np.uint8)
    return loops.blocks(kind, scales, weights.codes.astype(np.int8, copy=False))


def _q4_1(weights: Affine) -> Bytes:
    per_group = weights.codes.shape[1] // BLOCK // weights.scales.shape[1]
    return loops.blocks("Q4_1", np.repeat(headers(weights.scales, weights.biases), per_group, axis=0), weights.codes)
