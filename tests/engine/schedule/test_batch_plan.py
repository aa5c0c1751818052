"""Which rows of which jobs the next decode has: chunks of prompts, drafts, and forced tokens."""

from collections import Counter
from itertools import pairwise

import pytest

from shimmy.engine.speculate.decode_costs import DecodeCosts
from shimmy.engine.speculate.speculation import Draft, DraftPlanner
from shimmy.messages.event import FinishReason
from tests.engine.fake_backend import END, FakeBackend, continuation
from tests.engine.schedule.harness import FULL, HALF, OFF, SONG, Harness, expected, timed


def test_a_long_prompt_is_cut_into_chunks_beside_decode_rows() -> None:
    backend = FakeBackend(n_ctx=1024, n_batch=200)
    harness = Harness(backend, clock=timed(backend, row_s=0.003))
    harness.submit(1, "a", n_predict=20)
    harness.scheduler.step()
    harness.submit(2, "b" * 500, n_predict=4)
    harness.run()
    assert harness.text(1) == expected("a", 20)
    assert harness.text(2) == expected("b" * 500, 4)
    mixed = [rows for rows in backend.batches if len({sequence for _, _, sequence, _ in rows}) == 2]
    assert [len(rows) for rows in mixed[:4]] == [129, 128, 128, 119]
    assert all(rows[0][2] == 0 for rows in mixed), "one decode row, first"


def test_chunks_are_smaller_where_rows_take_longer() -> None:
    largest = {}
    for row_s in (0.0001, 0.003, 0.03):
        backend = FakeBackend(n_ctx=4096, n_batch=512)
        harness = Harness(backend, clock=timed(backend, row_s))
        harness.submit(1, "x" * 600, n_predict=40)
        while not harness.text(1):
            harness.scheduler.step()
        n_before = len(backend.batches)
        harness.submit(2, "y" * 1500, n_predict=4)
        harness.run()
        assert harness.text(2) == expected("y" * 1500, 4)
        mixed = [rows for rows in backend.batches[n_before:] if len({sequence for _, _, sequence, _ in rows}) == 2]
        largest[row_s] = max(len(rows) for rows in mixed)
    assert largest == {0.0001: 512, 0.003: 128, 0.03: 16 + 1}


def test_short_prompts_that_come_together_start_together() -> None:
    backend = FakeBackend(n_ctx=4096, n_batch=512, n_sequences=8)
    harness = Harness(backend, clock=timed(backend, row_s=0.003))
    harness.submit(1, "x" * 60, n_predict=40)
    while not harness.text(1):
        harness.scheduler.step()
    n_before = len(backend.batches)
    for number in range(2, 9):
        harness.submit(number, f"{number}" * 60, n_predict=4)
    harness.scheduler.step()
    assert len(backend.batches[n_before]) == 1 + 7 * 60
    harness.run()
    assert all(harness.text(number) == expected(f"{number}" * 60, 4) for number in range(2, 9))


def test_telling_what_a_prompt_is_worth_teaches_nothing_of_the_pace() -> None:
    backend = FakeBackend(n_ctx=4096, n_batch=512)
    harness = Harness(backend, clock=timed(backend, row_s=0.0001))
    harness.submit(1, "x" * 600, n_predict=60)
    while not harness.text(1):
        harness.scheduler.step()
    harness.clock = harness.scheduler._clock = timed(backend, row_s=1.0)
    harness.submit(2, "y" * 200, n_predict=1, n_logprobs=0, echo=True)
    while harness.scheduler.n_running != 1:
        harness.scheduler.step()
    harness.submit(3, "z" * 600, n_predict=1)
    n_before = len(backend.batches)
    harness.scheduler.step()
    assert len(backend.batches[n_before]) == 512


def prompt_rows(backend: FakeBackend) -> list[dict[int, int]]:
    """Of each decode with prompts in it: how many rows of which sequences."""
    counted = [Counter(sequence for _, _, sequence, _ in rows) for rows in backend.batches]
    return [dict(counts) for counts in counted if max(counts.values()) > 1]


