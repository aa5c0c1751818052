"""Turns the results of all rounds into a table and a plot for people, and puts them into docs/benchmarks.md.

What the page says about them is written by hand; only what stands between its two marks is made here.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.figures import TIMES, Figure, Figures
from tests.bench.plot import Bar, plot
from tests.bench.workloads import FIGURES
from tools.steps import ROOT, BuildError

DOCUMENT = ROOT / "docs" / "benchmarks.md"
PLOT = DOCUMENT.with_suffix(".svg")
BEGIN, END = "<!-- made by tests.bench: begin -->\n", "<!-- made by tests.bench: end -->\n"
OURS, THEIRS = "shimmy", "llama-server"

Results = dict[str, Any]  # as `run.py` writes it to JSON
Rounds = list[dict[str, Figures]]  # for each round, the figures of each peer


def tables(results: Results) -> str:
    """One table for each model: medians with their range, and Shimmy's ratio to each peer, taken round by round."""
    return "\n\n".join(_table(model, rounds) for model, rounds in results["models"].items())


def write_document(results_file: Path) -> None:
    """The table and the plot of a JSON file of `run.py` into the page; raises BuildError where it has no place."""
    results: Results = json.loads(results_file.read_text())
    before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise BuildError(f"`{DOCUMENT}` has no place for the table: `{BEGIN.strip()}` and `{END.strip()}`")
    made = [HEAD.format(**results, n_rounds=len(next(iter(results["models"].values()))))]
    if plots := plotted(results):
        PLOT.write_text(plots)
        made.append(f"![Shimmy beside {THEIRS}]({PLOT.name})\n")
    made.append(tables(results) + "\n")
    DOCUMENT.write_text(before + BEGIN + "\n" + "\n".join(made) + "\n" + END + after)


def plotted(results: Results) -> str:
    """An SVG of how many times better than the peer Shimmy is; empty where one of the two was not measured."""
    groups = {model: bars for model, rounds in results["models"].items() if (bars := _bars(rounds))}
    return plot(f"{OURS} beside {THEIRS}: times better", groups) if groups else ""


def _table(model: str, rounds: Rounds) -> str:
    peers = list(rounds[0])
    others = [peer for peer in peers if peer != OURS] if OURS in peers else []
    heads = [model, "unit", *peers, *(f"{OURS} / {peer}" for peer in others)]
    lines = [_line(heads), _line(["---", "---", *["---:"] * (len(heads) - 2)])]
    for figure in _measured(rounds):
        cells = [figure.label, figure.unit.name]
        for peer in peers:
            values = [figures[peer][figure.key] for figures in rounds]
            goal = figure.goals.get(peer) if peer == OURS else None
            cells.append(_spread(values, figure.unit.write) + _judged(figure, goal, values, figure.unit.write))
        for peer in others:
            ratios = _ratios(rounds, figure.key, peer)
            # Where only the peer fails, there is nothing to compare with, and nothing missed.
            goal = figure.goals.get(peer) if any(figures[peer][figure.key] is not None for figures in rounds) else None
            cells.append(_spread(ratios, _times, "") + _judged(figure, goal, ratios, _times))
        lines.append(_line(cells))
    return "\n".join(lines)


def _measured(rounds: Rounds) -> list[Figure]:
    some_peer = next(iter(rounds[0].values()))
    return [figure for key, figure in FIGURES.items() if key in some_peer]


def _bars(rounds: Rounds) -> list[Bar]:
    if not {OURS, THEIRS} <= rounds[0].keys():
        return []
    bars = []
    for figure in _measured(rounds):
        if figure.unit is TIMES:
            continue  # it compares a server with itself
        better = [figure.better(ratio) for ratio in _ratios(rounds, figure.key, THEIRS) if ratio]
        goal = figure.goals.get(THEIRS)
        if better:
            reached = statistics.median(better), min(better), max(better)
            bars.append(Bar(figure.label, *reached, None if goal is None else figure.better(goal)))
    return bars


def _ratios(rounds: Rounds, key: str, peer: str) -> list[float | None]:
    pairs = [(figures[OURS][key], figures[peer][key]) for figures in rounds]
    return [ours / theirs if ours and theirs else None for ours, theirs in pairs]


def _spread(values: list[float | None], write: Callable[[float], str], nothing: str = "fails") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return nothing
    text = write(statistics.median(known))
    if len(values) > 1:
        text += f" ({write(min(known))}-{write(max(known))})"
    return text + (f", {len(values) - len(known)} failed" if len(known) < len(values) else "")


def _judged(figure: Figure, goal: float | None, values: list[float | None], write: Callable[[float], str]) -> str:
    """What was to be reached; in bold where it was not."""
    if goal is None:
        return ""
    bound = f"{'≥' if figure.unit.more_is_better else '≤'} {write(goal)}"
    known = [value for value in values if value is not None]
    is_met = len(known) == len(values) and figure.meets(goal, statistics.median(known))
    return f" {bound}" if is_met else f" **{bound}**"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


HEAD = """\
- Machine: {machine}. Every server runs with {n_threads} threads. Before the starts other programs used at most
  {busy_percent} % of the processors.
- Command: `{command}`; {n_rounds} rounds, {minutes} minutes.
"""
