"""Times a loaded model: how fast prompts are read, and how fast one sequence or several at once are written.

Jobs go to the worker as a server's do, from tokens to tokens, without HTTP. The names are those of llama.cpp's
`llama-bench`: pp512 is a prompt of 512 tokens, tg128 are 128 generated tokens. Knows nothing of how a model is loaded.
"""

import asyncio
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from shimmy.errors import BadRequest
from shimmy.messages.event import Finished, Piece, Usage
from shimmy.messages.request import GenerateRequest, SamplingParams, TokenPrompt

if TYPE_CHECKING:
    from shimmy.workers.worker_client import WorkerClient

# The most likely token each time, and no end: what is sampled does not matter, that everybody samples does.
_SAMPLING = SamplingParams(temperature=0.0, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Trial:
    """What is timed: a prompt of `n_prompt` tokens is read, or `n_sequences` of `n_generated` are written at once."""

    n_prompt: int = 0
    n_generated: int = 0
    n_sequences: int = 1

    @property
    def name(self) -> str:
        if self.n_prompt:
            return f"pp{self.n_prompt}"
        return f"tg{self.n_generated}" + (f" x {self.n_sequences}" if self.n_sequences > 1 else "")

    @property
    def n_tokens(self) -> int:
        return self.n_prompt or self.n_generated * self.n_sequences

    @property
    def n_cells(self) -> int:
        """Of the KV pool; a generation begins with one token."""
        return self.n_prompt or (1 + self.n_generated) * self.n_sequences


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """The tokens per second of each repetition."""

    trial: Trial
    samples: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.samples) / len(self.samples)

    @property
    def deviation(self) -> float:
        """The standard deviation of the repetitions; 0 where there is only one."""
        # The module `statistics` is large, and not in the frozen file.
        squares = sum((sample - self.mean) ** 2 for sample in self.samples)
        return math.sqrt(squares / max(1, len(self.samples) - 1))

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "test": self.trial.name,
            "n_prompt": self.trial.n_prompt,
            "n_gen": self.trial.n_generated,
            "n_sequences": self.trial.n_sequences,
            "tokens_per_s": round(self.mean, 2),
            "deviation": round(self.deviation, 2),
            "samples": [round(sample, 2) for sample in self.samples],
        }


def trials(n_prompt: int, n_generated: int, n_sequences: Sequence[int]) -> list[Trial]:
    """A prompt and the generations; 0 tokens leave that out."""
    prompt = [Trial(n_prompt=n_prompt)] if n_prompt else []
    return prompt + [Trial(n_generated=n_generated, n_sequences=number) for number in n_sequences if n_generated]


async def measure(
    worker: "WorkerClient", chosen: Sequence[Trial], n_repetitions: int, on_progress: Callable[[float], None]
) -> list[BenchmarkResult]:
    """Run each trial, once without a clock and then `n_repetitions` times; tell what share of all is done.

    Raises BadRequest for a trial that the context or the number of sequences cannot hold, before anything runs.
    """
    for trial in chosen:
        _check(trial, worker)
    n_all = sum(trial.n_tokens for trial in chosen) * (n_repetitions + 1)
    progress = _Progress(n_all, on_progress)
    results = []
    for trial in chosen:
        samples = [await _run(worker, trial, progress) for _ in range(n_repetitions + 1)]
        results.append(BenchmarkResult(trial, tuple(samples[1:])))
    return results


def _check(trial: Trial, worker: "WorkerClient") -> None:
    facts = worker.facts
    if trial.n_cells >= facts.n_ctx:
        message = f"`{trial.name}` takes {trial.n_cells + 1} tokens of context, there are {facts.n_ctx}"
        raise BadRequest(f"{message}: ask for fewer, or raise `--ctx-size`")
    if trial.n_sequences > facts.n_sequences:
        raise BadRequest(f"`{trial.name}` takes {trial.n_sequences} sequences, there are {facts.n_sequences}")


class _Progress:
    """Counts the tokens that are done."""

    def __init__(self, n_all: int, on_progress: Callable[[float], None]) -> None:
        self._n_all = n_all
        self._n_done = 0
        self._on_progress = on_progress

    def add(self, n_tokens: int) -> None:
        self._n_done += n_tokens
        self._on_progress(min(1.0, self._n_done / self._n_all))


async def _run(worker: "WorkerClient", trial: Trial, progress: _Progress) -> float:
    """Tokens per second from the jobs being handed over to the end of the last.

    A generation of N tokens from a prompt of one is N decodes: the first is that of the prompt, and the last token is
    not decoded any more.
    """
    requests = list(_requests(worker, trial))
    started_s = perf_counter()
    used = await asyncio.gather(*(_usage(worker, request, progress) for request in requests))
    elapsed_s = perf_counter() - started_s
    progress.add(trial.n_prompt)
    return sum(usage.n_prompt if trial.n_prompt else usage.n_completion for usage in used) / elapsed_s


def _requests(worker: "WorkerClient", trial: Trial) -> Iterator[GenerateRequest]:
    """Prompts of random tokens, as `llama-bench` has them; what is resident of them does not count."""
    for _ in range(trial.n_sequences):
        prompt = TokenPrompt(tuple(random.choices(range(worker.facts.n_vocab), k=trial.n_prompt or 1)))
        yield GenerateRequest(worker.name, prompt, _SAMPLING, trial.n_generated, cache_prompt=False)


async def _usage(worker: "WorkerClient", request: GenerateRequest, progress: _Progress) -> Usage:
    """What a job has read and written, once it has ended."""
    stream = worker.submit(request)
    usage = Usage(0, 0, 0)
    try:
        await stream.accepted()
        async for event in stream:
            if isinstance(event, Piece):
                progress.add(event.n_tokens)
            elif isinstance(event, Finished):
                usage = event.usage
    finally:
        stream.close()
    return usage
