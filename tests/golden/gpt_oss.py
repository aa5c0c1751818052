"""Records what `transformers` computes with a tiny gpt-oss in MXFP4: `python -m tests.golden.gpt_oss`.

Runs in the environment with transformers 5 (README.md). It holds the experts in F32, dequantised here by the format's
definition; `families.py` records the other families.
"""

import json
import tempfile
from array import array
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.golden import weights
from tests.golden.families import COMMON, STYLE, Family, dump, log_probs, prompts

NAME, SEED = "gpt-oss", "gpt-oss-35"
SETTINGS: dict[str, Any] = COMMON | {
    "head_dim": 32, "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 16, "num_hidden_layers": 2,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0,
        "beta_slow": 1.0, "truncate": True,  # gpt-oss has False, which llama.cpp does not compute
    },
    "rope_theta": 5000.0,
}  # fmt: skip
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def numbers(tensor: weights.Tensor) -> torch.Tensor:
    dtype, shape, data = tensor
    if dtype == "U8":
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape)
    return torch.tensor(array("f", data)).reshape(shape)


def experts(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """[experts, row length, rows], as transformers has it."""
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
    found = E2M1[codes] * 2.0 ** (scales.float() - 127).unsqueeze(-1)
    return found.flatten(-2).transpose(1, 2)


def main() -> None:
    config = transformers.GptOssConfig(**SETTINGS)
    model = transformers.GptOssForCausalLM._from_config(config, attn_implementation="eager", dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        config.architectures = ["GptOssForCausalLM"]
        config.save_pretrained(folder)
        saved = json.loads((Path(folder) / "config.json").read_text())
    saved["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    shapes: dict[str, list[int]] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            n_experts, n_columns, n_rows = tensor.shape
            shapes[f"{name}_blocks"] = [n_experts, n_rows, n_columns // 32, 16]
            shapes[f"{name}_scales"] = [n_experts, n_rows, n_columns // 32]
        else:
            shapes[name] = [*tensor.shape]
    content: dict[str, Any] = {
        "made_with": {STYLE: [transformers.__version__, torch.__version__]}, "seed": SEED, "dtype": "F32",
        "n_tokens": weights.N_VOCAB, "configs": {"4": saved, "5": saved}, "files": {"model.safetensors": shapes},
        "extra_files": {},
    }  # fmt: skip
    path = weights.FOLDER / f"{NAME}.json"
    path.write_text(dump(content))
    weights.golden.cache_clear()
    _, tensors = weights.checkpoint(NAME, "5")
    state = {name: numbers(tensor) for name, tensor in tensors.items()}
    for name in [name.removesuffix("_blocks") for name in state if name.endswith("_blocks")]:
        state[name] = experts(state.pop(f"{name}_blocks"), state.pop(f"{name}_scales"))
    model.load_state_dict(state)
    model.eval()
    content["prompts"] = log_probs(list(prompts(SEED, Family("GptOssForCausalLM", SETTINGS))), model)
    path.write_text(dump(content))


if __name__ == "__main__":
    main()
