"""MLX, as mlx-lm writes it: integers with a scale and a bias for each group of columns, or small floats with a scale.

Knows `quantization` in config.json, with other settings for some modules. Defined in mlx's `ops.cpp` and
`nn/layers/quantized.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shimmy.formats.convert.hyperparameters import Hyperparameters
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised.fp8 import EXPONENTS
from shimmy.formats.quantised.stored import BLOCK, PLAIN, ROUNDED, Part, StoredMatrix, Tensors, flat, is_plain

BITS, GROUPS = (1, 2, 3, 4, 5, 6, 8), (32, 64, 128)
# Columns of a group and bits by mode, where the configuration does not say it. The small floats have no others.
DEFAULTS = {"affine": (64, 4), "mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}


@dataclass(frozen=True, slots=True)
class MlxScheme:
    """The mode, bits and groups for all modules, and for those that have their own."""

    settings: Mapping[str, Any]
    ignored_suffixes: tuple[str, ...] = ()
    stacks_experts: bool = True

    def find(self, module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix | None:
        """Also of all experts together: [experts, rows, row length]."""
        name = f"{module}.weight"
        if is_plain(name, tensors):
            return None
        mode, group, bits = self._own(module, tensors.full_name(name).removesuffix(".weight"))
        *outer, n_columns = shape
        if n_columns % group or n_columns * bits % 32:
            raise Unconvertible(f"its module `{module}` has rows of {n_columns} weights, no multiple of {group}")
        n_groups = n_columns // group
        found = {"codes": tensors.part(name, ("U32",), (*outer, n_columns * bits // 32), along=0)}
        for key in ("scales", "biases") if mode == "affine" else ("scales",):
            dtypes = {"affine": PLAIN, "nvfp4": ("U8", "F8_E4M3")}.get(mode, EXPONENTS)
            found[key] = tensors.part(f"{module}.{key}", dtypes, (*outer, n_groups), along=0)
        n_rows = math.prod(outer)
        return _matrix(mode, bits, group, (n_rows, n_columns), {key: flat(part, n_rows) for key, part in found.items()})

    def _own(self, module: str, full_name: str) -> tuple[str, int, int]:
        """Settings of a module stand for all of them: what is not among them is what MLX takes then."""
        own = self.settings.get(full_name, True)
        if own is True:
            return _checked(self.settings)
        if not isinstance(own, dict):
            raise Unconvertible(f"its module `{module}` is quantised, and its configuration says that it is not")
        return _checked(own)


def read(config: dict[str, Any]) -> MlxScheme:
    """The scheme of a `quantization`. Raises Unconvertible."""
    _checked(config)
    return MlxScheme(config)


def _checked(config: Mapping[str, Any]) -> tuple[str, int, int]:
    """The mode, the columns of a group and the bits."""
    values = Hyperparameters(config, {})
    values.require("mode", *DEFAULTS, default="affine")
    mode = str(values.get("mode") or "affine")
    group, bits = DEFAULTS[mode]
    values.require("group_size", *(GROUPS if mode == "affine" else (group,)), default=group)
    values.require("bits", *(BITS if mode == "affine" else (bits,)), default=bits)
    return mode, values.integer("group_size", default=group), values.integer("bits", default=bits)


def _matrix(mode: str, bits: int, group: int, shape: tuple[int, int], parts: dict[str, Part]) -> StoredMatrix:
    n_columns = shape[1]
    match mode:
        case "affine":
            label, kind = f"MLX with {bits} bits", "Q4_1" if bits <= 4 else "F16"
            options = {"bits": bits, "group": group, "n_columns": n_columns}
            return StoredMatrix("mlx", shape, parts, label, kind, 0.0 if bits <= 4 else ROUNDED, options)
        case "mxfp8":
            parts = {"codes": parts["codes"], "scale": parts["scales"]}
            options = {"block_rows": 1, "block_columns": group, "exponents": 1}
            return StoredMatrix("fp8", shape, parts, "MXFP8", "F16", 0.0, options, may_be_divided=True)
    kind = mode.upper()
    is_held = n_columns % (BLOCK if mode == "mxfp4" else 2 * BLOCK) == 0
    options = {"group": group, "n_columns": n_columns, "reciprocal": 0}
    return StoredMatrix("fp4", shape, parts, kind, kind if is_held else "F16", 0.0 if is_held else ROUNDED, options)
