"""How many prompt rows go beside streams, on machines that are a formula for what a decode takes."""

import pytest

from shimmy.engine.schedule.prefill_budget import PrefillBudget


def learnt(decode_s: float, row_s: float, n_decode_rows: int = 4) -> PrefillBudget:
    """A pace that has seen `n_decode_rows` rows take `decode_s`, and each row of a prompt `row_s` more."""
    pace = PrefillBudget()
    pace.observe(n_decode_rows, 0, decode_s)
    pace.observe(0, 256, 256 * row_s)
    return pace


def longest_s(pace: PrefillBudget, decode_s: float, row_s: float, n_streams: int = 4, n_prompts: int = 1) -> float:
    return decode_s + row_s * pace.n_prompt_rows(n_streams, n_streams, n_prompts)


def test_before_anything_is_known_a_prompt_gets_a_moderate_share() -> None:
    assert PrefillBudget().n_prompt_rows(4, 4, 1) == 128


@pytest.mark.parametrize(
    ("decode_s", "row_s", "n_rows"),
    [
        (0.028, 0.0030, 124),  # SmolLM2-135M Q4_1 on 2 cores
        (0.038, 0.0015, 124),  # gemma-3-270m Q4_K_M on 2 cores
        (0.005, 0.0001, 2044),  # a small model on a large machine
        (0.060, 0.0100, 28),  # 8B on 16 cores
        (0.700, 0.1600, 16),  # 8B on 2 cores: a long pause, and the prompt has to get on
    ],
)
def test_batches_hold_the_target_and_suit_the_kernels(decode_s: float, row_s: float, n_rows: int) -> None:
    assert learnt(decode_s, row_s).n_prompt_rows(4, 4, 1) == n_rows


def test_where_decodes_are_slow_anyway_prompts_get_most_of_the_time() -> None:
    decode_s, row_s = 0.5, 0.005
    assert 0.6 < 1 - decode_s / longest_s(learnt(decode_s, row_s), decode_s, row_s) <= 0.75


def test_few_streams_wait_longer_for_many_prompts() -> None:
    pace = learnt(0.02, 0.002, n_decode_rows=1)
    one, as_many, seven = (pace.n_prompt_rows(1, n_streams, n) for n_streams, n in ((1, 1), (4, 4), (1, 7)))
    assert one == as_many < seven
    assert longest_s(pace, 0.02, 0.002, 1, 7) <= 7 * 0.3


def test_more_streams_do_not_make_prompts_starve() -> None:
    pace = learnt(0.3, 0.05, n_decode_rows=32)
    assert pace.n_prompt_rows(32, 32, 1) == 16
    assert pace.n_prompt_rows(500, 32, 1) >= 16


def test_what_stands_before_a_row_makes_it_dearer_and_the_pace_follows() -> None:
    pace = learnt(0.02, 0.0009)
    shallow = pace.n_prompt_rows(4, 4, 1)
    for _ in range(8):
        pace.observe(4, 124, 0.02 + 124 * 0.006)
    assert longest_s(pace, 0.02, 0.006) <= 2 * 0.3
    deep = pace.n_prompt_rows(4, 4, 1)
    for _ in range(8):
        pace.observe(4, 32, 0.02 + 32 * 0.0009)
    assert deep < shallow == pace.n_prompt_rows(4, 4, 1)


def test_one_disturbed_decode_does_not_starve_a_prompt() -> None:
    pace = learnt(0.02, 0.001)
    pace.observe(4, 124, 60.0)
    pace.observe(4, 0, 60.0)
    assert pace.n_prompt_rows(4, 4, 1) >= 124


def test_a_handful_of_prompt_rows_tells_nothing() -> None:
    pace = learnt(0.02, 0.001)
    known = pace.n_prompt_rows(4, 4, 1)
    for _ in range(20):
        pace.observe(4, 3, 0.1)
    assert pace.n_prompt_rows(4, 4, 1) == known


def test_decodes_of_other_sizes_are_taken_for_the_next_fewer_rows() -> None:
    pace = learnt(0.4, 0.001, n_decode_rows=8)
    assert pace.n_prompt_rows(16, 16, 1) == pace.n_prompt_rows(8, 8, 1) - 8, "the same batch, more of it streams"
    assert pace.n_prompt_rows(2, 2, 1) < pace.n_prompt_rows(8, 8, 1), "nothing is known of fewer"


def test_a_clock_that_stands_still_is_borne() -> None:
    pace = PrefillBudget()
    pace.observe(1, 0, 0.0)
    pace.observe(1, 64, 0.0)
    assert pace.n_prompt_rows(1, 1, 1) == 128


def test_prompt_rows_are_enough_when_reading_the_weights_is_a_small_part_of_them() -> None:
    pace = PrefillBudget()
    pace.observe(0, 256, 256 * 0.002)
    assert pace.n_enough_rows() >= 2048, "how long a decode of one row takes is not known"
    pace.observe(1, 0, 0.017)
    assert pace.n_enough_rows() == 34
    cheap = learnt(0.005, 0.0001, n_decode_rows=1)
    assert cheap.n_enough_rows() == 200
    assert learnt(0.1, 0.1, n_decode_rows=1).n_enough_rows() == 16


@pytest.mark.parametrize(
    ("row_s", "n_rows"),
    [(-0.001, 20), (0.0, 20), (0.00005, 20), (0.0001, 10), (0.0005, 2), (0.002, 0)],  # beside 20 ms for the first row
)
def test_so_many_more_rows_hardly_make_a_decode_longer(row_s: float, n_rows: int) -> None:
    pace = learnt(0.0202, 0.00005, n_decode_rows=4)  # no row is taken to cost less than one of a prompt
    pace.observe(1, 0, 0.0202 - 3 * row_s)
    assert pace.n_more_rows(4, 32) == n_rows
    assert pace.n_more_rows(4, 3) == min(n_rows, 3)


def test_nobody_knows_what_more_rows_cost_before_decodes_of_two_sizes() -> None:
    pace = PrefillBudget()
    assert pace.n_more_rows(4, 32) == 0
    pace.observe(4, 0, 0.02)
    assert pace.n_more_rows(4, 32) == 0
    pace.observe(1, 0, 0.02)
    assert pace.n_more_rows(4, 32) == 0, "nor what those of a prompt do"
    pace.observe(0, 256, 256 * 0.00001)
    assert pace.n_more_rows(4, 32) == 32
    assert pace.n_more_rows(5, 32) == 0
