"""bitsandbytes: NF4 and FP4 in blocks of the flattened matrix, int8 with one scale for a row.

Knows its configuration. Defined in bitsandbytes' `functional.py` and `nn/modules.py`.
"""

import math
from dataclasses import dataclass
from typing import Any

from shimmy.formats.convert.hyperparameters import Hyperparameters
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised.stored import ROUNDED, Part, StoredMatrix, Tensors, integer_type, is_plain
from shimmy.formats.safetensors.checkpoint import shown

_STORAGE_BYTES = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}
_BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
_NESTED_BLOCK = 256
_MAX_STATE_BYTES = 4096
_STATE = "weight.quant_state.bitsandbytes__"


@dataclass(frozen=True, slots=True)
class BitsAndBytesScheme:
    """4 or 8 bits; which 4-bit type a weight has, the name of its state tells."""

    bits: int
    ignored_suffixes: tuple[str, ...] = ()
    stacks_experts: bool = False

    def find(self, module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix | None:
        if self.bits == 8:
            return None if is_plain(f"{module}.weight", tensors) else _int8(module, shape, tensors)
        if tensors.get(f"{module}.weight.absmax") is None and is_plain(f"{module}.weight", tensors):
            return None
        return _four_bits(module, shape, tensors)


def read(config: dict[str, Any]) -> BitsAndBytesScheme:
    """The scheme of a configuration whose `quant_method` is bitsandbytes. Raises Unconvertible."""
    values = Hyperparameters(config, {})
    is_4_bit = values.flag("load_in_4bit") or values.flag("_load_in_4bit")
    is_8_bit = values.flag("load_in_8bit") or values.flag("_load_in_8bit")
    if is_4_bit == is_8_bit:
        raise Unconvertible("its quantisation by bitsandbytes has neither 4 nor 8 bits, or both")
    values.require("bnb_4bit_quant_type", "nf4", "fp4", default="fp4")
    return BitsAndBytesScheme(4 if is_4_bit else 8)


def _int8(module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix:
    n_rows, n_columns = shape
    parts = {
        "codes": tensors.part(f"{module}.weight", ("I8",), (n_rows, n_columns), along=0),
        "scales": tensors.part(f"{module}.SCB", ("F32",), (n_rows,), along=0),
        "format": tensors.part(f"{module}.weight_format", ("U8",), (), (1,)),
    }
    options = {"bits": 8, "n_columns": n_columns}
    expected = integer_type(-128, 127, n_columns)
    return StoredMatrix(
        "bitsandbytes", (n_rows, n_columns), parts, "bitsandbytes int8", expected, ROUNDED, options
    )  # fmt: skip


def _four_bits(module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix:
    n_rows, n_columns = shape
    n, name = n_rows * n_columns, f"{module}.weight"
    kind = next((kind for kind in ("nf4", "fp4") if tensors.get(f"{module}.{_STATE}{kind}") is not None), "")
    sizes, stored = tensors.get(f"{name}.absmax"), tensors.get(name)
    if not kind or sizes is None or stored is None or len(sizes.shape) != 1 or stored.dtype not in _STORAGE_BYTES:
        raise Unconvertible(f"its tensor `{shown(name)}` is not what bitsandbytes writes for 4 bits")
    block = next((block for block in _BLOCKS if -(-n // block) == sizes.shape[0]), 0)
    if not block:
        raise Unconvertible(
            f"its tensor `{shown(name)}.absmax` has {sizes.shape[0]} numbers, which no block size gives"
        )
    if n_columns == 1:
        raise Unconvertible(f"its tensor `{shown(name)}` has one column, and no row of 4 bits ends with a byte")
    width = _STORAGE_BYTES[stored.dtype]
    n_items = -(-n // (2 * width))
    is_nested = sizes.dtype == "U8"
    together = block * _NESTED_BLOCK if is_nested else block
    parts = {
        "codes": tensors.part(
            name, (stored.dtype,), (n_items, 1), (1, n_items), (n_items,),
            along=stored.shape.index(n_items) if n_items in stored.shape else 0, rows=2 * width, items=n_columns,
        ),
        "sizes": tensors.part(
            f"{name}.absmax", ("U8",) if is_nested else ("F32",), sizes.shape, along=0, rows=block, items=n_columns
        ),
        "table": tensors.part(f"{name}.quant_map", ("F32",), (16,)),
        "state": _state(f"{module}.{_STATE}{kind}", tensors),
    }  # fmt: skip
    if is_nested:
        parts["nested_sizes"] = tensors.part(
            f"{name}.nested_absmax", ("F32",), (-(-sizes.shape[0] // _NESTED_BLOCK),),
            along=0, rows=together, items=n_columns,
        )  # fmt: skip
        parts["nested_table"] = tensors.part(f"{name}.nested_quant_map", ("F32",), (256,))
    options = {
        "bits": 4, "block": block, "nested_block": _NESTED_BLOCK, "fp4": int(kind == "fp4"),
        "n_rows": n_rows, "n_columns": n_columns,
    }  # fmt: skip
    label = f"bitsandbytes {kind.upper()}"
    row_step = together // math.gcd(together, n_columns)
    return StoredMatrix("bitsandbytes", (n_rows, n_columns), parts, label, "F16", ROUNDED, options, row_step)


def _state(name: str, tensors: Tensors) -> Part:
    tensor = tensors.get(name)
    if tensor is None or len(tensor.shape) != 1 or tensor.n_bytes > _MAX_STATE_BYTES:
        raise Unconvertible(f"its tensor `{shown(name)}` is too long")
    return tensors.part(name, ("U8",), tensor.shape)
