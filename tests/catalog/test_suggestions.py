"""Someone without a model is told of those that fit the machine, the best first."""

from itertools import pairwise

import pytest

from shimmy.catalog.suggestions import SUGGESTIONS, advice, fitting
from shimmy.hub.references import HubReference, parse

GB = 10**9


def test_the_table_goes_from_small_to_large_and_names_what_can_be_pulled() -> None:
    assert all(one.size_bytes < other.size_bytes for one, other in pairwise(SUGGESTIONS))
    for each in SUGGESTIONS:
        found = parse(each.reference, "https://hub.example")
        assert isinstance(found, HubReference)


@pytest.mark.parametrize(("memory_bytes", "n"), [(0, 1), (GB // 2, 1), (GB, 3), (4 * GB, 3), (64 * GB, 3), (None, 3)])
def test_three_that_fit_the_best_first(memory_bytes: int | None, n: int) -> None:
    found = fitting(memory_bytes)
    assert len(found) == n
    assert found == sorted(found, key=lambda each: each.size_bytes, reverse=True)
    if memory_bytes:
        assert all(each.memory_bytes <= memory_bytes or n == 1 for each in found)


def test_a_large_machine_is_told_of_the_largest() -> None:
    assert fitting(64 * GB)[0] is SUGGESTIONS[-1]
    assert fitting(4 * GB)[0].size_bytes < 4 * GB


def test_lines_for_a_terminal() -> None:
    assert all(line.startswith("shimmy pull ") and " GB, " in line for line in advice())
