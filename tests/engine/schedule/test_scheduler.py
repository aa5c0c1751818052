"""The scheduler against a fake engine: who is in which batch, what is reused, and that every job gets its own text."""

import re
from itertools import count

import pytest

from shimmy.engine.schedule.scheduler import Scheduler
from shimmy.errors import BadRequest, Internal, ModelUnavailable, OutOfMemory
from shimmy.messages.event import Echo, Finished, FinishReason, Piece, PromptProgress, QueuePlace
from shimmy.messages.reply import ReplyFormat
from shimmy.text.reply_parser import ReplyParser
from tests.engine.fake_backend import END, FakeBackend
from tests.engine.schedule.harness import FULL, HALF, OFF, Harness, expected, switches


def test_a_job_gets_its_text_and_a_true_account() -> None:
    harness = Harness()
    harness.submit(1, "hello")
    harness.run()
    assert harness.text(1) == expected("hello")
    finished = harness.finished(1)
    assert finished.reason is FinishReason.LENGTH
    assert (finished.usage.n_prompt, finished.usage.n_cached, finished.usage.n_completion) == (5, 0, 8)
    assert harness.samplers[1].is_closed


def test_many_jobs_share_a_batch_and_each_gets_its_own_text() -> None:
    harness = Harness(FakeBackend(n_ctx=256, n_sequences=4))
    prompts = {number: f"prompt {number}" for number in range(10)}
    for number, prompt in prompts.items():
        harness.submit(number, prompt)
    harness.run()
    assert {number: harness.text(number) for number in prompts} == {
        number: expected(prompt) for number, prompt in prompts.items()
    }
    assert max(len({sequence for _, _, sequence, _ in rows}) for rows in harness.backend.batches) == 4


def test_a_prompt_continues_the_sequence_it_extends() -> None:
    harness = Harness(FakeBackend(n_ctx=256))
    harness.submit(1, "a shared beginning", n_predict=4)
    harness.run()
    longer = "a shared beginning" + harness.text(1) + " and more"
    harness.submit(2, longer, n_predict=4)
    harness.run()
    assert harness.text(2) == expected(longer, 4)
    # The last token of the first reply was never decoded, so it is not resident.
    assert harness.finished(2).usage.n_cached == len("a shared beginning") + 3


def test_the_same_prompt_again_computes_one_token() -> None:
    harness = Harness()
    for number in (1, 2):
        harness.submit(number, "the very same", n_predict=3)
        harness.run()
    assert harness.text(1) == harness.text(2)
    assert harness.finished(2).usage.n_cached == len("the very same") - 1


def test_the_same_prompt_again_is_cached_however_long_its_reply_was() -> None:
    harness = Harness(FakeBackend(n_ctx=256))
    for number in (1, 2):
        harness.submit(number, "short", n_predict=40)
        harness.run()
    assert harness.finished(2).usage.n_cached == len("short") - 1
    assert harness.text(2) == expected("short", 40)


def test_a_running_job_shares_its_prompt_with_another_client() -> None:
    harness = Harness(FakeBackend(n_ctx=256))
    harness.submit(1, "a system prompt for all: one", n_predict=20)
    harness.scheduler.step()
    harness.submit(2, "a system prompt for all: two", n_predict=20)
    harness.run()
    assert harness.finished(2).usage.n_cached == len("a system prompt for all: ")
    for number, name in ((1, "one"), (2, "two")):
        assert harness.text(number) == expected(f"a system prompt for all: {name}", 20)


def test_cache_prompt_false_computes_everything() -> None:
    harness = Harness()
    for number in (1, 2):
        harness.submit(number, "the very same", n_predict=3, cache_prompt=False)
        harness.run()
    assert harness.finished(2).usage.n_cached == 0
    assert harness.text(2) == expected("the very same", 3)


def test_a_model_that_cannot_drop_a_tail_starts_over() -> None:
    harness = Harness()
    harness.backend.can_rewind = False
    for number in (1, 2):
        harness.submit(number, "recurrent", n_predict=3)
        harness.run()
    assert harness.text(2) == expected("recurrent", 3)
    assert harness.finished(2).usage.n_cached == 0


