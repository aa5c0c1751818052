from shimmy.engine.kv.prefix_tree import PrefixMatch, Sequence, choose, evictable, n_common


def test_n_common_finds_the_first_difference_at_every_place() -> None:
    left = list(range(20))
    for place in range(20):
        right = [*left[:place], -1, *left[place + 1 :]]
        assert n_common(left, right) == place
    assert n_common(left, left[:7]) == 7
    assert n_common([], left) == 0


def test_the_longest_shared_prefix_wins() -> None:
    sequences = [Sequence(0, [1, 2, 9]), Sequence(1, [1, 2, 3, 4]), Sequence(2)]
    assert choose(sequences, [1, 2, 3, 4, 5]) == PrefixMatch(sequences[1], 4)


def test_the_last_prompt_token_is_never_reused() -> None:
    sequences = [Sequence(0, [1, 2, 3])]
    assert choose(sequences, [1, 2, 3]) == PrefixMatch(sequences[0], 2)


def test_a_long_conversation_is_not_given_up_for_a_few_shared_tokens_but_shares_them() -> None:
    sequences = [Sequence(0, [1, 2, *range(100, 200)]), Sequence(1)]
    assert choose(sequences, [1, 2, 3, 4]) == PrefixMatch(sequences[1], 2, sequences[0])


def test_a_busy_sequence_shares_its_prefix() -> None:
    sequences = [Sequence(0, [1, 2, 3], busy=True), Sequence(1)]
    assert choose(sequences, [1, 2, 3, 4]) == PrefixMatch(sequences[1], 3, sequences[0])


def test_without_an_empty_sequence_the_oldest_goes() -> None:
    sequences = [Sequence(0, [7] * 6, last_used=6), Sequence(1, [8] * 9, last_used=5)]
    assert choose(sequences, [1, 2, 3]) == PrefixMatch(sequences[1], 0)


def test_the_last_idle_sequence_keeps_what_fits() -> None:
    sequences = [Sequence(0, [1, 2, 7, 7, 7, 7]), Sequence(1, [8], busy=True)]
    assert choose(sequences, [1, 2, 3]) == PrefixMatch(sequences[0], 2)


def test_busy_sequences_are_left_alone() -> None:
    sequences = [Sequence(0, [1, 2, 3], busy=True)]
    assert choose(sequences, [1, 2, 3]) is None
    assert evictable(sequences) is None


def test_cells_of_other_scales_are_neither_continued_nor_shared() -> None:
    sequences = [Sequence(0, [1, 2, 3], scales=(0.5,)), Sequence(1, [1, 2], scales=(1.0,)), Sequence(2)]
    assert choose(sequences, [1, 2, 3, 4], (0.5,)) == PrefixMatch(sequences[0], 3)
    assert choose(sequences, [1, 2, 3, 4], (1.0,)) == PrefixMatch(sequences[1], 2)
    assert choose(sequences, [1, 2, 3, 4], (0.0,)) == PrefixMatch(sequences[2], 0)
    assert choose(sequences[:2], [1, 2, 3, 4], (0.0,)) == PrefixMatch(sequences[0], 0)
