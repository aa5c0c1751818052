"""The scheduler against a fake engine: who is in which batch, what is reused, and that every job gets its own text."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, pairwise

import pytest

from shimmy.engine.kv.kv_pool import StoredPrompts
from shimmy.engine.schedule.scheduler import JobEvent, Scheduler
from shimmy.engine.schedule.task import Task
from shimmy.engine.speculate.speculation import DecodeCosts, Draft, Drafter, DraftPlanner
from shimmy.errors import BadRequest, Internal, OutOfMemory, ShimmyError
from shimmy.messages.event import Echo, Finished, FinishReason, Piece, TokenLogprob
from shimmy.messages.reply import ReplyFormat
from shimmy.messages.request import Job, SamplingParams, TextPrompt
from shimmy.text.reply_parser import ReplyParser
from tests.engine.fake_backend import END, FakeBackend, FakeGuide, FakeSampler, Scales, continuation


@dataclass
class House:
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
        form: ReplyFormat = ReplyFormat(),  # noqa: B008 - it is frozen
    ) -> None:
        job = Job(
            *(job_id, TextPrompt(prompt), SamplingParams(), n_predict, stop, cache_prompt),
            n_logprobs=n_logprobs,
            echo=echo,
        )
        self.samplers[job_id] = FakeSampler(self.backend, script)
        guide = None if pattern is None else FakeGuide(pattern)
        self.scheduler.submit(Task(job, list(prompt.encode()), self.samplers[job_id], 0, scales, guide, form))

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


def test_a_job_gets_its_text_and_a_true_account() -> None:
    house = House()
    house.submit(1, "hello")
    house.run()
    assert house.text(1) == expected("hello")
    finished = house.finished(1)
    assert finished.reason is FinishReason.LENGTH
    assert (finished.usage.n_prompt, finished.usage.n_cached, finished.usage.n_completion) == (5, 0, 8)
    assert house.samplers[1].is_closed


def test_many_jobs_share_a_batch_and_each_gets_its_own_text() -> None:
    house = House(FakeBackend(n_ctx=256, n_sequences=4))
    prompts = {number: f"prompt {number}" for number in range(10)}
    for number, prompt in prompts.items():
        house.submit(number, prompt)
    house.run()
    assert {number: house.text(number) for number in prompts} == {
        number: expected(prompt) for number, prompt in prompts.items()
    }
    assert max(len({sequence for _, _, sequence, _ in rows}) for rows in house.backend.batches) == 4


def timed(backend: FakeBackend, row_s: float, decode_s: float = 0.02) -> Callable[[], float]:
    """The clock of a machine on which each decode takes `decode_s`, and `row_s` more for each of its rows."""
    return lambda: sum(decode_s + row_s * len(rows) for rows in backend.batches)


def test_a_long_prompt_is_cut_into_chunks_beside_decode_rows() -> None:
    backend = FakeBackend(n_ctx=1024, n_batch=200)
    house = House(backend, clock=timed(backend, row_s=0.003))
    house.submit(1, "a", n_predict=20)
    house.scheduler.step()
    house.submit(2, "b" * 500, n_predict=4)
    house.run()
    assert house.text(1) == expected("a", 20)
    assert house.text(2) == expected("b" * 500, 4)
    mixed = [rows for rows in backend.batches if len({sequence for _, _, sequence, _ in rows}) == 2]
    assert [len(rows) for rows in mixed[:4]] == [129, 128, 128, 119]
    assert all(rows[0][2] == 0 for rows in mixed), "one decode row, first"


def test_chunks_are_smaller_where_rows_take_longer() -> None:
    largest = {}
    for row_s in (0.0001, 0.003, 0.03):
        backend = FakeBackend(n_ctx=4096, n_batch=512)
        house = House(backend, clock=timed(backend, row_s))
        house.submit(1, "x" * 600, n_predict=40)
        while not house.text(1):
            house.scheduler.step()
        n_before = len(backend.batches)
        house.submit(2, "y" * 1500, n_predict=4)
        house.run()
        assert house.text(2) == expected("y" * 1500, 4)
        mixed = [rows for rows in backend.batches[n_before:] if len({sequence for _, _, sequence, _ in rows}) == 2]
        largest[row_s] = max(len(rows) for rows in mixed)
    assert largest == {0.0001: 512, 0.003: 128, 0.03: 16 + 1}


def test_short_prompts_that_come_together_start_together() -> None:
    backend = FakeBackend(n_ctx=4096, n_batch=512, n_sequences=8)
    house = House(backend, clock=timed(backend, row_s=0.003))
    house.submit(1, "x" * 60, n_predict=40)
    while not house.text(1):
        house.scheduler.step()
    n_before = len(backend.batches)
    for number in range(2, 9):
        house.submit(number, f"{number}" * 60, n_predict=4)
    house.scheduler.step()
    assert len(backend.batches[n_before]) == 1 + 7 * 60
    house.run()
    assert all(house.text(number) == expected(f"{number}" * 60, 4) for number in range(2, 9))


def test_telling_what_a_prompt_is_worth_teaches_nothing_of_the_pace() -> None:
    backend = FakeBackend(n_ctx=4096, n_batch=512)
    house = House(backend, clock=timed(backend, row_s=0.0001))
    house.submit(1, "x" * 600, n_predict=60)
    while not house.text(1):
        house.scheduler.step()
    house.clock = house.scheduler._clock = timed(backend, row_s=1.0)
    house.submit(2, "y" * 200, n_predict=1, n_logprobs=0, echo=True)
    while house.scheduler.n_running != 1:
        house.scheduler.step()
    house.submit(3, "z" * 600, n_predict=1)
    n_before = len(backend.batches)
    house.scheduler.step()
    assert len(backend.batches[n_before]) == 512


def prompt_rows(backend: FakeBackend) -> list[dict[int, int]]:
    """Of each decode with prompts in it: how many rows of which sequences."""
    counted = [Counter(sequence for _, _, sequence, _ in rows) for rows in backend.batches]
    return [dict(counts) for counts in counted if max(counts.values()) > 1]


def rows_of_three_prompts(*, n_first: int, row_s: float, decode_s: float) -> list[list[int]]:
    """How many rows of which of three prompts of 40 tokens each decode has, behind one of `n_first` tokens."""
    backend = FakeBackend(n_ctx=1024, n_batch=512)
    house = House(backend, clock=timed(backend, row_s=row_s, decode_s=decode_s))
    house.submit(1, "a" * n_first, n_predict=4)
    house.run()
    n_before = len(prompt_rows(backend))
    for number in (2, 3, 4):
        house.submit(number, chr(ord("b") + number) * 40, n_predict=1)
    house.run()
    return [sorted(rows.values()) for rows in prompt_rows(backend)[n_before:]]


def test_prompts_are_computed_one_after_the_other_where_a_larger_decode_is_not_faster() -> None:
    assert rows_of_three_prompts(n_first=100, row_s=0.01, decode_s=0.01) == [[40], [40], [40]]


def test_short_prompts_are_computed_together_where_that_is_faster_for_each() -> None:
    together, *rest = rows_of_three_prompts(n_first=200, row_s=0.001, decode_s=0.02)
    assert sum(together) == 76  # 4 decodes of one row, which take 21 ms, where a prompt's row has taken 1.1 ms
    assert sum(map(sum, rest)) == 3 * 40 - 76


def test_before_a_machine_is_known_a_decode_is_filled() -> None:
    house = House(FakeBackend(n_ctx=512, n_batch=64))
    for number in (1, 2):
        house.submit(number, chr(ord("a") + number) * 40, n_predict=1)
    house.run()
    assert prompt_rows(house.backend)[0] == {0: 40, 1: 24}


def test_a_short_prompt_does_not_wait_for_a_long_one_nor_a_long_one_for_many_short_ones() -> None:
    backend = FakeBackend(n_ctx=2048, n_batch=32)
    house = House(backend)
    house.submit(1, "a" * 320, n_predict=1)
    for number in range(2, 60):
        house.submit(number, f"{number}" * 12, n_predict=1)
        house.scheduler.step()
        house.scheduler.step()
        assert house.finished(number).reason is FinishReason.LENGTH
        if number == 2 + 10:
            assert house.finished(1).reason is FinishReason.LENGTH, "it had every other step"


def test_a_prompt_continues_the_sequence_it_extends() -> None:
    house = House(FakeBackend(n_ctx=256))
    house.submit(1, "a shared beginning", n_predict=4)
    house.run()
    longer = "a shared beginning" + house.text(1) + " and more"
    house.submit(2, longer, n_predict=4)
    house.run()
    assert house.text(2) == expected(longer, 4)
    # The last token of the first reply was never decoded, so it is not resident.
    assert house.finished(2).usage.n_cached == len("a shared beginning") + 3


def test_the_same_prompt_again_computes_one_token() -> None:
    house = House()
    for number in (1, 2):
        house.submit(number, "the very same", n_predict=3)
        house.run()
    assert house.text(1) == house.text(2)
    assert house.finished(2).usage.n_cached == len("the very same") - 1


def test_the_same_prompt_again_is_cached_however_long_its_reply_was() -> None:
    house = House(FakeBackend(n_ctx=256))
    for number in (1, 2):
        house.submit(number, "short", n_predict=40)
        house.run()
    assert house.finished(2).usage.n_cached == len("short") - 1
    assert house.text(2) == expected("short", 40)


def test_a_running_job_shares_its_prompt_with_another_client() -> None:
    house = House(FakeBackend(n_ctx=256))
    house.submit(1, "a system prompt for all: one", n_predict=20)
    house.scheduler.step()
    house.submit(2, "a system prompt for all: two", n_predict=20)
    house.run()
    assert house.finished(2).usage.n_cached == len("a system prompt for all: ")
    for number, name in ((1, "one"), (2, "two")):
        assert house.text(number) == expected(f"a system prompt for all: {name}", 20)


def test_cache_prompt_false_computes_everything() -> None:
    house = House()
    for number in (1, 2):
        house.submit(number, "the very same", n_predict=3, cache_prompt=False)
        house.run()
    assert house.finished(2).usage.n_cached == 0
    assert house.text(2) == expected("the very same", 3)


def test_a_model_that_cannot_drop_a_tail_starts_over() -> None:
    house = House()
    house.backend.can_rewind = False
    for number in (1, 2):
        house.submit(number, "recurrent", n_predict=3)
        house.run()
    assert house.text(2) == expected("recurrent", 3)
    assert house.finished(2).usage.n_cached == 0


def test_the_least_recently_used_sequence_makes_room() -> None:
    house = House(FakeBackend(n_ctx=64, n_sequences=4))
    for number, prompt in enumerate(("first ", "second ")):
        house.submit(number, prompt, n_predict=2)
        house.run()
    house.submit(2, "x" * 52, n_predict=2)
    house.run()
    assert house.text(2) == expected("x" * 52, 2)
    assert not any(bytes(cells).startswith(b"first") for cells in house.backend.cells)
    assert any(bytes(cells).startswith(b"second") for cells in house.backend.cells)


def test_sequences_that_nobody_comes_back_to_are_let_go() -> None:
    house = House(FakeBackend(n_ctx=1024, n_sequences=8))
    for number in range(6):
        house.submit(number, f"{number}" * 20, n_predict=1)
        house.run()
    resident = [bytes(cells[:1]) for cells in house.backend.cells if cells]
    assert sorted(resident) == [b"3", b"4", b"5"]


def test_as_many_sequences_stay_as_prompts_come_back_to() -> None:
    house = House(FakeBackend(n_ctx=1024, n_sequences=8))
    for turn in range(3):
        for client in range(5):
            number = turn * 5 + client
            house.submit(number, f"{client}" * 20 + "x" * turn, n_predict=1)
            house.run()
    last_turn = [house.finished(number).usage.n_cached for number in range(10, 15)]
    assert last_turn == [21] * 5, "the first time they came back, two of the five were gone"


def drafting_house(*, cost_of_a_row: float, n_ctx: int = 256, n_batch: int = 32) -> House:
    """One whose decodes take a second and `cost_of_a_row` for each further row."""
    backend = FakeBackend(n_ctx=n_ctx, n_batch=n_batch)

    def clock() -> float:
        return sum(1 + cost_of_a_row * (len(rows) - 1) for rows in backend.batches)

    return House(backend, clock=clock)


SONG = b"we all live in a yellow submarine, " * 4


def test_repeated_text_is_guessed_and_comes_out_the_same_in_fewer_decodes() -> None:
    house = drafting_house(cost_of_a_row=0.1)
    house.submit(1, "sing: ", n_predict=120, script=SONG)
    house.run()
    assert house.text(1) == SONG[:120].decode()
    assert house.finished(1).usage.n_completion == 120
    assert len(house.backend.batches) < 80
    timings = house.finished(1).timings
    assert timings.n_drafted >= timings.n_accepted > 40


def test_the_first_token_does_not_wait_for_guesses() -> None:
    house = drafting_house(cost_of_a_row=0.0)
    for number in (1, 2):
        house.submit(number, SONG.decode(), n_predict=40, script=SONG)
        house.run()
        first = next(rows for rows in house.backend.batches if rows[-1][1] >= len(SONG) - 1)
        house.backend.batches.clear()
        assert sum(output for *_, output in first) == 1
        assert house.finished(number).timings.n_accepted > 20


def test_a_wrong_guess_changes_nothing() -> None:
    house = drafting_house(cost_of_a_row=0.0)
    script = b"abcdefgh" * 5 + b"abcdXYZ" + b"abcdefgh" * 2 + b"abcdeXYZ"
    house.submit(1, "letters: ", n_predict=len(script), script=script)
    house.run()
    assert house.text(1) == script.decode()
    timings = house.finished(1).timings
    assert timings.n_drafted > timings.n_accepted > 0
    prompt = "letters: " + script.decode()
    house.submit(2, prompt, n_predict=20)
    house.run()
    assert house.text(2) == expected(prompt, 20), "the cells of the wrong guesses are gone"
    assert house.finished(2).usage.n_cached == len(prompt) - 1


def test_a_guess_ends_with_the_job() -> None:
    for n_predict in range(60, 80):
        house = drafting_house(cost_of_a_row=0.0)
        house.submit(1, "sing: ", n_predict=n_predict, script=SONG)
        house.run()
        assert house.text(1) == SONG[:n_predict].decode()
        assert house.finished(1).usage.n_completion == n_predict


def test_the_end_of_generation_and_stop_strings_are_heeded_inside_a_guess() -> None:
    for n_sung in range(70, 106):
        house = drafting_house(cost_of_a_row=0.0)
        house.submit(1, "sing: ", n_predict=None, script=SONG[:n_sung] + bytes([END]))
        house.run()
        assert house.text(1) == SONG[:n_sung].decode()
        assert house.finished(1).reason is FinishReason.STOP
    house = drafting_house(cost_of_a_row=0.0)
    house.submit(1, "sing: ", n_predict=None, stop=("submarine, " + SONG[:35].decode() + "we all",), script=SONG)
    house.run()
    assert house.text(1) == "we all live in a yellow "


class FakeDrafter:
    """Knows the arithmetic, and is wrong about the last of `n_guessed` tokens where it is not `is_right`."""

    def __init__(self, n_guessed: int, *, is_right: bool = True) -> None:
        self.n_guessed, self.is_right = n_guessed, is_right
        self.rivals: list[Draft | None] = []
        self.costs = DecodeCosts()

    def draft(
        self, tokens: list[int], n_max: int, costs: DecodeCosts, outlook: DraftPlanner, rival: Draft | None
    ) -> Draft | None:
        self.rivals.append(rival)
        self.costs = costs
        text = bytearray(continuation(tokens, min(n_max, self.n_guessed)).encode())
        if text and not self.is_right:
            text[-1] = ord("A")
        return Draft(list(text), 2.0, outlook.outcomes) if text else None


@pytest.mark.parametrize("is_right", [True, False])
def test_what_a_draft_model_guesses_comes_out_the_same_and_is_counted_as_its_own(is_right: bool) -> None:
    house = House(FakeBackend(n_ctx=256), drafter=FakeDrafter(3, is_right=is_right))
    house.submit(1, "hello", n_predict=81)
    house.run()
    assert house.text(1) == expected("hello", 81)
    timings = house.finished(1).timings
    assert len(house.backend.batches) == 81 - timings.n_accepted < 32, "the last guess counts as well"
    assert timings.n_drafted == timings.n_model_drafted
    assert timings.n_accepted == timings.n_model_accepted
    assert (timings.n_accepted == timings.n_drafted) == is_right


def test_what_is_looked_up_competes_with_a_draft_model_and_is_taken_where_that_guesses_nothing() -> None:
    house = drafting_house(cost_of_a_row=0.1)
    house.drafter = drafter = FakeDrafter(0)
    house.__post_init__()
    house.submit(1, "sing: ", n_predict=120, script=SONG)
    house.run()
    assert house.text(1) == SONG[:120].decode()
    timings = house.finished(1).timings
    assert timings.n_accepted > 40
    assert timings.n_model_drafted == 0
    assert None in drafter.rivals
    assert any(rival is not None and rival.gain > 1 for rival in drafter.rivals)


def test_the_time_that_guessing_takes_is_none_of_the_decodes() -> None:
    now_s = 0.0

    class SlowDrafter(FakeDrafter):
        def draft(
            self, tokens: list[int], n_max: int, costs: DecodeCosts, outlook: DraftPlanner, rival: Draft | None
        ) -> Draft | None:
            nonlocal now_s
            now_s += 100
            return super().draft(tokens, n_max, costs, outlook, rival)

    drafter = SlowDrafter(0)
    backend = FakeBackend()
    house = House(backend, clock=lambda: now_s + len(backend.batches), drafter=drafter)
    house.submit(1, "hello", n_predict=20)
    house.run()
    assert drafter.costs.in_rows(3.0) == pytest.approx(3.0), "a decode takes a second"


def test_a_draft_model_is_asked_only_for_a_job_that_has_the_engine_for_itself() -> None:
    drafter = FakeDrafter(3)
    house = House(FakeBackend(n_ctx=256), drafter=drafter)
    for number in (1, 2):
        house.submit(number, f"job {number}", n_predict=20)
    house.run()
    assert not drafter.rivals
    assert [house.text(number) for number in (1, 2)] == [expected(f"job {number}", 20) for number in (1, 2)]


def test_the_end_of_a_reply_that_was_guessed_counts_and_stays_for_the_next_prompt() -> None:
    house = drafting_house(cost_of_a_row=0.0)
    verses, reply = "tralala, tralalee\0" * 3, b"tralala, tralalee"
    house.submit(1, verses, n_predict=None, script=reply + bytes([END]))
    house.run()
    assert house.text(1) == reply.decode()
    n_sampled = len(house.backend.batches) - 1  # but for the first part of the prompt
    assert house.finished(1).timings.n_accepted == len(reply) + 1 - n_sampled + 1, "no other token follows the end"
    prompt = verses + reply.decode() + "\0and on"
    house.submit(2, prompt)
    house.run()
    assert house.text(2) == expected(prompt)
    assert house.finished(2).usage.n_cached == len(verses) + len(reply) + 1


def test_nothing_is_guessed_where_rows_are_dear_or_the_tail_cannot_be_dropped_or_others_run() -> None:
    dear = drafting_house(cost_of_a_row=1.0)
    dear.submit(1, "sing: ", n_predict=120, script=SONG)
    dear.run()
    recurrent = drafting_house(cost_of_a_row=0.0)
    recurrent.backend.can_rewind = False
    recurrent = House(recurrent.backend, clock=recurrent.clock)
    recurrent.submit(1, "sing: ", n_predict=120, script=SONG)
    recurrent.run()
    assert recurrent.finished(1).timings.n_drafted == 0
    shared = drafting_house(cost_of_a_row=0.0, n_ctx=512)
    for number in (1, 2):
        shared.submit(number, "sing: ", n_predict=120, script=SONG)
    shared.run()
    assert shared.finished(1).timings.n_drafted == 0
    assert all(len(rows) == 1 for rows in dear.backend.batches[-20:]), "it tries, and learns"


def test_idle_sequences_hold_no_more_than_their_share_but_the_latest_stays() -> None:
    house = House(FakeBackend(n_ctx=128, n_sequences=8))
    for number in range(6):
        house.submit(number, f"{number}" * 20, n_predict=1)
        house.run()
    resident = [bytes(cells[:1]) for cells in house.backend.cells if cells]
    assert sorted(resident) == [b"4", b"5"], "32 cells beside the latest, in whole sequences"
    house.submit(7, "7" * 100, n_predict=1)
    house.run()
    assert any(bytes(cells).startswith(b"7" * 100) for cells in house.backend.cells)


def test_jobs_that_outgrow_the_pool_together_all_finish_with_their_own_text() -> None:
    house = House(FakeBackend(n_ctx=100, n_sequences=4))
    for number in range(4):
        house.submit(number, f"job {number} ", n_predict=60)
    house.run()
    for number in range(4):
        assert house.text(number) == expected(f"job {number} ", 60)
        assert house.finished(number).usage.n_completion == 60


@pytest.mark.parametrize("n_cells_max", [200, 1000])
def test_jobs_in_a_pool_that_grows_get_their_own_texts(n_cells_max: int) -> None:
    backend = FakeBackend(n_ctx=1000, n_sequences=4, n_cells=16)
    backend.n_cells_max = n_cells_max
    house = House(backend)
    for number in range(12):
        house.submit(number, "all begin alike, and then comes " + f"job {number} " * (number % 3 + 1), n_predict=60)
        house.scheduler.step()
    house.run()
    for number in range(12):
        prompt = "all begin alike, and then comes " + f"job {number} " * (number % 3 + 1)
        assert house.text(number) == expected(prompt, 60)
    assert 16 < max(backend.sizes) <= n_cells_max
    house.scheduler.rest()
    assert backend.n_cells < 600


def test_a_pool_grows_before_the_prompts_that_need_it_are_computed() -> None:
    house = House(FakeBackend(n_ctx=4000, n_batch=2000, n_sequences=4, n_cells=16))
    for number in range(4):
        house.submit(number, f"{number}" * 100, n_predict=20)
    house.scheduler.step()
    assert house.backend.sizes == [16, 480]
    house.run()
    assert house.backend.sizes == [16, 480]


def test_a_job_that_fills_the_context_ends_by_length() -> None:
    house = House(FakeBackend(n_ctx=32))
    house.submit(1, "twelve bytes", n_predict=None)
    house.run()
    assert house.finished(1).reason is FinishReason.LENGTH
    assert house.finished(1).usage.n_prompt + house.finished(1).usage.n_completion == 32


def test_end_of_generation_stops_and_is_not_text() -> None:
    house = House()
    house.submit(1, "p", n_predict=None, script=b"abc" + bytes([END]))
    house.run()
    assert house.text(1) == "abc"
    assert house.finished(1).reason is FinishReason.STOP
    assert house.finished(1).usage.n_completion == 4


def test_a_stop_string_over_several_tokens_is_cut_off_and_named() -> None:
    house = House()
    house.submit(1, "p", n_predict=None, stop=("xyz", "STOP"), script=b"abSTOPcd")
    house.run()
    assert house.text(1) == "ab"
    assert house.finished(1).reason is FinishReason.STOP
    assert house.finished(1).stop_string == "STOP"
    assert house.finished(1).usage.n_completion == 6


def test_a_stop_string_counts_in_the_content_alone() -> None:
    """The text goes on to the parent as it is, which reads it alike and ends the content."""
    house = House()
    script = b"<think>STOP</think>aSTOPb"
    form = ReplyFormat(thinking=("<think>", "</think>"))
    house.submit(1, "p", n_predict=None, stop=("STOP",), script=script, form=form)
    house.run()
    assert house.text(1) == "<think>STOP</think>aSTOP"
    assert (house.finished(1).reason, house.finished(1).stop_string) == (FinishReason.STOP, "STOP")
    assert house.finished(1).usage.n_completion == len(script) - 1
    parser = ReplyParser(form.with_stop(("STOP",)))
    assert parser.feed(house.text(1)).content == "a"
    house.submit(2, "q", n_predict=11, stop=("STOP",), script=script, form=form)
    house.run()
    assert (house.text(2), house.finished(2).stop_string) == ("<think>STOP", None)


def test_text_held_back_for_a_stop_string_comes_out_at_the_end() -> None:
    house = House()
    house.submit(1, "p", n_predict=None, stop=("STOP",), script=b"abSTO")
    house.run()
    assert house.text(1) == "abSTO"


def test_characters_are_whole_and_a_broken_one_is_marked() -> None:
    house = House()
    house.submit(1, "p", n_predict=None, script="né€😀".encode() + b"\xe2\x82")
    house.run()
    pieces = [event.text for _, event in house.events if isinstance(event, Piece)]
    assert pieces == ["n", "é", "€", "😀", "\ufffd"]


def test_no_tokens_asked_for_computes_the_prompt_and_ends() -> None:
    house = House()
    house.submit(1, "only the prompt", n_predict=0)
    house.run()
    assert house.text(1) == ""
    assert house.finished(1).usage.n_completion == 0


@pytest.mark.parametrize("cancel_after", range(12))
def test_a_cancel_at_any_moment_disturbs_nobody(cancel_after: int) -> None:
    house = House(FakeBackend(n_ctx=300, n_batch=16))
    house.submit(1, "one " * 10)
    house.submit(2, "two " * 10)
    house.submit(3, "three " * 10)
    for _ in range(cancel_after):
        house.scheduler.step()
    house.scheduler.cancel(2)
    house.scheduler.cancel(2)
    n_events = sum(number == 2 for number, _ in house.events)
    house.run()
    assert sum(number == 2 for number, _ in house.events) == n_events, "nothing is said of a cancelled job"
    assert house.text(1) == expected("one " * 10)
    assert house.text(3) == expected("three " * 10)
    assert house.samplers[2].is_closed


def test_cancelling_a_waiting_job_frees_its_sampler() -> None:
    house = House(FakeBackend(n_sequences=1))
    house.submit(1, "a")
    house.submit(2, "b")
    house.scheduler.step()
    house.scheduler.cancel(2)
    house.run()
    assert house.samplers[2].is_closed
    assert house.text(1) == expected("a")


def test_an_engine_error_fails_the_jobs_of_that_batch_and_the_next_job_runs() -> None:
    house = House()
    house.submit(1, "a")
    house.submit(2, "b")
    house.backend.status = -3
    house.run()
    assert isinstance(house.end(1), Internal)
    assert isinstance(house.end(2), Internal)
    house.backend.status = 0
    house.submit(3, "a")
    house.run()
    assert house.text(3) == expected("a")


def test_no_room_although_there_should_be_ends_the_last_job_and_not_the_loop() -> None:
    house = House()
    house.submit(1, "a")
    house.backend.status = 1
    house.run()
    assert isinstance(house.end(1), OutOfMemory)


@pytest.mark.parametrize(("n_prompt", "n_predict"), [(300, 1), (90, 60)])
def test_a_job_that_memory_has_no_room_for_says_so_and_takes_nobody_with_it(n_prompt: int, n_predict: int) -> None:
    backend = FakeBackend(n_ctx=1000, n_cells=16)
    backend.n_cells_max = 100
    house = House(backend)
    house.submit(1, "first", n_predict=20)
    house.submit(2, "x" * n_prompt, n_predict=n_predict)
    house.submit(3, "third", n_predict=20)
    house.run()
    error = house.end(2)
    assert isinstance(error, OutOfMemory)
    assert re.search(r"more than (9\d|100) tokens", error.message)
    assert house.text(1) == expected("first", 20)
    assert house.text(3) == expected("third", 20)


def test_times_are_told_apart() -> None:
    house = House()
    house.submit(1, "abc")
    house.run()
    timings = house.finished(1).timings
    assert min(timings.queue_ms + 1, timings.prompt_ms, timings.predicted_ms) > 0


# -- adapters --------------------------------------------------------------------------------------------------------

OFF, HALF, FULL = (0.0, 0.0), (0.5, 0.0), (0.5, 1.0)


def switches(house: House) -> list[Scales]:
    """The scales of the decodes, without repetitions."""
    seen = house.backend.scales_of_batches
    return [scales for place, scales in enumerate(seen) if place == 0 or scales != seen[place - 1]]


def test_jobs_of_the_same_scales_share_batches_and_others_take_turns() -> None:
    house = House(FakeBackend(n_ctx=512, n_batch=64, n_sequences=6))
    sets = [OFF, HALF, FULL, HALF, OFF, HALF]
    for number, scales in enumerate(sets):
        house.submit(number, "one prompt for all", n_predict=16, scales=scales)
    house.run()
    for number, scales in enumerate(sets):
        assert house.text(number) == expected("one prompt for all", 16, scales)
    assert len({house.text(number) for number in range(6)}) == 3
    assert switches(house)[:4] == [OFF, HALF, FULL, OFF]
    # After the first, which computes the prompts, a turn has four decodes, with all jobs of these scales in each.
    assert house.backend.scales_of_batches[3:15] == [OFF] * 4 + [HALF] * 4 + [FULL] * 4
    assert [len(rows) for rows in house.backend.batches[3:15]] == [2] * 4 + [3] * 4 + [1] * 4


def test_no_scales_starve_however_many_jobs_of_others_come() -> None:
    house = House(FakeBackend(n_ctx=512, n_sequences=3))
    house.submit(0, "the patient one", n_predict=8, scales=FULL)
    for number in range(1, 40):
        house.submit(number, "one of many", n_predict=2, scales=HALF if number % 2 else OFF)
    while not any(number == 0 and isinstance(event, Finished) for number, event in house.events):
        house.scheduler.step()
    assert house.scheduler.n_waiting > 10
    assert house.text(0) == expected("the patient one", 8, FULL)


def test_a_prefix_is_not_shared_with_other_scales_in_whatever_way() -> None:
    house = House(FakeBackend(n_ctx=512, n_sequences=4))
    prompt = "the beginning of everything"
    for number, scales in enumerate((OFF, HALF, OFF, FULL, HALF)):
        house.submit(number, prompt, n_predict=4, scales=scales)
        house.run()
        assert house.text(number) == expected(prompt, 4, scales)
    cached = [house.finished(number).usage.n_cached for number in range(5)]
    assert cached == [0, 0, len(prompt) - 1, 0, len(prompt) - 1]


def test_a_running_job_shares_nothing_with_one_of_other_scales() -> None:
    house = House(FakeBackend(n_ctx=512))
    house.submit(1, "a system prompt for all: one", n_predict=20, scales=OFF)
    house.scheduler.step()
    house.submit(2, "a system prompt for all: two", n_predict=20, scales=HALF)
    house.submit(3, "a system prompt for all: three", n_predict=20, scales=OFF)
    house.run()
    assert house.finished(2).usage.n_cached == 0
    assert house.finished(3).usage.n_cached == len("a system prompt for all: t") - 1
    assert house.text(2) == expected("a system prompt for all: two", 20, HALF)


def test_the_only_sequence_starts_over_with_other_scales() -> None:
    house = House(FakeBackend(n_sequences=1))
    for number, scales in enumerate((HALF, FULL, FULL)):
        house.submit(number, "the very same", n_predict=3, scales=scales)
        house.run()
        assert house.text(number) == expected("the very same", 3, scales)
    assert [house.finished(number).usage.n_cached for number in range(3)] == [0, 0, len("the very same") - 1]


def test_a_prompt_beside_a_stream_of_other_scales_comes_in_chunks() -> None:
    backend = FakeBackend(n_ctx=1024, n_batch=512)
    house = House(backend, clock=timed(backend, row_s=0.003))
    house.submit(1, "a", n_predict=40, scales=OFF)
    house.scheduler.step()
    house.submit(2, "b" * 400, n_predict=4, scales=HALF)
    house.run()
    assert house.text(1) == expected("a", 40, OFF)
    assert house.text(2) == expected("b" * 400, 4, HALF)
    chunks = [place for place, rows in enumerate(house.backend.batches) if len(rows) > 4]  # fewer are guesses
    assert [len(house.backend.batches[place]) for place in chunks] == [128, 128, 128, 16]
    assert [after - before for before, after in pairwise(chunks)] == [5, 5, 5], "a turn between"


def test_jobs_of_many_scales_that_outgrow_the_pool_all_finish_with_their_own_text() -> None:
    house = House(FakeBackend(n_ctx=100, n_sequences=4))
    sets = (OFF, HALF, FULL, OFF)
    for number, scales in enumerate(sets):
        house.submit(number, f"job {number} ", n_predict=60, scales=scales)
    house.run()
    for number, scales in enumerate(sets):
        assert house.text(number) == expected(f"job {number} ", 60, scales)


def test_a_lone_job_with_adapters_is_guessed_for_and_one_among_other_scales_is_not() -> None:
    lone = drafting_house(cost_of_a_row=0.1)
    lone.submit(1, "sing: ", n_predict=120, script=SONG, scales=HALF)
    lone.run()
    assert lone.text(1) == SONG[:120].decode()
    assert lone.finished(1).timings.n_accepted > 40
    mixed = drafting_house(cost_of_a_row=0.1, n_ctx=512)
    for number, scales in enumerate((HALF, FULL)):
        mixed.submit(number, "sing: ", n_predict=120, script=SONG, scales=scales)
    mixed.run()
    assert mixed.finished(0).timings.n_drafted == 0
    assert mixed.text(0) == mixed.text(1) == SONG[:120].decode()


def test_scales_that_leave_the_range_of_numbers_end_their_job_and_spoil_nothing_that_comes_after() -> None:
    house = House(FakeBackend(n_ctx=512, n_sequences=4))
    house.backend.spoils = FULL
    house.submit(1, "first", n_predict=20, scales=HALF)
    house.scheduler.step()
    house.submit(2, "too much", n_predict=20, scales=FULL)
    house.submit(3, "another", n_predict=20, scales=HALF)
    house.run()
    error = house.end(2)
    assert isinstance(error, BadRequest)
    assert error.param == "lora"
    assert house.text(2) == ""
    for number, prompt in ((1, "first"), (3, "another")):
        assert house.text(number) == expected(prompt, 20, HALF)
        assert house.finished(number).usage.n_completion == 20
    house.submit(4, "first", n_predict=20, scales=OFF)
    house.run()
    assert house.text(4) == expected("first", 20, OFF)


def test_a_job_without_adapters_that_was_spoilt_by_another_says_so() -> None:
    house = House(FakeBackend(n_ctx=512, n_batch=32, n_sequences=4))
    house.backend.spoils = FULL
    house.submit(1, "a long prompt that takes several decodes " * 4, n_predict=4, scales=FULL)
    house.submit(2, "beside it", n_predict=4, scales=OFF)
    house.run()
    assert isinstance(house.end(1), BadRequest)
    assert isinstance(house.end(2), Internal)
    assert all(sampler.is_closed for sampler in house.samplers.values())


# -- guides, log-probabilities, shared prompts -------------------------------------------------------------------------


def test_a_guide_shapes_the_text_and_what_it_forces_is_one_decode() -> None:
    house = House()
    house.submit(1, "say", n_predict=None, pattern="..name: .; end", script=b"xyq")
    house.run()
    assert house.text(1) == "xyname: q; end"
    assert house.finished(1).reason is FinishReason.STOP
    assert house.finished(1).usage.n_completion == len("xyname: q; end")
    n_rows = [len(rows) for rows in house.backend.batches]
    assert n_rows == [3, 1, 1 + len("name: ")], "the last forced tokens are never decoded, nothing follows them"
    assert bytes(house.samplers[1].shown) == b"name: ; end", "penalties count forced tokens too"


def test_what_comes_back_again_and_again_is_kept_while_others_come_once() -> None:
    house = House(FakeBackend(n_ctx=4096, n_batch=64, n_sequences=16))
    numbers = count(1)
    n_cached = []
    for _ in range(3):
        for prompt in ["the same " * 5, *(f"{number} once" * 4 for number in range(6))]:
            number = next(numbers)
            house.submit(number, prompt if prompt[0] == "t" else f"{number} {prompt}", n_predict=2)
            house.run()
            if prompt[0] == "t":
                n_cached.append(house.finished(number).usage.n_cached)
    assert n_cached == [0, 0, 44], "the first time it came back, it was gone"


def test_a_sampled_token_that_is_not_allowed_is_sampled_again() -> None:
    house = House()
    house.submit(1, "say", n_predict=None, pattern="a.c", script=b"zZz")
    house.run()
    assert house.text(1) == "aac", "the first letter that the pattern allows"


@pytest.mark.parametrize(
    ("n_predict", "stop", "text", "reason"), [(4, (), "xabc", "length"), (9, ("bc",), "xa", "stop")]
)
def test_a_limit_and_a_stop_string_count_among_forced_tokens(
    n_predict: int, stop: tuple[str, ...], text: str, reason: str
) -> None:
    house = House()
    house.submit(1, "say", n_predict=n_predict, stop=stop, pattern=".abcdef.", script=b"xy")
    house.run()
    assert house.text(1) == text
    assert house.finished(1).reason == reason


def test_guided_and_free_jobs_decode_together() -> None:
    house = House(FakeBackend(n_ctx=256, n_batch=64))
    house.submit(1, "free", n_predict=20)
    house.submit(2, "guided", n_predict=None, pattern="..abcdefgh..ijklmn.", script=b"xyzwv")
    house.submit(3, "c" * 100, n_predict=20)
    house.run()
    assert house.text(1) == expected("free", 20)
    assert house.text(2) == "xyabcdefghzwijklmnv"
    assert house.text(3) == expected("c" * 100, 20)


def rows_with_guided_jobs(cost_of_a_row: float, n_guided: int = 1) -> list[int]:
    """How many rows each decode has that these and another job are in, after the prompts."""
    house = drafting_house(cost_of_a_row=cost_of_a_row, n_batch=256)
    house.submit(100, "a prompt that shows what its rows cost" * 5, n_predict=3)
    house.run()
    house.submit(101, "free", n_predict=24)
    for _ in range(3):
        house.scheduler.step()
    guided = range(n_guided)
    for job_id in guided:
        house.submit(job_id, f"no. {job_id}", n_predict=None, pattern="..abcdefghijkl.", script=b"wxy")
    house.run()
    assert [house.text(job_id) for job_id in guided] == ["wxabcdefghijkly"] * n_guided
    assert house.text(101) == expected("free", 24)
    assert [len(house.samplers[job_id].shown) for job_id in guided] == [len("abcdefghijkl")] * n_guided
    together = [rows for rows in house.backend.batches if len({sequence for _, _, sequence, _ in rows}) == n_guided + 1]
    return [len(rows) for rows in together[1:]]


def test_what_is_forced_does_not_hold_up_others() -> None:
    assert rows_with_guided_jobs(cost_of_a_row=0.1) == [2] * 14


def test_where_rows_cost_next_to_nothing_what_is_forced_comes_at_once() -> None:
    first, second, third, *rest = rows_with_guided_jobs(cost_of_a_row=0.0001)
    assert (first, second) == (2, 2), "two tokens are free"
    assert third > 8
    assert len(rest) == 1


def test_forced_tokens_of_several_jobs_hold_others_up_no_more_than_those_of_one() -> None:
    most = max(rows_with_guided_jobs(cost_of_a_row=0.0001)) - 2
    assert max(rows_with_guided_jobs(cost_of_a_row=0.0001, n_guided=2)) - 3 <= most


@pytest.mark.parametrize("pattern", ["." * 60, "." * 27 + "d" + "." * 32, "." * 27 + "defabcdef" + "." * 24])
def test_a_guided_text_that_repeats_itself_is_guessed_too(pattern: str) -> None:
    text = "abcdef" * 10
    sampled = bytes(letter for letter, place in zip(text.encode(), pattern, strict=True) if place == ".")
    house = drafting_house(cost_of_a_row=0.1)
    house.submit(1, "abcdef" * 4, n_predict=None, pattern=pattern, script=sampled)
    house.run()
    assert house.text(1) == text
    timings = house.finished(1).timings
    assert timings.n_drafted >= timings.n_accepted > 20
    assert len(house.backend.batches) < 30


def test_a_wrong_guess_costs_a_guided_text_nothing() -> None:
    house = drafting_house(cost_of_a_row=0.0)
    house.submit(
        1, "abcdef" * 6, n_predict=None, pattern="." * 8 + "xyz" + "." * 40, script=b"abcdefab" + b"cdefab" * 7
    )
    house.run()
    assert house.text(1) == "abcdefab" + "xyz" + ("cdefab" * 7)[:40]
    assert house.finished(1).timings.n_drafted > house.finished(1).timings.n_accepted > 0


def test_a_guided_job_that_gave_its_cells_up_goes_on_where_it_was() -> None:
    house = House(FakeBackend(n_ctx=40, n_batch=16, n_sequences=2))
    house.submit(1, "a" * 10, n_predict=18)
    house.submit(2, "b" * 4, n_predict=None, pattern="." * 4 + "0123456789" + "." * 4)
    house.run()
    assert house.text(1) == expected("a" * 10, 18)
    assert len(house.text(2)) == 18
    assert house.text(2)[4:14] == "0123456789"


def test_each_token_has_its_log_probability() -> None:
    house = House()
    house.submit(1, "hello", n_predict=6, n_logprobs=2)
    house.run()
    logprobs = house.logprobs(1, Piece)
    assert b"".join(each.chosen.data for each in logprobs).decode() == house.text(1) == expected("hello", 6)
    assert [each.chosen.logprob for each in logprobs] == [-5, -6, -7, -8, -9, -10]
    assert all([top.token for top in each.top] == [each.chosen.token] * 2 for each in logprobs)


def test_no_log_probability_is_told_of_what_a_stop_string_swallowed() -> None:
    house = House()
    house.submit(1, "hello", stop=("cd",), script=b"abcdef", n_logprobs=0)
    house.run()
    assert [each.chosen.data for each in house.logprobs(1, Piece)] == [b"a", b"b"]


def test_forced_tokens_have_log_probabilities_too() -> None:
    house = House()
    house.submit(1, "say", n_predict=None, pattern=".abc", script=b"xabc", n_logprobs=0)
    house.run()
    assert [(each.chosen.data, each.chosen.logprob) for each in house.logprobs(1, Piece)] == [
        *((b"x", -3), (b"a", -4), (b"b", -5), (b"c", -6))
    ]


@pytest.mark.parametrize("n_predict", [0, 3])
def test_the_log_probabilities_of_a_prompt(n_predict: int) -> None:
    prompt = "a prompt that is longer than a batch, and was computed before"
    house = House(FakeBackend(n_ctx=256, n_batch=16))
    for number in (1, 2):
        house.submit(number, prompt, n_predict=n_predict, n_logprobs=0, echo=True)
        house.submit(number + 10, "other work", n_predict=20)
        house.run()
        logprobs = house.logprobs(number, Echo)
        assert b"".join(each.chosen.data for each in logprobs).decode() == prompt
        assert [-each.chosen.logprob for each in logprobs] == list(range(len(prompt)))
        assert house.text(number) == expected(prompt, n_predict)


@pytest.mark.parametrize("n_steps", range(4))
def test_a_prompt_that_is_told_leaves_an_output_for_those_beside_it(n_steps: int) -> None:
    """All outputs of a decode went to the echo, and one more to a prompt that ended in it, which aborted the engine."""
    house = House(FakeBackend(n_ctx=512, n_batch=128))
    for _ in range(n_steps):  # whose turn it is to be first
        house.scheduler.step()
    house.submit(1, "a prompt of more tokens than one decode may have outputs", n_predict=1, n_logprobs=0, echo=True)
    for number in (2, 3, 4):
        house.submit(number, f"another {number}", n_predict=1)
    house.run()
    assert [house.text(number) for number in (2, 3, 4)] == [expected(f"another {number}", 1) for number in (2, 3, 4)]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("text", [b"", b"ab"])
def test_the_token_that_ends_a_reply_is_told_where_its_prompt_is(text: bytes, *, echo: bool) -> None:
    house = House()
    house.submit(1, "say", n_predict=None, script=text + bytes([END]), n_logprobs=0, echo=echo)
    house.run()
    told = b"".join(each.chosen.data for each in house.logprobs(1, Piece))
    assert told == (text + bytes([END]) if echo else text)
    assert house.text(1) == text.decode()


def test_a_prompt_is_told_once_though_its_job_starts_over() -> None:
    house = House(FakeBackend(n_ctx=48, n_batch=16, n_sequences=2))
    house.submit(1, "a" * 20, n_predict=26)
    house.submit(2, "0123456789", n_predict=12, n_logprobs=0, echo=True)
    house.run()
    assert b"".join(each.chosen.data for each in house.logprobs(2, Echo)) == b"0123456789"
    assert len(house.logprobs(2, Piece)) == 12
    assert house.text(2) == expected("0123456789", 12)


def test_a_beginning_that_many_prompts_share_is_computed_once() -> None:
    house = House(FakeBackend(n_ctx=4096, n_batch=64, n_sequences=4))
    beginning = "the same long instruction for everybody; " * 8
    prompts = {number: beginning + f"question {number}" for number in range(6)}
    for number, prompt in prompts.items():
        house.submit(number, prompt, n_predict=4)
    house.run()
    assert {number: house.text(number) for number in prompts} == {
        number: expected(prompt, 4) for number, prompt in prompts.items()
    }
    n_decoded = sum(map(len, house.backend.batches))
    assert n_decoded < len(beginning) + 6 * 20
    assert [house.finished(number).usage.n_cached >= len(beginning) for number in prompts] == [False] + [True] * 5


def test_who_waits_for_a_shared_beginning_lets_others_pass() -> None:
    house = House(FakeBackend(n_ctx=4096, n_batch=64, n_sequences=4))
    house.submit(1, "x" * 400, n_predict=4)
    house.submit(2, "x" * 400 + "y", n_predict=4)
    house.submit(3, "short", n_predict=4)
    house.scheduler.step()
    assert (house.scheduler.n_running, house.scheduler.n_waiting) == (2, 1)
    house.run()
    assert house.text(2) == expected("x" * 400 + "y", 4)


def test_a_model_that_cannot_share_keeps_nobody_waiting() -> None:
    house = House(FakeBackend(n_ctx=4096, n_batch=64))
    house.backend.can_rewind = False
    house.scheduler = Scheduler(house.backend, house.events.extend, clock=house.clock)
    for number in (1, 2):
        house.submit(number, "x" * 200, n_predict=2)
    house.scheduler.step()
    assert house.scheduler.n_running == 2