def test_the_least_recently_used_sequence_makes_room() -> None:
    harness = Harness(FakeBackend(n_ctx=64, n_sequences=4))
    for number, prompt in enumerate(("first ", "second ")):
        harness.submit(number, prompt, n_predict=2)
        harness.run()
    harness.submit(2, "x" * 52, n_predict=2)
    harness.run()
    assert harness.text(2) == expected("x" * 52, 2)
    assert not any(bytes(cells).startswith(b"first") for cells in harness.backend.cells)
    assert any(bytes(cells).startswith(b"second") for cells in harness.backend.cells)


def test_sequences_that_nobody_comes_back_to_are_let_go() -> None:
    harness = Harness(FakeBackend(n_ctx=1024, n_sequences=8))
    for number in range(6):
        harness.submit(number, f"{number}" * 20, n_predict=1)
        harness.run()
    resident = [bytes(cells[:1]) for cells in harness.backend.cells if cells]
    assert sorted(resident) == [b"3", b"4", b"5"]


def test_as_many_sequences_stay_as_prompts_come_back_to() -> None:
    harness = Harness(FakeBackend(n_ctx=1024, n_sequences=8))
    for turn in range(3):
        for client in range(5):
            number = turn * 5 + client
            harness.submit(number, f"{client}" * 20 + "x" * turn, n_predict=1)
            harness.run()
    last_turn = [harness.finished(number).usage.n_cached for number in range(10, 15)]
    assert last_turn == [21] * 5, "the first time they came back, two of the five were gone"


def test_idle_sequences_hold_no_more_than_their_share_but_the_latest_stays() -> None:
    harness = Harness(FakeBackend(n_ctx=128, n_sequences=8))
    for number in range(6):
        harness.submit(number, f"{number}" * 20, n_predict=1)
        harness.run()
    resident = [bytes(cells[:1]) for cells in harness.backend.cells if cells]
    assert sorted(resident) == [b"4", b"5"], "32 cells beside the latest, in whole sequences"
    harness.submit(7, "7" * 100, n_predict=1)
    harness.run()
    assert any(bytes(cells).startswith(b"7" * 100) for cells in harness.backend.cells)


def test_jobs_that_outgrow_the_pool_together_all_finish_with_their_own_text() -> None:
    harness = Harness(FakeBackend(n_ctx=100, n_sequences=4))
    for number in range(4):
        harness.submit(number, f"job {number} ", n_predict=60)
    harness.run()
    for number in range(4):
        assert harness.text(number) == expected(f"job {number} ", 60)
        assert harness.finished(number).usage.n_completion == 60


@pytest.mark.parametrize("n_cells_max", [200, 1000])
def test_jobs_in_a_pool_that_grows_get_their_own_texts(n_cells_max: int) -> None:
    backend = FakeBackend(n_ctx=1000, n_sequences=4, n_cells=16)
    backend.n_cells_max = n_cells_max
    harness = Harness(backend)
    for number in range(12):
        harness.submit(number, "all begin alike, and then comes " + f"job {number} " * (number % 3 + 1), n_predict=60)
        harness.scheduler.step()
    harness.run()
    for number in range(12):
        prompt = "all begin alike, and then comes " + f"job {number} " * (number % 3 + 1)
        assert harness.text(number) == expected(prompt, 60)
    assert 16 < max(backend.sizes) <= n_cells_max
    harness.scheduler.rest()
    assert backend.n_cells < 600


def test_a_pool_grows_before_the_prompts_that_need_it_are_computed() -> None:
    harness = Harness(FakeBackend(n_ctx=4000, n_batch=2000, n_sequences=4, n_cells=16))
    for number in range(4):
        harness.submit(number, f"{number}" * 100, n_predict=20)
    harness.scheduler.step()
    assert harness.backend.sizes == [16, 480]
    harness.run()
    assert harness.backend.sizes == [16, 480]


