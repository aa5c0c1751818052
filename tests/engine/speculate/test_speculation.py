from collections.abc import Sequence

from shimmy.engine.speculate.decode_costs import DecodeCosts
from shimmy.engine.speculate.prompt_lookup import PromptLookup
from shimmy.engine.speculate.speculation import AcceptanceStats, Draft, DraftPlanner


def cheap() -> DecodeCosts:
    costs = DecodeCosts()
    costs.observe(1, 1.0)
    for _ in range(60):
        for n_rows in (2, 3, 4, 6, 8, 12, 16, 32):
            costs.observe(n_rows, 1.0 + n_rows / 100)
    return costs


def looked_up(lookup: PromptLookup, tokens: Sequence[int], n_max: int, costs: DecodeCosts) -> list[int]:
    guess = lookup.draft(tokens, n_max, costs)
    return [] if guess is None else guess.tokens


def test_the_cost_of_more_rows_is_learnt_in_single_rows() -> None:
    costs = DecodeCosts()
    assert costs.of(1) == 1
    assert costs.of(8) == 4.5
    costs.observe(4, 9.0)
    assert costs.of(4) == 2.5, "says nothing while a single row was not measured"
    for _ in range(60):
        costs.observe(1, 0.5)
        costs.observe(8, 1.0)
    assert abs(costs.of(8) - 2.0) < 0.01
    assert costs.of(4) == costs.of(8), "fewer rows do not cost more"
    assert abs(costs.of(15) - 3.0) < 0.01, "each row as much as one of the next fewer that were measured"


def test_a_dear_second_row_does_not_rule_out_more() -> None:
    costs = DecodeCosts()
    for _ in range(60):
        costs.observe(1, 1.0)
        costs.observe(2, 2.2)
    assert costs.of(2) > 2
    assert costs.of(8) == 4.5


def test_a_size_that_was_never_measured_is_hoped_to_be_cheap() -> None:
    costs = DecodeCosts()
    costs.observe(1, 1.0)
    assert 1 < costs.optimistic(2) < costs.optimistic(4) < costs.of(4)
    costs.observe(4, 2.5)
    assert costs.optimistic(4) == costs.of(4) == 2.5


def test_one_slow_measurement_does_not_rule_a_size_out() -> None:
    costs = DecodeCosts()
    costs.observe(1, 1.0)
    costs.observe(8, 10.0)
    assert costs.of(8) < 6


def test_a_loop_is_continued_past_what_is_known() -> None:
    tokens = [9, 9, *([1, 2, 3, 4, 5] * 8)]
    draft = looked_up(PromptLookup(), tokens, 31, cheap())
    assert draft == ([1, 2, 3, 4, 5] * 7)[:31]


def test_the_longest_match_decides() -> None:
    once = [7, 7, 7, 1, 2, 3, 50, 51, 52, 53, 54, 55]
    later = [8, 8, 8, 1, 2, 3, 60, 61, 62, 63, 64, 65]
    assert looked_up(PromptLookup(), [*once, *later, 7, 7, 7, 1, 2, 3], 3, cheap()) == [50, 51, 52]
    assert looked_up(PromptLookup(), [*once, *later, 9, 9, 9, 1, 2, 3], 3, cheap()) == [60, 61, 62]


def test_new_text_is_not_guessed() -> None:
    assert looked_up(PromptLookup(), list(range(100)), 31, cheap()) == []
    assert looked_up(PromptLookup(), [1], 31, cheap()) == []
    assert looked_up(PromptLookup(), [], 31, cheap()) == []


def test_no_more_than_asked_for_is_guessed() -> None:
    tokens = [1, 2, 3, 4, 5] * 8
    assert len(looked_up(PromptLookup(), tokens, 10, cheap())) == 7
    assert len(looked_up(PromptLookup(), tokens, 2, cheap())) == 2
    assert looked_up(PromptLookup(), tokens, 0, cheap()) == []
    assert looked_up(PromptLookup(), tokens, -1, cheap()) == []


def test_a_job_whose_guesses_fail_is_left_alone_until_a_long_match() -> None:
    lookup = PromptLookup()
    costs = cheap()
    short = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert looked_up(lookup, short, 31, costs)
    dear = DecodeCosts()
    dear.observe(1, 1.0)
    for _ in range(5):
        lookup.outcomes.learn(3, 0)
    assert looked_up(lookup, [*short, 1, 2, 3], 31, dear) == []
    assert looked_up(lookup, [*short, 1, 2, 3, *(list(range(10, 50)) * 2)], 31, dear)


