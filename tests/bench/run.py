"""`make bench`: measures the servers in interleaved rounds and prints a table; the figures also go to a JSON file.

python -m tests.bench [--models smollm2,gemma] [--peers shimmy,llama-server] [--rounds 3] [--document]
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Container
from pathlib import Path

from tests.bench.machine import busy_percent, description, n_cores
from tests.bench.measure import Figures, measure
from tests.bench.peers import PEERS
from tests.bench.report import Results, tables, write_document
from tools.demo_models import DEMO_MODELS, fetch_model
from tools.steps import CACHE, BuildError, say

RESULTS = CACHE / "bench" / "results.json"
QUIET_PERCENT = 5


def main() -> int:
    options = _options()
    try:
        results = _measure_all(options)
    except BuildError as exc:
        say(f"bench: {exc}")
        return 1
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(tables(results))
    if results["busy_percent"] > QUIET_PERCENT:
        say(f"bench: other programs used up to {results['busy_percent']} % of the processors: do not trust this")
    say(f"\nThe figures are in `{options.output}`.")
    if options.document:
        write_document(options.output)
    return 0


def _measure_all(options: argparse.Namespace) -> Results:
    results: Results = {
        "command": shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]]),
        "machine": description(),
        "busy_percent": 0,
        "n_threads": options.threads,
        "models": {},
    }
    for name in options.models:
        model = fetch_model(name)
        rounds: list[dict[str, Figures]] = []
        for number in range(1, options.rounds + 1):
            rounds.append({})
            for peer in options.peers:
                results["busy_percent"] = max(results["busy_percent"], busy_percent())
                say(f"bench: {model.stem}, round {number} of {options.rounds}, {peer}")
                rounds[-1][peer] = measure(PEERS[peer], model, options.threads, number)
        results["models"][model.stem] = rounds
    return results


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Compares Shimmy with its peers.")
    parser.add_argument("--models", type=_names(DEMO_MODELS), default=["smollm2"], help=f"of {', '.join(DEMO_MODELS)}")
    parser.add_argument("--peers", type=_names(PEERS), default=list(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=n_cores(), help="for every server; all physical cores")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file for the figures")
    parser.add_argument("--document", action="store_true", help="write docs/benchmarks.md, too")
    return parser.parse_args()


def _names(known: Container[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
        return chosen

    return names
