"""Arrays of weights as the bytes of GGUF's types (ggml/src/ggml-common.h): each row a run of blocks.

Nothing is quantised here: codes stay what they are, and only a scale may be rounded to F16.
"""

import numpy as np

from shimmy.engine.layouts.arrays import (
    Affine,
    BadValuesError,
    Bytes,
    FourBitFloats,
    Integers,
    LookedUp,
    Plain,
    Weights,
    spread,
)
from shimmy.formats.quantised.stored import BLOCK, EXACT_INTEGERS


def encode(weights: Weights, kind: str) -> Bytes:
    """All rows as `kind`, a type that holds them."""
    if kind in EXACT_INTEGERS and isinstance(weights, Integers):
        return _integers(weights, kind)
    if kind == "Q4_1" and isinstance(weights, Affine):
        return _q4_1(weights)
    if kind == "MXFP4" and isinstance(weights, FourBitFloats):
        return _mxfp4(weights)
    if kind == "NVFP4" and isinstance(weights, FourBitFloats):
        return _nvfp4(weights)
    return _floats(weights, kind)


def _floats(weights: Weights, kind: str) -> Bytes:
    if kind == "F16" and isinstance(weights, Plain) and weights.numbers.dtype == np.float16:
        return weights.numbers.reshape(-1).view(np.uint8)
    if kind == "F16" and isinstance(weights, LookedUp):
        return weights.halves().reshape(-1).view(np.uint8)
    values = weights.values()
    if kind == "F32":
        return values.reshape(-1).view(np.uint8)
    if kind == "BF16":
        bits = values.reshape(-1).view(np.uint32)
        bits = bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))  # to the nearest, ties to even
        return (bits >> np.uint32(16)).astype(np.uint16).view(np.uint8)
    assert kind == "F16", kind
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise BadValuesError("one of its weights is too large")
    return halves.reshape(-1).view(np.uint8)


def _integers(weights: Integers, kind: str) -> Bytes:
    signed = weights.codes.reshape(-1, BLOCK)
    scales = _halves(weights.block_scales())
    if kind == "Q8_0":
        return _joined(scales, signed.astype(np.int8).view(np.uint8))
    codes: Bytes = (signed + signed.dtype.type(EXACT_INTEGERS[kind])).astype(np.uint8)
    if kind == "Q4_0":
        return _joined(scales, _nibbles(codes))
    # Bit j of four bytes is the fifth bit of element j: one product moves those of eight bytes into the upper one.
    fifth = (codes >> np.uint8(4)).view("<u8") * np.uint64(0x0102040810204080) >> np.uint64(56)
    return _joined(scales, fifth.astype(np.uint8), _nibbles(codes & np.uint8(15)))


def _q4_1(weights: Affine) -> Bytes:
    n_blocks = weights.codes.shape[1] // BLOCK
    codes = weights.codes.reshape(-1, BLOCK).astype(np.uint8)
    scales, biases = (_halves(spread(numbers, n_blocks)) for numbers in (weights.scales, weights.biases))
    return _joined(scales, biases, _nibbles(codes))


def _mxfp4(weights: FourBitFloats) -> Bytes:
    return _joined(weights.scale_bytes.reshape(-1, 1), _nibbles(weights.codes.reshape(-1, BLOCK)))


def _nvfp4(weights: FourBitFloats) -> Bytes:
    # Four scales, then four runs of 16 elements, each as a block of its own: element j low, j + 8 high.
    codes = weights.codes.reshape(-1, 16)
    packed = codes[:, :8] | codes[:, 8:] << np.uint8(4)
    return _joined(weights.scale_bytes.reshape(-1, 4), packed.reshape(-1, 32))


def _nibbles(codes: Bytes) -> Bytes:
    """Of each block: element j in the low half of byte j, j + 16 in the high one."""
    return codes[:, : BLOCK // 2] | codes[:, BLOCK // 2 :] << np.uint8(4)


def _halves(numbers: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> Bytes:
    return np.ascontiguousarray(numbers).reshape(-1, 1).astype(np.float16).view(np.uint8)


def _joined(*columns: Bytes) -> Bytes:
    return np.concatenate(columns, axis=1).reshape(-1)