def rows_of_three_prompts(*, n_first: int, row_s: float, decode_s: float) -> list[list[int]]:
    """How many rows of which of three prompts of 40 tokens each decode has, behind one of `n_first` tokens."""
    backend = FakeBackend(n_ctx=1024, n_batch=512)
    harness = Harness(backend, clock=timed(backend, row_s=row_s, decode_s=decode_s))
    harness.submit(1, "a" * n_first, n_predict=4)
    harness.run()
    n_before = len(prompt_rows(backend))
    for number in (2, 3, 4):
        harness.submit(number, chr(ord("b") + number) * 40, n_predict=1)
    harness.run()
    return [sorted(rows.values()) for rows in prompt_rows(backend)[n_before:]]


def test_prompts_are_computed_one_after_the_other_where_a_larger_decode_is_not_faster() -> None:
    assert rows_of_three_prompts(n_first=100, row_s=0.01, decode_s=0.01) == [[40], [40], [40]]


def test_short_prompts_are_computed_together_where_that_is_faster_for_each() -> None:
    together, *rest = rows_of_three_prompts(n_first=200, row_s=0.001, decode_s=0.02)
    assert sum(together) == 76  # 4 decodes of one row, which take 21 ms, where a prompt's row has taken 1.1 ms
    assert sum(map(sum, rest)) == 3 * 40 - 76


def test_before_a_machine_is_known_a_decode_is_filled() -> None:
    harness = Harness(FakeBackend(n_ctx=512, n_batch=64))
    for number in (1, 2):
        harness.submit(number, chr(ord("a") + number) * 40, n_predict=1)
    harness.run()
    assert prompt_rows(harness.backend)[0] == {0: 40, 1: 24}


def test_a_short_prompt_does_not_wait_for_a_long_one_nor_a_long_one_for_many_short_ones() -> None:
    backend = FakeBackend(n_ctx=2048, n_batch=32)
    harness = Harness(backend)
    harness.submit(1, "a" * 320, n_predict=1)
    for number in range(2, 60):
        harness.submit(number, f"{number}" * 12, n_predict=1)
        harness.scheduler.step()
        harness.scheduler.step()
        assert harness.finished(number).reason is FinishReason.LENGTH
        if number == 2 + 10:
            assert harness.finished(1).reason is FinishReason.LENGTH, "it had every other step"


def drafting_harness(*, cost_of_a_row: float, n_ctx: int = 256, n_batch: int = 32) -> Harness:
    """One whose decodes take a second and `cost_of_a_row` for each further row."""
    backend = FakeBackend(n_ctx=n_ctx, n_batch=n_batch)

    def clock() -> float:
        return sum(1 + cost_of_a_row * (len(rows) - 1) for rows in backend.batches)

    return Harness(backend, clock=clock)


def test_repeated_text_is_guessed_and_comes_out_the_same_in_fewer_decodes() -> None:
    harness = drafting_harness(cost_of_a_row=0.1)
    harness.submit(1, "sing: ", n_predict=120, script=SONG)
    harness.run()
    assert harness.text(1) == SONG[:120].decode()
    assert harness.finished(1).usage.n_completion == 120
    assert len(harness.backend.batches) < 80
    timings = harness.finished(1).timings
    assert timings.n_drafted >= timings.n_accepted > 40


def test_the_first_token_does_not_wait_for_guesses() -> None:
    harness = drafting_harness(cost_of_a_row=0.0)
    for number in (1, 2):
        harness.submit(number, SONG.decode(), n_predict=40, script=SONG)
        harness.run()
        first = next(rows for rows in harness.backend.batches if rows[-1][1] >= len(SONG) - 1)
        harness.backend.batches.clear()
        assert sum(output for *_, output in first) == 1
        assert harness.finished(number).timings.n_accepted > 20


