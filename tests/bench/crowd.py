"""More models than memory: whether each request gets its own model's answer, and whether the limit holds.

python -m tests.bench.crowd [--models 20] [--clients 16] [--seconds 120] [--max-memory 1G]

The models are SmolLM2 with other weights in its last norm, so that each answers differently; what each says is asked of
it alone before. Clients ask random ones for a short completion, one after the other.
"""

import argparse
import asyncio
import random
import statistics
import struct
import sys
import tempfile
import time
from collections import Counter
from math import prod
from pathlib import Path

from shimmy import option_kinds
from shimmy.formats.gguf.reader import read_header, tensors
from shimmy.formats.gguf.tensor_types import GGML_TYPES
from tests.bench.client import ReplyFailed, stream
from tests.bench.memory import tree_memory_mb
from tests.bench.peers import shimmy_serving
from tests.bench.running import RunningServer
from tools.demo_models import fetch_model

PROMPT = "The capital of France is Paris, and the longest river of the world"
N_TOKENS = 24
N_NORM = 576  # weights of SmolLM2's last norm
NORM, F32 = b"output_norm.weight", 0
RETRY_S = 0.5
LOOK_EVERY_S = 0.1


class Crowd:
    """Clients of many models, and what they got."""

    def __init__(self, server: RunningServer, names: list[str], expected: dict[str, str]) -> None:
        self._server = server
        self._names = names
        self._expected = expected
        self.n_as_expected = 0
        self.n_other = 0  # a text that no model gave when it was asked alone: a near-tie in another batch
        self.wrong: list[str] = []
        self.failures: list[str] = []
        self.n_refused = 0
        self.latencies_s: list[float] = []
        self.most_memory_mb = 0.0

    async def run(self, n_clients: int, seconds: float) -> None:
        end_s = time.perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(n_clients):
                group.create_task(self._ask_until(end_s, random.Random(number)))
            while time.perf_counter() < end_s:
                used_mb = await asyncio.to_thread(tree_memory_mb, self._server.process_id)
                self.most_memory_mb = max(self.most_memory_mb, used_mb)
                await asyncio.sleep(LOOK_EVERY_S)

    async def _ask_until(self, end_s: float, choice: random.Random) -> None:
        while time.perf_counter() < end_s:
            name = choice.choice(self._names)
            try:
                reply = await stream(self._server.port, name, PROMPT, N_TOKENS)
            except ReplyFailed as failure:
                if failure.status == 503 and b"retry-after" in failure.headers:
                    self.n_refused += 1
                    await asyncio.sleep(RETRY_S)
                else:
                    self.failures.append(str(failure))
                continue
            self.latencies_s.append(reply.ended_s - reply.asked_s)
            if reply.text == self._expected[name]:
                self.n_as_expected += 1
            elif reply.text in self._expected.values():
                self.wrong.append(name)
            else:
                self.n_other += 1


def write_models(folder: Path, n_models: int) -> list[str]:
    """Copies of SmolLM2 with their last norm scaled at random; returns their names."""
    path = fetch_model("smollm2")
    content = bytearray(path.read_bytes())
    start = _norm_offset(content, len(content) - _data_bytes(path))
    original = struct.unpack_from(f"<{N_NORM}f", content, start)
    for number in range(n_models):
        scale = random.Random(number)
        struct.pack_into(f"<{N_NORM}f", content, start, *(weight * scale.uniform(0.4, 1.6) for weight in original))
        (folder / f"m{number:02}.gguf").write_bytes(content)
    return [f"m{number:02}" for number in range(n_models)]


def _norm_offset(content: bytes | bytearray, data_start: int) -> int:
    """Where the last norm's weights begin; the tensor infos know it from the start of the data."""
    info_at = content.index(struct.pack("<Q", len(NORM)) + NORM) + 8 + len(NORM)
    n_dimensions, n_weights, code, offset = struct.unpack_from("<IQIQ", content, info_at)
    if (n_dimensions, n_weights, code) != (1, N_NORM, F32):
        raise SystemExit("this is not the SmolLM2 that this benchmark knows")
    return data_start + int(offset)


def _data_bytes(path: Path) -> int:
    """The tensors' data is the end of the file, each tensor padded to 32 bytes."""
    total = 0
    for tensor in tensors(path, read_header(path)).values():
        _, block_elements, block_bytes = GGML_TYPES[tensor.code]
        n_bytes = prod(tensor.shape) // block_elements * block_bytes
        total += (n_bytes + 31) // 32 * 32
    return total


async def measure(server: RunningServer, names: list[str], options: argparse.Namespace) -> int:
    expected = {name: (await stream(server.port, name, PROMPT, N_TOKENS)).text for name in names}
    if len(set(expected.values())) < len(names):
        raise SystemExit("two of the models say the same: this shows nothing")
    crowd = Crowd(server, names, expected)
    await crowd.run(options.clients, options.seconds)
    limit_mb = option_kinds.n_bytes(options.max_memory) / 1e6
    print(f"{len(crowd.latencies_s)} answers in {options.seconds:.0f} s, {crowd.n_refused} refused with Retry-After")
    print(f"{len(crowd.failures)} failed, {len(crowd.wrong)} of another model")
    print(f"{crowd.n_as_expected} the very text the model gives alone, {crowd.n_other} a text of no model's")
    ordered = sorted(crowd.latencies_s)
    print(f"latency: median {statistics.median(ordered):.1f} s, longest {ordered[-1]:.1f} s")
    print(f"memory: at most {crowd.most_memory_mb:.0f} MB of {limit_mb:.0f}")
    for reason, count in Counter(crowd.failures).most_common(3):
        print(f"failure ({count} times): {reason}")
    return int(bool(crowd.failures or crowd.wrong or crowd.most_memory_mb > limit_mb))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.crowd", description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--max-memory", default="1G")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        names = write_models(folder, options.models)
        with shimmy_serving("--model-dirs", folder, "--max-memory", options.max_memory) as server:
            return asyncio.run(measure(server, names, options))


if __name__ == "__main__":
    sys.exit(main())
