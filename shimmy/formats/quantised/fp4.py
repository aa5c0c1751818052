"""4-bit floats, wherever they come from: MXFP4 and NVFP4 with their tensors by name.

Knows ModelOpt's configuration as well, whose FP8 and NVFP4 have names of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shimmy.formats.convert.hyperparameters import Hyperparameters
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised import fp8
from shimmy.formats.quantised.stored import ROUNDED, StoredMatrix, Tensors, flat, is_plain

_MIXED = "MIXED_PRECISION"
# By ModelOpt's names: rows and columns with one scale; None: all of a tensor, or of a row.
_MODELOPT_FP8 = {"FP8": None, "FP8_PER_CHANNEL_PER_TOKEN": None, "MXFP8": (1, 32)}


@dataclass(frozen=True, slots=True)
class ModelOptScheme:
    """FP8, MXFP8 or NVFP4, for all modules or for those that are named."""

    algorithm: str
    layers: Mapping[str, Any]  # of MIXED_PRECISION: settings by module
    ignored_suffixes: tuple[str, ...] = fp8.IGNORED
    stacks_experts: bool = False

    def find(self, module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix | None:
        if is_plain(f"{module}.weight", tensors):
            return None
        algorithm = self.algorithm
        if algorithm == _MIXED:
            full_name = tensors.full_name(f"{module}.weight").removesuffix(".weight")
            own = self.layers.get(full_name)
            if not isinstance(own, dict):
                raise Unconvertible(f"its module `{module}` is quantised, and is none of its `quantized_layers`")
            algorithm = _algorithm(Hyperparameters(own, {}))
        if algorithm in _MODELOPT_FP8:
            return fp8.matrix(module, shape, tensors, _MODELOPT_FP8[algorithm])
        return nvfp4(f"{module}.weight", module, "weight_scale_2", shape, tensors, reciprocal=False)


def read_modelopt(config: dict[str, Any]) -> ModelOptScheme:
    """The scheme of a configuration whose `quant_method` is modelopt, or of a hf_quant_config.json."""
    inner = config.get("quantization")
    values = Hyperparameters(inner if isinstance(inner, dict) else config, {})
    layers = values.get("quantized_layers")
    if values.get("quant_algo") == _MIXED and isinstance(layers, dict):
        return ModelOptScheme(_MIXED, layers)
    return ModelOptScheme(_algorithm(values), {})


def _algorithm(values: Hyperparameters) -> str:
    values.require("quant_algo", *_MODELOPT_FP8, "NVFP4", "W4A16_NVFP4")
    return str(values.get("quant_algo"))


@dataclass(frozen=True, slots=True)
class GptOssScheme:
    """The experts of gpt-oss in MXFP4, all of a layer in one tensor; the rest is plain."""

    ignored_suffixes: tuple[str, ...] = ()
    stacks_experts: bool = False

    def find(self, module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix | None:
        if tensors.get(f"{module}_blocks") is None:
            return None
        codes = tensors.get(f"{module}_blocks")
        n_rows, n_columns = shape
        n_experts = codes.shape[0] if codes is not None and codes.shape and codes.shape[0] else 1
        _check_columns(f"{module}_blocks", n_columns, 32)
        inner = (n_experts, n_rows // n_experts, n_columns // 32)
        parts = {
            "codes": tensors.part(f"{module}_blocks", ("U8",), (*inner, 16), along=0),
            "scales": tensors.part(f"{module}_scales", fp8.EXPONENTS, inner, along=0),
        }
        parts = {name: flat(part, n_rows) for name, part in parts.items()}
        options = {"group": 32, "n_columns": n_columns, "reciprocal": 0}
        return StoredMatrix("fp4", (n_rows, n_columns), parts, "MXFP4", "MXFP4", 0.0, options)


def read_mxfp4(config: dict[str, Any]) -> GptOssScheme:
    """The scheme of a configuration whose `quant_method` is mxfp4."""
    del config
    return GptOssScheme()


def mxfp4(codes: str, scales: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix:
    """A weight in MXFP4: `codes` in bytes, `scales` one exponent for 32 columns."""
    n_rows, n_columns = shape
    _check_columns(codes, n_columns, 32)
    parts = {
        "codes": tensors.part(codes, ("U8",), (n_rows, n_columns // 2), along=0),
        "scales": tensors.part(scales, fp8.EXPONENTS, (n_rows, n_columns // 32), along=0),
    }
    options = {"group": 32, "n_columns": n_columns, "reciprocal": 0}
    return StoredMatrix("fp4", (n_rows, n_columns), parts, "MXFP4", "MXFP4", 0.0, options)


def nvfp4(
    codes: str, module: str, whole: str, shape: tuple[int, ...], tensors: Tensors, *, reciprocal: bool
) -> StoredMatrix:
    """A weight in NVFP4; the number for all of it is multiplied, or divided by where `reciprocal`."""
    n_rows, n_columns = shape
    _check_columns(codes, n_columns, 16)
    parts = {
        "codes": tensors.part(codes, ("U8",), (n_rows, n_columns // 2), along=0),
        "scales": tensors.part(f"{module}.weight_scale", ("F8_E4M3",), (n_rows, n_columns // 16), along=0),
        "global": tensors.part(f"{module}.{whole}", ("F32",), (), (1,)),
    }
    options = {"group": 16, "n_columns": n_columns, "reciprocal": int(reciprocal)}
    is_held = n_columns % 64 == 0
    return StoredMatrix(
        "fp4", (n_rows, n_columns), parts, "NVFP4", "NVFP4" if is_held else "F16", 0.0 if is_held else ROUNDED,
        options, apart="global" if is_held else "",
    )  # fmt: skip


def _check_columns(name: str, n_columns: int, group: int) -> None:
    if n_columns % group:
        raise Unconvertible(f"its tensor `{name}` has rows of {n_columns} weights, no multiple of {group}")
