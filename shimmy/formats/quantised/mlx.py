"""MLX, as mlx-lm writes it: integers without a sign, with a scale and a bias for each group of columns.

Knows `quantization` in config.json, with other bits for some modules. Defined in mlx's `ops.cpp`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shimmy.formats.convert.hyperparameters import Hyperparameters
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised.fp8 import EXPONENTS
from shimmy.formats.quantised.stored import PLAIN, ROUNDED, StoredMatrix, Tensors, flat, is_plain

BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
MODES = ("affine", "mxfp4")


@dataclass(frozen=True, slots=True)
class MlxScheme:
    """Bits and groups for all modules, and for those that have their own."""

    settings: Mapping[str, Any]
    ignored_suffixes: tuple[str, ...] = ()
    stacks_experts: bool = True

    def find(self, module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix | None:
        """Also of all experts together: [experts, rows, row length]."""
        name = f"{module}.weight"
        if is_plain(name, tensors):
            return None
        own = self.settings.get(tensors.full_name(name).removesuffix(".weight"), {})
        if not isinstance(own, dict):
            raise Unconvertible(f"its module `{module}` is quantised, and its configuration says that it is not")
        values = _checked({**self.settings, **own})
        *outer, n_columns = shape
        bits, group = values.integer("bits"), values.integer("group_size")
        if n_columns % group or n_columns * bits % 32:
            raise Unconvertible(f"its module `{module}` has rows of {n_columns} weights, no multiple of {group}")
        is_mxfp4, n_groups = values.get("mode") == "mxfp4", n_columns // group
        found = {"codes": tensors.part(name, ("U32",), (*outer, n_columns * bits // 32), along=0)}
        for key in ("scales",) if is_mxfp4 else ("scales", "biases"):
            dtypes = EXPONENTS if is_mxfp4 else PLAIN
            found[key] = tensors.part(f"{module}.{key}", dtypes, (*outer, n_groups), along=0)
        n_rows = math.prod(outer)
        parts = {key: flat(part, n_rows) for key, part in found.items()}
        if is_mxfp4:
            options = {"group": 32, "n_columns": n_columns, "reciprocal": 0}
            return StoredMatrix("fp4", (n_rows, n_columns), parts, "MXFP4", "MXFP4", 0.0, options)
        is_held = bits <= 4
        options = {"bits": bits, "group": group, "n_columns": n_columns}
        return StoredMatrix(
            "mlx", (n_rows, n_columns), parts, f"MLX with {bits} bits", "Q4_1" if is_held else "F16",
            0.0 if is_held else ROUNDED, options,
        )  # fmt: skip


def read(config: dict[str, Any]) -> MlxScheme:
    """The scheme of a `quantization` that names no method. Raises Unconvertible."""
    _checked(config)
    return MlxScheme(config)


def _checked(config: Mapping[str, Any]) -> Hyperparameters:
    values = Hyperparameters(config, {})
    values.require("mode", *MODES, default="affine")
    if values.get("mode") == "mxfp4":
        values.require("bits", 4)
        values.require("group_size", 32)
    else:
        values.require("bits", *BITS)
        values.require("group_size", *GROUPS)
    return values
