"""Which quantisation a checkpoint has, by its configuration; what is not understood is refused by name.

Knows the places where tools write their configurations, and which module reads which method.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised import awq, bitsandbytes, compressed, fp4, fp8, gptq, mlx, torchao
from shimmy.formats.quantised.stored import Scheme
from shimmy.formats.safetensors import huggingface
from shimmy.formats.safetensors.checkpoint import Checkpoint, read_json, shown_value


def _auto_round(config: dict[str, Any]) -> Scheme:
    """AutoRound, where it names the layout of another method that it writes."""
    packing = config.get("packing_format")
    if packing == "auto_round:auto_gptq":
        return gptq.read(config)
    if packing == "auto_round:auto_awq":
        return awq.read(config)
    raise Unconvertible(f"its weights are quantised (auto-round, `{shown_value(packing)}`), which is not supported")


_READERS: dict[str, Callable[[dict[str, Any]], Scheme]] = {
    "fp8": fp8.read, "fbgemm_fp8": fp8.read, "gptq": gptq.read, "awq": awq.read,
    "compressed-tensors": compressed.read, "bitsandbytes": bitsandbytes.read, "modelopt": fp4.read_modelopt,
    "mxfp4": fp4.read_mxfp4, "mxfp8": fp8.read_mxfp8, "auto-round": _auto_round, "torchao": torchao.read,
}  # fmt: skip
_TITLES = "FP8, GPTQ, AWQ, compressed-tensors, MXFP4, bitsandbytes, MLX, ModelOpt, torchao"
_MLX_KEY = "quantization"
_KEYS = ("quantization_config", "compression_config", _MLX_KEY)
# Where GPTQ and AWQ had it until 2023, and ModelOpt has it: which method it is then.
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
# What no plain checkpoint has.
_QUANTISED_SUFFIXES = (
    ".qweight", ".qzeros", ".scales", ".weight_scale", ".weight_scale_inv", ".weight_packed", "_blocks", ".g_idx",
    ".absmax", ".quant_map", ".SCB", "._weight_qdata", ".W_q",
)  # fmt: skip


def scheme_of(config: Mapping[str, Any], checkpoint: Checkpoint) -> Scheme | None:
    """How the weights are quantised; None where they are plain. Raises Unconvertible."""
    by_mlx = config.get(_MLX_KEY)
    if isinstance(by_mlx, dict) and {"bits", "group_size"} <= by_mlx.keys():
        return mlx.read(by_mlx)  # whatever it was before, whose method mlx-lm may have kept beside its own settings
    found = next(filter(None, (config.get(key) for key in _KEYS)), None)
    if not found:
        _refuse_unnamed(checkpoint)
        return None
    if not isinstance(found, dict):
        raise Unconvertible("its quantisation is not described by an object")
    method = found.get("quant_method")
    if method is None and by_mlx is not None:
        return mlx.read(found)
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise Unconvertible(
            f"its weights are quantised ({shown_value(method)}); "
            f"what works are weights in BF16, F16 and F32, {_TITLES}, and GGUF"
        )
    return reader(found)


def beside(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with what other files of the folder say of the quantisation, where it says nothing of it itself.

    Raises InvalidSafetensors, and OSError when a file cannot be read.
    """
    if any(config.get(key) for key in _KEYS):
        return dict(config)
    for name, method in _FILES.items():
        if (folder / name).exists():
            found = read_json(folder / name, huggingface.MAX_CONFIG_BYTES)
            return {**config, _KEYS[0]: {"quant_method": method, **found}}
    return dict(config)


def _refuse_unnamed(checkpoint: Checkpoint) -> None:
    """Weights that are quantised, and no configuration says how: refused, not guessed."""
    name = next((name for name in checkpoint.tensors if name.endswith(_QUANTISED_SUFFIXES)), None)
    dtypes = {tensor.dtype for tensor in checkpoint.tensors.values()}
    strange = sorted(dtype for dtype in dtypes if dtype.startswith(("F8_", "F6_")) or dtype == "F4")
    if name is not None or strange:
        label = f" ({strange[0]})" if strange else f" (`{shown_value(name)}`)"
        raise Unconvertible(f"its weights are quantised{label}, and its configuration does not say how")
