"""What `shimmy bench` asks of a worker, and what it makes of the answers. Nothing here is measured."""

import itertools
from typing import cast

import pytest

from shimmy.commands import benchmark
from shimmy.commands.benchmark import BenchmarkResult, Trial, measure, trials
from shimmy.errors import BadRequest, ShimmyError, WorkerDied
from shimmy.messages.event import Accepted, Finished, FinishReason, JobOutput, Piece, Timings, Usage
from shimmy.messages.request import GenerateRequest, TokenPrompt
from shimmy.workers.worker_client import WorkerClient
from shimmy.workers.worker_streams import JobStream
from tests.fakes import FakeWorker, on_loop


class Worker(FakeWorker):
    """Reads and writes as many tokens as it is asked for, or fails its third job."""

    def __init__(self, error: ShimmyError | None = None) -> None:
        super().__init__()
        self._error = error

    def submit(self, request: GenerateRequest) -> JobStream:
        assert isinstance(request.prompt, TokenPrompt)
        n_prompt, n_generated = len(request.prompt.tokens), request.n_predict or 0
        usage = Usage(n_prompt, 0, n_generated)
        end: JobOutput | ShimmyError = Finished(FinishReason.LENGTH, usage, Timings(0.0, 0.0, 0.0))
        if self._error and len(self.requests) == 2:
            end = self._error
        self.script = (Accepted(n_prompt), *(Piece("a", 1) for _ in range(n_generated)), end)
        return super().submit(request)


def as_client(worker: FakeWorker) -> WorkerClient:
    return cast("WorkerClient", worker)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is half a second after the one before."""
    seconds = itertools.count(0.0, 0.5)
    monkeypatch.setattr(benchmark, "perf_counter", lambda: next(seconds))


def test_what_is_measured() -> None:
    assert [trial.name for trial in trials(512, 128, (1, 4))] == ["pp512", "tg128", "tg128 x 4"]
    assert trials(0, 128, (1,)) == [Trial(n_generated=128)]
    assert trials(512, 0, (1, 4)) == [Trial(n_prompt=512)]
    assert trials(0, 0, (1,)) == []


def test_the_mean_and_how_far_the_repetitions_lie_apart() -> None:
    result = BenchmarkResult(Trial(n_prompt=8), (10.0, 14.0))
    assert (result.mean, round(result.deviation, 3)) == (12.0, 2.828)
    assert BenchmarkResult(Trial(n_prompt=8), (10.0,)).deviation == 0


@pytest.mark.usefixtures("clock")
@on_loop
async def test_tokens_per_second_of_all_sequences_together() -> None:
    worker, shares = Worker(), list[float]()
    results = await measure(as_client(worker), trials(16, 6, (1, 3)), 2, shares.append)
    assert [result.samples for result in results] == [(32.0, 32.0), (12.0, 12.0), (36.0, 36.0)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@on_loop
async def test_every_job_is_computed_anew_and_never_ends_early() -> None:
    worker = Worker()
    await measure(as_client(worker), trials(16, 6, (1, 3)), 1, lambda _: None)
    asked = [(request.prompt, request.n_predict) for request in worker.requests]
    prompts = [prompt for prompt, _ in asked if isinstance(prompt, TokenPrompt)]
    assert [len(prompt.tokens) for prompt in prompts] == [16, 16, *[1] * 8], "each trial once for nothing"
    assert [n_predict for _, n_predict in asked] == [0, 0, *[6] * 8]
    assert all(0 <= token < worker.facts.n_vocab for prompt in prompts for token in prompt.tokens)
    assert len(set(prompts[:2])) == 2
    assert not any(request.cache_prompt for request in worker.requests)
    assert all(request.sampling.ignore_eos for request in worker.requests)


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        (Trial(n_prompt=2048), r"`pp2048` takes 2049 tokens of context, there are 2048: .*--ctx-size"),
        (Trial(n_generated=511, n_sequences=4), r"`tg511 x 4` takes 2049 tokens"),
        (Trial(n_generated=1, n_sequences=5), r"`tg1 x 5` takes 5 sequences, there are 4"),
    ],
)
@on_loop
async def test_what_cannot_be_is_said_before_anything_runs(trial: Trial, reason: str) -> None:
    worker = Worker()
    with pytest.raises(BadRequest, match=reason):
        await measure(as_client(worker), [Trial(n_prompt=1), trial], 1, lambda _: None)
    assert worker.requests == []


@on_loop
async def test_a_worker_that_dies_ends_it() -> None:
    with pytest.raises(WorkerDied):
        await measure(as_client(Worker(WorkerDied("it has ended"))), trials(16, 6, (1,)), 1, lambda _: None)
