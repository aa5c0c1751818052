"""`bench`: how fast a model is on this machine, as a table with bars, as JSON, and as a picture."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shimmy.catalog.catalog import Model
from shimmy.commands.benchmark import BenchmarkResult, measure, trials
from shimmy.commands.console import CommandCall, CommandFailed, ProgressBar, print_table
from shimmy.commands.models import model_fields, with_model
from shimmy.commands.terminal.amounts import count, size
from shimmy.commands.terminal.bar_chart import Bar, svg, text_bars
from shimmy.commands.terminal.screen_text import safe_line
from shimmy.commands.terminal.style import Style, is_terminal
from shimmy.option_kinds import ConfigError
from shimmy.system.cpu import n_physical_cores
from shimmy.system.files import write_atomically
from shimmy.text.plural import plural

if TYPE_CHECKING:
    from shimmy.generation import Services

_BAR_COLUMNS = 30


def bench(call: CommandCall) -> int:
    options, config = call.options, call.config
    chosen = trials(options.n_prompt, options.n_gen, options.sequences)
    if not chosen:
        raise ConfigError("--n-prompt and --n-gen are both 0: there is nothing to measure")
    n_sequences = max(config.n_sequences, *options.sequences)
    # Guessing ahead would measure the text: what follows random tokens soon repeats itself.
    config = replace(config, speculate=False, n_sequences=n_sequences, n_threads=config.n_threads or n_physical_cores())
    bar = ProgressBar("measuring")

    async def measured(services: "Services", model: Model) -> tuple[Model, str, list[BenchmarkResult]]:
        worker = await services.pool.ensure_ready(model)
        try:
            return model, worker.facts.cpu_variant, await measure(worker, chosen, options.repetitions, bar.show)
        finally:
            bar.end()

    model, cpu_variant, results = with_model(config, options.name, measured)
    title = f"{model.name}, {model.quantization}, {size(model.size_bytes)}, {count(model.n_params)} parameters"
    subtitle = f"{plural(config.n_threads or 0, 'thread')}, CPU variant {cpu_variant}"
    bars = [Bar(result.trial.name, result.mean, result.deviation) for result in results]
    if options.json:
        about = model_fields(model) | {"cpu_variant": cpu_variant, "n_threads": config.n_threads}
        print(json.dumps(about | {"results": [result.fields() for result in results]}, indent=2))
    else:
        print(f"{safe_line(title)}\n{subtitle}\n")
        _print_bars(bars)
    if options.plot is not None:
        _plot(Path(options.plot), svg(title, subtitle, "tokens/s", bars))
    return 0


def _print_bars(bars: Sequence[Bar]) -> None:
    """A table; in a terminal with the bars beside it."""
    shown = text_bars([bar.value for bar in bars], _BAR_COLUMNS) if is_terminal(sys.stdout) else [""] * len(bars)
    rows = [(bar.label, bar.text, blocks) for bar, blocks in zip(bars, shown, strict=True)]
    print_table(("TEST", "TOKENS/S", ""), rows, numbers=("TOKENS/S",), spare=("",), colour=_coloured)


def _coloured(style: Style, column: str, text: str) -> str:
    return text if column else style.good(text)


def _plot(path: Path, picture: str) -> None:
    try:
        write_atomically(path, picture.encode())
    except OSError as exc:
        raise CommandFailed(f"`{path}` cannot be written: {exc.strerror or exc}") from exc