def test_a_wrong_guess_changes_nothing() -> None:
    harness = drafting_harness(cost_of_a_row=0.0)
    script = b"abcdefgh" * 5 + b"abcdXYZ" + b"abcdefgh" * 2 + b"abcdeXYZ"
    harness.submit(1, "letters: ", n_predict=len(script), script=script)
    harness.run()
    assert harness.text(1) == script.decode()
    timings = harness.finished(1).timings
    assert timings.n_drafted > timings.n_accepted > 0
    prompt = "letters: " + script.decode()
    harness.submit(2, prompt, n_predict=20)
    harness.run()
    assert harness.text(2) == expected(prompt, 20), "the cells of the wrong guesses are gone"
    assert harness.finished(2).usage.n_cached == len(prompt) - 1


def test_a_guess_ends_with_the_job() -> None:
    for n_predict in range(60, 80):
        harness = drafting_harness(cost_of_a_row=0.0)
        harness.submit(1, "sing: ", n_predict=n_predict, script=SONG)
        harness.run()
        assert harness.text(1) == SONG[:n_predict].decode()
        assert harness.finished(1).usage.n_completion == n_predict


def test_the_end_of_generation_and_stop_strings_are_heeded_inside_a_guess() -> None:
    for n_sung in range(70, 106):
        harness = drafting_harness(cost_of_a_row=0.0)
        harness.submit(1, "sing: ", n_predict=None, script=SONG[:n_sung] + bytes([END]))
        harness.run()
        assert harness.text(1) == SONG[:n_sung].decode()
        assert harness.finished(1).reason is FinishReason.STOP
    harness = drafting_harness(cost_of_a_row=0.0)
    harness.submit(1, "sing: ", n_predict=None, stop=("submarine, " + SONG[:35].decode() + "we all",), script=SONG)
    harness.run()
    assert harness.text(1) == "we all live in a yellow "


class FakeDrafter:
    """Knows the arithmetic, and is wrong about the last of `n_guessed` tokens where it is not `is_right`."""

    def __init__(self, n_guessed: int, *, is_right: bool = True) -> None:
        self.n_guessed, self.is_right = n_guessed, is_right
        self.rivals: list[Draft | None] = []
        self.costs = DecodeCosts()

    def draft(
        self, tokens: list[int], n_max: int, costs: DecodeCosts, planner: DraftPlanner, rival: Draft | None
    ) -> Draft | None:
        self.rivals.append(rival)
        self.costs = costs
        text = bytearray(continuation(tokens, min(n_max, self.n_guessed)).encode())
        if text and not self.is_right:
            text[-1] = ord("A")
        return Draft(list(text), 2.0, planner.outcomes) if text else None


@pytest.mark.parametrize("is_right", [True, False])
def test_what_a_draft_model_guesses_comes_out_the_same_and_is_counted_as_its_own(is_right: bool) -> None:
    harness = Harness(FakeBackend(n_ctx=256), drafter=FakeDrafter(3, is_right=is_right))
    harness.submit(1, "hello", n_predict=81)
    harness.run()
    assert harness.text(1) == expected("hello", 81)
    timings = harness.finished(1).timings
    assert len(harness.backend.batches) == 81 - timings.n_accepted < 32, "the last guess counts as well"
    assert timings.n_drafted == timings.n_model_drafted
    assert timings.n_accepted == timings.n_model_accepted
    assert (timings.n_accepted == timings.n_drafted) == is_right


def test_what_is_looked_up_competes_with_a_draft_model_and_is_taken_where_that_guesses_nothing() -> None:
    harness = drafting_harness(cost_of_a_row=0.1)
    harness.drafter = drafter = FakeDrafter(0)
    harness.__post_init__()
    harness.submit(1, "sing: ", n_predict=120, script=SONG)
    harness.run()
    assert harness.text(1) == SONG[:120].decode()
    timings = harness.finished(1).timings
    assert timings.n_accepted > 40
    assert timings.n_model_drafted == 0
    assert None in drafter.rivals
    assert any(rival is not None and rival.gain > 1 for rival in drafter.rivals)


