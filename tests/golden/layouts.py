"""Records what each layout's own library writes and reads: `python -m tests.golden.layouts`.

Runs in an environment of its own (README.md). A case is one small matrix: the configuration, the tensors as the
library writes them, and the SHA-256 of the weights in F32 that the library reads out of them.
"""

import base64
import hashlib
import importlib.util
import json
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import compressed_tensors
import gptqmodel
import mlx.core as mx
import modelopt
import numpy as np
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import FORMAT, QuantizeConfig
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
from modelopt.torch.quantization.qtensor.mxfp8_tensor import MXFP8QTensor
from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup

TARGET = Path(__file__).parent / "layouts.json.xz"
DTYPES = {
    torch.uint8: "U8", torch.int8: "I8", torch.int32: "I32", torch.int64: "I64", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3", torch.uint32: "U32",
}  # fmt: skip

Case = tuple[str, dict[str, Any], dict[str, torch.Tensor], torch.Tensor]


def weight(n_rows: int, n_columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_rows, n_columns, generator=torch.Generator().manual_seed(seed)) * 0.1


def fp8(w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (w / scale).clamp(-448, 448).to(torch.float8_e4m3fn)


def fp8_cases() -> Iterator[Case]:
    """The formula of vLLM, with the conversion of torch."""
    w = weight(64, 128)
    scale = w.abs().max() / 448
    q = fp8(w, scale)
    yield "fp8-tensor", {"quant_method": "fp8"}, {"weight": q, "weight_scale": scale.reshape(1)}, q.float() * scale
    scale = w.abs().amax(1, keepdim=True) / 448
    q = fp8(w, scale)
    yield "fp8-row", {"quant_method": "fbgemm_fp8"}, {"weight": q, "weight_scale": scale}, q.float() * scale
    w = weight(136, 160)  # the last blocks are cut off
    padded = torch.nn.functional.pad(w, (0, 96, 0, 120)).reshape(2, 128, 2, 128)
    for name, grid in (
        ("fp8-block", padded.abs().amax((1, 3)) / 448),
        ("fp8-block-bf16", (padded.abs().amax((1, 3)) / 448).bfloat16()),
        ("fp8-block-e8m0", (padded.abs().amax((1, 3)) / 448).log2().ceil()),
    ):
        if name.endswith("e8m0"):
            numbers, stored = 2.0**grid, (grid + 127).to(torch.uint8)
        else:
            numbers, stored = grid.float(), grid
        scale = numbers.repeat_interleave(128, 0).repeat_interleave(128, 1)[:136, :160]
        q = fp8(w, scale)
        config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        yield name, config, {"weight": q, "weight_scale_inv": stored}, q.float() * scale


def compressed_cases() -> Iterator[Case]:
    for name, bits, columns, symmetric, dtype in (
        ("ct-w4a16", 4, 32, True, torch.float16), ("ct-w4a16-asymmetric", 4, 64, False, torch.float16),
        ("ct-w4a16-bf16", 4, 128, True, torch.bfloat16), ("ct-w8a16", 8, 0, True, torch.float16),
        ("ct-w3a16", 3, 32, True, torch.float16), ("ct-w2a16", 2, 32, False, torch.float16),
        ("ct-w6a16", 6, 0, False, torch.float16), ("ct-w8a8", 8, 0, True, torch.bfloat16),
        ("ct-w8a8-asymmetric", 8, 0, False, torch.float16),
    ):  # fmt: skip
        w = weight(64, 128)
        settings: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": symmetric}
        settings |= {"strategy": "group", "group_size": columns} if columns else {"strategy": "channel"}
        args = QuantizationArgs(**settings)
        groups = w.reshape(64, -1, columns or 128)
        low, high = -(1 << bits - 1), (1 << bits - 1) - 1
        if symmetric:
            scale = (groups.abs().amax(2) / high).to(dtype)
            zero = torch.zeros(scale.shape, dtype=torch.int8)
        else:
            scale = ((groups.amax(2) - groups.amin(2)) / (high - low)).to(dtype)
            zero = (low - groups.amin(2) / scale.float()).round().clamp(low, high).to(torch.int8)
        layout = "int-quantized" if "w8a8" in name else "pack-quantized"
        yield compressed(name, layout, settings, args, w, {"weight_scale": scale, "weight_zero_point": zero})
    w = weight(64, 128)
    settings = {"num_bits": 8, "type": "float", "strategy": "channel"}
    scale = (w.abs().amax(1, keepdim=True) / 448).bfloat16()
    yield compressed("ct-fp8", "float-quantized", settings, QuantizationArgs(**settings), w, {"weight_scale": scale})
    settings = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    exponents = (w.reshape(64, -1, 32).abs().amax(2) / 6).log2().ceil()
    args = QuantizationArgs(**{**settings, "scale_dtype": torch.uint8})
    yield compressed("ct-mxfp4", "mxfp4-pack-quantized", settings, args, w, {"weight_scale": 2.0**exponents})
    settings = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    whole = (448 * 6 / w.abs().max()).reshape(1)
    scale = (w.reshape(64, -1, 16).abs().amax(2) / 6 * whole).to(torch.float8_e4m3fn).float()
    yield compressed(
        "ct-nvfp4", "nvfp4-pack-quantized", settings, QuantizationArgs(**settings), w,
        {"weight_scale": scale, "weight_global_scale": whole},
    )  # fmt: skip
    w = weight(32, 64)
    settings = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    exponents = (w.reshape(32, -1, 32).abs().amax(2) / 448).log2().ceil()
    args = QuantizationArgs(**{**settings, "scale_dtype": torch.uint8})
    yield compressed("ct-mxfp8", "mxfp8-quantized", settings, args, w, {"weight_scale": 2.0**exponents})
    settings = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}
    scale = (w.reshape(32, -1, 32).abs().amax(2) / 448).bfloat16()
    args = QuantizationArgs(**settings)
    yield compressed("ct-fp8-group", "float-quantized", settings, args, w, {"weight_scale": scale})


