"""Folders of golden families with quantised weights, and the same models with plain ones."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.golden.weights import Tensor, checkpoint, write_folder, write_json, write_safetensors
from tests.quantised_llama import LAYOUTS

MODULES = ("_proj", "_with_mqa", "in_proj_qkvz", "in_proj_qkv", "in_proj_z", "indexer.wk")


def write_both(
    family: str,
    layout: str,
    folder: Path,
    more: Mapping[str, Tensor] | None = None,
    *,
    experts_alone: bool = False,
) -> tuple[Path, Path]:
    """Two folders: one with quantised weights of attention and feed-forward layers, one with what they are in F32.

    There are `more` tensors beside the quantised ones. With `experts_alone` only experts are quantised.
    """
    write, settings = LAYOUTS[layout]
    random = np.random.default_rng(3)
    config, tensors = checkpoint(family, "5")
    stored: dict[str, Tensor] = dict(more or {})
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        is_fit = len(tensor[1]) == 2 and tensor[1][1] % 32 == 0
        is_expert, is_module = ".experts." in name, module.endswith(MODULES) and not module.endswith("_res_proj")
        if not is_fit or not (is_expert if experts_alone else is_module and not is_expert):
            stored[name] = plain[name] = tensor
            continue
        parts, read = write(random, *tensor[1])
        stored |= {f"{module}.{part}": (found.dtype, found.shape, found.data) for part, found in parts.items()}
        plain[name] = ("F32", tensor[1], read.astype("<f4").tobytes())
    folders = [write_folder(family, folder / name, "5") for name in ("stored", "plain")]
    write_json(folders[0] / "config.json", config | {"quantization_config": settings})
    for path, found in zip(folders, (stored, plain), strict=True):
        write_safetensors(path / "model.safetensors", found)
    return folders[0], folders[1]