def test_a_job_that_fills_the_context_ends_by_length() -> None:
    harness = Harness(FakeBackend(n_ctx=32))
    harness.submit(1, "twelve bytes", n_predict=None)
    harness.run()
    assert harness.finished(1).reason is FinishReason.LENGTH
    assert harness.finished(1).usage.n_prompt + harness.finished(1).usage.n_completion == 32


def test_end_of_generation_stops_and_is_not_text() -> None:
    harness = Harness()
    harness.submit(1, "p", n_predict=None, script=b"abc" + bytes([END]))
    harness.run()
    assert harness.text(1) == "abc"
    assert harness.finished(1).reason is FinishReason.STOP
    assert harness.finished(1).usage.n_completion == 4


def test_a_stop_string_over_several_tokens_is_cut_off_and_named() -> None:
    harness = Harness()
    harness.submit(1, "p", n_predict=None, stop=("xyz", "STOP"), script=b"abSTOPcd")
    harness.run()
    assert harness.text(1) == "ab"
    assert harness.finished(1).reason is FinishReason.STOP
    assert harness.finished(1).stop_string == "STOP"
    assert harness.finished(1).usage.n_completion == 6


def test_a_stop_string_counts_in_the_content_alone() -> None:
    """The text goes on to the parent as it is, which reads it alike and ends the content."""
    harness = Harness()
    script = b"<think>STOP</think>aSTOPb"
    form = ReplyFormat(thinking=("<think>", "</think>"))
    harness.submit(1, "p", n_predict=None, stop=("STOP",), script=script, form=form)
    harness.run()
    assert harness.text(1) == "<think>STOP</think>aSTOP"
    assert (harness.finished(1).reason, harness.finished(1).stop_string) == (FinishReason.STOP, "STOP")
    assert harness.finished(1).usage.n_completion == len(script) - 1
    parser = ReplyParser(form.with_stop(("STOP",)))
    assert parser.feed(harness.text(1)).content == "a"
    harness.submit(2, "q", n_predict=11, stop=("STOP",), script=script, form=form)
    harness.run()
    assert (harness.text(2), harness.finished(2).stop_string) == ("<think>STOP", None)


def test_text_held_back_for_a_stop_string_comes_out_at_the_end() -> None:
    harness = Harness()
    harness.submit(1, "p", n_predict=None, stop=("STOP",), script=b"abSTO")
    harness.run()
    assert harness.text(1) == "abSTO"


def test_characters_are_whole_and_a_broken_one_is_marked() -> None:
    harness = Harness()
    harness.submit(1, "p", n_predict=None, script="né€😀".encode() + b"\xe2\x82")
    harness.run()
    pieces = [event.text for _, event in harness.events if isinstance(event, Piece)]
    assert pieces == ["n", "é", "€", "😀", "\ufffd"]


@pytest.mark.parametrize("n_logprobs", [None, 1])
def test_a_character_that_the_limit_has_cut_is_left_out(n_logprobs: int | None) -> None:
    harness = Harness()
    harness.submit(1, "p", n_predict=4, script="né€".encode(), n_logprobs=n_logprobs)
    harness.run()
    assert harness.text(1) == "né"
    assert harness.finished(1).reason is FinishReason.LENGTH
    assert harness.finished(1).usage.n_completion == 4


def test_no_tokens_asked_for_computes_the_prompt_and_ends() -> None:
    harness = Harness()
    harness.submit(1, "only the prompt", n_predict=0)
    harness.run()
    assert harness.text(1) == ""
    assert harness.finished(1).usage.n_completion == 0


@pytest.mark.parametrize("cancel_after", range(12))
def test_a_cancel_at_any_moment_disturbs_nobody(cancel_after: int) -> None:
    harness = Harness(FakeBackend(n_ctx=300, n_batch=16))
    harness.submit(1, "one " * 10)
    harness.submit(2, "two " * 10)
    harness.submit(3, "three " * 10)
    for _ in range(cancel_after):
        harness.scheduler.step()
    harness.scheduler.cancel(2)
    harness.scheduler.cancel(2)
    n_events = sum(number == 2 for number, _ in harness.events)
    harness.run()
    assert sum(number == 2 for number, _ in harness.events) == n_events, "nothing is said of a cancelled job"
    assert harness.text(1) == expected("one " * 10)
    assert harness.text(3) == expected("three " * 10)
    assert harness.samplers[2].is_closed