def compressed(
    name: str, layout: str, settings: dict[str, Any], args: QuantizationArgs, w: torch.Tensor, scales: dict[str, Any]
) -> Case:
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(layout)
    tensors = compressor.compress({"weight": w, **scales}, scheme)
    tensors = {key: value.detach() for key, value in tensors.items()}
    wide = {
        key: value.float() if value.dtype in {torch.float16, torch.bfloat16} else value
        for key, value in tensors.items()
    }
    read = compressor.decompress(wide, scheme)["weight"].detach()
    if "fp4" in layout:  # which the library reads in BF16: its own formula, in F32
        packed, table = tensors["weight_packed"], torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        table = torch.cat([table, -table])
        codes = torch.stack([packed & 15, packed >> 4], 2).reshape(64, -1).long()
        if "mx" in layout:
            scale = 2.0 ** (tensors["weight_scale"].float() - 127)
        else:
            scale = tensors["weight_scale"].float() / tensors["weight_global_scale"]
        exact = table[codes] * scale.repeat_interleave(128 // scale.shape[1], 1)
        assert torch.allclose(read.float(), exact, rtol=2**-6), name
        read = exact
    group = {"targets": ["Linear"], "weights": settings}
    config = {
        "quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group},
        "quantization_status": "compressed", "ignore": ["lm_head"],
    }  # fmt: skip
    return name, config, tensors, read.float()


def bitsandbytes_cases() -> Iterator[Case]:
    for name, kind, nested, shape in (
        ("bnb-nf4", "nf4", False, (64, 128)), ("bnb-fp4", "fp4", False, (64, 96)),
        ("bnb-nf4-nested", "nf4", True, (72, 96)),
    ):  # fmt: skip
        w = weight(*shape)
        packed, state = bnb.quantize_4bit(w, blocksize=64, quant_type=kind, compress_statistics=nested)
        tensors = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        config = {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": nested, "bnb_4bit_compute_dtype": "float32",
        }  # fmt: skip
        # Read as rows of one block: its reader for CPUs is wrong where a block goes on in the next row.
        state.shape = torch.Size((shape[0] * shape[1] // 64, 64)) if shape[1] % 64 else state.shape
        yield name, config, {"weight": packed, **tensors}, bnb.dequantize_4bit(packed, state).reshape(shape)
    w = weight(64, 128)
    q, scale, _ = bnb.int8_vectorwise_quant(w.half())
    read = bnb.int8_vectorwise_dequant(q, scale)
    tensors = {"weight": q, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    yield "bnb-int8", {"quant_method": "bitsandbytes", "load_in_8bit": True}, tensors, read.float()


def mlx_cases() -> Iterator[Case]:
    for bits, group, dtype in ((2, 32, mx.float16), (3, 64, mx.float16), (4, 64, mx.bfloat16), (5, 32, mx.float16),
                               (6, 64, mx.float16), (8, 64, mx.float16)):  # fmt: skip
        w = mx.array(weight(64, 128).numpy()).astype(dtype)
        q, scales, biases = mx.quantize(w, group_size=group, bits=bits)
        wide = (scales.astype(mx.float32), biases.astype(mx.float32))
        read = mx.dequantize(q, *wide, group_size=group, bits=bits)
        torch_dtype = torch.float16 if dtype == mx.float16 else torch.bfloat16
        tensors = {"weight": torch.from_numpy(np.array(q))}
        for key, value in (("scales", scales), ("biases", biases)):
            tensors[key] = torch.from_numpy(np.array(value.astype(mx.float32))).to(torch_dtype)
        config = {"mlx": True, "group_size": group, "bits": bits}
        yield f"mlx-{bits}", config, tensors, torch.from_numpy(np.array(read))
    for mode, group, bits in (("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)):
        w = weight(32, 64)
        w[3] = 0  # MLX has the smallest scale for it
        q, scales = mx.quantize(mx.array(w.numpy()), group_size=group, bits=bits, mode=mode)
        read = mx.dequantize(q, scales, group_size=group, bits=bits, mode=mode, dtype=mx.float32)
        tensors = {"weight": torch.from_numpy(np.array(q)), "scales": torch.from_numpy(np.array(scales))}
        settings: dict[str, Any] = {"mlx": True, "group_size": group, "bits": bits, "mode": mode}
        yield f"mlx-{mode}", settings, tensors, torch.from_numpy(np.array(read))


def modelopt_cases() -> Iterator[Case]:
    w = weight(64, 128)
    q, scale, scale_2 = NVFP4QTensor.quantize(w, 16)
    read = q.dequantize(dtype=torch.float32, scale=scale, double_scale=scale_2, block_sizes={-1: 16})
    tensors = {"weight": q._quantized_data, "weight_scale": scale, "weight_scale_2": scale_2}
    yield "modelopt-nvfp4", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, tensors, read
    w = weight(32, 64)
    w[3] = 0
    q, scale = MXFP8QTensor.quantize(w)
    read = q.dequantize(dtype=torch.float32, scale=scale)
    tensors = {"weight": q._quantized_data, "weight_scale": scale}
    yield "modelopt-mxfp8", {"quant_method": "modelopt", "quant_algo": "MXFP8"}, tensors, read


def awq_cases() -> Iterator[Case]:
    """The packing is that of AutoAWQ's WQLinear_GEMM; the reader is its `dequantize_gemm`, with scales in F32."""
    root = Path(str(importlib.util.find_spec("awq").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    spec = importlib.util.spec_from_file_location("packing", root / "utils" / "packing_utils.py")
    assert spec is not None
    assert spec.loader is not None
    packing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packing)
    w = weight(64, 128).T  # [in, out]
    groups = w.reshape(2, 64, 64)
    scale = ((groups.amax(1) - groups.amin(1)) / 15).half()
    zero = (-groups.amin(1) / scale.float()).round().clamp(0, 15)
    codes = (groups / scale.float()[:, None] + zero[:, None]).round().clamp(0, 15).reshape(128, 64)

    def pack(numbers: torch.Tensor) -> torch.Tensor:
        words = torch.zeros(numbers.shape[0], numbers.shape[1] // 8, dtype=torch.int64)
        for i, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            words |= numbers.long()[:, column::8] << 4 * i
        return words.to(torch.uint32).view(torch.int32)

    tensors = {"qweight": pack(codes), "qzeros": pack(zero), "scales": scale}
    read = packing.dequantize_gemm(tensors["qweight"], tensors["qzeros"], scale.float(), 4, 64)
    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
    yield "awq", config, tensors, read.T.contiguous()


def gptq_cases() -> Iterator[Case]:
    """`gptq_p` is GPTQModel's form with bits in planes, without which it writes no 5, 6 and 7 bits."""
    for name, bits, group, symmetric, shuffled, form in (
        ("gptq-4", 4, 32, True, False, "gptq"), ("gptq-4-asymmetric", 4, 64, False, False, "gptq_v2"),
        ("gptq-4-asymmetric-v1", 4, 64, False, False, "gptq"), ("gptq-4-desc-act", 4, 32, True, True, "gptq"),
        ("gptq-8", 8, -1, True, False, "gptq"), ("gptq-3", 3, 32, True, False, "gptq"),
        ("gptq-2", 2, 32, False, False, "gptq_v2"), ("gptq-5", 5, 32, True, False, "gptq_p"),
        ("gptq-6", 6, 32, False, False, "gptq_p"), ("gptq-7-desc-act", 7, 32, True, True, "gptq_p"),
        ("gptq-3-planes", 3, 32, False, False, "gptq_p"), ("gptq-4-planes", 4, 32, False, False, "gptq_p"),
    ):  # fmt: skip
        n_rows, n_columns = (32, 64) if form == "gptq_p" else (64, 128)
        w, n_codes = weight(n_rows, n_columns), 1 << bits
        length = n_columns if group == -1 else group
        kinds = {"format": FORMAT(form)} if form == "gptq_p" else {}
        layer = TorchLinear(bits, group, symmetric, shuffled, n_columns, n_rows, **kinds)
        order = torch.randperm(n_columns, generator=torch.Generator().manual_seed(1))
        order = order if shuffled else torch.arange(n_columns)
        g_idx = torch.empty(n_columns, dtype=torch.int32)
        g_idx[order] = (torch.arange(n_columns) // length).to(torch.int32)
        groups = w[:, order].reshape(n_rows, -1, length)
        if symmetric:
            scale = groups.abs().amax(2) * 2 / n_codes
            zero = torch.full(scale.shape, n_codes // 2, dtype=torch.float32)
        else:
            groups = groups + 0.05  # some zero points are 0
            scale = (groups.amax(2).clamp(min=0) - groups.amin(2).clamp(max=0)) / (n_codes - 1)
            zero = (-groups.amin(2).clamp(max=0) / scale).round()
            zero[::9, ::2] = 0
        linear = torch.nn.Linear(n_columns, n_rows, bias=False)
        linear.weight.data = w
        layer.pack_original(linear, scale.half().float(), zero, g_idx)
        layer.qzero_format(format=2)
        layer.scales = layer.scales.float()
        layer.post_init()
        read = layer.dequantize_weight().T.contiguous()
        if form == "gptq":
            convert_gptq_v2_to_v1_format_module(layer, QuantizeConfig(bits=bits, group_size=group))
        tensors = {key: getattr(layer, key).clone() for key in ("qweight", "qzeros", "g_idx")}
        tensors["scales"] = layer.scales.half()
        config = {
            "quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": shuffled,
            "checkpoint_format": form, "meta": {"quantizer": ["gptqmodel:7.7.0"]},
        }  # fmt: skip
        yield name, config, tensors, read.float()


def torchao_cases() -> Iterator[Case]:
    configs: dict[str, Any] = {
        "int8": Int8WeightOnlyConfig(version=2),
        "int4": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32), version=2),
        "fp8": Float8WeightOnlyConfig(),
    }
    for name, config in configs.items():
        model = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False))
        model[0].weight.data = weight(64, 128)
        quantize_(model, config)
        stored, _ = flatten_tensor_state_dict(model.state_dict())
        tensors = {key.removeprefix("0."): tensor for key, tensor in stored.items()}
        yield f"torchao-{name}", {"quant_method": "torchao"}, tensors, model[0].weight.dequantize().float()


CASES: tuple[Callable[[], Iterator[Case]], ...] = (
    fp8_cases, compressed_cases, bitsandbytes_cases, mlx_cases, modelopt_cases, awq_cases, gptq_cases, torchao_cases,
)  # fmt: skip


def recorded(config: dict[str, Any], tensors: dict[str, torch.Tensor], read: torch.Tensor) -> dict[str, Any]:
    assert read.dtype == torch.float32
    assert read.is_contiguous()
    return {
        "config": config,
        "shape": [*read.shape],
        "tensors": {
            name: {
                "dtype": DTYPES[tensor.dtype],
                "shape": [*tensor.shape],
                "data": base64.b64encode(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).decode(),
            }
            for name, tensor in tensors.items()
        },
        "sha256": hashlib.sha256((read + 0).numpy().tobytes()).hexdigest(),  # not every library has a -0
    }


def main() -> None:
    found = {name: recorded(config, tensors, read) for cases in CASES for name, config, tensors, read in cases()}
    versions = {
        "torch": torch.__version__, "compressed-tensors": compressed_tensors.__version__,
        "gptqmodel": gptqmodel.__version__,
        "nvidia-modelopt": modelopt.__version__, "bitsandbytes": sys.modules["bitsandbytes"].__version__,
        "mlx": mx.__version__,
    }  # fmt: skip
    content = json.dumps({"made_with": versions, "cases": found}).encode()
    TARGET.write_bytes(lzma.compress(content, preset=9))
    sys.stdout.write(f"{TARGET}: {len(found)} cases, {TARGET.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
