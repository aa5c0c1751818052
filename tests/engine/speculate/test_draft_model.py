"""A draft model beside a model, both real and tiny: whatever it guesses, the text is the one without it."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama import sampler_chain
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.schedule.scheduler import Scheduler
from shimmy.engine.schedule.task import Task
from shimmy.engine.speculate import draft_model
from shimmy.engine.speculate.decode_costs import DecodeCosts
from shimmy.engine.speculate.draft_model import DraftModel
from shimmy.engine.speculate.speculation import AcceptanceStats, Draft, DraftPlanner
from shimmy.messages.event import Finished, Piece, Timings
from shimmy.messages.request import GenerateRequest, Job, SamplingParams, TextPrompt
from shimmy.wire.worker_options import DRAFT_BATCH, WorkerOptions
from tests.tiny_models import BOS_TOKEN, write_tiny_bert, write_tiny_model

if TYPE_CHECKING:
    from shimmy.engine.schedule.interfaces import JobEvent

N_CTX, N_CTX_DRAFT = 1024, 256
GREEDY = SamplingParams(temperature=0)
# A choice of several likely tokens, made by chance.
LOOSE = SamplingParams(temperature=3, top_k=20, top_p=1, min_p=0)
PROMPT = "hello world and the user"


class Clock:
    """Time that passes only while a model decodes."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Timed:
    """Makes the decodes of `model` take `first_s`, and `row_s` for each further row, and end with `status`."""

    def __init__(self, model: LlamaModel, clock: Clock, first_s: float, row_s: float) -> None:
        self.row_s = row_s
        self.n_decodes = 0
        self.status = 0
        backend = model.backend
        decode = backend.decode

        def timed() -> int:
            clock.now_s += first_s + self.row_s * (backend.batch.n_rows - 1)
            self.n_decodes += 1
            return self.status or decode()

        backend.decode = timed  # type: ignore[method-assign]