def test_cancelling_a_waiting_job_frees_its_sampler() -> None:
    harness = Harness(FakeBackend(n_sequences=1))
    harness.submit(1, "a")
    harness.submit(2, "b")
    harness.scheduler.step()
    harness.scheduler.cancel(2)
    harness.run()
    assert harness.samplers[2].is_closed
    assert harness.text(1) == expected("a")


def test_an_engine_error_fails_the_jobs_of_that_batch_and_the_next_job_runs() -> None:
    harness = Harness()
    harness.submit(1, "a")
    harness.submit(2, "b")
    harness.backend.status = -3
    harness.run()
    assert isinstance(harness.end(1), Internal)
    assert isinstance(harness.end(2), Internal)
    harness.backend.status = 0
    harness.submit(3, "a")
    harness.run()
    assert harness.text(3) == expected("a")


def test_no_room_although_there_should_be_ends_the_last_job_and_not_the_loop() -> None:
    harness = Harness()
    harness.submit(1, "a")
    harness.backend.status = 1
    harness.run()
    assert isinstance(harness.end(1), OutOfMemory)


@pytest.mark.parametrize(("n_prompt", "n_predict"), [(300, 1), (90, 60)])
def test_a_job_that_memory_has_no_room_for_says_so_and_takes_nobody_with_it(n_prompt: int, n_predict: int) -> None:
    backend = FakeBackend(n_ctx=1000, n_cells=16)
    backend.n_cells_max = 100
    harness = Harness(backend)
    harness.submit(1, "first", n_predict=20)
    harness.submit(2, "x" * n_prompt, n_predict=n_predict)
    harness.submit(3, "third", n_predict=20)
    harness.run()
    error = harness.end(2)
    assert isinstance(error, OutOfMemory)
    assert re.search(r"more than (9\d|100) tokens", error.message)
    assert harness.text(1) == expected("first", 20)
    assert harness.text(3) == expected("third", 20)


def test_times_are_told_apart() -> None:
    harness = Harness()
    harness.submit(1, "abc")
    harness.run()
    timings = harness.finished(1).timings
    assert min(timings.queue_ms + 1, timings.prompt_ms, timings.predicted_ms) > 0


# -- adapters --------------------------------------------------------------------------------------------------------


def test_jobs_of_the_same_scales_share_batches_and_others_take_turns() -> None:
    harness = Harness(FakeBackend(n_ctx=512, n_batch=64, n_sequences=6))
    sets = [OFF, HALF, FULL, HALF, OFF, HALF]
    for number, scales in enumerate(sets):
        harness.submit(number, "one prompt for all", n_predict=16, scales=scales)
    harness.run()
    for number, scales in enumerate(sets):
        assert harness.text(number) == expected("one prompt for all", 16, scales)
    assert len({harness.text(number) for number in range(6)}) == 3
    assert switches(harness)[:4] == [OFF, HALF, FULL, OFF]
    # After the first, which computes the prompts, a turn has four decodes, with all jobs of these scales in each.
    assert harness.backend.scales_of_batches[3:15] == [OFF] * 4 + [HALF] * 4 + [FULL] * 4
    assert [len(rows) for rows in harness.backend.batches[3:15]] == [2] * 4 + [3] * 4 + [1] * 4


def test_no_scales_starve_however_many_jobs_of_others_come() -> None:
    harness = Harness(FakeBackend(n_ctx=512, n_sequences=3))
    harness.submit(0, "the patient one", n_predict=8, scales=FULL)
    for number in range(1, 40):
        harness.submit(number, "one of many", n_predict=2, scales=HALF if number % 2 else OFF)
    while not any(number == 0 and isinstance(event, Finished) for number, event in harness.events):
        harness.scheduler.step()
    assert harness.scheduler.n_waiting > 10
    assert harness.text(0) == expected("the patient one", 8, FULL)


