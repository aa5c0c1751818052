"""How fast a model is with each of several settings: a hidden sub-command, which a worker starts while it is idle."""

import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from shimmy.engine import loading
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.errors import ModelUnavailable
from shimmy.wire import records
from shimmy.wire.worker_options import Offload

_N_TOKENS = 8
_N_ROWS = 64
# The settings take turns, so that other programs slow all of them alike; the best time of each counts.
_N_ROUNDS = 2

Setting = tuple[str, int, Offload | None]  # kind of weights, threads, what devices have


def main(arguments: Sequence[str]) -> int:
    """`trial MODEL VARIANT CACHE SETTINGS`: the variant and the cache folder may be empty, the settings are JSON,
    `[[weights, threads, offload], ...]`, where an offload is null for the processor, and the same in all others.

    Prints `[[seconds for a token, seconds for a row of a prompt], ...]`. Returns the exit code; ends, too, with its
    standard input.
    """
    threading.Thread(target=_end_with_input, daemon=True).start()
    os.nice(10)
    path, variant, cache_dir, text = arguments
    settings = [
        (weights, n_threads, None if offload is None else records.read(Offload, offload))
        for weights, n_threads, offload in json.loads(text)
    ]
    try:
        cpu = loading.trusted_backend(variant or None, cache_dir or None)
        times = measure(Path(path), cpu, settings, Path(cache_dir) if cache_dir else None)
    except ModelUnavailable:
        return 1
    sys.stdout.write(json.dumps(times))
    return 0


def _end_with_input() -> None:
    os.read(sys.stdin.fileno(), 1)  # without Python's lock, which the end of the interpreter would stumble over
    os._exit(1)  # the main thread may be deep in the engine


def measure(
    path: Path, cpu: CpuBackend, settings: Sequence[Setting], cache_dir: Path | None = None
) -> list[tuple[float, float]]:
    """The best seconds for a token and for a row of a prompt, with each of `settings`; raises ModelUnavailable."""
    kinds = {(weights, offload) for weights, _, offload in settings}
    models = {kind: _open(path, cpu, *kind, cache_dir) for kind in kinds}
    times = [(float("inf"), float("inf"))] * len(settings)
    for _ in range(_N_ROUNDS):
        for place, (weights, n_threads, offload) in enumerate(settings):
            model = models[weights, offload]
            model.set_threads(n_threads)
            token_s, row_s = times[place]
            times[place] = min(token_s, _token_s(model)), min(row_s, _row_s(model))
    return times


def _open(path: Path, cpu: CpuBackend, weights: str, offload: Offload | None, cache_dir: Path | None) -> LlamaModel:
    devices = None if offload is None else loading.devices_of(offload, cache_dir)
    model = LlamaModel(path, cpu, devices=devices, repacks=weights == "repacked")
    model.open_context(n_ctx=256, n_batch=_N_ROWS, n_sequences=1, n_outputs=1, n_threads=1)
    model.warm_up()
    return model


def _token_s(model: LlamaModel) -> float:
    times_s = [_decode_s(model, position, 1) for position in range(_N_TOKENS)]
    model.backend.forget(0, 0)
    return min(times_s)


def _row_s(model: LlamaModel) -> float:
    seconds = _decode_s(model, 0, _N_ROWS)
    model.backend.forget(0, 0)
    return seconds / _N_ROWS


def _decode_s(model: LlamaModel, position: int, n_rows: int) -> float:
    backend = model.backend
    backend.batch.clear()
    backend.batch.add([token % model.vocab.n_vocab for token in range(n_rows)], position, 0, n_outputs=1)
    started_s = perf_counter()
    if backend.decode() != 0:
        raise ModelUnavailable("the engine could not decode")
    return perf_counter() - started_s
