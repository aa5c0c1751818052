"""Folders with a tiny Llama whose weights are quantised, and the same model with plain weights.

The codes are random, so nothing is quantised here; each layout is written by its definition, in plain steps.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.tiny_checkpoints import LLAMA_CONFIG, Weights, llama_tensors, write_checkpoint, write_tokenizer

Floats: TypeAlias = NDArray[np.float32]
Stored = dict[str, Weights]  # by what follows the module's name
Layout = Callable[[np.random.Generator, int, int], tuple[Stored, Floats]]

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_NF4 = np.linspace(-1, 1, 16, dtype=np.float32)


def _weights(array: NDArray[Any], dtype: str) -> Weights:
    return Weights(array.shape, np.ascontiguousarray(array).tobytes(), dtype)


def _e4m3(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -size if code & 128 else size


_E4M3 = np.array([_e4m3(code) for code in range(256)], np.float32)


def _bf16(numbers: Floats) -> tuple[NDArray[np.uint16], Floats]:
    upper = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    return upper, (upper.astype(np.uint32) << 16).view(np.float32)


def _fp8_codes(random: np.random.Generator, n_rows: int, n_columns: int, n_codes: int = 0x48) -> NDArray[np.uint8]:
    return (random.integers(0, n_codes, (n_rows, n_columns)) | random.integers(0, 2, (n_rows, n_columns)) << 7).astype(
        "u1"
    )


def fp8_tensor(random: np.random.Generator, n_rows: int, n_columns: int) -> tuple[Stored, Floats]:
    """Up to the largest code there is, as tools have it."""
    codes, scale = _fp8_codes(random, n_rows, n_columns, 0x7F), np.float32(random.uniform(0.0008, 0.0016))
    stored = {"weight": _weights(codes, "F8_E4M3"), "weight_scale": _weights(np.array([scale]), "F32")}
    return stored, _E4M3[codes] * scale


def fp8_block(
    random: np.random.Generator, n_rows: int, n_columns: int, *, block: tuple[int, int] = (48, 32)
) -> tuple[Stored, Floats]:
    """The last blocks may be cut off, as those of 48 x 32 are."""
    codes = _fp8_codes(random, n_rows, n_columns)
    scales = random.uniform(0.1, 0.2, (-(-n_rows // block[0]), -(-n_columns // block[1]))).astype(np.float32)
    stored = {"weight": _weights(codes, "F8_E4M3"), "weight_scale_inv": _weights(scales, "F32")}
    wide = np.repeat(np.repeat(scales, block[0], 0), block[1], 1)[:n_rows, :n_columns]
    return stored, _E4M3[codes] * wide


def mxfp8(random: np.random.Generator, n_rows: int, n_columns: int) -> tuple[Stored, Floats]:
    codes = _fp8_codes(random, n_rows, n_columns)
    exponents = random.integers(123, 126, (n_rows, n_columns // 32)).astype(np.uint8)
    stored = {"weight": _weights(codes, "F8_E4M3"), "weight_scale_inv": _weights(exponents, "U8")}
    scales = (2.0 ** (exponents.astype(np.float64) - 127)).astype(np.float32)
    return stored, _E4M3[codes] * np.repeat(scales, 32, 1)


def _words(codes: NDArray[Any], bits: int) -> NDArray[np.uint32]:
    """Along the last dimension, the lowest bits first."""
    grouped = codes.astype(np.uint32).reshape(*codes.shape[:-1], -1, 32 // bits)
    words: NDArray[np.uint32] = np.bitwise_or.reduce(grouped << np.arange(0, 32, bits, dtype=np.uint32), axis=-1)
    return words


def gptq(random: np.random.Generator, n_rows: int, n_columns: int, *, shuffled: bool = False) -> tuple[Stored, Floats]:
    codes = random.integers(0, 16, (n_columns, n_rows))
    scales = random.uniform(0.004, 0.012, (n_columns // 32, n_rows)).astype(np.float16)
    groups = np.arange(n_columns) // 32
    if shuffled:
        groups = random.permutation(groups)
    stored = {
        "qweight": _weights(_words(codes.T, 4).T, "I32"),
        "qzeros": _weights(np.full((n_columns // 32, n_rows // 8), 0x77777777, np.uint32), "I32"),
        "scales": _weights(scales, "F16"),
        "g_idx": _weights(groups.astype(np.int32), "I32"),
    }
    return stored, ((codes - 8) * scales.astype(np.float32)[groups]).T.astype(np.float32)


def gptq_sorted(random: np.random.Generator, n_rows: int, n_columns: int) -> tuple[Stored, Floats]:
    return gptq(random, n_rows, n_columns, shuffled=True)


def awq(random: np.random.Generator, n_rows: int, n_columns: int, *, group: int = 64) -> tuple[Stored, Floats]:
    codes, zeros = random.integers(0, 16, (n_columns, n_rows)), random.integers(5, 11, (n_columns // group, n_rows))
    scales = random.uniform(0.004, 0.012, zeros.shape).astype(np.float16)

    def packed(numbers: NDArray[Any]) -> Weights:
        ordered = numbers.reshape(numbers.shape[0], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return _weights(_words(ordered.reshape(numbers.shape), 4), "I32")

    stored = {"qweight": packed(codes), "qzeros": packed(zeros), "scales": _weights(scales, "F16")}
    wide_zeros, wide_scales = np.repeat(zeros, group, 0), np.repeat(scales.astype(np.float32), group, 0)
    return stored, ((codes - wide_zeros) * wide_scales).T.astype(np.float32)


def pack_quantized(random: np.random.Generator, n_rows: int, n_columns: int) -> tuple[Stored, Floats]:
    codes = random.integers(0, 16, (n_rows, n_columns))
    upper, scales = _bf16(random.uniform(0.004, 0.012, (n_rows, n_columns // 32)).astype(np.float32))
    stored = {
        "weight_packed": _weights(_words(codes, 4), "I32"),
        "weight_scale": _weights(upper, "BF16"),
        "weight_shape": _weights(np.array([n_rows, n_columns]), "I64"),
    }
    return stored, ((codes - 8) * np.repeat(scales, 32, 1)).astype(np.float32)


def int8(random: np.random.Generator, n_rows: int, n_columns: int) -> tuple[Stored, Floats]:
    codes = random.integers(-127, 128, (n_rows, n_columns)).astype(np.int8)
    scales = random.uniform(0.0002, 0.0006, (n_rows, 1)).astype(np.float32)
    stored = {"weight": _weights(codes, "I8"), "weight_scale": _weights(scales, "F32")}
    return stored, codes * scales


def _four_bits(random: np.random.Generator, n_rows: int, n_columns: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    codes = random.integers(0, 16, (n_rows, n_columns)).astype(np.uint8)
    return codes, (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)


def mxfp4(random: np.random.Generator, n_rows: int, n_columns: int) -> tuple[Stored, Floats]:
    codes, packed = _four_bits(random, n_rows, n_columns)
    exponents = random.integers(119, 122, (n_rows, n_columns // 32)).astype(np.uint8)
    stored = {"weight_packed": _weights(packed, "U8"), "weight_scale": _weights(exponents, "U8")}
    scales = (2.0 ** (exponents.astype(np.float64) - 127)).astype(np.float32)
    return stored, _E2M1[codes] * np.repeat(scales, 32, 1)


def nvfp4(random: np.random.Generator, n_rows: int, n_columns: int) -> tuple[Stored, Floats]:
    codes, packed = _four_bits(random, n_rows, n_columns)
    small = random.integers(0x58, 0x70, (n_rows, n_columns // 16)).astype(np.uint8)
    whole = np.float32(random.uniform(3000, 4000))
    stored = {
        "weight_packed": _weights(packed, "U8"), "weight_scale": _weights(small, "F8_E4M3"),
        "weight_global_scale": _weights(np.array([whole]), "F32"),
    }  # fmt: skip
    return stored, _E2M1[codes] * np.repeat(_E4M3[small] / whole, 16, 1)


def nf4(random: np.random.Generator, n_rows: int, n_columns: int) -> tuple[Stored, Floats]:
    codes, packed = _four_bits(random, n_rows, n_columns)
    packed = (packed << 4 | packed >> 4).astype(np.uint8)  # the even element is the high half
    sizes = random.uniform(0.1, 0.3, n_rows * n_columns // 64).astype(np.float32)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [n_rows, n_columns]}
    stored = {
        "weight": _weights(packed.reshape(-1, 1), "U8"), "weight.absmax": _weights(sizes, "F32"),
        "weight.quant_map": _weights(_NF4, "F32"),
        "weight.quant_state.bitsandbytes__nf4": _weights(np.frombuffer(json.dumps(state).encode(), np.uint8), "U8"),
    }  # fmt: skip
    return stored, (_NF4[codes].reshape(-1, 64) * sizes[:, None]).reshape(n_rows, n_columns)


def mlx(
    random: np.random.Generator, n_rows: int, n_columns: int, *, bits: int = 4, group: int = 32
) -> tuple[Stored, Floats]:
    codes = random.integers(0, 1 << bits, (n_rows, n_columns))
    scales = random.uniform(-0.012, 0.012, (n_rows, n_columns // group)).astype(np.float16)
    biases = (scales * np.float16(-7.5)).astype(np.float16)
    stored = {
        "weight": _weights(_words(codes, bits), "U32"),
        "scales": _weights(scales, "F16"), "biases": _weights(biases, "F16"),
    }  # fmt: skip
    wide = [np.repeat(numbers.astype(np.float32), group, 1) for numbers in (scales, biases)]
    return stored, (codes * wide[0] + wide[1]).astype(np.float32)


def mlx_nvfp4(random: np.random.Generator, n_rows: int, n_columns: int) -> tuple[Stored, Floats]:
    codes, packed = _four_bits(random, n_rows, n_columns)
    small = random.integers(0x02, 0x0A, (n_rows, n_columns // 16)).astype(np.uint8)
    stored = {"weight": _weights(packed.view("<u4"), "U32"), "scales": _weights(small, "U8")}
    return stored, _E2M1[codes] * np.repeat(_E4M3[small], 16, 1)


def mlx_mxfp8(random: np.random.Generator, n_rows: int, n_columns: int) -> tuple[Stored, Floats]:
    codes = _fp8_codes(random, n_rows, n_columns)
    exponents = random.integers(119, 122, (n_rows, n_columns // 32)).astype(np.uint8)
    stored = {"weight": _weights(codes.view("<u4"), "U32"), "scales": _weights(exponents, "U8")}
    scales = (2.0 ** (exponents.astype(np.float64) - 127)).astype(np.float32)
    return stored, _E4M3[codes] * np.repeat(scales, 32, 1)


def _compressed(layout: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None,
    }  # fmt: skip


_GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "sym": True,
    "desc_act": False,
    "checkpoint_format": "gptq",
}
LAYOUTS: Mapping[str, tuple[Layout, dict[str, Any]]] = {
    "fp8-tensor": (fp8_tensor, {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "fp8-block": (fp8_block, {"quant_method": "fp8", "weight_block_size": [48, 32], "fmt": "e4m3"}),
    "mxfp8": (mxfp8, {"quant_method": "mxfp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"}),
    "gptq": (gptq, _GPTQ),
    "gptq-desc-act": (gptq_sorted, {**_GPTQ, "desc_act": True}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}),
    "pack-quantized": (
        pack_quantized,
        _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=True),
    ),
    "int-quantized": (int8, _compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=True)),
    "mxfp4": (mxfp4, _compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32)),
    "nvfp4": (
        nvfp4, _compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16)
    ),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "mlx": (mlx, {"bits": 4, "group_size": 32}),
    "mlx-mxfp8": (mlx_mxfp8, {"bits": 8, "group_size": 32, "mode": "mxfp8"}),
    "mlx-nvfp4": (mlx_nvfp4, {"bits": 4, "group_size": 16, "mode": "nvfp4"}),
}  # fmt: skip


def quantised(layout: str, seed: int = 0) -> tuple[dict[str, Any], dict[str, Weights], dict[str, Weights]]:
    """config.json, the quantised tensors, and the plain ones with the same weights. MLX has quantised embeddings."""
    write, settings = LAYOUTS[layout][0], copy.deepcopy(LAYOUTS[layout][1])
    random = np.random.default_rng(seed)
    plain = llama_tensors(seed)
    head = np.frombuffer(plain["lm_head.weight"].data, np.float32).reshape(plain["lm_head.weight"].shape)
    plain["lm_head.weight"] = _weights(head * np.float32(0.2), "F32")  # logits of the size that models have
    stored: dict[str, Weights] = {}
    for name, tensor in list(plain.items()):
        if len(tensor.shape) != 2 or not (name.startswith("model.layers.") or layout.startswith("mlx")):
            stored[name] = tensor
            continue
        n_rows, n_columns = tensor.shape
        parts, read = write(random, n_rows, n_columns)
        stored |= {f"{name.removesuffix('weight')}{part}": weights for part, weights in parts.items()}
        plain[name] = _weights(read.astype(np.float32), "F32")
    keys = ("quantization", "quantization_config") if layout.startswith("mlx") else ("quantization_config",)
    return {**LLAMA_CONFIG, **dict.fromkeys(keys, settings)}, stored, plain


def amplified(tensors: dict[str, Weights], gain: float) -> dict[str, Weights]:
    """The same Llama, in FP8 or plain, where what is multiplied with most of its matrices is `gain` times as large, and
    they are as much smaller. It is a power of two."""
    into = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    found = dict(tensors)
    for name, tensor in tensors.items():
        power = math.log2(gain) * (1 if "layernorm" in name else -1 if name.split(".")[-2] in into else 0)
        if power and tensor.dtype == "F32":
            numbers = np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)
            found[name] = _weights(numbers * np.float32(2**power), "F32")
        elif power and tensor.dtype == "U8":
            exponents = np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape)
            found[name] = _weights((exponents + power).astype(np.uint8), "U8")
    return found


def write_both(folder: Path, layout: str, seed: int = 0, gain: float = 1) -> tuple[Path, Path]:
    """`folder/LAYOUT`, quantised, and `folder/LAYOUT-plain`."""
    config, stored, plain = quantised(layout, seed)
    stored, plain = amplified(stored, gain), amplified(plain, gain)
    both = folder / layout, folder / f"{layout}-plain"
    for path, settings, tensors in ((both[0], config, stored), (both[1], LLAMA_CONFIG, plain)):
        write_checkpoint(path, settings, tensors)
        write_tokenizer(path)
    return both
