"""A scheduler over a fake engine, for the tests of what it plans and of what it does with the result."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from shimmy.engine.kv.kv_pool import StoredPrompts
from shimmy.engine.schedule.interfaces import JobEvent
from shimmy.engine.schedule.scheduler import Scheduler
from shimmy.engine.schedule.task import Task
from shimmy.engine.speculate.speculation import Drafter
from shimmy.errors import ShimmyError
from shimmy.messages.event import Echo, Finished, JobProgress, Piece, TokenLogprob
from shimmy.messages.reply import ReplyFormat
from shimmy.messages.request import GenerateRequest, Job, TextPrompt
from tests.engine.fake_backend import FakeBackend, FakeGuide, FakeSampler, Scales, continuation

SONG = b"we all live in a yellow submarine, " * 4
OFF, HALF, FULL = (0.0, 0.0), (0.5, 0.0), (0.5, 1.0)


@dataclass
class Harness:
    """A scheduler with its fake engine, and what it has said so far."""

    backend: FakeBackend = field(default_factory=FakeBackend)
    events: list[JobEvent] = field(default_factory=list)
    samplers: dict[int, FakeSampler] = field(default_factory=dict)
    clock: Callable[[], float] = field(default_factory=lambda: count(1, 0.001).__next__)
    drafter: Drafter | None = None
    prompts: StoredPrompts | None = None

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            self.backend, self.events.extend, drafter=self.drafter, prompts=self.prompts, clock=self.clock
        )

    def submit(
        self,
        job_id: int,
        prompt: str,
        *,
        n_predict: int | None = 8,
        stop: tuple[str, ...] = (),
        script: bytes | None = None,
        cache_prompt: bool = True,
        scales: Scales = (),
        pattern: str | None = None,
        n_logprobs: int | None = None,
        echo: bool = False,
        tells_progress: bool = False,
        form: ReplyFormat = ReplyFormat(),  # noqa: B008 - it is frozen
    ) -> None:
        request = GenerateRequest(
            *("tiny", TextPrompt(prompt)),
            n_predict=n_predict,
            stop=stop,
            cache_prompt=cache_prompt,
            n_logprobs=n_logprobs,
            echo=echo,
            tells_progress=tells_progress,
        )
        self.samplers[job_id] = FakeSampler(self.backend, script)
        guide = None if pattern is None else FakeGuide(pattern)
        tokens, sampler = list(prompt.encode()), self.samplers[job_id]
        self.scheduler.submit(Task(Job(job_id, request), tokens, sampler, 0, scales, guide, form))

    def run(self, *, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if not (self.scheduler.n_running or self.scheduler.n_waiting):
                return
            self.scheduler.step()
        pytest.fail("the scheduler never came to an end")

    def text(self, job_id: int) -> str:
        return "".join(event.text for number, event in self.events if number == job_id and isinstance(event, Piece))

    def logprobs(self, job_id: int, kind: type[Piece] | type[Echo]) -> list[TokenLogprob]:
        said = [event for number, event in self.events if number == job_id and isinstance(event, kind)]
        return [logprob for event in said for logprob in event.logprobs]

    def progress(self, job_id: int) -> list[JobProgress]:
        return [event for number, event in self.events if number == job_id and isinstance(event, JobProgress)]

    def end(self, job_id: int) -> Finished | ShimmyError:
        ends = [
            event for number, event in self.events if number == job_id and isinstance(event, Finished | ShimmyError)
        ]
        assert len(ends) == 1
        return ends[0]

    def finished(self, job_id: int) -> Finished:
        end = self.end(job_id)
        assert isinstance(end, Finished)
        return end


def expected(prompt: str, n_tokens: int = 8, scales: Scales = ()) -> str:
    return continuation(prompt.encode(), n_tokens, scales)


def timed(backend: FakeBackend, row_s: float, decode_s: float = 0.02) -> Callable[[], float]:
    """The clock of a machine on which each decode takes `decode_s`, and `row_s` more for each of its rows."""
    return lambda: sum(decode_s + row_s * len(rows) for rows in backend.batches)


def switches(harness: Harness) -> list[Scales]:
    """The scales of the decodes, without repetitions."""
    seen = harness.backend.scales_of_batches
    return [scales for place, scales in enumerate(seen) if place == 0 or scales != seen[place - 1]]
