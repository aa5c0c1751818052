"""`python tests/numpy_operations.py`: what unpacking weights asks of numpy, each with a digest of its result, as JSON.

Runs with any build of numpy and with nothing else; the same lines have to come out of all of them.
"""

import hashlib
import json
import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def operations() -> Iterator[tuple[str, NDArray[np.generic]]]:
    raw = b"".join(hashlib.sha512(i.to_bytes(4, "little")).digest() for i in range(4096))  # 256 KB
    u8, i8 = np.frombuffer(raw, np.uint8), np.frombuffer(raw, np.int8)
    u16, u32, i32 = np.frombuffer(raw, "<u2"), np.frombuffer(raw, "<u4"), np.frombuffer(raw, "<i4")
    yield from integers(u8, i8, u32, i32)
    yield from floats(u8, u16, i32)
    yield from tables(u8)
    yield from shapes(u8, i8, u16, i32)


def integers(
    u8: NDArray[np.uint8], i8: NDArray[np.int8], u32: NDArray[np.uint32], i32: NDArray[np.int32]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    yield "low bits", u8 & 15
    yield "high bits", u8 >> 4
    yield "shift up", u8 << 3
    yield "exclusive or", u8 ^ 0x88
    yield "unsigned shift", u32 >> 7
    yield "signed shift", i32 >> 5
    yield "subtract", i8 - np.int8(8)
    nibbles = (u32[:, None] >> (np.arange(8, dtype=np.uint32) * 4)) & 15
    yield "eight in a word", nibbles.astype(np.uint8)
    yield "columns of words", nibbles.reshape(-1, 64, 8).transpose(0, 2, 1).astype(np.int8).reshape(-1, 64)
    yield "bits", np.unpackbits(u8[:4096], bitorder="little")
    yield "bits back", np.packbits(u8[:4096] & 1)
    yield "reduce bits", np.bitwise_or.reduce(u8.reshape(-1, 32), axis=1)


def floats(
    u8: NDArray[np.uint8], u16: NDArray[np.uint16], i32: NDArray[np.int32]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    halves = np.where(np.isfinite(u16.view(np.float16)), u16.view(np.float16), np.float16(0))
    yield "F16", halves
    yield "F16 to F32", halves.astype(np.float32)
    yield "F16 to F64", halves.astype(np.float64)
    brains = (u16.astype(np.uint32) << 16).view(np.float32)
    yield "BF16 to F32", np.where(np.isfinite(brains), brains, np.float32(1))
    numbers = i32.astype(np.float32) / np.float32(1 << 20)
    yield "quotient", numbers
    yield "F32 to F16", numbers.astype(np.float16)
    yield "F32 to subnormal F16", (numbers * np.float32(1e-8)).astype(np.float16)
    word = numbers.view(np.uint32)
    yield "F32 to BF16", ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).astype(np.uint16)
    yield "product", numbers * numbers
    yield "sum", numbers + numbers[::-1]
    yield "nearest", np.rint(numbers)
    yield "powers of two below", np.ldexp(np.float32(1), np.clip(np.frexp(numbers)[1] - 1, -15, 7))
    yield "clipped", np.clip(np.rint(numbers), -8, 7).astype(np.int8)
    yield "sums of rows", numbers.reshape(-1, 64).sum(1, dtype=np.float64)
    yield "largest of rows", np.abs(numbers.reshape(-1, 32)).max(axis=1)
    yield "smallest of rows", numbers.reshape(-1, 32).min(axis=1)
    yield "powers of two", np.ldexp(np.float32(1), np.minimum(u8, 254).astype(np.int32) - 127)
    yield "sorted", np.sort(numbers)


def tables(u8: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[np.generic]]]:
    table = np.linspace(-1, 1, 16, dtype=np.float32)
    yield "look-up", table[u8 >> 4]
    yield "look-up by take", table.take(u8 & 15)
    yield "look-up into", np.take(table, u8 & 15, out=np.empty(u8.shape, np.float32), mode="clip")
    yield "look-up of F16", table.astype(np.float16)[u8 & 15]
    pairs = np.stack([np.repeat(table, 16), np.repeat(table[None], 16, 0).reshape(-1)], axis=1)
    yield "table of pairs", pairs
    yield "look-up of pairs", pairs[u8]


def shapes(
    u8: NDArray[np.uint8], i8: NDArray[np.int8], u16: NDArray[np.uint16], i32: NDArray[np.int32]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    scales = np.abs(i32[:2048].astype(np.float32)) / np.float32(1 << 20)
    weights = i8[: scales.size * 32].astype(np.float32)
    yield "scaled by repeat", weights * np.repeat(scales, 32)
    yield "scaled by shape", (weights.reshape(-1, 32) * scales[:, None]).reshape(-1)
    yield "zero points", (weights.reshape(-1, 32) - scales[:, None] * np.float32(8)).astype(np.float16)
    yield "transposed", np.ascontiguousarray(weights.reshape(256, -1).T)
    yield "joined", np.concatenate([weights, scales])
    yield "interleaved", np.stack([u8 & 15, u8 >> 4], -1).reshape(-1)
    yield "stable order", np.argsort(u16[:4096], kind="stable")
    yield "in a line", np.ravel(weights.reshape(-1, 32).T)
    yield "places", np.flatnonzero(weights)
    yield "on the diagonal", np.diagonal(weights[: 32 * 32].reshape(32, 32))
    yield "columns in order", weights.reshape(-1, 64)[:, np.argsort(u8[:64], kind="stable")]


def digest(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} {array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"version": np.__version__, **{name: digest(array) for name, array in operations()}}))
