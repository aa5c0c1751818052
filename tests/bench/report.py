"""Turns the figures of all rounds into a table for people. Knows the order and the units of the rows."""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.measure import N_TOKENS, STREAMS, Figures
from tools.steps import ROOT

DOCUMENT = ROOT / "docs" / "benchmarks.md"
OURS, THEIRS = "shimmy", "llama-server"


@dataclass(frozen=True, slots=True)
class Row:
    """A figure, and how it is written; `scale` takes it to the unit of its label."""

    key: str
    label: str
    scale: float = 1.0
    digits: int = 0

    def write(self, value: float) -> str:
        return f"{value * self.scale:,.{self.digits}f}"


ROWS = (
    Row("start_s", "start to alive, ms", 1e3),
    Row("start_to_first_text_s", "start to the first token of the first request, ms", 1e3),
    Row("idle_memory_mb", "memory before the first request, MB"),
    Row("loaded_memory_mb", "memory after all requests, MB"),
    Row("first_text_short_s", "first token, short prompt, ms", 1e3),
    Row("first_text_long_s", "first token, 460-token prompt, ms", 1e3),
    Row("first_text_again_s", "first token, the same prompt again, ms", 1e3),
    *(
        Row(f"tokens_per_s_{n}", f"{n} stream{'s' * (n > 1)} of {N_TOKENS} tokens, tok/s together", digits=1)
        for n in STREAMS
    ),
    Row("tokens_per_s_sampled", f"1 stream of {N_TOKENS} tokens at temperature 1, tok/s", digits=1),
)

Results = dict[str, Any]  # as `run.py` writes it to JSON


def tables(results: Results) -> str:
    """One table for each model: medians with their range, and the ratio of each round."""
    return "\n\n".join(_table(model, rounds) for model, rounds in results["models"].items())


def write_document(results_file: Path) -> None:
    """`docs/benchmarks.md`, from a JSON file of `run.py` alone."""
    results: Results = json.loads(results_file.read_text())
    DOCUMENT.write_text(INTRODUCTION.format(**results) + "\n" + tables(results) + "\n")


def _table(model: str, rounds: list[dict[str, Figures]]) -> str:
    peers = list(rounds[0])
    compared = OURS in peers and THEIRS in peers
    heads = [model, *peers, *([f"{OURS} / {THEIRS}"] if compared else [])]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for row in ROWS:
        cells = [row.label, *(_spread([figures[peer][row.key] for figures in rounds], row.write) for peer in peers)]
        if compared:
            cells.append(_spread([_ratio(figures, row.key) for figures in rounds], "{:.2f}".format))
        lines.append(_line(cells))
    return "\n".join(lines)


def _ratio(figures: dict[str, Figures], key: str) -> float | None:
    ours, theirs = figures[OURS][key], figures[THEIRS][key]
    return ours / theirs if ours and theirs else None


def _spread(values: list[float | None], write: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "fails"
    text = write(statistics.median(known))
    if len(values) > 1:
        text += f" ({write(min(known))}-{write(max(known))})"
    return text + (f", {len(values) - len(known)} failed" if len(known) < len(values) else "")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


INTRODUCTION = """\
# Benchmarks

Shimmy's frozen file beside `llama-server`, built from the same llama.cpp sources with its own defaults (native
instructions, OpenMP), and beside `python -m llama_cpp.server` with its own defaults. Each server has the machine to
itself; the rounds are interleaved (A B C, A B C, …). A cell is the median of the rounds with their range; the last
column is the ratio within one round, which is what to compare: absolute figures drift with the machine.

- Machine: {machine}. Every server runs with {n_threads} threads. Just before the starts other programs used at most
  {busy_percent} % of the processors.
- Command: `{command}`
- All three serve `/v1/completions`, streamed, and past the end of generation where they can (`llama_cpp.server` stops
  there); greedy, but for the last row. The client is one process on the same machine.
- Small models at temperature 0 soon repeat themselves, and Shimmy guesses repeated text ahead (prompt lookup). At
  temperature 1 there is next to nothing to guess: the last row is the speed of the engine with one row in a decode.
- Start is measured from the process's start to the first `200` of `/health` (of `/v1/models` for `llama_cpp.server`,
  which has no health route). The peers have loaded their model by then; Shimmy loads it with the first request, so the
  second row is the fair one. Shimmy also discovers a folder of 50 model files: the beginning of the model's file,
  extended to its size without taking the space.
- Memory is the proportional set size of the whole process tree (`smaps_rollup`), the mapped model included.
- Tokens per second are all tokens of all streams over the time from the first request to the last byte, prompts
  included. "fails" means that a stream was refused or cut off.
"""