def test_the_time_that_guessing_takes_is_none_of_the_decodes() -> None:
    now_s = 0.0

    class SlowDrafter(FakeDrafter):
        def draft(
            self, tokens: list[int], n_max: int, costs: DecodeCosts, planner: DraftPlanner, rival: Draft | None
        ) -> Draft | None:
            nonlocal now_s
            now_s += 100
            return super().draft(tokens, n_max, costs, planner, rival)

    drafter = SlowDrafter(0)
    backend = FakeBackend()
    harness = Harness(backend, clock=lambda: now_s + len(backend.batches), drafter=drafter)
    harness.submit(1, "hello", n_predict=20)
    harness.run()
    assert drafter.costs.in_rows(3.0) == pytest.approx(3.0), "a decode takes a second"


def test_a_draft_model_is_asked_only_for_a_job_that_has_the_engine_for_itself() -> None:
    drafter = FakeDrafter(3)
    harness = Harness(FakeBackend(n_ctx=256), drafter=drafter)
    for number in (1, 2):
        harness.submit(number, f"job {number}", n_predict=20)
    harness.run()
    assert not drafter.rivals
    assert [harness.text(number) for number in (1, 2)] == [expected(f"job {number}", 20) for number in (1, 2)]


def test_the_end_of_a_reply_that_was_guessed_counts_and_stays_for_the_next_prompt() -> None:
    harness = drafting_harness(cost_of_a_row=0.0)
    verses, reply = "tralala, tralalee\0" * 3, b"tralala, tralalee"
    harness.submit(1, verses, n_predict=None, script=reply + bytes([END]))
    harness.run()
    assert harness.text(1) == reply.decode()
    n_sampled = len(harness.backend.batches) - 1  # but for the first part of the prompt
    assert harness.finished(1).timings.n_accepted == len(reply) + 1 - n_sampled + 1, "no other token follows the end"
    prompt = verses + reply.decode() + "\0and on"
    harness.submit(2, prompt)
    harness.run()
    assert harness.text(2) == expected(prompt)
    assert harness.finished(2).usage.n_cached == len(verses) + len(reply) + 1


def test_nothing_is_guessed_where_rows_are_dear_or_the_tail_cannot_be_dropped_or_others_run() -> None:
    dear = drafting_harness(cost_of_a_row=1.0)
    dear.submit(1, "sing: ", n_predict=120, script=SONG)
    dear.run()
    recurrent = drafting_harness(cost_of_a_row=0.0)
    recurrent.backend.can_rewind = False
    recurrent = Harness(recurrent.backend, clock=recurrent.clock)
    recurrent.submit(1, "sing: ", n_predict=120, script=SONG)
    recurrent.run()
    assert recurrent.finished(1).timings.n_drafted == 0
    shared = drafting_harness(cost_of_a_row=0.0, n_ctx=512)
    for number in (1, 2):
        shared.submit(number, "sing: ", n_predict=120, script=SONG)
    shared.run()
    assert shared.finished(1).timings.n_drafted == 0
    assert all(len(rows) == 1 for rows in dear.backend.batches[-20:]), "it tries, and learns"


def test_a_prompt_beside_a_stream_of_other_scales_comes_in_chunks() -> None:
    backend = FakeBackend(n_ctx=1024, n_batch=512)
    harness = Harness(backend, clock=timed(backend, row_s=0.003))
    harness.submit(1, "a", n_predict=40, scales=OFF)
    harness.scheduler.step()
    harness.submit(2, "b" * 400, n_predict=4, scales=HALF)
    harness.run()
    assert harness.text(1) == expected("a", 40, OFF)
    assert harness.text(2) == expected("b" * 400, 4, HALF)
    chunks = [place for place, rows in enumerate(harness.backend.batches) if len(rows) > 4]  # fewer are guesses
    assert [len(harness.backend.batches[place]) for place in chunks] == [128, 128, 128, 16]
    assert [after - before for before, after in pairwise(chunks)] == [5, 5, 5], "a turn between"


