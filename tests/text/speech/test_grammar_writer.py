"""Patterns of JSON Schema, which may match anywhere, as patterns of whole texts."""

import re

import pytest

from shimmy.text.speech.grammar_writer import as_pattern


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        ("^[a-z]+$", "abc", "abc1"),
        ("[0-9]", "x1y", "xy"),
        ("^a", "ab", "ba"),
        ("a$", "ba", "ab"),
        ("a|b", "xbx", "c"),
        (r"^\d[\d.]\w$", "1.x", "1.\u00e9"),
        (r"^\d\$$", "1$", "1"),
        ("^[$^|]+$", "$^|", "a"),
        ("^a/b$", "a/b", "ab"),
        (r"^a\/b$", "a/b", "ab"),
        ("^(?:a|(b|c)d)$", "cd", "c"),
    ],
)
def test_a_pattern_of_a_whole_text(pattern: str, right: str, wrong: str) -> None:
    found = as_pattern(pattern)
    assert found is not None
    assert re.fullmatch(found, right)
    assert not re.fullmatch(found, wrong)


@pytest.mark.parametrize(
    "pattern", ["^a|b", "a|b$", "a^b", "a$b", "(^a)", "^(a$|b)$", "^.{1,5000}$", "(.{9}){99}", 7, None]
)
def test_what_is_left_to_the_model(pattern: object) -> None:
    assert as_pattern(pattern) is None


@pytest.mark.timeout(10)
@pytest.mark.parametrize("unit", ["(", "[", "(a", "\\", "()"])
def test_deep_groups_and_open_brackets_take_no_more_time_than_their_length(unit: str) -> None:
    half = unit * 50_000
    assert as_pattern(f"{half}{')' * 50_000}") is not None
