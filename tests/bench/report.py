"""Turns the results of all rounds into a table and a plot for people, and puts them into docs/benchmarks.md.

What the page says about them is written by hand; only what stands between its two marks is made here. Of what is
written by hand in `limits.md`, the page gets the sections of the targets that were missed.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

from tests.bench.figures import REPLIES, TIMES, Figure, Figures
from tests.bench.limits import limits
from tests.bench.plot import Bar, plot
from tests.bench.workloads import FIGURES
from tools.steps import ROOT, BuildError, say

DOCUMENT = ROOT / "docs" / "benchmarks.md"
PLOT = DOCUMENT.with_suffix(".svg")
BEGIN, END = "<!-- made by tests.bench: begin -->\n", "<!-- made by tests.bench: end -->\n"
OURS, THEIRS = "shimmy", "llama-server"

Results = dict[str, Any]  # as `run.py` writes it to JSON
Rounds = list[dict[str, Figures]]  # for each round, the figures of each peer


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure's values by rounds, and their goal: Shimmy's own, or its ratios to `peer`."""

    figure: Figure
    peer: str
    values: list[float | None]
    goal: float | None

    def write(self, value: float) -> str:
        return self.figure.unit.write(value) if self.peer == OURS else f"{value:.2f}"

    @property
    def bound(self) -> str:
        return f"{'≥' if self.figure.unit.more_is_better else '≤'} {self.write(self.goal or 0.0)}"

    @property
    def median(self) -> float | None:
        known = [value for value in self.values if value is not None]
        return statistics.median(known) if known else None

    @property
    def is_missed(self) -> bool:
        """Where a round failed, too."""
        if self.goal is None:
            return False
        return None in self.values or self.median is None or not self.figure.meets(self.goal, self.median)

    def missed_by(self) -> str:
        if self.median is None:
            return f"fails ({self.bound})"
        return f"{self.write(self.median)}{'' if self.peer == OURS else f' x {self.peer}'} ({self.bound})"

    def judged(self) -> str:
        """What was to be reached; in bold where it was not."""
        return "" if self.goal is None else f" **{self.bound}**" if self.is_missed else f" {self.bound}"


def tables(results: Results) -> str:
    """One table for each model: medians with their range, and Shimmy's ratio to each peer, taken round by round."""
    return "\n\n".join(_table(model, rounds) for model, rounds in results["models"].items())


def missed(results: Results) -> str:
    """A list of the targets that were missed, by how much, and of what is known about why; empty where none was."""
    by_figure: dict[str, list[str]] = {}
    for model, rounds in results["models"].items():
        for compared in _all_compared(rounds):
            if compared.is_missed:
                by_figure.setdefault(compared.figure.key, []).append(f"{model}: {compared.missed_by()}")
    written = limits()
    items = []
    for key, misses in by_figure.items():
        if key not in written:
            say(f"bench: `{FIGURES[key].label}` missed its target, and `limits.md` has no section `{key}`")
        reason = written.get(key, "What limits it was not found yet.")
        items.append(f"- **{FIGURES[key].label}**: {'; '.join(misses)}.\n\n" + indent(reason, "  "))
    return "\n\n".join(["Targets that were missed:", *items]) if items else ""


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
    if misses := missed(results):
        made.append(misses + "\n")
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
            cells.append(_spread(_values(rounds, peer, figure.key), figure.unit.write))
            if peer == OURS:
                cells[-1] += _compared(rounds, figure, OURS).judged()
        for peer in others:
            compared = _compared(rounds, figure, peer)
            cells.append(_spread(compared.values, compared.write, "") + compared.judged())
        lines.append(_line(cells))
    return "\n".join(lines)


def _all_compared(rounds: Rounds) -> Iterator[Compared]:
    if OURS in rounds[0]:
        for figure in _measured(rounds):
            yield from (_compared(rounds, figure, peer) for peer in rounds[0])


def _compared(rounds: Rounds, figure: Figure, peer: str) -> Compared:
    if peer == OURS:
        return Compared(figure, peer, _values(rounds, peer, figure.key), figure.goals.get(peer))
    # Where only the peer fails, there is nothing to compare with, and nothing missed.
    is_there = any(value is not None for value in _values(rounds, peer, figure.key))
    return Compared(figure, peer, _ratios(rounds, figure.key, peer), figure.goals.get(peer) if is_there else None)


def _measured(rounds: Rounds) -> list[Figure]:
    return [figure for key, figure in FIGURES.items() if any(key in figures for figures in rounds[0].values())]


def _values(rounds: Rounds, peer: str, key: str) -> list[float | None]:
    """Nothing where the peer had no part in it."""
    return [figures[peer][key] for figures in rounds if key in figures[peer]]


def _bars(rounds: Rounds) -> list[Bar]:
    if not {OURS, THEIRS} <= rounds[0].keys():
        return []
    bars = []
    for figure in _measured(rounds):
        if figure.unit in (TIMES, REPLIES):
            continue  # the one compares a server with itself, the other is all or nothing
        better = [figure.better(ratio) for ratio in _ratios(rounds, figure.key, THEIRS) if ratio]
        goal = figure.goals.get(THEIRS)
        if better:
            reached = statistics.median(better), min(better), max(better)
            bars.append(Bar(figure.label, *reached, None if goal is None else figure.better(goal)))
    return bars


def _ratios(rounds: Rounds, key: str, peer: str) -> list[float | None]:
    pairs = zip(_values(rounds, OURS, key), _values(rounds, peer, key), strict=False)
    return [ours / theirs if ours and theirs else None for ours, theirs in pairs]


def _spread(values: list[float | None], write: Callable[[float], str], nothing: str = "fails") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return nothing if values else ""
    text = write(statistics.median(known))
    if len(values) > 1:
        text += f" ({write(min(known))}-{write(max(known))})"
    return text + (f", {len(values) - len(known)} failed" if len(known) < len(values) else "")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


HEAD = """\
- Machine: {machine}. Every server runs with {n_threads} threads. Before the starts other programs used at most
  {busy_percent} % of the processors.
- Command: `{command}`; {n_rounds} rounds, {minutes} minutes.
"""
