"""What clients notice while the file behind a model's name is replaced under load.

python -m tests.bench.swaps [--swaps 50]

Eight clients stream from one name as fast as they can, and a ninth asks for one token every 40 ms, so that the moment
of the switch can be seen; the file is replaced by rename, by SmolLM2 and gemma-3-270m in turn. Which of the two has
answered is known from how many tokens it makes of the prompt.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.client import Reply, ReplyFailed, stream
from tests.bench.memory import tree_memory_mb
from tests.bench.peers import shimmy_serving
from tests.bench.running import RunningServer
from tools.demo_models import fetch_model

PROMPT = "The capital of France is Paris, and the longest river of the world"
N_CLIENTS, N_TOKENS = 8, 24
PROBE_EVERY_S = 0.04
SETTLED_S = 2.0  # after a switch the old worker has drained and the load is what it was
PAUSE_S = 2.5  # from a switch to the look at it, and again to the next replacement
SWAP_TIMEOUT_S = 120.0


class Clients:
    """Eight that stream and one that probes, until `is_over`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.is_over = False
        self.replies: list[Reply] = []
        self.probes: list[Reply] = []
        self.failures: list[str] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(N_CLIENTS):
                group.create_task(self._stream())
            while not self.is_over:
                group.create_task(self._ask(1, self.probes))
                await asyncio.sleep(PROBE_EVERY_S)

    async def _stream(self) -> None:
        while not self.is_over:
            await self._ask(N_TOKENS, self.replies)

    async def _ask(self, n_tokens: int, replies: list[Reply]) -> None:
        try:
            replies.append(await stream(self.port, "model", PROMPT, n_tokens))
        except (ReplyFailed, OSError) as exc:
            self.failures.append(str(exc))

    def everyone(self) -> list[Reply]:
        return self.replies + self.probes


def put(source: Path, place: Path) -> None:
    """Replace the file at `place`. A link and not a copy: writing a copy is not what is measured."""
    unfinished = place.with_suffix(".part")
    os.link(source, unfinished)
    unfinished.rename(place)


class Record:
    """What was seen of all swaps, by the model that answered: its number of prompt tokens is its name here."""

    def __init__(self) -> None:
        self.gaps_s: list[float] = []
        self.waits_s: list[float] = []
        self.n_late = 0  # answers of the old model to requests made after the new one had accepted one
        self.spans: list[
            tuple[float, float]
        ] = []  # when the file was replaced, and when the new model had its first job
        self.memory_mb: list[float] = []

    def add(self, clients: Clients, old_model: int, replaced_s: float) -> int:
        """Take in the swap whose file was replaced at `replaced_s`; returns the model that answers now."""
        seen = [reply for reply in clients.everyone() if reply.ended_s > replaced_s]
        old = [reply for reply in seen if reply.n_prompt == old_model]
        new = [reply for reply in seen if reply.n_prompt != old_model]
        switched_s = min(reply.accepted_s for reply in new)
        self.gaps_s.append(switched_s - max(reply.accepted_s for reply in old))
        self.waits_s.append(switched_s - replaced_s)
        self.n_late += sum(reply.asked_s > switched_s for reply in old)
        self.spans.append((replaced_s, switched_s))
        return new[0].n_prompt

    def first_texts(self, clients: Clients) -> dict[tuple[int, str], list[float]]:
        """Times to the first token, by model and by whether a swap was near."""
        times: dict[tuple[int, str], list[float]] = {}
        for reply in clients.replies:
            is_near = any(start <= reply.asked_s <= end + SETTLED_S for start, end in self.spans)
            times.setdefault((reply.n_prompt, "around a swap" if is_near else "else"), []).append(reply.first_text_s)
        return times

    def show(self, clients: Clients) -> None:
        texts = {(reply.n_prompt, reply.text) for reply in clients.replies}
        n_answers, n_failures = len(clients.everyone()), len(clients.failures)
        print(f"{len(self.gaps_s)} swaps, {n_answers} answers in {len(texts)} different texts, {n_failures} failed")
        print(f"{self.n_late} answers of the old model to requests made after the new one had accepted one")
        print(_line("from the file to the new model's first answer, s", self.waits_s, 1))
        print(_line("switch: last job accepted by the old to first accepted by the new, ms", self.gaps_s, 1e3))
        for (model, when), times in sorted(self.first_texts(clients).items()):
            print(_line(f"first token, prompt of {model} tokens, {when}, ms", times, 1e3))
        for of_kind in (self.memory_mb[0::2], self.memory_mb[1::2]):
            print(f"memory after swaps to one model, MB: {' '.join(f'{used:.0f}' for used in of_kind)}")
        for failure in clients.failures[:3]:
            print(f"failure: {failure}")


async def measure(server: RunningServer, files: Sequence[Path], place: Path, n_swaps: int) -> int:
    """Swap and record; returns how many answers were not as they have to be."""
    clients, record = Clients(server.port), Record()
    model = (await stream(server.port, "model", PROMPT, 1)).n_prompt
    running = asyncio.create_task(clients.run())
    for number in range(n_swaps):
        await asyncio.sleep(PAUSE_S)
        replaced_s = time.perf_counter()
        await asyncio.to_thread(put, files[(number + 1) % 2], place)
        await _until_another_answers(clients, model, replaced_s)
        await asyncio.sleep(PAUSE_S)
        model = record.add(clients, model, replaced_s)
        record.memory_mb.append(tree_memory_mb(server.process_id))
        print(f"swap {number + 1}: {record.waits_s[-1]:.2f} s to the new model's first answer", file=sys.stderr)
    clients.is_over = True
    await running
    record.show(clients)
    return len(clients.failures) + record.n_late


async def _until_another_answers(clients: Clients, current: int, since_s: float) -> None:
    while not any(reply.n_prompt != current and reply.asked_s > since_s for reply in clients.everyone()[::-1]):
        if time.perf_counter() - since_s > SWAP_TIMEOUT_S:
            raise SystemExit("the new model never answered")
        await asyncio.sleep(0.05)


def _line(label: str, values: list[float], scale: float) -> str:
    if not values:
        return f"{label}: none"
    ordered = sorted(value * scale for value in values)
    digits = 2 if scale == 1 else 0
    figures = {
        "median": statistics.median(ordered),
        "p90": ordered[int(0.9 * (len(ordered) - 1))],
        "p99": ordered[int(0.99 * (len(ordered) - 1))],
        "max": ordered[-1],
    }
    return (
        f"{label}: " + ", ".join(f"{name} {value:.{digits}f}" for name, value in figures.items()) + f" ({len(values)})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.swaps", description=str(__doc__).splitlines()[0])
    parser.add_argument("--swaps", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources, served = Path(folder) / "sources", Path(folder) / "served"
        sources.mkdir()
        served.mkdir()
        files = [Path(shutil.copy(fetch_model(name), sources)) for name in ("smollm2", "gemma")]
        place = served / "model.gguf"
        put(files[0], place)
        with shimmy_serving("--model-dirs", served) as server:
            return min(1, asyncio.run(measure(server, files, place, options.swaps)))


if __name__ == "__main__":
    sys.exit(main())
