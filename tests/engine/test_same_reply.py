"""Greedy replies are the same with each feature of the scheduler on and off: guesses, shared prompts, batches, pools.

A real engine computes tiny models all in F32, so that the shape of a batch hardly changes a logit (by 1e-5): a Llama,
and one whose layers attend to a few tokens that they select. Each reply is followed with its log-probabilities up to
the first token that differs from the plain reply's. There both ways have to find the two tokens closer than a tie, and
up to there each token as likely as the other way found it.
"""

from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama import sampler_chain
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.schedule.interfaces import JobEvent
from shimmy.engine.schedule.scheduler import Scheduler
from shimmy.engine.schedule.task import Task
from shimmy.formats.convert.convert import convert
from shimmy.messages.event import Finished, Piece, TokenLogprob
from shimmy.messages.request import GenerateRequest, Job, SamplingParams, TextPrompt
from tests.bench.session import WORDS
from tests.golden.weights import write_folder
from tests.tiny_models import vocabulary, write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable

TIE, NOISE = 1e-3, 1e-4  # of log-probabilities; noise was at most 3e-6, and one wrong cell of 360 moved them by 0.2
N_PROMPTS, N_TOKENS, N_TOP = 20, 64, 20
N_CTX, N_SEQUENCES, N_OUTPUTS = 8192, 8, 64
FOCUS = 0.1  # each head looks at all tokens, so that each cell counts
GREEDY = SamplingParams(temperature=0)
BEGINNING = " ".join(Random(1).choices(WORDS, k=60))
PROMPTS = [f"{BEGINNING} {number} hello {number} world" for number in range(N_PROMPTS)]
N_SHORT = 100  # bytes of it, each a token for the model that selects, which attends to 32 of them
# With three tokens to choose from there is something to guess.
FEW = ("▁xa", "b", "c")
SELECTING = "glm-dsa"
N_TIES = 2  # replies in which a token may be selected in the place of another one that is as good

Biases = list[tuple[int, float]]


@dataclass(slots=True)
class Reply:
    """What one prompt led to."""

    tokens: list[TokenLogprob] = field(default_factory=list)
    share_cached: float = 0.0  # of its prompt
    n_guessed: int = 0


def anything(_: "Harness") -> bool:
    return True


def guessed(harness: "Harness") -> bool:
    return all(reply.n_guessed for reply in harness.replies.values())


def shared(harness: "Harness") -> bool:
    return sum(reply.share_cached > 0.5 for reply in harness.replies.values()) >= N_PROMPTS - N_SEQUENCES


def kept(harness: "Harness") -> bool:
    return all(reply.share_cached > 0.5 for reply in harness.replies.values())


def grown(harness: "Harness") -> bool:
    return len(harness.pool_sizes) > 1


@dataclass(frozen=True, slots=True)
class Way:
    """How the same prompts may be computed: `n_at_once` of them, a second time if `is_second`.

    `proof` tells whether what is tried here took place at all.
    """

    name: str
    n_ctx: int = N_CTX
    first: tuple[int, int] | None = None  # cells and sequences of the pool
    n_batch: int = 512
    speculate: bool = False
    cache_prompt: bool = False
    n_at_once: int = 1
    is_second: bool = False
    proof: "Callable[[Harness], bool]" = anything


PLAIN = Way("plain")
GUESSES = Way("guesses", speculate=True, proof=guessed)
WAYS = (
    Way("beside others", n_at_once=N_SEQUENCES),
    Way("beginnings shared", cache_prompt=True, proof=shared),
    Way("beginnings shared beside others", cache_prompt=True, n_at_once=N_SEQUENCES, proof=shared),
    Way("prompts kept", cache_prompt=True, is_second=True, proof=kept),
    Way("small batches", n_batch=32, n_at_once=4),
    # Two prompts fit, and what they lead to does not.
    Way("small pool", n_ctx=1024, n_at_once=N_SEQUENCES),
    Way("growing pool", first=(512, 2), n_at_once=N_SEQUENCES, proof=grown),
    Way(
        "everything",
        N_CTX,
        (512, 2),
        speculate=True,
        cache_prompt=True,
        n_at_once=N_SEQUENCES,
        is_second=True,
        proof=kept,
    ),
)


