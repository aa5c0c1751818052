"""A model of a billion weights over two machines, 20 ms and 100 Mbit/s away, beside the same model on this one alone.

python -m tests.bench.two_machines [--layers 17] [--tokens 24] [--folder /tmp]

The model is a Llama in Q4_0 with weights of no meaning (580 MB), which is deleted at the end. The machines are those of
the source tree, or of the file that SHIMMY_BIN names, in network namespaces of this machine, so all of them share its
processor. Needs root, `ip` and `tc`. Greedy tokens have to be the same; weights travel once.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.harness import COMPLETION, Server, serving
from tests.e2e.network_namespace import RATE_MBIT, ROUND_TRIP_MS, Network, network
from tests.e2e.processes import wait_for
from tests.e2e.rpc_machine import Machine, key_file, machine
from tests.tiny_models import Tensor, encode_header, model_metadata, vocabulary

NAME = "one-billion"
SIZE, N_FF, N_HEADS, N_KV_HEADS = 2048, 8192, 32, 8  # those of Llama 3.2 1B
Q4_0, BLOCK, BLOCK_BYTES = 2, 32, 18
ALIGNMENT = 32  # of tensors in a file
PROMPT = "hello world tell the user"
PATIENCE_S = 600.0  # for a load and a reply, on a busy machine
TIMEOUT = ("--rpc-timeout", "20")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server said, and what that took."""

    tokens: list[str]
    logprobs: list[float]
    first_s: float  # until the model was loaded and had replied
    token_ms: float  # of a second reply
    device: str | None
    n_layers: tuple[int, int]  # elsewhere, and in all


