from shimmy.engine.speculation import Costs, Lookup


def cheap() -> Costs:
    costs = Costs()
    costs.observe(1, 1.0)
    for _ in range(60):
        for n_rows in (4, 8, 16, 32):
            costs.observe(n_rows, 1.0 + n_rows / 100)
    return costs


def test_the_cost_of_more_rows_is_learnt_in_single_rows() -> None:
    costs = Costs()
    assert costs.of(1) == 1
    assert costs.of(8) == 4.5
    costs.observe(4, 9.0)
    assert costs.of(4) == 2.5, "says nothing while a single row was not measured"
    for _ in range(60):
        costs.observe(1, 0.5)
        costs.observe(8, 1.0)
    assert abs(costs.of(8) - 2.0) < 0.01
    assert costs.of(4) == 2.5
    assert abs(costs.of(16) - 2.0 * 8.5 / 4.5) < 0.01, "in proportion to the next fewer that were measured"


def test_one_slow_measurement_does_not_rule_a_size_out() -> None:
    costs = Costs()
    costs.observe(1, 1.0)
    costs.observe(8, 10.0)
    assert costs.of(8) < 6


def test_a_loop_is_continued_past_what_is_known() -> None:
    tokens = [9, 9, *([1, 2, 3, 4, 5] * 8)]
    draft = Lookup().draft(tokens, 31, cheap())
    assert draft == ([1, 2, 3, 4, 5] * 7)[:31]


def test_the_longest_match_decides() -> None:
    once = [7, 7, 7, 1, 2, 3, 50, 51, 52, 53, 54, 55]
    later = [8, 8, 8, 1, 2, 3, 60, 61, 62, 63, 64, 65]
    assert Lookup().draft([*once, *later, 7, 7, 7, 1, 2, 3], 3, cheap()) == [50, 51, 52]
    assert Lookup().draft([*once, *later, 9, 9, 9, 1, 2, 3], 3, cheap()) == [60, 61, 62]


def test_new_text_is_not_guessed() -> None:
    assert Lookup().draft(list(range(100)), 31, cheap()) == []
    assert Lookup().draft([1], 31, cheap()) == []
    assert Lookup().draft([], 31, cheap()) == []


def test_no_more_than_asked_for_is_guessed() -> None:
    tokens = [1, 2, 3, 4, 5] * 8
    assert len(Lookup().draft(tokens, 10, cheap())) == 7
    assert Lookup().draft(tokens, 2, cheap()) == []
    assert Lookup().draft(tokens, -1, cheap()) == []


def test_a_job_whose_guesses_fail_is_left_alone_until_a_long_match() -> None:
    lookup = Lookup()
    costs = cheap()
    short = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert lookup.draft(short, 31, costs)
    dear = Costs()
    dear.observe(1, 1.0)
    for _ in range(5):
        lookup.learn(3, 0)
    assert lookup.draft([*short, 1, 2, 3], 31, dear) == []
    assert lookup.draft([*short, 1, 2, 3, *(list(range(10, 50)) * 2)], 31, dear)


def test_the_index_follows_the_text_as_it_grows() -> None:
    lookup = Lookup()
    tokens = [1, 2, 3, 4, 5, 6, 7]
    for token in tokens * 3:
        tokens.append(token)
        lookup.draft(tokens, 31, cheap())
    assert lookup.draft(tokens, 3, cheap()) == [1, 2, 3]
