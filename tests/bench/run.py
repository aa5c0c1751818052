"""`make bench`: measures the servers in interleaved rounds and prints a table; the figures also go to a JSON file.

python -m tests.bench [--models smollm2,gemma] [--peers shimmy,llama-server] [--workloads stream,chat] [--rounds 5]
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Container
from pathlib import Path

from tests.bench.machine import busy_percent, description, n_cores
from tests.bench.measure import measure
from tests.bench.peers import PEERS
from tests.bench.report import Results, Rounds, plotted, tables, write_document
from tests.bench.workloads import WORKLOADS
from tools.demo_models import DEMO_MODELS, fetch_model
from tools.steps import CACHE, BuildError, say

RESULTS = CACHE / "bench" / "results.json"
QUIET_PERCENT = 5


def main() -> int:
    options = _options()
    try:
        results = _measure_all(options)
        print(tables(results))
        if plot := plotted(results):
            options.output.with_suffix(".svg").write_text(plot)
        if options.document:
            write_document(options.output)
    except BuildError as exc:
        say(f"bench: {exc}")
        return 1
    if results["busy_percent"] > QUIET_PERCENT:
        say(f"bench: other programs used up to {results['busy_percent']} % of the processors: do not trust this")
    say(f"\n{results['minutes']} minutes. The figures are in `{options.output}`, the plot is beside it.")
    return 0


def _measure_all(options: argparse.Namespace) -> Results:
    """Everything that the page needs to know; after each round it is in the file, so that a long run may be cut off."""
    started_s = time.perf_counter()
    results: Results = {
        "command": shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]]),
        "machine": description(),
        "busy_percent": 0,
        "n_threads": options.threads,
        "minutes": 0,
        "models": {},
        "seconds": {},
    }
    workloads = [workload for name, workload in WORKLOADS.items() if name in options.workloads]
    for name in options.models:
        model = fetch_model(name)
        rounds: Rounds = results["models"].setdefault(model.stem, [])
        for number in range(1, options.rounds + 1):
            measured = {}
            for peer in options.peers:
                results["busy_percent"] = max(results["busy_percent"], busy_percent())
                say(f"bench: {model.stem}, round {number} of {options.rounds}, {peer}")
                measured[peer], seconds = measure(PEERS[peer], model, options.threads, number, workloads)
                results["seconds"].setdefault(model.stem, {}).setdefault(peer, []).append(seconds)
            rounds.append(measured)
            results["minutes"] = round((time.perf_counter() - started_s) / 60)
            options.output.write_text(json.dumps(results, indent=2) + "\n")
    return results


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Compares Shimmy with its peers.")
    parser.add_argument(
        "--models", type=names_of(DEMO_MODELS), default=["smollm2"], help=f"of {', '.join(DEMO_MODELS)}"
    )
    parser.add_argument("--peers", type=names_of(PEERS), default=list(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument(
        "--workloads", type=names_of(WORKLOADS), default=list(WORKLOADS), help=f"of {', '.join(WORKLOADS)}"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=n_cores(), help="for every server; all physical cores")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file for the figures")
    parser.add_argument("--document", action="store_true", help="write docs/benchmarks.md, too")
    return parser.parse_args()


def names_of(known: Container[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
        return chosen

    return names