def test_a_prefix_is_not_shared_with_other_scales_in_whatever_way() -> None:
    harness = Harness(FakeBackend(n_ctx=512, n_sequences=4))
    prompt = "the beginning of everything"
    for number, scales in enumerate((OFF, HALF, OFF, FULL, HALF)):
        harness.submit(number, prompt, n_predict=4, scales=scales)
        harness.run()
        assert harness.text(number) == expected(prompt, 4, scales)
    cached = [harness.finished(number).usage.n_cached for number in range(5)]
    assert cached == [0, 0, len(prompt) - 1, 0, len(prompt) - 1]


def test_a_running_job_shares_nothing_with_one_of_other_scales() -> None:
    harness = Harness(FakeBackend(n_ctx=512))
    harness.submit(1, "a system prompt for all: one", n_predict=20, scales=OFF)
    harness.scheduler.step()
    harness.submit(2, "a system prompt for all: two", n_predict=20, scales=HALF)
    harness.submit(3, "a system prompt for all: three", n_predict=20, scales=OFF)
    harness.run()
    assert harness.finished(2).usage.n_cached == 0
    assert harness.finished(3).usage.n_cached == len("a system prompt for all: t") - 1
    assert harness.text(2) == expected("a system prompt for all: two", 20, HALF)


def test_the_only_sequence_starts_over_with_other_scales() -> None:
    harness = Harness(FakeBackend(n_sequences=1))
    for number, scales in enumerate((HALF, FULL, FULL)):
        harness.submit(number, "the very same", n_predict=3, scales=scales)
        harness.run()
        assert harness.text(number) == expected("the very same", 3, scales)
    assert [harness.finished(number).usage.n_cached for number in range(3)] == [0, 0, len("the very same") - 1]


def test_jobs_of_many_scales_that_outgrow_the_pool_all_finish_with_their_own_text() -> None:
    harness = Harness(FakeBackend(n_ctx=100, n_sequences=4))
    sets = (OFF, HALF, FULL, OFF)
    for number, scales in enumerate(sets):
        harness.submit(number, f"job {number} ", n_predict=60, scales=scales)
    harness.run()
    for number, scales in enumerate(sets):
        assert harness.text(number) == expected(f"job {number} ", 60, scales)


def test_scales_that_leave_the_range_of_numbers_end_their_job_and_spoil_nothing_that_comes_after() -> None:
    harness = Harness(FakeBackend(n_ctx=512, n_sequences=4))
    harness.backend.spoils = FULL
    harness.submit(1, "first", n_predict=20, scales=HALF)
    harness.scheduler.step()
    harness.submit(2, "too much", n_predict=20, scales=FULL)
    harness.submit(3, "another", n_predict=20, scales=HALF)
    harness.run()
    error = harness.end(2)
    assert isinstance(error, BadRequest)
    assert error.param == "lora"
    assert harness.text(2) == ""
    for number, prompt in ((1, "first"), (3, "another")):
        assert harness.text(number) == expected(prompt, 20, HALF)
        assert harness.finished(number).usage.n_completion == 20
    harness.submit(4, "first", n_predict=20, scales=OFF)
    harness.run()
    assert harness.text(4) == expected("first", 20, OFF)


def test_a_job_without_adapters_that_was_spoilt_by_another_says_so() -> None:
    harness = Harness(FakeBackend(n_ctx=512, n_batch=32, n_sequences=4))
    harness.backend.spoils = FULL
    harness.submit(1, "a long prompt that takes several decodes " * 4, n_predict=4, scales=FULL)
    harness.submit(2, "beside it", n_predict=4, scales=OFF)
    harness.run()
    assert isinstance(harness.end(1), BadRequest)
    assert isinstance(harness.end(2), Internal)
    assert all(sampler.is_closed for sampler in harness.samplers.values())


