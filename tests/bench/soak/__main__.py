"""python -m tests.bench.soak [--minutes 20] [--models smollm2,gemma] [--clients 8] [--seed 1]

A server under random mixes of everything. The first model is loaded all the time; the file of the second is replaced by
the first and the second in turn, and it is loaded and unloaded; a third, all-MiniLM-L6-v2, makes embeddings. There is
memory for the first and one more, and a little of the disk for prompts. SHIMMY_BIN names the program; without it the
source tree runs.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.soak.client import Models
from tests.bench.soak.soak import Soak
from tests.e2e.harness import Server, serving
from tools.demo_models import DEMO_MODELS, fetch_minilm, fetch_model

SERVER_BYTES = 40_000_000  # what the parent takes of the limit
OTHER_SHARE = 1.2  # of the largest of those that come and go, which is less than two of them take
EXTRAS = ("--prompt-cache", "256M")
WINDOW_S = 60.0
REQUEST_TIMEOUT_S = 300.0
REST_S = 12.0  # a worker does so after 10 s
N_LONG_WORDS, N_TOO_MANY_WORDS = 700, 20_000


def serve(folder: Path, names: list[str]) -> Models:
    """Puts the models into `folder`; each of the first two has its own file beside it to be replaced with."""
    served, sources = folder / "served", folder / "sources"
    served.mkdir()
    sources.mkdir()
    files = [Path(shutil.copy(fetch_model(name), sources)) for name in names]
    steady, place = served / "steady.gguf", served / "other.gguf"
    shutil.copy(files[0], steady)  # another path to the same file would be passed over, whichever comes first
    place.hardlink_to(files[1])
    shutil.copytree(fetch_minilm(), served / "encoder")
    return Models("steady", "other", "encoder", place, files, N_LONG_WORDS, N_TOO_MANY_WORDS)


def memory_limit(server: Server, models: Models) -> int:
    """Bytes for the steady model and one of the others, as a server without a limit reckons them."""

    def n_bytes(name: str) -> int:
        total: int = server.get(f"/api/models/{name}/status").json()["memory"]["total_bytes"]
        return total

    steady, *others = (n_bytes(name) for name in (models.steady, models.other, models.encoder))
    return SERVER_BYTES + steady + int(OTHER_SHARE * max(steady, *others))


def over_after(seconds: float) -> Callable[[], bool]:
    end_s = time.monotonic() + seconds
    return lambda: time.monotonic() > end_s


async def run(soak: Soak, minutes: float) -> None:
    started_s = time.monotonic()
    await soak.begin()
    while time.monotonic() - started_s < 60 * minutes or len(soak.moments) < 3:
        await soak.window(over_after(min(WINDOW_S, 20 * minutes)))
        print(f"{(time.monotonic() - started_s) / 60:.1f} minutes: {soak.n_asked} requests, "
              f"{len(soak.failures)} failures, {soak.moments[-1]}", file=sys.stderr, flush=True)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=str(__doc__))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--models", default="smollm2,gemma", help=f"two of {', '.join(DEMO_MODELS)}")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        models = serve(Path(text), options.models.split(","))
        paths = ("--model-path", models.place.parent)
        with serving(Path(text) / "roomy", *paths, threads="") as server:
            limit = memory_limit(server, models)
        with serving(Path(text) / "server", *paths, *EXTRAS, "--max-memory", str(limit), threads="") as server:
            soak = Soak(server, models, options.clients, options.seed, REQUEST_TIMEOUT_S, REST_S)
            asyncio.run(run(soak, options.minutes))
            soak.end()
            print(soak.report())
    return int(not soak.is_good())


if __name__ == "__main__":
    sys.exit(main())
