"""Whether a SafeTensors folder that was converted before starts as fast as the same weights in a GGUF.

python -m tests.bench.cached_start [--rounds 10]

SmolLM2 is written out of its GGUF as a folder in BF16 and converted at its first start. Then the folder and the GGUF
that came of it take turns: a process starts, loads, generates one token, and ends.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shimmy.engine.convert_checkpoint import CACHE_FOLDER
from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend
from tests.bench.peers import shimmy_program
from tests.models import demo_model
from tests.smollm2_folder import write_as, write_smollm2_folder

F32 = 0  # llama_ftype


def timed_token(model: Path, cache: Path) -> float:
    """Seconds from the start of a process to its end, for one token of `model`."""
    command: list[str | Path] = [shimmy_program(), "generate", model, "--cache-dir", cache]
    started_s = time.perf_counter()
    subprocess.run(
        [*command, "--prompt", "hello", "--max-tokens", "1"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - started_s


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.cached_start", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    CpuBackend(variants.libraries(LIBRARY_FOLDER, None))
    with tempfile.TemporaryDirectory() as text:
        cache = Path(text) / "cache"
        exact = write_as(F32, demo_model(), Path(text) / "smollm2-f32.gguf")
        folder = write_smollm2_folder(Path(text) / "folder", exact, dtype="BF16")
        first_s = timed_token(folder, cache)
        (converted,) = (cache / CACHE_FOLDER).glob("*.gguf")
        seconds: dict[Path, list[float]] = {folder: [], converted: []}
        for _ in range(options.rounds):
            for path, measured in seconds.items():
                measured.append(timed_token(path, cache))
    of_folder, of_gguf = (statistics.median(measured) for measured in seconds.values())
    ratios = [a / b for a, b in zip(seconds[folder], seconds[converted], strict=True)]
    print(f"first start {first_s:.2f} s; later {of_folder:.2f} s, the GGUF {of_gguf:.2f} s (medians)")
    print(f"folder / GGUF: median {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