def test_a_lone_job_with_adapters_is_guessed_for_and_one_among_other_scales_is_not() -> None:
    lone = drafting_harness(cost_of_a_row=0.1)
    lone.submit(1, "sing: ", n_predict=120, script=SONG, scales=HALF)
    lone.run()
    assert lone.text(1) == SONG[:120].decode()
    assert lone.finished(1).timings.n_accepted > 40
    mixed = drafting_harness(cost_of_a_row=0.1, n_ctx=512)
    for number, scales in enumerate((HALF, FULL)):
        mixed.submit(number, "sing: ", n_predict=120, script=SONG, scales=scales)
    mixed.run()
    assert mixed.finished(0).timings.n_drafted == 0
    assert mixed.text(0) == mixed.text(1) == SONG[:120].decode()


def rows_with_guided_jobs(cost_of_a_row: float, n_guided: int = 1) -> list[int]:
    """How many rows each decode has that these and another job are in, after the prompts."""
    harness = drafting_harness(cost_of_a_row=cost_of_a_row, n_batch=256)
    harness.submit(100, "a prompt that shows what its rows cost" * 5, n_predict=3)
    harness.run()
    harness.submit(101, "free", n_predict=24)
    for _ in range(3):
        harness.scheduler.step()
    guided = range(n_guided)
    for job_id in guided:
        harness.submit(job_id, f"no. {job_id}", n_predict=None, pattern="..abcdefghijkl.", script=b"wxy")
    harness.run()
    assert [harness.text(job_id) for job_id in guided] == ["wxabcdefghijkly"] * n_guided
    assert harness.text(101) == expected("free", 24)
    assert [len(harness.samplers[job_id].shown) for job_id in guided] == [len("abcdefghijkl")] * n_guided
    together = [
        rows for rows in harness.backend.batches if len({sequence for _, _, sequence, _ in rows}) == n_guided + 1
    ]
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
    harness = drafting_harness(cost_of_a_row=0.1)
    harness.submit(1, "abcdef" * 4, n_predict=None, pattern=pattern, script=sampled)
    harness.run()
    assert harness.text(1) == text
    timings = harness.finished(1).timings
    assert timings.n_drafted >= timings.n_accepted > 20
    assert len(harness.backend.batches) < 30


def test_a_wrong_guess_costs_a_guided_text_nothing() -> None:
    harness = drafting_harness(cost_of_a_row=0.0)
    harness.submit(
        1, "abcdef" * 6, n_predict=None, pattern="." * 8 + "xyz" + "." * 40, script=b"abcdefab" + b"cdefab" * 7
    )
    harness.run()
    assert harness.text(1) == "abcdefab" + "xyz" + ("cdefab" * 7)[:40]
    assert harness.finished(1).timings.n_drafted > harness.finished(1).timings.n_accepted > 0


@pytest.mark.parametrize("n_steps", range(4))
def test_a_prompt_that_is_told_leaves_an_output_for_those_beside_it(n_steps: int) -> None:
    """All outputs of a decode went to the echo, and one more to a prompt that ended in it, which aborted the engine."""
    harness = Harness(FakeBackend(n_ctx=512, n_batch=128))
    for _ in range(n_steps):  # whose turn it is to be first
        harness.scheduler.step()
    harness.submit(1, "a prompt of more tokens than one decode may have outputs", n_predict=1, n_logprobs=0, echo=True)
    for number in (2, 3, 4):
        harness.submit(number, f"another {number}", n_predict=1)
    harness.run()
    assert [harness.text(number) for number in (2, 3, 4)] == [expected(f"another {number}", 1) for number in (2, 3, 4)]