def write_model(folder: Path, n_layers: int) -> Path:
    """The same for the same number of layers; each matrix has weights of its own."""
    changed = {
        "general.file_type": 2,  # mostly Q4_0
        "llama.embedding_length": SIZE,
        "llama.feed_forward_length": N_FF,
        "llama.attention.head_count": N_HEADS,
        "llama.attention.head_count_kv": N_KV_HEADS,
        "llama.rope.dimension_count": SIZE // N_HEADS,
    }
    metadata = [(key, code, changed.get(key, value)) for key, code, value in model_metadata(NAME, 2048, None, n_layers)]
    shapes = dict(_shapes(n_layers))
    path, end, tensors = folder / f"{NAME}.gguf", 0, []
    for name, shape in shapes.items():
        tensors.append(Tensor(name, shape, code=Q4_0 if len(shape) > 1 else 0, offset=end))
        end += -(-_n_bytes(shape) // ALIGNMENT) * ALIGNMENT
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(encode_header(metadata, tensors, alignment=ALIGNMENT))
        for shape in shapes.values():
            data = _matrix(random, shape) if len(shape) > 1 else np.ones(shape, np.float32).tobytes()
            file.write(data.ljust(-(-len(data) // ALIGNMENT) * ALIGNMENT, b"\0"))
    return path


def _shapes(n_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    n_tokens, n_kv = len(vocabulary()), SIZE * N_KV_HEADS // N_HEADS
    yield "token_embd.weight", (SIZE, n_tokens)
    yield "output_norm.weight", (SIZE,)
    yield "output.weight", (SIZE, n_tokens)
    for layer in range(n_layers):
        for name, *shape in (
            *(("attn_norm", SIZE), ("attn_q", SIZE, SIZE), ("attn_k", SIZE, n_kv), ("attn_v", SIZE, n_kv)),
            *(("attn_output", SIZE, SIZE), ("ffn_norm", SIZE)),
            *(("ffn_gate", SIZE, N_FF), ("ffn_up", SIZE, N_FF), ("ffn_down", N_FF, SIZE)),
        ):
            yield f"blk.{layer}.{name}.weight", tuple(map(int, shape))


def _n_bytes(shape: Sequence[int]) -> int:
    return 4 * shape[0] if len(shape) == 1 else shape[0] * shape[1] // BLOCK * BLOCK_BYTES


def _matrix(random: np.random.Generator, shape: Sequence[int]) -> bytes:
    """Q4_0 with weights whose products are as large as what they are made of."""
    n_blocks = shape[0] * shape[1] // BLOCK
    blocks = np.empty((n_blocks, BLOCK_BYTES), np.uint8)
    scales = random.uniform(0.5, 1.5, n_blocks) / (4.6 * shape[0] ** 0.5)  # 4.6: the deviation of -8 ... 7
    blocks[:, :2] = scales.astype(np.float16)[:, None].view(np.uint8)
    blocks[:, 2:] = random.integers(0, 256, (n_blocks, BLOCK_BYTES - 2), np.uint8)
    return blocks.tobytes()


def replied(server: Server, n_tokens: int) -> Reply:
    body = {"model": NAME, "prompt": PROMPT, "temperature": 0, "max_tokens": n_tokens, "ignore_eos": True}
    started_s = time.monotonic()
    answers = []
    for more in ({"logprobs": 1}, {"cache_prompt": False}):
        answer = server.request("POST", COMPLETION, body | more, deadline_s=PATIENCE_S)
        if answer.status != 200:
            raise SystemExit(f"{answer.body.decode()}\n{server.log}")
        answers.append((answer.json(), time.monotonic() - started_s))
    (first, first_s), (second, _) = answers
    logprobs = first["choices"][0]["logprobs"]
    told = server.get(f"/api/models/{NAME}/status").json()
    return Reply(
        logprobs["tokens"],
        logprobs["token_logprobs"],
        first_s,
        second["timings"]["predicted_per_token_ms"],
        told["device"],
        (told["n_device_layers"], told["n_layers"]),
    )


def loaded_s(server: Server) -> float:
    """By the server's log."""
    found = re.search(rf"loaded `{NAME}` in ([\d.]+) s", server.log)
    if found is None:
        raise SystemExit(server.log)
    return float(found[1])


def compare(folder: Path, n_layers: int, n_tokens: int) -> bool:
    """Whether the tokens are the same; prints what was measured."""
    path = write_model(folder, n_layers)
    print(f"model: {n_layers} layers, {path.stat().st_size / 1e6:.0f} MB")
    timeouts = ("--worker-timeout", "10m", "--load-timeout", "10m")
    common = ("--model-path", path, "--weights", "mapped", "--device", "none", *timeouts)
    with serving(folder / "alone", *common) as server:
        alone = replied(server, n_tokens)
        print(f"this machine alone: loaded in {loaded_s(server):.1f} s, {alone.token_ms:.0f} ms a token")
    is_same = True
    with ExitStack() as stack:
        networks = [stack.enter_context(network()) for _ in range(2)]
        machines = [stack.enter_context(_machine(folder, beyond)) for beyond in networks]
        addresses = ",".join(each.address for each in machines)
        options = (*common, "--rpc", addresses, "--rpc-key-file", key_file(folder), *TIMEOUT, "--gpu-layers", "all")
        for start in ("first", "second"):
            before = sum(beyond.n_bytes_sent for beyond in networks)
            with serving(folder / start, *options) as server:
                spread = replied(server, n_tokens)
                if spread.device != ", ".join(f"{each.address}/CPU" for each in machines):
                    raise SystemExit(f"it is not on both machines:\n{server.log}")
                sent_mb = (sum(beyond.n_bytes_sent for beyond in networks) - before) / 1e6
                is_same = is_same and spread.tokens == alone.tokens
                differences = [abs(a - b) for a, b in zip(spread.logprobs, alone.logprobs, strict=True)]
                print(
                    f"two machines, {start} start: loaded in {loaded_s(server):.1f} s, {sent_mb:.0f} MB sent, "
                    f"{spread.token_ms:.0f} ms a token, {spread.n_layers[0]} of {spread.n_layers[1]} layers on "
                    f"{spread.device}; {'the same' if spread.tokens == alone.tokens else 'OTHER'} {n_tokens} tokens, "
                    f"log-probabilities differ by {max(differences):.2g} at most"
                )
            wait_for("the engines' end", lambda: not any(each.engines() for each in machines))
    return is_same


def _machine(folder: Path, beyond: Network) -> AbstractContextManager[Machine]:
    return machine(folder / beyond.name, *TIMEOUT, bind=f"{beyond.address}:50052", prefix=beyond.prefix)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=17, help="one billion weights are 17")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--folder", type=Path, help="where the model is for that while")
    asked = parser.parse_args()
    print(f"{ROUND_TRIP_MS} ms, {RATE_MBIT} Mbit/s")
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        try:
            return 0 if compare(Path(folder), asked.layers, asked.tokens) else 1
        except pytest.skip.Exception as exc:
            raise SystemExit(str(exc)) from None


if __name__ == "__main__":
    sys.exit(main())