def test_the_index_follows_the_text_as_it_grows() -> None:
    lookup = PromptLookup()
    tokens = [1, 2, 3, 4, 5, 6, 7]
    for token in tokens * 3:
        tokens.append(token)
        looked_up(lookup, tokens, 31, cheap())
    assert looked_up(lookup, tokens, 3, cheap()) == [1, 2, 3]


# -- asking a draft model --------------------------------------------------------------------------------------------


def plan(planner: DraftPlanner, costs: DecodeCosts, token_cost: float, n_max: int = 31) -> int:
    return planner.plan(n_max, costs, token_cost)[0]


def experienced(*, n_accepted: int, n_sure: int = 10) -> DraftPlanner:
    """A job of which so many of 10 guesses were right, when so many of 10 tokens were sure enough to be guesses."""
    planner = DraftPlanner()
    for _ in range(30):
        planner.learn(n_sure, 10)
        planner.outcomes.learn(10, n_accepted)
    return planner


def test_a_draft_is_as_long_as_it_pays() -> None:
    good, fair = experienced(n_accepted=10), experienced(n_accepted=2)
    assert plan(good, cheap(), 0.01) == 15, "the most there is"
    assert 1 <= plan(fair, cheap(), 0.2) < plan(good, cheap(), 0.2)
    assert plan(fair, cheap(), 0.2) < plan(fair, cheap(), 0.01)
    assert plan(experienced(n_accepted=10, n_sure=3), cheap(), 0.2) < plan(good, cheap(), 0.2)
    assert plan(good, cheap(), 0.01, n_max=5) <= 5


def test_nothing_is_drafted_where_that_does_not_pay() -> None:
    assert plan(experienced(n_accepted=10), cheap(), 0.01) > 0
    assert plan(experienced(n_accepted=0), cheap(), 0.2) == 0, "never right"
    assert plan(experienced(n_accepted=10, n_sure=0), cheap(), 0.2) == 0, "never sure"
    assert plan(experienced(n_accepted=10), cheap(), 1.0) == 0, "as dear as the model itself"
    dear = DecodeCosts()
    dear.observe(1, 1.0)
    for _ in range(60):
        for n_rows in (2, 3, 4, 6, 8, 12, 16):
            dear.observe(n_rows, float(n_rows))
    assert plan(experienced(n_accepted=10), dear, 0.01) == 0, "rows that cost what single ones do"
    assert plan(experienced(n_accepted=10), cheap(), 0.01, n_max=0) == 0


def test_what_promises_more_goes_first() -> None:
    planner = experienced(n_accepted=10)
    n_drafted, gain = planner.plan(31, cheap(), 0.1)
    assert n_drafted > 0
    for rival, expected in ((gain + 0.1, 0), (gain - 0.1, n_drafted)):
        assert planner.plan(31, cheap(), 0.1, Draft([1], rival, AcceptanceStats()))[0] == expected


def test_a_draft_model_that_was_given_up_is_tried_again_after_a_while() -> None:
    planner = experienced(n_accepted=0)
    n_left_alone = 0
    while not plan(planner, cheap(), 0.2):
        n_left_alone += 1
        assert n_left_alone < 1000
    assert n_left_alone > 30


def test_of_a_draft_only_what_is_worth_its_rows_is_decoded() -> None:
    costs = DecodeCosts()
    costs.observe(1, 1.0)
    for _ in range(60):
        for n_rows in (2, 3):
            costs.observe(n_rows, 2.5)
        for n_rows in (4, 6, 8, 12, 16):
            costs.observe(n_rows, 2.8)
    planner = experienced(n_accepted=10)
    assert [planner.worth(n, costs)[0] for n in (0, 1, 2, 3, 4, 5, 15)] == [0, 0, 2, 3, 3, 5, 15]
    assert planner.worth(1, costs)[1] == 1
    assert planner.worth(2, costs)[1] < planner.worth(3, costs)[1]
    assert planner.worth(6, cheap())[0] == 5, "in sizes that are measured"


def test_a_reply_is_expected_to_go_on_for_as_long_as_it_has_gone() -> None:
    planner = DraftPlanner()
    assert planner.pays_back(0.0, 1.5)
    for _ in range(30):
        assert not planner.pays_back(10.01, 1.5)
        plan(planner, cheap(), 0.1)
    assert planner.pays_back(9.99, 1.5), "a third of 30 single rows is saved"
    assert not planner.pays_back(9.99, 1.2)
