"""MLX, as mlx-lm writes it: integers without a sign, with a scale and a bias for each group of columns.

Knows `quantization` in config.json, with other bits for some modules. Defined in mlx's `ops.cpp`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shimmy.formats.convert.hyperparameters import Hyperparameters
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised.fp4 import mxfp4
from shimmy.formats.quantised.stored import PLAIN, ROUNDED, StoredMatrix, Tensors, is_plain

BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
MODES = ("affine", "mxfp4")


@dataclass(frozen=True, slots=True)
class MlxScheme:
    """Bits and groups for all modules, and for those that have their own."""

    settings: Mapping[str, Any]
    ignored_suffixes: tuple[str, ...] = ()

    def find(self, module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix | None:
        name = f"{module}.weight"
        if is_plain(name, tensors):
            return None
        own = self.settings.get(tensors.full_name(name).removesuffix(".weight"), {})
        if not isinstance(own, dict):
            raise Unconvertible(f"its module `{module}` is quantised, and its configuration says that it is not")
        values = _checked({**self.settings, **own})
        if values.get("mode") == "mxfp4":
            return mxfp4(name, f"{module}.scales", shape, tensors, "U32")
        bits, group, (n_rows, n_columns) = values.integer("bits"), values.integer("group_size"), shape
        if n_columns % group or n_columns * bits % 32:
            raise Unconvertible(f"its module `{module}` has rows of {n_columns} weights, no multiple of {group}")
        n_groups = n_columns // group
        parts = {
            "codes": tensors.part(name, ("U32",), (n_rows, n_columns * bits // 32), along=0),
            "scales": tensors.part(f"{module}.scales", PLAIN, (n_rows, n_groups), along=0),
            "biases": tensors.part(f"{module}.biases", PLAIN, (n_rows, n_groups), along=0),
        }
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
