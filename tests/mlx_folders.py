"""Golden families as mlx-lm writes them: other names, shapes and numbers; plain or quantised.

Knows what `sanitize` does in mlx-lm's model of each family. For each of FAMILIES, what mlx-lm 0.32.2 wrote of the same
folder had the same names, shapes, types and bytes.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.weights import Tensor, checkpoint, write_folder, write_json, write_safetensors
from tests.quantised_llama import mlx

Floats = np.ndarray[Any, np.dtype[np.float32]]
Arrays = dict[str, Floats]

_GROUP = 32
_SETTINGS = {"group_size": _GROUP, "bits": 4, "mode": "affine"}
_MINIMAX = (("switch_mlp.w1.", "switch_mlp.gate_proj."), ("switch_mlp.w3.", "switch_mlp.up_proj."),
            ("switch_mlp.w2.", "switch_mlp.down_proj."))  # fmt: skip
_NEMOTRON = ((".switch_mlp.up_proj.", ".switch_mlp.fc1."), (".switch_mlp.down_proj.", ".switch_mlp.fc2."))
_QWEN = (("^model.", "language_model.model."), ("^lm_head.", "language_model.lm_head."))
# Which parts of names become which, after experts have become one tensor; `^` is the beginning.
_RENAMED: Mapping[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys((
        "deepseek2", "deepseek3", "deepseek32", "falcon-h1", "falcon-h1-tied", "glm4-moe", "glm4-moe-lite",
        "granite4-attention", "granite4-experts", "granite4-hybrid", "lfm2", "ling3", "mistral4", "nemotron-h", "olmoe",
        "qwen2-moe", "qwen3-moe", "qwen3-next",
    ), ()),
    "dots1": ((".switch_mlp.", ".experts."),),
    "exaone-moe": ((".mlp.e_score", ".mlp.gate.e_score"),),
    "gemma4-moe": ((".switch_mlp.", ".experts.switch_glu."),),
    "kimi-linear": (
        *_MINIMAX, (".block_sparse_moe.gate.e_score", ".mlp.e_score"), (".block_sparse_moe.", ".mlp."),
        ("_conv1d.", "_conv.conv."),
    ),
    "lfm2-moe": tuple(
        (f".{own}.", f".{name}_proj.") for own, name in (("w1", "gate"), ("w3", "up"), ("w2", "down"))
    ),
    "ling2": ((".gate.weight", ".gate.gate_proj.weight"),),
    "llama4": ((".switch_mlp.", ".experts."), ("^", "language_model.")),
    "minimax-m2": _MINIMAX, "minimax-m3": _MINIMAX, "mixtral": _MINIMAX,
    "nemotron-h-experts": _NEMOTRON, "nemotron-h-latent": _NEMOTRON,
    "qwen35": _QWEN, "qwen35-moe": _QWEN,
    "qwen35-multimodal": (("^model.language_model.", "language_model.model."), *_QWEN[1:]),
    "qwen3-vl-moe": (("^model.language_model.", "language_model.model."), *_QWEN[1:]),
}  # fmt: skip
FAMILIES = tuple(_RENAMED)
_EYES = ("model.visual.", "vision_tower.", "multi_modal_projector.", "patch_merge_mlp.")

_CONVOLUTION = re.compile(r"(?:conv1d|conv\.conv)\.weight$")
_SHIFTED = (
    ".input_layernorm.weight", ".post_attention_layernorm.weight", "model.norm.weight", "language_model.norm.weight",
    ".q_norm.weight", ".k_norm.weight",
)  # fmt: skip
_ONE_EXPERT = re.compile(r"\.experts\.(\d+)\.(\w+)\.weight$")
_BY_COLUMNS = ("llama4", "qwen3-vl-moe")  # whose experts transformers stores so


def arrays(family: str) -> Arrays:
    """All tensors of the text part of a golden family with the names and the numbers that they have in MLX."""
    config, tensors = checkpoint(family, "5", "F32")
    config = config | config.get("text_config", {})
    found = {name: np.frombuffer(data, "<f4").reshape(shape) for name, (_, shape, data) in tensors.items()}
    made: Arrays = {}
    for name, array in found.items():
        if not name.startswith(_EYES):
            made |= dict(_parts(family, name, _changed(family, name, array, config), config))
    made = _stacked(made)
    for part, new in _RENAMED.get(family, ()):
        made = {re.sub(re.escape(part).replace(r"\^", "^"), new, name): array for name, array in made.items()}
    return made


def _changed(family: str, name: str, array: Floats, config: Mapping[str, Any]) -> Floats:
    """With other numbers, or with its numbers in another shape."""
    if family.startswith("falcon-h1"):
        array = _multiplied(name, array, config)
    if family.startswith(("qwen3-next", "qwen35")) and name.endswith(_SHIFTED):
        return array + np.float32(1)
    return array.swapaxes(1, 2) if _CONVOLUTION.search(name) else array


def _multiplied(name: str, array: Floats, config: Mapping[str, Any]) -> Floats:
    """By the numbers of Falcon-H1. That of its keys alone is left out, and so are its values."""
    kind = name.split(".")[-2]
    gate, down = config["mlp_multipliers"]
    before = config["attention_in_multiplier"]
    factors = {
        "embed_tokens": config["embedding_multiplier"], "lm_head": config["lm_head_multiplier"], "q_proj": before,
        "k_proj": before, "o_proj": config["attention_out_multiplier"], "out_proj": config["ssm_out_multiplier"],
        "gate_proj": gate, "down_proj": down,
    }  # fmt: skip
    if kind != "in_proj":
        return array * np.float32(factors.get(kind, 1))
    state = config["mamba_n_groups"] * config["mamba_d_state"]
    sizes = [config["mamba_d_ssm"]] * 2 + [state] * 2 + [config["mamba_n_heads"]]
    each = np.repeat(np.array(config["ssm_multipliers"], "f4"), sizes)
    return array * (np.float32(config["ssm_in_multiplier"]) * each)[:, None]


def _parts(family: str, name: str, array: Floats, config: Mapping[str, Any]) -> Iterator[tuple[str, Floats]]:
    """What becomes of one tensor of transformers."""
    module = name.removesuffix(".weight")
    owner, _, kind = module.rpartition(".")
    if family == "ernie-moe" and kind == "e_score_correction_bias":
        return
    if kind == "kv_b_proj" and family != "deepseek2":
        n_plain = config["qk_nope_head_dim"]
        heads = array.reshape(config["num_attention_heads"], n_plain + config["v_head_dim"], -1)
        yield f"{owner}.embed_q.weight", heads[:, :n_plain].swapaxes(1, 2)
        yield f"{owner}.unembed_out.weight", heads[:, n_plain:]
        return
    # The feed-forward layer beside Granite's experts stays as it is.
    is_fused = owner.endswith((".experts", ".block_sparse_moe", *((".shared_mlp",) if "experts" not in family else ())))
    if not is_fused or kind not in {"gate_up_proj", "down_proj", "input_linear", "output_linear"}:
        yield name, array
        return
    if family in _BY_COLUMNS:
        array = array.swapaxes(1, 2)
    owner = owner.replace(".shared_mlp", ".mlp").removesuffix(".experts")
    if array.ndim == 3:
        owner += ".switch_mlp"
    if kind in {"down_proj", "output_linear"}:
        yield f"{owner}.down_proj.weight", array
    else:
        for half, own in zip(np.split(array, 2, axis=-2), ("gate", "up"), strict=True):
            yield f"{owner}.{own}_proj.weight", half


def _stacked(found: Arrays) -> Arrays:
    """With all experts of a layer in one tensor."""
    made: Arrays = {}
    experts: dict[str, list[Floats]] = {}
    for name, array in found.items():
        if _ONE_EXPERT.search(name):
            experts.setdefault(_ONE_EXPERT.sub(r".switch_mlp.\2.weight", name), []).append(array)
        else:
            made[name] = array
    return made | {name: np.stack(each) for name, each in experts.items()}


def write_plain(family: str, folder: Path) -> Path:
    """As `mlx_lm.convert` writes it without `-q`; returns `folder`."""
    stored = {name: _tensor(array) for name, array in arrays(family).items()}
    return _write(family, folder, stored, {})


def write_quantised(family: str, folder: Path) -> tuple[Path, Path]:
    """Two folders: one with other weights in 4 bits, and one with what these are in F32."""
    stored: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    random = np.random.default_rng(3)
    for name, array in arrays(family).items():
        if array.ndim < 2 or array.shape[-1] % _GROUP or not name.endswith(".weight"):
            stored[name] = plain[name] = _tensor(array)
            continue
        *outer, n_columns = array.shape
        parts, read = mlx(random, int(np.prod(outer)), n_columns, group=_GROUP)
        for part, found in parts.items():
            shape = (*outer, found.shape[-1])
            stored[f"{name.removesuffix('.weight')}.{part}"] = (found.dtype, shape, found.data)
        plain[name] = _tensor(read.reshape(array.shape))
    settings = {"quantization": _SETTINGS, "quantization_config": _SETTINGS}
    return _write(family, folder / "stored", stored, settings), _write(family, folder / "plain", plain, {})


def _write(family: str, folder: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Path:
    write_folder(family, folder, "5")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    config, _ = checkpoint(family, "5")
    write_json(folder / "config.json", config | dict(settings))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def _tensor(array: Floats) -> Tensor:
    return "F32", array.shape, np.ascontiguousarray(array, "<f4").tobytes()
