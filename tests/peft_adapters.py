"""Writes LoRA adapters as PEFT does, with random weights, and adds them to the weights of a checkpoint.

The same arguments give the same bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.golden.weights import Numbers
from tests.tiny_checkpoints import Weights, encode_safetensors, random_weights

RANK, ALPHA = 4, 6
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
    "base_model_name_or_path": "somebody/tiny", "init_lora_weights": True, "modules_to_save": None, "use_dora": False,
    "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, "target_modules": ["q_proj"],
    "task_type": "CAUSAL_LM", "layer_replication": None, "target_parameters": None, "loftq_config": {},
}  # fmt: skip
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "wpe")
CONV1D = ("c_attn", "c_proj", "c_fc")  # their weights have a row for each input


def pairs(
    tensors: Mapping[str, Weights], modules: tuple[str, ...], *, rank: int = RANK, seed: int = 0, dtype: str = "F32"
) -> dict[str, Weights]:
    """What PEFT stores for the weights of a checkpoint whose names end with one of the `modules`."""
    random, found = Random(seed), {}
    for name, weights in tensors.items():
        module = name.removesuffix(".weight")
        if not name.endswith(".weight") or not module.endswith(modules):
            continue
        rows, columns = weights.shape[::-1] if module.endswith(CONV1D) else weights.shape
        a, b = ("lora_A.weight", "lora_B.weight")
        if module.endswith(EMBEDDINGS):
            a, b, rows, columns = "lora_embedding_A", "lora_embedding_B", columns, rows
        found[f"base_model.model.{module}.{a}"] = random_weights(random, (rank, columns), dtype, 0.3)
        found[f"base_model.model.{module}.{b}"] = random_weights(random, (rows, rank), dtype, 0.3)
    assert found
    return found


def write_adapter(folder: Path, tensors: Mapping[str, Weights], **changes: Any) -> Path:
    """Write both files into `folder`; None removes a key of the usual config. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None or key not in changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(encode_safetensors(tensors))
    return folder


def numbers(weights: Weights) -> Numbers:
    """In the shape of the weights, as F64."""
    if weights.dtype == "BF16":
        wide = np.frombuffer(weights.data, "<u2").astype("<u4") << 16
        return wide.view("<f4").astype(np.float64).reshape(weights.shape)
    form = {"F32": "<f4", "F16": "<f2"}[weights.dtype]
    return np.frombuffer(weights.data, form).astype(np.float64).reshape(weights.shape)


def merged(
    tensors: Mapping[str, Weights], adapter: Mapping[str, Weights], scales: Mapping[str, float] | float
) -> dict[str, Weights]:
    """The checkpoint with `scale * B @ A` added to what the adapter changes; one scale, or by the end of a module."""
    found = dict(tensors)
    for name, weights in adapter.items():
        if not name.endswith(("lora_A.weight", "lora_embedding_A")):
            continue
        module = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
        b = adapter[name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
        scale = (
            scales if isinstance(scales, float | int) else next(s for end, s in scales.items() if module.endswith(end))
        )
        delta = scale * (numbers(b) @ numbers(weights))
        if module.endswith((*EMBEDDINGS, *CONV1D)):
            delta = delta.T
        base = found[f"{module}.weight"]
        found[f"{module}.weight"] = Weights(base.shape, (numbers(base) + delta).astype("<f4").tobytes())
    return found
