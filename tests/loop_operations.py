"""`python -m tests.loop_operations [LIBRARY]`: what loops over weights give, each with a digest of its result, as JSON.

The same lines have to come out of numpy, which works without a library, and of any build of the library.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import arrays, fp8, fused, gguf_blocks, loops

# Zeros, the smallest numbers of F32 and F16, halfway between two of F16, the largest of F16, and their neighbours.
_SIZES = (
    0.0,
    1e-45,
    2.0**-126,
    2.0**-25,
    2.0**-24,
    1.5 * 2.0**-24,
    2.0**-14,
    1.0,
    1 + 2.0**-11,
    1 + 3 * 2.0**-11,
    65_504.0,
)


def _extreme() -> NDArray[np.float32]:
    sizes = np.array(_SIZES, np.float32)
    near = np.concatenate([(sizes.view(np.uint32) + np.uint32(step)).view(np.float32) for step in range(3)])
    near = np.concatenate((near, (sizes[1:].view(np.uint32) - np.uint32(1)).view(np.float32)))
    found: NDArray[np.float32] = np.concatenate((near, -near))
    return found


def _bytes(seed: int, n: int) -> NDArray[np.uint8]:
    """The same everywhere, whatever the version of numpy."""
    return np.frombuffer(hashlib.shake_128(str(seed).encode()).digest(n), np.uint8)


def _floats(seed: int, *shape: int) -> NDArray[np.float32]:
    """Of all sizes that are finite in F16, and smaller ones."""
    bits = _bytes(seed, 4 * int(np.prod(shape))).view(np.uint32)
    sizes = bits % np.uint32(0x47000000 - 0x30000000) + np.uint32(0x30000000)
    return (sizes | bits & np.uint32(1 << 31)).view(np.float32).reshape(shape)


def _operations() -> Iterator[tuple[str, Any]]:
    for rows, columns in ((1, 1), (16, 16), (33, 70), (128, 48)):
        words = _bytes(rows, 4 * rows * columns).view(np.int32).reshape(rows, columns)
        yield f"transposed {rows} x {columns}", loops.transposed(words)
        yield f"AWQ {rows} x {columns}", loops.awq_rows(words.view(np.uint32))
        yield f"nibbles {rows} x {columns}", loops.nibbles(words.view(np.uint8))
        yield f"high nibbles {rows} x {columns}", loops.nibbles(words.view(np.uint8), high_first=True)
    for bits in (2, 3, 5, 6, 7):
        strings = _bytes(bits, 4 * 5 * bits * 3).view(np.uint32).reshape(5, -1)
        for n in (96, 95):
            yield f"{n} codes of {bits} bits", loops.bit_string(strings, bits, n)
    for bits in (3, 5, 6, 7):
        yield (
            f"codes of {bits} bits in planes",
            loops.bit_planes(_bytes(bits, 60 * bits).view(np.uint32).reshape(5, -1), bits),
        )
    for code_type in (np.int8, np.int16):
        name = np.dtype(code_type).name
        codes = _bytes(1, 6 * 96 * np.dtype(code_type).itemsize).view(code_type).reshape(6, 96)
        for length in (1, 3, 32, 96):
            n_groups = 96 // length
            less = codes.copy()
            loops.subtract(less, _bytes(2, 6 * n_groups).astype(code_type).reshape(6, n_groups))
            yield f"{name} less zeros of {length}", less
            scales, biases = _floats(3, 6, n_groups) / np.float32(4e4), _floats(4, 6, n_groups) / np.float32(2)
            yield f"{name} scaled by {length}", loops.affine_halves(codes, scales)
            yield f"{name} scaled by {length}, biased", loops.affine_halves(codes, scales, biases)
            if code_type is np.int8:
                yield f"uint8 scaled by {length}, biased", loops.affine_halves(codes.view(np.uint8), scales, biases)
            groups = _bytes(5, 96).astype(np.int64) % n_groups
            less = codes.copy()
            loops.subtract(less, _bytes(2, 6 * n_groups).astype(code_type).reshape(6, n_groups), groups)
            yield f"{name} less zeros of {n_groups} mixed groups", less
            yield f"{name} in {n_groups} mixed groups", loops.scaled_halves(codes, scales, groups)
        large = np.full((6, 1), 65_504, np.float32)
        yield f"{name} too large", loops.affine_halves(codes, large)
        yield f"{name} too large in mixed groups", loops.scaled_halves(codes, large, np.zeros(96, np.int64))
    for kind, n_bytes, low, high in (
        ("Q4_0", 2, -8, 7), ("Q4_1", 4, 0, 15), ("Q5_0", 2, -16, 15), ("Q8_0", 2, -128, 127), ("MXFP4", 1, 0, 15),
        ("NVFP4", 4, 0, 15),
    ):  # fmt: skip
        n_elements = 7 * (64 if kind == "NVFP4" else 32)
        span = (_bytes(6, n_elements).astype(np.int16) % (high - low + 1) + low).astype(np.int8)
        yield f"blocks of {kind}", loops.blocks(kind, _bytes(7, 7 * n_bytes).reshape(7, -1), span)
    codes = _bytes(8, 8 * 128).reshape(8, 128)
    for n_codes in (16, 256):
        for length in (1, 16, 128):
            places = _bytes(9, 8 * 128 // length).astype(np.int64).reshape(8, -1) % 5
            for tables in (_floats(10, 5, n_codes), _floats(10, 5, n_codes).view(np.uint32).astype(np.uint16)):
                found = loops.looked_up(codes % np.uint8(n_codes - 1), tables, places)
                yield f"{tables.dtype.name} out of {n_codes} by {length}", found
    yield "halves", loops.halves(_floats(11, 7, 999))
    yield "extreme halves", loops.halves(_extreme())
    for bits in (0x477FEFFF, 0x477FF000, 0x47800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0xFF800000):
        number = np.array([1, bits], np.uint32).view(np.float32)
        yield f"halves of {bits:#x}", loops.halves(number)
    for n in (1, 16, 75):
        yield f"{n} pairs", loops.pairs(_bytes(12, 2 * n).view(np.float16), _bytes(13, 2 * n).view(np.float16))
    yield "halves of nothing", loops.halves(np.empty((0, 4), np.float32))


def _fused_operations() -> Iterator[tuple[str, Any]]:
    """Of packed codes; words lie apart from each other, as those of a part of all rows do."""
    for n_rows, n_columns, n_groups in ((8, 32, 1), (16, 64, 2), (40, 96, 3), (136, 256, 2), (128, 512, 1)):
        name = f"{n_rows} x {n_columns} in {n_groups} groups"
        groups = _bytes(n_rows, n_columns // 32).astype(np.int64) % n_groups
        scales = _floats(1, n_groups, n_rows) / np.float32(64)
        small, zeros = scales.astype(np.float16), (_bytes(2, scales.size) % 17).view(np.int8).reshape(scales.shape)
        words = _bytes(3, n_columns // 8 * 4 * (n_rows + 5)).view(np.uint32).reshape(n_columns // 8, -1)
        for n in (n_rows, n_rows - 3):
            own = words[:, 3 : 3 + n], small[:, :n], zeros[:, :n]
            yield f"GPTQ {name}, {n}: Q5_0", fused.gptq_blocks("Q5_0", *own, groups)
            yield f"GPTQ {name}, {n}: Q4_0", fused.gptq_blocks("Q4_0", *own[:2], np.full_like(own[2], 8), groups)
            mixed = _bytes(4, n_columns).astype(np.int64) % n_groups
            yield f"GPTQ {name}, {n}: F16", fused.gptq_halves(own[0], scales[:, :n], own[2], mixed)
            short = fused.gptq_halves(own[0][:-1], scales[:, :n], own[2], mixed[:-8])
            yield f"GPTQ {name}, {n}: F16 of 8 columns less", short
            for kind in ("Q4_0", "Q5_0"):
                yield f"GPTQ {name}, {n}: symmetric {kind}", fused.gptq_blocks(kind, *own[:2], None, groups)
        words = _bytes(5, n_columns * 4 * (n_rows // 8 + 3)).view(np.uint32).reshape(n_columns, -1)
        zero_words = _bytes(6, n_groups * n_rows // 2).view(np.uint32).reshape(n_groups, -1)
        yield f"AWQ {name}", fused.awq_blocks(words[:, 1 : 1 + n_rows // 8], small, zero_words, groups)
    for kind, n_header, n_packed in (
        ("Q4_0", 2, 16), ("Q4_1", 4, 16), ("MXFP4", 1, 16), ("NVFP4", 4, 32),
    ):  # fmt: skip
        for n_headers, n_blocks in ((1, 1), (5, 3)):
            headers, packed = _bytes(7, n_headers * n_header), _bytes(8, n_headers * n_blocks * n_packed)
            found = fused.repacked(kind, headers.reshape(n_headers, n_header), packed)
            yield f"{n_headers} x {n_blocks} blocks of {kind}, repacked", found
    for n, n_blocks in ((1, 1), (5, 3)):
        zeros = (_bytes(2, n) % 17).view(np.int8)
        found = fused.repacked_q5_0(_bytes(7, 2 * n).view(np.float16), zeros, _bytes(8, 16 * n * n_blocks))
        yield f"{n} x {n_blocks} blocks of Q5_0, repacked", found
    for n in (1, 32, 96, 97):
        table, sizes = _floats(9, 16) / np.float32(1e5), _floats(10, -(-n // 32)) / np.float32(1e5)
        yield f"{n} bytes by a table", fused.table_halves(_bytes(11, n), table, sizes, 64)
    too_large = np.full(1, 65_504, np.float32)
    yield "a table's products too large", fused.table_halves(_bytes(12, 32), np.full(16, 2, np.float32), too_large, 64)
    yield from _fp8_operations()
    yield "brain floats", loops.brain_floats(_bytes(15, 2 * 77).view(np.uint16) & np.uint16(0x7F7F))
    for name, scales in _scales():
        facts = loops.looked_at(scales)
        yield f"scales {name}", np.array([float(getattr(facts, field.name)) for field in fields(facts)])
    every = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    yield "floats", loops.floats(every[~np.isnan(every)])
    for code in (0x7E, 0x7F, 0xFF):
        codes = np.array([0] * 70 + [code], np.uint8)
        yield f"NaN among {code:#x}", np.array([loops.has_nan_e4m3(codes)])


def _fp8_operations() -> Iterator[tuple[str, Any]]:
    for n_rows, n_groups, length in ((1, 1, 1), (3, 2, 16), (5, 3, 37), (2, 1, 256)):
        codes = _bytes(13, n_rows * n_groups * length).reshape(n_rows, -1)
        yield (
            f"FP8 {n_rows} x {n_groups} groups of {length}",
            _fp8(codes, _floats(14, n_rows, n_groups) / np.float32(512)),
        )
    yield "FP8 that is too large", _fp8(np.full((1, 16), 0x7E, np.uint8), np.full((1, 1), 200, np.float32))
    for n_rows, n_groups, length in ((1, 1, 1), (3, 2, 16), (5, 3, 32), (2, 1, 256)):
        codes = _bytes(16, n_rows * n_groups * length).reshape(n_rows, -1)
        for shift in (0, 100):  # sizes near 1, and those of which BF16 holds some codes only nearly
            exponents = _bytes(17, n_rows * n_groups).reshape(n_rows, -1) % np.uint8(120) + np.uint8(100 - shift)
            name = f"MXFP8 {n_rows} x {n_groups} groups of {length} from 2^{-27 - shift}"
            yield name, _fp8(codes, exponents, exponents=1)


def _fp8(codes: NDArray[np.uint8], scales: NDArray[Any], *, exponents: int = 0) -> Any:
    """As the layout does it, with the codes that are no numbers left out."""
    options = {"block_rows": 1, "block_columns": codes.shape[1] // scales.shape[1], "exponents": exponents}
    codes = np.where(codes & np.uint8(127) == 127, np.uint8(1), codes)
    try:
        return gguf_blocks.encode(fp8.rows({"codes": codes, "scale": scales}, options), "BF16" if exponents else "F16")
    except arrays.BadValuesError:
        return None


def _scales() -> Iterator[tuple[str, NDArray[np.float32]]]:
    exact = np.arange(0x400, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    yield "of none", exact[:0]
    yield "of F16", -exact
    yield "of F16, small ones", np.arange(0x401, dtype=np.uint16).view(np.float16).astype(np.float32)
    for place in (0, 17, 40):
        for number in (1 + 2.0**-11, 2.0**-14 + 2.0**-25, 2.0**-14 - 2.0**-25, 2.0**-25, 1e-45, 65_520.0, 1e9, np.inf):
            scales = exact[:41].copy()
            scales[place] = -number
            yield f"with {number} at {place}", scales


def results(library: loops.Library | None) -> dict[str, str]:
    """By operation: shape, type and a digest of what comes out; "None" where nothing does."""
    before, loops.library = loops.library, library
    try:
        found = {}
        for name, result in (*_operations(), *_fused_operations()):
            digest = None if result is None else hashlib.sha256(np.ascontiguousarray(result).tobytes()).hexdigest()
            found[name] = "None" if result is None else f"{result.shape} {result.dtype} {digest}"
        return found
    finally:
        loops.library = before


if __name__ == "__main__":
    json.dump(results(loops.Library(sys.argv[1]) if sys.argv[1:] else None), sys.stdout)
