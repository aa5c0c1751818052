"""Quantised weights are unpacked piece by piece: memory grows with no checkpoint, nor with one of its matrices."""

import json
import struct
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest

from tests.e2e.harness import PROGRAM, environment
from tests.tiny_checkpoints import LLAMA_CONFIG, N_VOCAB, write_tokenizer

LIMIT_MB = 300  # for a checkpoint of any size; 15 GB of FP8 take 46 MB in the source tree
WIDTH, N_FF, N_HEAD, BLOCK = 4096, 32_768, 32, 128
MATRICES = {
    **dict.fromkeys((f"self_attn.{name}_proj" for name in "qkvo"), (WIDTH, WIDTH)),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (N_FF, WIDTH)),
    "mlp.down_proj": (WIDTH, N_FF),
}
# Runs a command and prints the most memory of it and of all that it has waited for, in kB.
MEASURES = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def write_large_checkpoint(folder: Path) -> int:
    """A Llama with one layer of large matrices in FP8 with a scale for each block; returns their bytes.

    The matrices are holes in the file, so they are zeros and take no room on the disk.
    """
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    tensors = {f"{name}.weight": ("BF16", (N_VOCAB, WIDTH)) for name in ("model.embed_tokens", "lm_head")}
    norms = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    tensors |= {f"{name}.weight": ("BF16", (WIDTH,)) for name in norms}
    for name, (n_rows, n_columns) in MATRICES.items():
        tensors[f"model.layers.0.{name}.weight"] = "F8_E4M3", (n_rows, n_columns)
        tensors[f"model.layers.0.{name}.weight_scale_inv"] = "F32", (n_rows // BLOCK, n_columns // BLOCK)
    header, place = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = place + prod(shape) * {"BF16": 2, "F8_E4M3": 1, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (place, end)}
        place = end
    config = LLAMA_CONFIG | {
        "hidden_size": WIDTH, "intermediate_size": N_FF, "num_hidden_layers": 1, "num_attention_heads": N_HEAD,
        "num_key_value_heads": N_HEAD, "quantization_config": {"quant_method": "fp8", "weight_block_size": [BLOCK] * 2},
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + place)
    return sum(prod(shape) for shape in MATRICES.values())


@pytest.mark.timeout(240)
def test_a_conversion_takes_less_memory_than_the_weights(tmp_path: Path) -> None:
    n_bytes = write_large_checkpoint(tmp_path / "large")
    target = tmp_path / "large.gguf"
    # A process counts what its parent had before it became another program: one between them has little.
    command: list[str | Path] = [sys.executable, "-c", MEASURES, *PROGRAM, "convert", tmp_path / "large", "-o", target]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, check=True)
    assert target.stat().st_size > 2 * n_bytes > 2 * LIMIT_MB * 10**6
    target.unlink()
    assert 10**7 < int(done.stdout.split()[-1]) * 1024 < LIMIT_MB * 10**6