def test_a_model_that_computes_no_numbers_for_a_text_fails_that_job_and_serves_the_next_one() -> None:
    """A scale that is too large shows with some texts alone, and the reply was the first token again and again."""
    harness = Harness(FakeBackend(n_ctx=512, n_sequences=4))
    harness.submit(1, "a text", n_predict=20)
    harness.scheduler.step()
    harness.backend.spoils = ()
    harness.scheduler.step()
    error = harness.end(1)
    assert isinstance(error, ModelUnavailable)
    assert "damaged" in error.message
    assert not harness.backend.spoilt
    harness.backend.spoils = None
    harness.submit(2, "a text", n_predict=5)
    harness.run()
    assert harness.text(2) == expected("a text", 5)
    assert harness.finished(2).usage.n_cached == 0


# -- guides, log-probabilities, shared prompts -------------------------------------------------------------------------


def test_a_guide_shapes_the_text_and_what_it_forces_is_one_decode() -> None:
    harness = Harness()
    harness.submit(1, "say", n_predict=None, pattern="..name: .; end", script=b"xyq")
    harness.run()
    assert harness.text(1) == "xyname: q; end"
    assert harness.finished(1).reason is FinishReason.STOP
    assert harness.finished(1).usage.n_completion == len("xyname: q; end")
    n_rows = [len(rows) for rows in harness.backend.batches]
    assert n_rows == [3, 1, 1 + len("name: ")], "the last forced tokens are never decoded, nothing follows them"
    assert bytes(harness.samplers[1].shown) == b"name: ; end", "penalties count forced tokens too"


def test_what_comes_back_again_and_again_is_kept_while_others_come_once() -> None:
    harness = Harness(FakeBackend(n_ctx=4096, n_batch=64, n_sequences=16))
    numbers = count(1)
    n_cached = []
    for _ in range(3):
        for prompt in ["the same " * 5, *(f"{number} once" * 4 for number in range(6))]:
            number = next(numbers)
            harness.submit(number, prompt if prompt[0] == "t" else f"{number} {prompt}", n_predict=2)
            harness.run()
            if prompt[0] == "t":
                n_cached.append(harness.finished(number).usage.n_cached)
    assert n_cached == [0, 0, 44], "the first time it came back, it was gone"


def test_a_sampled_token_that_is_not_allowed_is_sampled_again() -> None:
    harness = Harness()
    harness.submit(1, "say", n_predict=None, pattern="a.c", script=b"zZz")
    harness.run()
    assert harness.text(1) == "aac", "the first letter that the pattern allows"


@pytest.mark.parametrize(
    ("n_predict", "stop", "text", "reason"), [(4, (), "xabc", "length"), (9, ("bc",), "xa", "stop")]
)
def test_a_limit_and_a_stop_string_count_among_forced_tokens(
    n_predict: int, stop: tuple[str, ...], text: str, reason: str
) -> None:
    harness = Harness()
    harness.submit(1, "say", n_predict=n_predict, stop=stop, pattern=".abcdef.", script=b"xy")
    harness.run()
    assert harness.text(1) == text
    assert harness.finished(1).reason == reason


def test_guided_and_free_jobs_decode_together() -> None:
    harness = Harness(FakeBackend(n_ctx=256, n_batch=64))
    harness.submit(1, "free", n_predict=20)
    harness.submit(2, "guided", n_predict=None, pattern="..abcdefgh..ijklmn.", script=b"xyzwv")
    harness.submit(3, "c" * 100, n_predict=20)
    harness.run()
    assert harness.text(1) == expected("free", 20)
    assert harness.text(2) == "xyabcdefghzwijklmnv"
    assert harness.text(3) == expected("c" * 100, 20)


def test_a_guided_job_that_gave_its_cells_up_goes_on_where_it_was() -> None:
    harness = Harness(FakeBackend(n_ctx=40, n_batch=16, n_sequences=2))
    harness.submit(1, "a" * 10, n_predict=18)
    harness.submit(2, "b" * 4, n_predict=None, pattern="." * 4 + "0123456789" + "." * 4)
    harness.run()
    assert harness.text(1) == expected("a" * 10, 18)
    assert len(harness.text(2)) == 18
    assert harness.text(2)[4:14] == "0123456789"


