"""torchao: 8-bit integers with scales and zero points, and FP8; what it tiles for a GPU is refused.

Knows the names of the tensors, which say more than the configuration does. Defined in torchao's
`prototype/safetensors/` and `quantization/quantize_/workflows/`.
"""

from dataclasses import dataclass
from typing import Any

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised import fp8
from shimmy.formats.quantised.stored import (
    PLAIN,
    ROUNDED,
    StoredMatrix,
    Tensors,
    integer_type,
    is_plain,
)
from shimmy.formats.safetensors.checkpoint import shown


@dataclass(frozen=True, slots=True)
class TorchAoScheme:
    """Codes of a byte; their type says which of the layouts it is."""

    ignored_suffixes: tuple[str, ...] = ()
    stacks_experts: bool = False

    def find(self, module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix | None:
        name = f"{module}._weight_qdata"
        stored = tensors.get(name)
        if stored is None:
            if is_plain(f"{module}.weight", tensors):
                return None
            raise Unconvertible(f"its tensor `{shown(module)}.weight` is not what torchao writes")
        if stored.dtype == "F8_E4M3":
            return fp8.matrix(module, shape, tensors, None, "_weight_qdata", ("_weight_scale",))
        return _integers(module, shape, tensors)


def read(config: dict[str, Any]) -> TorchAoScheme:
    """The scheme of a configuration whose `quant_method` is torchao."""
    del config
    return TorchAoScheme()


def _integers(module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix:
    n_rows, n_columns = shape
    scale = tensors.get(f"{module}._weight_scale")
    n_groups = scale.shape[1] if scale is not None and len(scale.shape) == 2 and scale.shape[1] else 1
    if n_columns % n_groups:
        raise Unconvertible(f"its module `{module}` has rows of {n_columns} weights, no multiple of {n_groups} groups")
    parts = {
        "codes": tensors.part(f"{module}._weight_qdata", ("I8",), (n_rows, n_columns), along=0),
        "scales": tensors.part(f"{module}._weight_scale", PLAIN, (n_rows, n_groups), along=0),
    }
    zeros = f"{module}._weight_zero_point"
    if tensors.get(zeros) is not None:
        parts["zeros"] = tensors.part(zeros, ("I8",), (n_rows, n_groups), along=0)
    group = n_columns // n_groups
    expected = (
        "F16" if group % 32 else integer_type(-128, 127, n_columns)
    )  # if all zero points are 0, as they mostly are
    error = ROUNDED if expected == "F16" or parts["scales"].tensor.dtype == "F32" else 0.0
    options = {"bits": 8, "group": group, "n_rows": n_rows, "n_columns": n_columns, "whole_words": 0}
    return StoredMatrix("packed", (n_rows, n_columns), parts, "torchao with 8 bits", expected, error, options)
