"""compressed-tensors, as llm-compressor writes it: groups of modules, each with a format of its own.

Knows `config_groups` and which module is of which group. Defined in compressed-tensors' `compressors/`.
"""

from dataclasses import dataclass, field
from typing import Any

from shimmy.formats.convert.hyperparameters import Hyperparameters
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised import fp8
from shimmy.formats.quantised.fp4 import mxfp4, nvfp4
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
from shimmy.formats.safetensors.checkpoint import shown, shown_value

FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mxfp4-pack-quantized",
    "nvfp4-pack-quantized", "mxfp8-quantized",
)  # fmt: skip
_IGNORED = (".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".k_scale", ".v_scale",
            ".q_scale", ".k_zero_point", ".v_zero_point")  # fmt: skip
_STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")


@dataclass(frozen=True, slots=True)
class CompressedGroup:
    """Modules that are quantised alike."""

    targets: tuple[str, ...]
    format: str
    bits: int
    is_float: bool
    is_symmetric: bool
    strategy: str
    columns: int  # of a group; 0: the whole row
    block: tuple[int, int] | None
    sorts: bool


@dataclass(frozen=True, slots=True)
class CompressedScheme:
    """All groups."""

    groups: tuple[CompressedGroup, ...]
    ignored_suffixes: tuple[str, ...] = _IGNORED
    stacks_experts: bool = False
    names: ModuleNames = field(default_factory=ModuleNames)

    def find(self, module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix | None:
        if is_plain(f"{module}.weight", tensors):
            return None
        name = f"{module}.weight_packed" if tensors.get(f"{module}.weight_packed") is not None else f"{module}.weight"
        group = self._group(tensors.full_name(name).rpartition(".")[0])
        if group.format == "mxfp4-pack-quantized":
            return mxfp4(name, f"{module}.weight_scale", shape, tensors)
        if group.format == "nvfp4-pack-quantized":
            return nvfp4(name, module, "weight_global_scale", shape, tensors, reciprocal=True)
        if group.format == "mxfp8-quantized":
            return fp8.matrix(module, shape, tensors, (1, 32))
        if group.is_float:
            block = (1, group.columns) if group.columns else group.block if group.strategy == "block" else None
            return fp8.matrix(module, shape, tensors, block)
        return _integers(module, shape, tensors, group)

    def _group(self, module: str) -> CompressedGroup:
        """The group that names the module, else one of its class: all quantised modules are linear ones."""
        for group in self.groups:
            if any(self._names(target, module) for target in group.targets):
                return group
        for group in self.groups:
            if "Linear" in group.targets or (module.endswith("embed_tokens") and "Embedding" in group.targets):
                return group
        raise Unconvertible(f"its module `{shown(module)}` is quantised, and is in none of its `config_groups`")

    def _names(self, target: str, module: str) -> bool:
        pattern = target.removeprefix("re:")
        return self.names.match(pattern, module) if target.startswith("re:") else target == module


def read(config: dict[str, Any]) -> CompressedScheme:
    """The scheme of a configuration whose `quant_method` is compressed-tensors. Raises Unconvertible."""
    values = Hyperparameters(config, {})
    values.require("quantization_status", "compressed", "frozen", default="compressed")
    sparsity = config.get("sparsity_config")
    if sparsity and (not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense"):
        raise Unconvertible("its weights are sparse (`sparsity_config`), which is not supported")
    transform = config.get("transform_config")
    if transform and (not isinstance(transform, dict) or transform.get("config_groups")):
        raise Unconvertible("its weights are rotated (`transform_config`), which is not supported")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups or len(groups) > MAX_PATTERNS:
        raise Unconvertible("its quantisation has no `config_groups`")
    return CompressedScheme(tuple(_read_group(group, config.get("format")) for group in groups.values()))


def _read_group(group: Any, default_format: Any) -> CompressedGroup:
    if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
        raise Unconvertible("one of its `config_groups` says nothing of weights")
    targets = group.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise Unconvertible("one of its `config_groups` has no `targets`")
    found = group.get("format") or default_format
    if found not in FORMATS:
        raise Unconvertible(f"its format `{shown_value(found)}` of compressed-tensors is not supported")
    values = Hyperparameters(group["weights"], {})
    values.require("type", "int", "float", default="int")
    values.require("strategy", *_STRATEGIES, default="tensor" if values.get("group_size") is None else "group")
    values.require("dynamic", False, default=False)
    values.require("actorder", "group", "weight", "static", "dynamic", True, False, default=False)
    strategy = str(values.get("strategy") or ("tensor" if values.get("group_size") is None else "group"))
    is_float = values.get("type") == "float"
    bits = values.integer("num_bits", maximum=8)
    width = {"pack-quantized": bits, "mxfp4-pack-quantized": 4, "nvfp4-pack-quantized": 4}.get(found, 8)
    is_right = found == "naive-quantized" or is_float == (found not in {"pack-quantized", "int-quantized"})
    if bits != width or not is_right:
        raise Unconvertible(f"its format `{found}` of compressed-tensors has impossible bits")
    columns = 0
    if strategy in {"group", "tensor_group"}:
        columns = values.integer("group_size")
    elif values.get("group_size") is not None and found not in {"float-quantized", "naive-quantized"}:
        values.require("group_size", -1)
    block = fp8.block_size(values.get("block_structure"), "block_structure")
    if strategy == "block" and (block is None or not is_float):
        raise Unconvertible("its quantisation in blocks has no `block_structure`")
    return CompressedGroup(
        tuple(targets), str(found), bits, is_float, values.flag("symmetric", default=True), strategy, columns, block,
        values.get("actorder") in {"group", "dynamic", True},
    )  # fmt: skip


def _integers(module: str, shape: tuple[int, ...], tensors: Tensors, group: CompressedGroup) -> StoredMatrix:
    n_rows, n_columns = shape
    columns = group.columns or n_columns
    if n_columns % columns:
        raise Unconvertible(f"its module `{module}` has rows of {n_columns} weights, no multiple of {columns}")
    bits, n_groups, parts = group.bits, n_columns // columns, dict[str, Part]()
    whole_words = 0
    if group.format == "pack-quantized":
        n_dense, n_whole = -(-n_columns * bits // 32), -(-n_columns // (32 // bits))
        codes = tensors.part(f"{module}.weight_packed", ("I32",), (n_rows, n_dense), (n_rows, n_whole), along=0)
        parts["codes"], whole_words = codes, int(codes.tensor.shape[1] != n_dense)
        parts["shape"] = tensors.part(f"{module}.weight_shape", ("I64", "I32"), (2,))
    else:
        parts["codes"] = tensors.part(f"{module}.weight", ("I8",), (n_rows, n_columns), along=0)
    is_of_tensor = group.strategy == "tensor"
    shapes = [(), (1,), (1, 1)] if is_of_tensor else [(n_rows, n_groups), *([(n_rows,)] if n_groups == 1 else [])]
    parts["scales"] = tensors.part(f"{module}.weight_scale", PLAIN, *shapes, along=None if is_of_tensor else 0)
    row_step = 1
    zeros = f"{module}.weight_zero_point"
    if not group.is_symmetric or tensors.get(zeros) is not None:
        row_step = 1 if is_of_tensor or group.format != "pack-quantized" else 32
        parts["zeros"] = _zeros(zeros, group, (n_rows, n_groups), whole_words, tensors)
    if group.sorts and tensors.get(f"{module}.weight_g_idx") is not None:
        parts["g_idx"] = tensors.part(f"{module}.weight_g_idx", ("I32",), (n_columns,))
    elif group.sorts and n_groups > 1:
        raise Unconvertible(f"its module `{module}` has sorted columns (`actorder`), and no `weight_g_idx` says how")
    middle = 1 << bits - 1
    low, high = (-middle, middle - 1) if "zeros" not in parts else (1 - 2 * middle, 2 * middle - 1)
    expected = "F16" if "g_idx" in parts or columns % 32 else integer_type(low, high, n_columns)
    options = {
        "bits": bits, "group": columns, "n_rows": n_rows, "n_columns": n_columns, "whole_words": whole_words,
    }  # fmt: skip
    error = ROUNDED if expected == "F16" or parts["scales"].tensor.dtype == "F32" else 0.0
    label = f"compressed-tensors with {bits} bits"
    return StoredMatrix("packed", (n_rows, n_columns), parts, label, expected, error, options, row_step)


def _zeros(name: str, group: CompressedGroup, shape: tuple[int, int], whole_words: int, tensors: Tensors) -> Part:
    n_rows, n_groups = shape
    if group.strategy == "tensor":
        return tensors.part(name, ("I8",), (), (1,), (1, 1))
    if group.format != "pack-quantized":
        return tensors.part(name, ("I8",), (n_rows, n_groups), (n_rows,), along=0)
    if whole_words:
        per_word = 32 // group.bits
        return tensors.part(name, ("I32",), (-(-n_rows // per_word), n_groups), along=0, rows=per_word)
    n_words = -(-n_rows * group.bits // 32)
    return tensors.part(name, ("I32",), (n_words, n_groups), along=0, rows=32, items=group.bits)
