"""GPTQ as AutoGPTQ and GPTQModel write it: integers of 2 to 8 bits with zero points, in groups of columns.

Knows its configuration, also `dynamic`, which has other bits for some modules. Defined in GPTQModel's
`nn_modules/qlinear/__init__.py` and `utils/planar_packing.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shimmy.formats.convert.hyperparameters import Hyperparameters
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised.patterns import MAX_PATTERNS, ModuleNames
from shimmy.formats.quantised.stored import (
    PLAIN,
    ROUNDED,
    Part,
    StoredMatrix,
    Tensors,
    integer_type,
    is_plain,
)

BITS = (2, 3, 4, 5, 6, 7, 8)
# With bits in planes: the low ones of 32 codes, then the others of the same. No tool writes 5, 6 and 7 bits otherwise;
# 2, 4 and 8 bits are one plane, and the same as ever.
PLANES, ONLY_IN_PLANES, IN_PLANES = "gptq_p", (5, 6, 7), (3, 5, 6, 7)
_FORMS = ("gptq", "gptq_v2", PLANES)
MAX_GROUP = 2**20
# AutoGPTQ takes the 1 off each code: of a 0 all bits are left, and the codes behind it in its word get them too.
_LOST_ZEROS = (
    "its GPTQ zero points are stored less 1 (not symmetric, not `gptq_v2`), which cannot be done with 0: where the "
    "quantiser found a 0, weights are wrong, in other programs too"
)


@dataclass(frozen=True, slots=True)
class GptqScheme:
    """Bits, groups and the version of the zero points; `dynamic` has others for the modules that it names."""

    values: Hyperparameters
    has_planes: bool
    stored_less: int  # by how much a stored zero point is less than the zero point
    less_by_word: bool  # GPTQModel's way
    dynamic: Mapping[str, Mapping[str, Any]]
    ignored_suffixes: tuple[str, ...] = ()
    stacks_experts: bool = False
    names: ModuleNames = field(default_factory=ModuleNames)

    def find(self, module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix | None:
        if is_plain(f"{module}.weight", tensors):
            return None
        own = self._own(tensors.full_name(f"{module}.qweight").removesuffix(".qweight"))
        if own is None:
            raise Unconvertible(f"its module `{module}` is quantised, and its configuration leaves that one out")
        bits, group, is_symmetric = _bits(own, self.has_planes), _group(own), own.flag("sym", default=True)
        n_rows, n_columns = shape
        group = n_columns if group == -1 else group
        is_in_planes = self.has_planes and bits in IN_PLANES
        if any(n % 32 if is_in_planes else n * bits % 32 for n in shape):
            raise Unconvertible(
                f"its module `{module}` has {n_rows} x {n_columns} weights, which {bits} bits cannot pack"
            )
        n_groups = -(-n_columns // group)
        parts: dict[str, Part] = {
            "codes": tensors.part(f"{module}.qweight", ("I32",), (n_columns * bits // 32, n_rows), along=1),
            "zeros": tensors.part(
                f"{module}.qzeros", ("I32",), (n_groups, n_rows * bits // 32), along=1, rows=32, items=bits
            ),
            "scales": tensors.part(f"{module}.scales", PLAIN, (n_groups, n_rows), along=1),
        }
        if tensors.get(f"{module}.g_idx") is not None:
            parts["g_idx"] = tensors.part(f"{module}.g_idx", ("I32",), (n_columns,))
        elif own.flag("desc_act") and n_groups > 1:
            raise Unconvertible(f"its module `{module}` has sorted columns (`desc_act`), and no `g_idx` says how")
        n_codes = 1 << bits
        low, high = (-n_codes // 2, n_codes // 2 - 1) if is_symmetric else (-n_codes, n_codes - 1)
        expected = "F16" if own.flag("desc_act") or group % 32 else integer_type(low, high, n_columns)
        options = {
            "bits": bits, "group": group, "n_columns": n_columns, "symmetric": int(is_symmetric),
            "stored_less": self.stored_less, "less_by_word": int(self.less_by_word), "planes": int(is_in_planes),
        }  # fmt: skip
        error = ROUNDED if expected == "F16" or parts["scales"].tensor.dtype == "F32" else 0.0
        label = f"GPTQ with {bits} bits" + (" and sorted columns" if own.flag("desc_act") else "")
        doubt = _LOST_ZEROS if not is_symmetric and self.stored_less and not self.less_by_word else ""
        return StoredMatrix(
            "gptq", (n_rows, n_columns), parts, label, expected, error, options, row_step=32, doubt=doubt
        )

    def _own(self, module: str) -> Hyperparameters | None:
        """The settings of one module; None where it is left out. The first expression that matches decides."""
        for key, changes in self.dynamic.items():
            sign, pattern = (key[0], key[2:]) if key.startswith(("+:", "-:")) else ("+", key)
            if self.names.match(pattern, module):
                return None if sign == "-" else self.values.changed(changes)
        return self.values


def read(config: dict[str, Any]) -> GptqScheme:
    """The scheme of a configuration whose `quant_method` is gptq. Raises Unconvertible."""
    values = Hyperparameters(config, {})
    for key in ("sym", "desc_act", "static_groups", "true_sequential", "lm_head"):
        values.flag(key)
    for key in ("checkpoint_format", "format"):
        values.require(key, *_FORMS, default="gptq")
    values.require("is_marlin_format", False, default=False)
    values.require("pack_dtype", "int32", default="int32")
    versions = {config[key] for key in ("checkpoint_format", "format") if config.get(key) is not None}
    if len(versions) > 1:
        raise Unconvertible("its quantisation has two versions of GPTQ, `checkpoint_format` and `format`")
    _bits(values, PLANES in versions), _group(values)
    dynamic = config.get("dynamic") or {}
    if not isinstance(dynamic, dict) or len(dynamic) > MAX_PATTERNS or not all(
        isinstance(changes, dict) for changes in dynamic.values()
    ):  # fmt: skip
        raise Unconvertible("its quantisation has an impossible `dynamic`")
    is_first = versions <= {"gptq"}
    meta = config.get("meta")
    quantizer = meta.get("quantizer") if isinstance(meta, dict) else None
    less_by_word = is_first and "gptqmodel" in str(quantizer)[:256]
    return GptqScheme(values, PLANES in versions, int(is_first), less_by_word, dynamic)


def _bits(values: Hyperparameters, has_planes: bool) -> int:
    values.require("bits", *BITS)
    bits = values.integer("bits")
    if bits in ONLY_IN_PLANES and not has_planes:
        raise Unconvertible(f"its quantisation has {bits} bits, which GPTQ has in the format `{PLANES}` alone")
    return bits


def _group(values: Hyperparameters) -> int:
    group = values.integer("group_size", minimum=-1, maximum=MAX_GROUP)
    if group == 0:
        raise Unconvertible("its quantisation has groups of 0 columns")
    return group