class Harness:
    """A scheduler over a real engine."""

    def __init__(self, model: LlamaModel, way: Way) -> None:
        self.model = model
        self.is_selecting = model.name.startswith(SELECTING)
        self.replies: dict[int, Reply] = {}
        self.pool_sizes = {model.backend.n_cells}
        # A clock that stands still: what a guess costs is never learnt, so it does not hang on the machine.
        self.scheduler = Scheduler(model.backend, self._take, speculate=way.speculate, clock=lambda: 0.0)

    def ask(self, number: int, prompt: str, way: Way, biases: Biases) -> None:
        self.replies[number] = Reply()
        request = GenerateRequest(
            "tiny", TextPrompt(prompt), GREEDY, N_TOKENS, cache_prompt=way.cache_prompt, n_logprobs=N_TOP
        )
        tokens = self.model.vocab.tokenize(prompt, add_special=True, parse_special=True)
        ends = [(token, -inf) for token in range(self.model.vocab.n_vocab) if self.model.vocab.is_end(token)]
        sampler = self.model.new_sampler(sampler_chain.chain(GREEDY, seed=0, n_ctx=way.n_ctx), [*biases, *ends], ())
        self.scheduler.submit(Task(Job(number, request), tokens, sampler, 0.0))

    def run(self, way: Way, biases: Biases) -> list[Reply]:
        for number, prompt in enumerate(PROMPTS):
            self.ask(number, prompt[len(BEGINNING) - N_SHORT :] if self.is_selecting else prompt, way, biases)
            self._until_fewer_than(way.n_at_once)
        self._until_fewer_than(1)
        return [self.replies[number] for number in range(N_PROMPTS)]

    def _until_fewer_than(self, n_jobs: int) -> None:
        while self.scheduler.n_running + self.scheduler.n_waiting >= n_jobs:
            self.scheduler.step()
            self.pool_sizes.add(self.model.backend.n_cells)

    def _take(self, events: list[JobEvent]) -> None:
        for number, event in events:
            reply = self.replies[number]
            if isinstance(event, Piece):
                reply.tokens += event.logprobs
            else:
                assert isinstance(event, Finished), event
                reply.share_cached = event.usage.n_cached / event.usage.n_prompt
                reply.n_guessed = event.timings.n_accepted


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


@pytest.fixture(scope="module", params=["llama", pytest.param(SELECTING, marks=pytest.mark.thorough)])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity")
    if request.param == "llama":
        return write_tiny_model(folder, n_ctx_train=N_CTX, focus=FOCUS)
    path = folder / f"{SELECTING}.gguf"
    convert(write_folder(SELECTING, folder / "model", "5"), path, lambda _: None)
    return path


def replies(path: Path, cpu: CpuBackend, way: Way, biases: Biases | None = None) -> list[Reply]:
    model = LlamaModel(path, cpu)
    rows = {"n_batch": way.n_batch, "n_sequences": N_SEQUENCES, "n_outputs": N_OUTPUTS}
    model.open_context(n_ctx=way.n_ctx, first=way.first, **rows, n_threads=1, kv_type="f32")
    harness = Harness(model, way)
    if way.is_second:
        harness.run(way, biases or [])
    found = harness.run(way, biases or [])
    assert all(len(reply.tokens) == N_TOKENS for reply in found)
    assert way.proof(harness), "this did not take place"
    return found


@pytest.fixture(scope="module")
def plain(path: Path, cpu: CpuBackend) -> list[Reply]:
    found = replies(path, cpu, PLAIN)
    texts = {tuple(told.chosen.token for told in reply.tokens) for reply in found}
    assert len(texts) > N_PROMPTS / 2
    return found


def distances(plain: Reply, other: Reply) -> tuple[float, float]:
    """How far the two are apart in the likelihood of what both said, and in that of the first tokens that differ."""
    farthest = 0.0
    for mine, its in zip(plain.tokens, other.tokens, strict=True):
        if mine.chosen.token != its.chosen.token:
            return farthest, max(_gap(told, mine.chosen.token, its.chosen.token) for told in (mine, its))
        farthest = max(farthest, abs(mine.chosen.logprob - its.chosen.logprob))
    return farthest, 0.0


def _gap(told: TokenLogprob, one: int, other: int) -> float:
    """Between the log-probabilities of two tokens; infinite where one of them is not among the likeliest."""
    known = {candidate.token: candidate.logprob for candidate in (*told.top, told.chosen)}
    return abs(known.get(one, inf) - known[other]) if other in known else inf


def check(plain: list[Reply], others: list[Reply], *, n_ties: int = 0) -> None:
    found = [distances(one, other) for one, other in zip(plain, others, strict=True)]
    apart = [each for each in found if each[0] > NOISE or each[1] > TIE]
    assert len(apart) <= n_ties, apart


# `make check` tries what has the most in it; one feature alone shows `make test` where the fault is.
ALONE = {"beside others", "beginnings shared", "prompts kept", "small batches", "growing pool"}


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, id=way.name, marks=pytest.mark.thorough if way.name in ALONE else ()) for way in WAYS],
)
def test_how_it_is_computed_makes_no_difference(path: Path, cpu: CpuBackend, plain: list[Reply], way: Way) -> None:
    check(plain, replies(path, cpu, way), n_ties=N_TIES if path.stem == SELECTING else 0)


def test_guessing_ahead_makes_no_difference(path: Path, cpu: CpuBackend) -> None:
    texts = [text for text, _ in vocabulary()]
    tokens = range(3) if path.stem == SELECTING else map(texts.index, FEW)
    biases = [(token, 100.0) for token in tokens]
    n_ties = N_TIES if path.stem == SELECTING else 0
    check(replies(path, cpu, PLAIN, biases), replies(path, cpu, GUESSES, biases), n_ties=n_ties)


def test_a_token_that_differs_is_seen_and_a_tie_is_told_from_it(plain: list[Reply]) -> None:
    told = plain[0].tokens[3]
    best, second = told.top[:2]
    assert best == told.chosen
    for gap in (0.5 * TIE, 2 * TIE):
        close = replace(second, logprob=best.logprob - gap)
        mine, its = (replace(told, chosen=chosen, top=(best, close)) for chosen in (best, close))
        one, other = (Reply([*plain[0].tokens[:3], third]) for third in (mine, its))
        assert distances(one, other)[1] == pytest.approx(gap)
