"""How fast a SafeTensors folder becomes a GGUF, beside copying as many bytes, and how much memory that takes.

python -m tests.bench.conversion [--layouts plain,fp8-block] [--gigabytes 2] [--rounds 3] [--folder /tmp]

The checkpoint is a Llama with weights of no meaning, plain ones in BF16 or quantised ones: one matrix again and again.
Copy and conversion take turns. The copy reads all that the conversion reads and writes as many bytes as it writes, and
both count until the disk has these. A conversion has a start as well, of half a second of a processor: `streaming` says
how the rest compares, which is what a model with one layer does not take. On a busy machine, or a disk that is slower
than memory, the clock tells little of the conversion: what the processors spend on the rest is compared as well, of all
threads together. Memory is the most that the program has at once, all its processes together. `--sparse` leaves seven
of eight large tensors out of the file, which are read as zeros: for checkpoints that are larger than the disk.
"""

import argparse
import contextlib
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from mmap import mmap
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.memory import tree_memory_mb
from tests.bench.peers import shimmy_program
from tests.quantised_llama import LAYOUTS, Layout, fp8_block, mlx
from tests.tiny_checkpoints import LLAMA_CONFIG, N_VOCAB, Weights, write_tokenizer

SIZE, N_HEADS = 4096, 32  # each matrix of a layer has as many rows as columns
SPARSE_BYTES = 1 << 22  # of a tensor that `--sparse` may leave out
KEPT = 8  # one of so many such tensors is written nevertheless
MEMORY_S = 0.25  # between two looks at the memory
COPIED_BYTES = 1 << 18  # at once, always through the same memory: nothing copies with less work
COLUMNS = (
    *("layout", "read, GB", "written, GB", "copied, GB/s", "converted, GB/s"),
    *("beside a copy", "streaming", "in processor time", "MB"),
)
MATRICES = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
PLAIN = "plain"
QUANTISED: Mapping[str, tuple[Layout, dict[str, Any]]] = {
    **LAYOUTS,
    "fp8-row": (partial(fp8_block, block=(1, SIZE)), {"quant_method": "fp8", "weight_block_size": [1, SIZE]}),
    "fp8-block": (partial(fp8_block, block=(128, 128)), {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "mlx-8": (partial(mlx, bits=8), {"bits": 8, "group_size": 32}),
}


@dataclass(frozen=True, slots=True)
class Spent:
    """What a copy or a conversion took."""

    wall_s: float
    processor_s: float
    memory_mb: float = 0.0  # at most, of all processes

    def less(self, other: "Spent") -> "Spent":
        """What is left of it where both have something in common."""
        return Spent(self.wall_s - other.wall_s, self.processor_s - other.processor_s, self.memory_mb)


@dataclass(frozen=True, slots=True)
class Pair:
    """A conversion, and a copy of as many bytes."""

    conversion: Spent
    copy: Spent
    n_written: int

    def less(self, other: "Pair") -> "Pair":
        n_written = self.n_written - other.n_written
        return Pair(self.conversion.less(other.conversion), self.copy.less(other.copy), n_written)


def write_large_llama(folder: Path, layout: str, n_bytes: int, *, is_sparse: bool = False) -> None:
    """Fill a folder with about `n_bytes`."""
    config: dict[str, Any] = {}
    if layout == PLAIN:
        stored = {"weight": _brain_floats(SIZE, SIZE)}
    else:
        write, settings = QUANTISED[layout]
        stored, _ = write(np.random.default_rng(0), SIZE, SIZE)
        config = dict.fromkeys(("quantization", "quantization_config") if "mlx" in layout else ("quantization_config",))
        config = dict.fromkeys(config, settings)
    n_layers = max(1, n_bytes // (len(MATRICES) * sum(len(weights.data) for weights in stored.values())))
    tensors = {"model.embed_tokens.weight": _brain_floats(N_VOCAB, SIZE), "model.norm.weight": _brain_floats(SIZE)}
    for layer in range(n_layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = tensors["model.norm.weight"]
        for name in MATRICES:
            tensors |= {f"model.layers.{layer}.{name}.{part}": weights for part, weights in stored.items()}
    _write(folder / "model.safetensors", tensors, is_sparse=is_sparse)
    sizes = {"hidden_size": SIZE, "intermediate_size": SIZE, "num_hidden_layers": n_layers}
    heads = {"num_attention_heads": N_HEADS, "num_key_value_heads": N_HEADS, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(LLAMA_CONFIG | sizes | heads | {"torch_dtype": "bfloat16"} | config))
    write_tokenizer(folder)


def _brain_floats(*shape: int) -> Weights:
    """Small numbers, and no NaN."""
    block = bytes(byte & 0x3F for byte in os.urandom(1 << 12))
    n_bytes = 2 * prod(shape)
    return Weights(shape, (block * (n_bytes // len(block) + 1))[:n_bytes], "BF16")


def _write(path: Path, tensors: Mapping[str, Weights], *, is_sparse: bool) -> None:
    """As `encode_safetensors` has it, but not in memory."""
    entries, end = {}, 0
    for name, tensor in tensors.items():
        offsets = [end, end + len(tensor.data)]
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        end = offsets[1]
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for index, tensor in enumerate(tensors.values()):
            if is_sparse and len(tensor.data) >= SPARSE_BYTES and index % KEPT:
                file.seek(len(tensor.data), os.SEEK_CUR)
            else:
                file.write(tensor.data)
        file.truncate(8 + len(header) + end)
        os.fsync(file)


def copied(source: Path, target: Path, n_bytes: int) -> Spent:
    """Read all of `source` and write `n_bytes` of it."""
    before_s, started_s = _own_processor_s(), time.perf_counter()
    n_read = n_written = 0
    block = memoryview(mmap(-1, COPIED_BYTES))  # a whole page at its start: some copy slowly to a few bytes behind it
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while n := reader.readinto(block):
            n_read += n
            while left := min(n, n_bytes * n_read // source.stat().st_size - n_written):
                n_written += writer.write(block[:left])
        os.fsync(writer)
    return Spent(time.perf_counter() - started_s, _own_processor_s() - before_s)


def _own_processor_s() -> float:
    times = os.times()
    return times.user + times.system


def converted(folder: Path, target: Path) -> Spent:
    started_s = time.perf_counter()
    command: list[str | Path] = [shimmy_program(), "convert", folder, "-o", target, "--force"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child, _memory_of(child.pid) as memory_mb:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the conversion of `{folder}` failed")
    before_s = _own_processor_s()
    with target.open("rb") as file:
        os.fsync(file)
    processor_s = usage.ru_utime + usage.ru_stime + _own_processor_s() - before_s
    return Spent(time.perf_counter() - started_s, processor_s, max(memory_mb))


@contextlib.contextmanager
def _memory_of(process_id: int) -> Iterator[list[float]]:
    """The memory of a process and its descendants in MB, one number for each look at it."""
    looks = [0.0]
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(MEMORY_S):
            looks.append(tree_memory_mb(process_id))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield looks
    finally:
        is_over.set()
        thread.join()


def main() -> int:
    names = [PLAIN, *QUANTISED]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.conversion", description=str(__doc__).splitlines()[0])
    parser.add_argument("--layouts", default=PLAIN, help=f"`all`, or some of {', '.join(names)}, with commas")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    parser.add_argument("--sparse", action="store_true")
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}")
    for layout in names if options.layouts == "all" else options.layouts.split(","):
        print(_row(layout, options), flush=True)
    return 0


def _row(layout: str, options: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory(dir=options.folder) as text:
        folder, first_layer = Path(text, "checkpoint"), Path(text, "first")
        for place, n_bytes in (folder, int(options.gigabytes * 1e9)), (first_layer, 0):
            place.mkdir()
            # By another process: the memory of this one would count as that of those that it starts.
            writer = get_context("spawn").Process(
                target=write_large_llama, args=(place, layout, n_bytes), kwargs={"is_sparse": options.sparse}
            )
            writer.start()
            writer.join()
        rounds = [(_pair(folder), _pair(first_layer)) for _ in range(options.rounds)]
        n_read = _weights(folder).stat().st_size
    pairs = [pair for pair, _ in rounds]
    streamed = [pair.less(first) for pair, first in rounds]
    figures = (
        f"{n_read / 1e9:.2f}",
        f"{pairs[0].n_written / 1e9:.2f}",
        _spread(pair.n_written / 1e9 / pair.copy.wall_s for pair in pairs),
        _spread(pair.n_written / 1e9 / pair.conversion.wall_s for pair in pairs),
        _spread(pair.copy.wall_s / pair.conversion.wall_s for pair in pairs),
        _spread(pair.copy.wall_s / pair.conversion.wall_s for pair in streamed),
        _spread(pair.copy.processor_s / pair.conversion.processor_s for pair in streamed),
        f"{max(pair.conversion.memory_mb for pair in pairs):.0f}",
    )
    return f"| {layout} | {' | '.join(figures)} |"


def _spread(values: Iterable[float]) -> str:
    """The middle one, and the ends where there are more."""
    found = sorted(values)
    ends = f" ({found[0]:.2f}-{found[-1]:.2f})" if len(found) > 1 else ""
    return f"{statistics.median(found):.2f}{ends}"


def _weights(folder: Path) -> Path:
    (found,) = folder.glob("*.safetensors")
    return found


def _pair(folder: Path) -> Pair:
    copy, made = folder.with_name("copy"), folder.with_name("made.gguf")
    conversion = converted(folder, made)
    n_written = made.stat().st_size
    made.unlink()
    found = Pair(conversion, copied(_weights(folder), copy, n_written), n_written)
    copy.unlink()
    return found


if __name__ == "__main__":
    sys.exit(main())