class Harness:
    """A scheduler with a model, and perhaps a draft model that costs a twentieth of it and is sure of all it says."""

    def __init__(self, path: Path, cpu: CpuBackend, draft_path: Path | None = None, n_ctx: int = N_CTX) -> None:
        clock = Clock()
        self.model = LlamaModel(path, cpu)
        self.model.open_context(n_ctx=n_ctx, n_batch=64, n_sequences=4, n_outputs=32, n_threads=1)
        self.timed = Timed(self.model, clock, 1.0, 0.05)
        self.drafter = None
        if draft_path is not None:
            small = LlamaModel(draft_path, cpu)
            small.open_context(n_ctx=N_CTX_DRAFT, n_batch=DRAFT_BATCH, n_sequences=1, n_outputs=1, n_threads=1)
            self.small = Timed(small, clock, 0.05, 0.01)
            self.drafter = DraftModel(small, N_CTX_DRAFT, self.model.vocab.n_vocab, sure=0.0, clock=clock)
        self.events: list[JobEvent] = []
        self.scheduler = Scheduler(self.model.backend, self.events.extend, drafter=self.drafter, clock=clock)

    def submit(self, job_id: int, prompt: str, n_predict: int = 120, params: SamplingParams = GREEDY) -> Task:
        chain = sampler_chain.chain(params, seed=7, n_ctx=N_CTX)
        sampler = self.model.new_sampler(chain, params.logit_bias, params.dry_sequence_breakers)
        tokens = self.model.vocab.tokenize(prompt, add_special=True, parse_special=True)
        request = GenerateRequest("tiny", TextPrompt(prompt), params, n_predict)
        task = Task(Job(job_id, request), tokens, sampler, 0.0)
        self.scheduler.submit(task)
        return task

    def run(self) -> None:
        while self.scheduler.n_running or self.scheduler.n_waiting:
            self.scheduler.step()

    def answer(self, prompt: str, n_predict: int = 120, params: SamplingParams = GREEDY) -> str:
        """The text of a job that runs alone."""
        self.events.clear()
        self.submit(1, prompt, n_predict, params)
        self.run()
        return self.text(1)

    def text(self, job_id: int) -> str:
        return "".join(event.text for number, event in self.events if number == job_id and isinstance(event, Piece))

    @property
    def timings(self) -> Timings:
        """Of the job that has ended last."""
        return next(event.timings for _, event in reversed(self.events) if isinstance(event, Finished))


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights than those of `tiny_model`, and the same vocabulary."""
    return write_tiny_model(tmp_path_factory.mktemp("other"), "other", seed=1)


@pytest.fixture(scope="module")
def plain(tiny_model: Path, cpu: CpuBackend) -> Harness:
    return Harness(tiny_model, cpu)


# -- what comes of its guesses ---------------------------------------------------------------------------------------


def test_a_model_of_the_same_weights_guesses_nearly_all(tiny_model: Path, plain: Harness, cpu: CpuBackend) -> None:
    harness = Harness(tiny_model, cpu, tiny_model)
    assert harness.answer(PROMPT) == plain.answer(PROMPT)
    timings = harness.timings
    assert timings.n_model_accepted > 60
    assert timings.n_model_accepted > 0.95 * timings.n_model_drafted
    assert timings.n_drafted >= timings.n_model_drafted
    assert harness.timed.n_decodes < 60


def test_a_model_of_other_weights_is_soon_left_alone(
    tiny_model: Path, other_model: Path, plain: Harness, cpu: CpuBackend
) -> None:
    harness = Harness(tiny_model, cpu, other_model)
    assert harness.answer(PROMPT, 300) == plain.answer(PROMPT, 300)
    assert harness.timings.n_model_drafted > 0, "it is tried"
    assert harness.timings.n_model_accepted < 0.2 * harness.timings.n_model_drafted
    assert harness.small.n_decodes < 100, "for 300 tokens"
    assert harness.timings.predicted_ms < 1.05 * plain.timings.predicted_ms


@pytest.mark.parametrize("prompt", [PROMPT, "system", "9 8 7 " * 6])
def test_sampled_text_is_the_one_without_it(
    prompt: str, tiny_model: Path, other_model: Path, plain: Harness, cpu: CpuBackend
) -> None:
    expected = plain.answer(prompt, 100, LOOSE)
    for small in (tiny_model, other_model):
        harness = Harness(tiny_model, cpu, small)
        assert harness.answer(prompt, 100, LOOSE) == expected
        assert harness.timings.n_model_drafted > 0


def test_it_follows_whoever_is_guessed_for(tiny_model: Path, plain: Harness, cpu: CpuBackend) -> None:
    harness = Harness(tiny_model, cpu, tiny_model)
    conversation = PROMPT
    for _ in range(3):
        reply = plain.answer(conversation, 40)
        assert harness.answer(conversation, 40) == reply
        assert harness.timings.n_model_accepted > 10
        other = plain.answer("something else", 40)
        assert harness.answer("something else", 40) == other
        conversation += reply + " and the user"


def test_jobs_that_are_cancelled_or_start_over_or_run_together_do_not_disturb_it(
    tiny_model: Path, plain: Harness, cpu: CpuBackend
) -> None:
    harness = Harness(tiny_model, cpu, tiny_model, n_ctx=256)
    harness.submit(9, "the user and the world", 100)
    for _ in range(10):
        harness.scheduler.step()
    harness.scheduler.cancel(9)
    prompts = {number: f"{PROMPT} {number}" for number in range(3)}  # together they outgrow the pool
    for number, prompt in prompts.items():
        harness.submit(number, prompt, 150)
    harness.run()
    for number, prompt in prompts.items():
        assert harness.text(number) == plain.answer(prompt, 150)
    assert harness.answer(PROMPT, 60) == plain.answer(PROMPT, 60)
    assert harness.timings.n_model_accepted > 20


def test_a_long_text_is_read_piece_by_piece_and_only_its_latest_part(
    tiny_model: Path, plain: Harness, cpu: CpuBackend
) -> None:
    harness = Harness(tiny_model, cpu, tiny_model)
    assert harness.answer("hello world " * 100, 300) == plain.answer("hello world " * 100, 300)
    assert harness.drafter is not None
    assert not harness.drafter._is_broken
    assert N_CTX_DRAFT // 4 < len(harness.drafter._resident) < N_CTX_DRAFT
    assert harness.drafter._resident[0] == BOS_TOKEN


def test_a_text_that_is_dear_to_read_is_read_for_a_long_reply_only(
    tiny_model: Path, plain: Harness, cpu: CpuBackend
) -> None:
    harness = Harness(tiny_model, cpu, tiny_model)
    harness.answer("the user " * 40, 40)  # a piece of that tells what reading costs
    harness.small.row_s = 1.0
    harness.answer("and system " * 40, 20)
    n_before = harness.small.n_decodes
    assert harness.answer("hello world " * 40, 30) == plain.answer("hello world " * 40, 30)
    assert harness.small.n_decodes == n_before, "not worth it"
    harness.small.row_s = 0.01
    assert harness.answer("hello world " * 30 + PROMPT, 400) == plain.answer("hello world " * 30 + PROMPT, 400)
    assert harness.small.n_decodes > n_before


def test_one_that_fails_is_not_asked_again(
    tiny_model: Path, plain: Harness, cpu: CpuBackend, caplog: pytest.LogCaptureFixture
) -> None:
    harness = Harness(tiny_model, cpu, tiny_model)
    harness.answer(PROMPT, 20)
    harness.small.status = -3
    n_before = harness.small.n_decodes
    assert harness.answer("system", 60) == plain.answer("system", 60)
    assert harness.small.n_decodes == n_before + 1
    assert [record.message for record in caplog.records] == [
        "the draft model failed to decode (status -3) and is not asked any more"
    ]


# -- what is asked of it ---------------------------------------------------------------------------------------------


def cheap() -> DecodeCosts:
    """A decode of one row takes a second, and one of any number of rows no longer."""
    costs = DecodeCosts()
    costs.observe(1, 1.0)
    for _ in range(60):
        for n_rows in (2, 3, 4, 6, 8, 12, 16, 32):
            costs.observe(n_rows, 1.0)
    return costs


@pytest.fixture
def small(tiny_model: Path, cpu: CpuBackend) -> LlamaModel:
    model = LlamaModel(tiny_model, cpu)
    model.open_context(n_ctx=N_CTX_DRAFT, n_batch=DRAFT_BATCH, n_sequences=1, n_outputs=1, n_threads=1)
    return model


def test_it_guesses_no_more_than_wanted_and_nothing_it_is_not_sure_of(small: LlamaModel) -> None:
    tokens = small.vocab.tokenize(PROMPT, add_special=True, parse_special=True)
    surely = DraftModel(small, N_CTX_DRAFT, small.vocab.n_vocab, sure=0.0)
    for n_max in (3, 1, 5):
        guess = surely.draft(tokens, n_max, cheap(), DraftPlanner(), None)
        assert guess is not None
        assert 0 < len(guess.tokens) <= n_max
    small.backend.forget(0, 0)
    never = DraftModel(small, N_CTX_DRAFT, small.vocab.n_vocab, sure=1.1)
    planner = DraftPlanner()
    assert [never.draft(tokens, 15, cheap(), planner, None) for _ in range(3)] == [None] * 3


def test_it_guesses_nothing_before_it_knows_what_a_guess_is_worth(small: LlamaModel) -> None:
    drafter = DraftModel(small, N_CTX_DRAFT, small.vocab.n_vocab, sure=0.0)
    assert drafter.draft([BOS_TOKEN], 15, DecodeCosts(), DraftPlanner(), None) is None


def test_it_leaves_what_is_looked_up_for_sure_to_that(small: LlamaModel) -> None:
    drafter = DraftModel(small, N_CTX_DRAFT, small.vocab.n_vocab, sure=0.0)
    for gain, is_asked in ((100.0, False), (1.2, True)):
        rival = Draft([1, 2, 3], gain, AcceptanceStats())
        assert (drafter.draft([BOS_TOKEN], 15, cheap(), DraftPlanner(), rival) is not None) == is_asked


def test_reading_what_is_new_to_it_is_not_the_price_of_a_token(tiny_model: Path, cpu: CpuBackend) -> None:
    clock = Clock()
    slow = LlamaModel(tiny_model, cpu)
    slow.open_context(n_ctx=N_CTX_DRAFT, n_batch=DRAFT_BATCH, n_sequences=1, n_outputs=1, n_threads=1)
    Timed(slow, clock, 0.1, 1.0)
    drafter = DraftModel(slow, N_CTX_DRAFT, slow.vocab.n_vocab, sure=1.1, clock=clock)
    tokens, planner = slow.vocab.tokenize(PROMPT, add_special=True, parse_special=True), DraftPlanner()
    for n_tokens in range(DRAFT_BATCH + 1):
        drafter.draft([*tokens, *tokens[1:2] * n_tokens], 15, cheap(), planner, None)
    assert drafter._token_s == pytest.approx(0.1)


def test_tokens_that_only_one_of_the_models_knows_are_neither_read_nor_guessed(small: LlamaModel) -> None:
    tokens = small.vocab.tokenize(PROMPT, add_special=True, parse_special=True)
    assert max(tokens) > 270
    few = DraftModel(small, N_CTX_DRAFT, 270, sure=0.0)  # the other one has the bytes and little more
    assert few.draft(tokens, 15, cheap(), DraftPlanner(), None) is None
    assert few.draft([BOS_TOKEN], 15, cheap(), DraftPlanner(), None) is None, (
        "what it would guess the other does not know"
    )


def test_the_likeliest_token_is_the_greedy_one(small: LlamaModel) -> None:
    tokens = small.vocab.tokenize(PROMPT, add_special=True, parse_special=True)
    small.backend.batch.clear()
    row = small.backend.batch.add(tokens, 0, 0, n_outputs=1)
    assert small.backend.decode() == 0
    token, probability = small.backend.likeliest(row)
    best = small.backend.logprob(row, token, 1).top[0]
    assert token == best.token
    assert 0.1 < probability <= 1


# -- which one fits which model --------------------------------------------------------------------------------------


def options(path: Path, small: Path) -> WorkerOptions:
    return WorkerOptions(str(path), N_CTX, 4, 64, 1, None, None, draft_model=str(small))


def changed(old: bytes, new: bytes) -> Callable[[Path], Path]:
    """A maker of a model whose file differs in a few bytes."""

    def make(folder: Path) -> Path:
        path = write_tiny_model(folder, "changed")
        data = path.read_bytes()
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))
        return path

    return make


def cut_short(folder: Path) -> Path:
    path = write_tiny_model(folder, "cut")
    path.write_bytes(path.read_bytes()[:-1000])
    return path


MISFITS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "tokens": (
        changed("▁hello".encode(), "▁hallo".encode()),
        r"its token \d+ is `\\u2581hallo` and not `\\u2581hello`",
    ),
    "beginning": (
        changed(b"tokenizer.ggml.add_bos_token\7\0\0\0\1", b"tokenizer.ggml.add_bos_token\7\0\0\0\0"),
        "its texts begin or end with other tokens",
    ),
    "encoder": (write_tiny_bert, "it does not write text"),
    "short": (lambda folder: write_tiny_model(folder, n_ctx_train=128), "its training length is 128 tokens"),
    "cut": (cut_short, "it is cut off"),
    "missing": (lambda folder: folder / "nothing.gguf", "No such file"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_one_that_does_not_fit_is_left_out_with_a_warning(
    misfit: str, plain: Harness, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = MISFITS[misfit]
    path = make(tmp_path)
    assert draft_model.load(options(tiny_model, path), plain.model, 1) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith(f"`{tiny_model.name}` is served without the draft model `{path.name}`: ")
    assert re.search(reason, record.message)


def test_one_that_fits_is_loaded_and_guesses(
    plain: Harness, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(shutil.copy(tiny_model, tmp_path / "small.gguf"))
    with caplog.at_level(logging.INFO):
        loaded = draft_model.load(options(tiny_model, path), plain.model, 1)
    assert loaded is not None
    loaded.set_threads(2)
    assert caplog.messages == [f"`small.gguf` guesses for `{tiny_model.name}`"]
