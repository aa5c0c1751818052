"""AWQ as AutoAWQ's GEMM version writes it: integers of 4 bits with zero points, in groups of columns.

Knows its configuration, old and new. Defined in AutoAWQ's `modules/linear/gemm.py` and `utils/packing_utils.py`.
"""

from dataclasses import dataclass
from typing import Any

from shimmy.formats.convert.hyperparameters import Hyperparameters
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised.gptq import MAX_GROUP
from shimmy.formats.quantised.stored import PLAIN, ROUNDED, StoredMatrix, Tensors, integer_type, is_plain

_PER_WORD = 8


@dataclass(frozen=True, slots=True)
class AwqScheme:
    """Columns in a group; -1 for whole rows."""

    group: int
    ignored_suffixes: tuple[str, ...] = ()
    stacks_experts: bool = False

    def find(self, module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix | None:
        if is_plain(f"{module}.weight", tensors):
            return None
        n_rows, n_columns = shape
        group = n_columns if self.group == -1 else self.group
        if n_rows % _PER_WORD or n_columns % group:
            raise Unconvertible(f"its module `{module}` has {n_rows} x {n_columns} weights, which AWQ cannot pack")
        n_groups, n_words = n_columns // group, n_rows // _PER_WORD
        parts = {
            "codes": tensors.part(f"{module}.qweight", ("I32",), (n_columns, n_words), along=1, rows=_PER_WORD),
            "zeros": tensors.part(f"{module}.qzeros", ("I32",), (n_groups, n_words), along=1, rows=_PER_WORD),
            "scales": tensors.part(f"{module}.scales", PLAIN, (n_groups, n_rows), along=1),
        }
        expected = "F16" if group % 32 else integer_type(-15, 15, n_columns)
        error = ROUNDED if expected == "F16" or parts["scales"].tensor.dtype == "F32" else 0.0
        options = {"group": group, "n_columns": n_columns}
        return StoredMatrix("awq", (n_rows, n_columns), parts, "AWQ", expected, error, options, row_step=_PER_WORD)


def read(config: dict[str, Any]) -> AwqScheme:
    """The scheme of a configuration whose `quant_method` is awq. Raises Unconvertible."""
    values = Hyperparameters({key: _lowered(value) for key, value in config.items()}, {})
    values.require("version", "gemm", default="gemm")
    for key in ("bits", "w_bit"):
        values.require(key, 4, default=4)
    values.require("zero_point", True, default=True)
    group = values.integer("group_size", "q_group_size", minimum=-1, maximum=MAX_GROUP)
    if group == 0:
        raise Unconvertible("its quantisation has groups of 0 columns")
    return AwqScheme(group)


def _lowered(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value
