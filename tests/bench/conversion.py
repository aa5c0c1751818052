"""How fast a SafeTensors folder becomes a GGUF, beside copying the same bytes, and how much memory that takes.

python -m tests.bench.conversion [--gigabytes 2] [--rounds 3] [--folder /tmp]

The checkpoint is a Llama with BF16 weights of no meaning. Copy and conversion take turns, and both count until the disk
has what they wrote.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

from tests.bench.peers import shimmy_program
from tests.tiny_checkpoints import LLAMA_CONFIG, N_VOCAB, write_tokenizer

HIDDEN, FEED_FORWARD, N_HEADS, N_KV_HEADS = 2048, 8192, 32, 8
BLOCK_BYTES = 1 << 22


def write_large_llama(folder: Path, n_bytes: int) -> Path:
    """A folder of about `n_bytes`; returns the file with its tensors."""
    kv_rows = HIDDEN // N_HEADS * N_KV_HEADS
    layer = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (kv_rows, HIDDEN),
        "self_attn.v_proj": (kv_rows, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (FEED_FORWARD, HIDDEN), "mlp.up_proj": (FEED_FORWARD, HIDDEN),
        "mlp.down_proj": (HIDDEN, FEED_FORWARD), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
    }  # fmt: skip
    n_layers = max(1, n_bytes // sum(2 * prod(shape) for shape in layer.values()))
    shapes = {"model.embed_tokens": (N_VOCAB, HIDDEN), "model.norm": (HIDDEN,)}
    shapes |= {f"model.layers.{n}.{name}": shape for n in range(n_layers) for name, shape in layer.items()}
    entries, end = {}, 0
    for name, shape in shapes.items():
        entries[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    header = json.dumps(entries).encode()
    block = bytes(byte & 0x3F for byte in os.urandom(BLOCK_BYTES))  # small numbers, and no NaN
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, end, BLOCK_BYTES):
            file.write(block[: min(BLOCK_BYTES, end - start)])
    sizes = {"hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "num_hidden_layers": n_layers}
    heads = {"num_attention_heads": N_HEADS, "num_key_value_heads": N_KV_HEADS, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(LLAMA_CONFIG | sizes | heads | {"torch_dtype": "bfloat16"}))
    write_tokenizer(folder)
    return path


def timed_copy(source: Path, target: Path) -> float:
    started_s = time.perf_counter()
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, BLOCK_BYTES)
    _sync(target)
    return time.perf_counter() - started_s


def timed_conversion(folder: Path, target: Path) -> float:
    started_s = time.perf_counter()
    subprocess.run([shimmy_program(), "convert", folder, "-o", target], check=True, stdout=subprocess.DEVNULL)
    _sync(target)
    return time.perf_counter() - started_s


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.conversion", description=str(__doc__).splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as text:
        folder = Path(text) / "checkpoint"
        folder.mkdir()
        source = write_large_llama(folder, int(options.gigabytes * 1e9))
        _sync(source)
        n_bytes = source.stat().st_size
        copies, conversions = [], []
        for _ in range(options.rounds):
            copies.append(timed_copy(source, Path(text) / "copy"))
            (Path(text) / "copy").unlink()
            conversions.append(timed_conversion(folder, Path(text) / "made.gguf"))
            (Path(text) / "made.gguf").unlink()
    ratios = [copy / conversion for copy, conversion in zip(copies, conversions, strict=True)]
    print(f"{n_bytes / 1e9:.2f} GB; copied in {_seconds(copies)}, converted in {_seconds(conversions)}")
    print(f"speed beside a copy: median {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    most_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    print(f"most memory of a conversion: {most_mb:.0f} MB resident")
    return 0


def _seconds(durations_s: list[float]) -> str:
    return f"{statistics.median(durations_s):.2f} s ({min(durations_s):.2f}-{max(durations_s):.2f})"


if __name__ == "__main__":
    sys.exit(main())
