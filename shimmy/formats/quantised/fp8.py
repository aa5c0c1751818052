"""FP8 weights: 8-bit floats with one scale for a tensor, a row or a block of rows and columns.

Knows `quant_method` fp8 (vLLM, DeepSeek, Qwen), fbgemm_fp8 and mxfp8 (MiniMax), and what compressed-tensors and
ModelOpt share with them. Defined in vLLM's `quantization/fp8.py` and transformers' `integrations/finegrained_fp8.py`.
"""

from dataclasses import dataclass
from typing import Any

from shimmy.formats.convert.hyperparameters import Hyperparameters
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised.stored import PLAIN, ROUNDED, Part, StoredMatrix, Tensors, is_plain

EXPONENTS = ("U8", "F8_E8M0")  # a scale that is a power of two: e means 2^(e - 127)
IGNORED = (
    ".input_scale",
    ".activation_scale",
    ".activation_scale_ub",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".prob_output_scale",
)
MAX_BLOCK = 65_536


@dataclass(frozen=True, slots=True)
class Fp8Scheme:
    """Weights in F8_E4M3; those of the skipped modules are plain."""

    block: tuple[int, int] | None = None
    ignored_suffixes: tuple[str, ...] = IGNORED
    stacks_experts: bool = False

    def find(self, module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix | None:
        if is_plain(f"{module}.weight", tensors):
            return None
        return matrix(module, shape, tensors, self.block)


def read(config: dict[str, Any]) -> Fp8Scheme:
    """The scheme of a configuration whose `quant_method` is fp8 or fbgemm_fp8. Raises Unconvertible."""
    values = Hyperparameters(config, {})
    values.require("fmt", "e4m3", "float8_e4m3fn", default="e4m3")
    values.require("scale_fmt", "ue8m0", "float", default="float")
    values.require("activation_scheme", "dynamic", "static", default="dynamic")
    values.require("is_checkpoint_fp8_serialized", True, default=True)
    return Fp8Scheme(block_size(config.get("weight_block_size"), "weight_block_size"))


def read_mxfp8(config: dict[str, Any]) -> Fp8Scheme:
    """The scheme of a configuration whose `quant_method` is mxfp8, as MiniMax publishes M3. Raises Unconvertible."""
    values = Hyperparameters(config, {})
    values.require("moe_quant_algo", None)
    values.require("weight_block_size", [1, 32], default=[1, 32])
    return read({**config, "weight_block_size": [1, 32]})


def block_size(value: Any, key: str) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None where there are no blocks."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and 0 < n <= MAX_BLOCK for n in value):
        raise Unconvertible(f"its quantisation has an impossible `{key}`: it must be two sizes")
    return value[0], value[1]


def matrix(
    module: str,
    shape: tuple[int, ...],
    tensors: Tensors,
    block: tuple[int, int] | None,
    codes: str = "weight",
    scales: tuple[str, ...] = ("weight_scale_inv", "weight_scale"),
) -> StoredMatrix:
    """The weight of `module`, in F8_E4M3 with its scale beside it, by these names. Raises Unconvertible."""
    n_rows, n_columns = shape
    parts = {"codes": tensors.part(f"{module}.{codes}", ("F8_E4M3",), (n_rows, n_columns), along=0)}
    name = tensors.only(*(f"{module}.{scale}" for scale in scales))
    if block is not None:
        grid = (-(-n_rows // block[0]), -(-n_columns // block[1]))
        parts["scale"] = tensors.part(name, (*PLAIN, *EXPONENTS), grid, along=0, rows=block[0])
        label = f"FP8 with a scale for {block[0]} x {block[1]} weights"
    else:
        found = tensors.part(name, (*PLAIN, *EXPONENTS), (), (1,), (1, 1), (n_rows,), (n_rows, 1))
        is_of_tensor = found.tensor.shape in {(), (1,), (1, 1)}
        parts["scale"] = Part(found.tensor, None if is_of_tensor else 0)
        label = "FP8 with a scale for a tensor" if is_of_tensor else "FP8 with a scale for a row"
        block = (n_rows, n_columns) if is_of_tensor else (1, n_columns)
    is_exponent = parts["scale"].tensor.dtype in EXPONENTS
    options = {"block_rows": block[0], "block_columns": block[1], "exponents": int(is_exponent)}
    is_apart = parts["scale"].along is None and not is_exponent
    return StoredMatrix(
        "fp8", (n_rows, n_columns), parts, label, "F16",
        0.0 if is_exponent or is_apart else ROUNDED, options,
        row_step=block[0] if parts["scale"].along == 0 else 1, apart="scale" if is_apart else "",
        may_be_divided=is_exponent,
    )  # fmt: skip