def test_each_token_has_its_log_probability() -> None:
    harness = Harness()
    harness.submit(1, "hello", n_predict=6, n_logprobs=2)
    harness.run()
    logprobs = harness.logprobs(1, Piece)
    assert b"".join(each.chosen.data for each in logprobs).decode() == harness.text(1) == expected("hello", 6)
    assert [each.chosen.logprob for each in logprobs] == [-5, -6, -7, -8, -9, -10]
    assert all([top.token for top in each.top] == [each.chosen.token] * 2 for each in logprobs)


def test_no_log_probability_is_told_of_what_a_stop_string_swallowed() -> None:
    harness = Harness()
    harness.submit(1, "hello", stop=("cd",), script=b"abcdef", n_logprobs=0)
    harness.run()
    assert [each.chosen.data for each in harness.logprobs(1, Piece)] == [b"a", b"b"]


def test_forced_tokens_have_log_probabilities_too() -> None:
    harness = Harness()
    harness.submit(1, "say", n_predict=None, pattern=".abc", script=b"xabc", n_logprobs=0)
    harness.run()
    assert [(each.chosen.data, each.chosen.logprob) for each in harness.logprobs(1, Piece)] == [
        *((b"x", -3), (b"a", -4), (b"b", -5), (b"c", -6))
    ]


@pytest.mark.parametrize("n_predict", [0, 3])
def test_the_log_probabilities_of_a_prompt(n_predict: int) -> None:
    prompt = "a prompt that is longer than a batch, and was computed before"
    harness = Harness(FakeBackend(n_ctx=256, n_batch=16))
    for number in (1, 2):
        harness.submit(number, prompt, n_predict=n_predict, n_logprobs=0, echo=True)
        harness.submit(number + 10, "other work", n_predict=20)
        harness.run()
        logprobs = harness.logprobs(number, Echo)
        assert b"".join(each.chosen.data for each in logprobs).decode() == prompt
        assert [-each.chosen.logprob for each in logprobs] == list(range(len(prompt)))
        assert harness.text(number) == expected(prompt, n_predict)


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("text", [b"", b"ab"])
def test_the_token_that_ends_a_reply_is_told_where_its_prompt_is(text: bytes, *, echo: bool) -> None:
    harness = Harness()
    harness.submit(1, "say", n_predict=None, script=text + bytes([END]), n_logprobs=0, echo=echo)
    harness.run()
    told = b"".join(each.chosen.data for each in harness.logprobs(1, Piece))
    assert told == (text + bytes([END]) if echo else text)
    assert harness.text(1) == text.decode()


def test_a_prompt_is_told_once_though_its_job_starts_over() -> None:
    harness = Harness(FakeBackend(n_ctx=48, n_batch=16, n_sequences=2))
    harness.submit(1, "a" * 20, n_predict=26)
    harness.submit(2, "0123456789", n_predict=12, n_logprobs=0, echo=True)
    harness.run()
    assert b"".join(each.chosen.data for each in harness.logprobs(2, Echo)) == b"0123456789"
    assert len(harness.logprobs(2, Piece)) == 12
    assert harness.text(2) == expected("0123456789", 12)


def test_a_beginning_that_many_prompts_share_is_computed_once() -> None:
    harness = Harness(FakeBackend(n_ctx=4096, n_batch=64, n_sequences=4))
    beginning = "the same long instruction for everybody; " * 8
    prompts = {number: beginning + f"question {number}" for number in range(6)}
    for number, prompt in prompts.items():
        harness.submit(number, prompt, n_predict=4)
    harness.run()
    assert {number: harness.text(number) for number in prompts} == {
        number: expected(prompt, 4) for number, prompt in prompts.items()
    }
    n_decoded = sum(map(len, harness.backend.batches))
    assert n_decoded < len(beginning) + 6 * 20
    assert [harness.finished(number).usage.n_cached >= len(beginning) for number in prompts] == [False] + [True] * 5


def test_who_waits_for_a_shared_beginning_lets_others_pass() -> None:
    harness = Harness(FakeBackend(n_ctx=4096, n_batch=64, n_sequences=4))
    harness.submit(1, "x" * 400, n_predict=4)
    harness.submit(2, "x" * 400 + "y", n_predict=4)
    harness.submit(3, "short", n_predict=4)
    harness.scheduler.step()
    assert (harness.scheduler.n_running, harness.scheduler.n_waiting) == (2, 1)
    harness.run()
    assert harness.text(2) == expected("x" * 400 + "y", 4)


