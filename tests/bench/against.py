"""What a change costs: two programs of Shimmy in turn, and the ratio of each figure in pairs.

python -m tests.bench.against BEFORE [AFTER] [--models smollm2] [--workloads start,stream,streams-8,long] [--rounds 5]

AFTER is dist/shimmy unless it is named. The limits that every change keeps are marked where a median misses them.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.bench.figures import Figures
from tests.bench.machine import busy_percent, description, n_cores
from tests.bench.measure import measure
from tests.bench.peers import PEERS, Peer, shimmy_program
from tests.bench.run import names_of
from tests.bench.workloads import FIGURES, WORKLOADS, Workload
from tools.demo_models import DEMO_MODELS, fetch_model
from tools.steps import say

# The ratio of after to before that is allowed, by the direction of a figure.
_MORE, _LESS = 0.98, 1.05
_WORKLOADS = ["start", "memory", "stream", "ordinary", "streams-8", "long"]


def peer_of(program: Path) -> Peer:
    """The server that this program file is."""

    def command(model: Path, port: int, n_threads: int) -> list[str | Path]:
        return [program, *PEERS["shimmy"].command(model, port, n_threads)[1:]]

    def generate(model: Path, prompt: str, n_threads: int) -> list[str | Path]:
        assert PEERS["shimmy"].generate is not None
        return [program, *PEERS["shimmy"].generate(model, prompt, n_threads)[1:]]

    return replace(PEERS["shimmy"], command=command, generate=generate, files=lambda: [program])


def measured(peers: Sequence[Peer], model: Path, n_rounds: int, workloads: Sequence[Workload]) -> list[list[Figures]]:
    """The figures of each round, in the order of the peers; who is first changes with every round."""
    rounds = []
    for number in range(1, n_rounds + 1):
        found: dict[int, Figures] = {}
        for place in sorted(range(len(peers)), reverse=number % 2 == 0):
            say(f"round {number} of {n_rounds}, {('before', 'after')[place]}, {busy_percent()} % used by others")
            found[place], _ = measure(peers[place], model, n_cores(), number, workloads)
        rounds.append([found[place] for place in range(len(peers))])
    return rounds


def report(model: Path, rounds: Sequence[Sequence[Figures]]) -> None:
    print(f"\n{model.stem}: before, after, the ratio with its range in {len(rounds)} rounds")
    for key, figure in FIGURES.items():
        pairs = [(before.get(key), after.get(key)) for before, after in rounds]
        values = [(before, after) for before, after in pairs if before and after]
        if not values:
            continue
        ratios = [after / before for before, after in values]
        median = statistics.median(ratios)
        is_kept = median >= _MORE if figure.unit.more_is_better else median <= _LESS
        befores, afters = (statistics.median(side) for side in zip(*values, strict=True))
        numbers = f"{figure.unit.write(befores):>8} {figure.unit.write(afters):>8} {figure.unit.name:6}"
        print(
            f"{figure.label:48} {numbers} {median:5.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            + ("" if is_kept else "  MISSED")
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.against", description=str(__doc__).splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?")
    parser.add_argument("--models", type=names_of(DEMO_MODELS), default=["smollm2"])
    parser.add_argument("--workloads", type=names_of(WORKLOADS), default=_WORKLOADS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    peers = [peer_of(options.before.absolute()), peer_of((options.after or shimmy_program()).absolute())]
    workloads = [WORKLOADS[name] for name in options.workloads]
    print(description())
    for name in options.models:
        model = fetch_model(name)
        report(model, measured(peers, model, options.rounds, workloads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
