"""`bench`: how fast a model is on this machine, as a table or as JSON."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from shimmy.catalog.catalog import Model
from shimmy.commands.benchmark import BenchmarkResult, measure, trials
from shimmy.commands.console import CommandCall, ProgressBar, print_table
from shimmy.commands.models import model_fields, with_model
from shimmy.commands.terminal.amounts import count, plural, size
from shimmy.option_kinds import ConfigError
from shimmy.system.cpu import n_physical_cores

if TYPE_CHECKING:
    from shimmy.generation import Services


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
    if options.json:
        about = model_fields(model) | {"cpu_variant": cpu_variant, "n_threads": config.n_threads}
        print(json.dumps(about | {"results": [result.fields() for result in results]}, indent=2))
        return 0
    print(f"{model.name}, {model.quantization}, {size(model.size_bytes)}, {count(model.n_params)} parameters")
    print(f"{plural(config.n_threads or 0, 'thread')}, CPU variant {cpu_variant}\n")
    rows = [(result.trial.name, f"{result.mean:.2f} ± {result.deviation:.2f}") for result in results]
    print_table(("TEST", "TOKENS/S"), rows)
    return 0