def test_a_model_that_cannot_share_keeps_nobody_waiting() -> None:
    harness = Harness(FakeBackend(n_ctx=4096, n_batch=64))
    harness.backend.can_rewind = False
    harness.scheduler = Scheduler(harness.backend, harness.events.extend, clock=harness.clock)
    for number in (1, 2):
        harness.submit(number, "x" * 200, n_predict=2)
    harness.scheduler.step()
    assert harness.scheduler.n_running == 2


def test_a_job_that_wants_to_know_is_told_how_much_of_its_prompt_is_read() -> None:
    harness = Harness(FakeBackend(n_ctx=256, n_batch=32), clock=lambda: 2.0)
    harness.submit(1, "x" * 64, n_predict=2)
    harness.run()
    harness.submit(2, "x" * 64 + "y" * 100, n_predict=2, tells_progress=True)
    harness.run()
    told = harness.progress(2)
    assert [each.n_read for each in told if isinstance(each, PromptProgress)] == [64, 96, 128, 160, 164]
    assert told[0] == PromptProgress(164, 64, 64, 0.0)
    kinds = [type(event) for number, event in harness.events if number == 2]
    assert kinds.index(Piece) > max(place for place, kind in enumerate(kinds) if kind is PromptProgress)
    assert harness.progress(1) == []
    assert harness.text(2) == expected("x" * 64 + "y" * 100, 2)


def test_how_much_of_a_long_prompt_is_read_is_told_a_hundred_times_at_most() -> None:
    harness = Harness(FakeBackend(n_ctx=4096, n_batch=8))
    harness.submit(1, "x" * 4000, n_predict=1, tells_progress=True)
    harness.run()
    told = [each.n_read for each in harness.progress(1) if isinstance(each, PromptProgress)]
    assert told == [*range(0, 4000, 40), 4000]


def test_jobs_that_wait_are_told_their_places_when_these_change() -> None:
    harness = Harness(FakeBackend(n_ctx=256, n_batch=32, n_sequences=1))
    harness.submit(1, "first", n_predict=20)
    harness.submit(2, "second", n_predict=4, tells_progress=True)
    harness.submit(3, "third", n_predict=4)
    harness.submit(4, "fourth", n_predict=4, tells_progress=True)
    for _ in range(5):
        harness.scheduler.step()
    assert harness.progress(2) == [QueuePlace(0)]
    assert harness.progress(4) == [QueuePlace(2)]
    harness.scheduler.cancel(3)
    harness.scheduler.step()
    assert harness.progress(4) == [QueuePlace(2), QueuePlace(1)]
    harness.run()
    assert harness.progress(4)[2] == QueuePlace(0)
    assert all(isinstance(each, PromptProgress) for each in harness.progress(4)[3:])


def test_jobs_of_a_long_queue_are_told_of_some_moves_only() -> None:
    harness = Harness(FakeBackend(n_ctx=256, n_batch=32, n_sequences=1))
    for job in range(129):
        harness.submit(job, "a", n_predict=2, tells_progress=True)
    harness.run()
    places = [each.n_before for each in harness.progress(128) if isinstance(each, QueuePlace)]
    assert places[0] == 127
    assert places[-8:] == [*range(7, -1, -1)]
    assert len(places) < 40


def test_a_job_that_starts_over_is_not_told_less_than_before() -> None:
    harness = Harness(FakeBackend(n_ctx=48, n_batch=4, n_sequences=2))
    harness.submit(1, "a" * 16, n_predict=30)
    harness.submit(2, "0123456789", n_predict=12, tells_progress=True)
    harness.run()
    told = [each.n_read for each in harness.progress(2) if isinstance(each, PromptProgress)]
    assert told == sorted(set(told))
    assert told[-1] == 10
    assert harness.text(2) == expected("0123456789", 12)
