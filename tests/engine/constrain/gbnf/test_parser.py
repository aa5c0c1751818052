"""GBNF's text as a tree of nodes."""

import pytest

from shimmy.engine.constrain.gbnf.parser import (
    Alternatives,
    Characters,
    Concatenation,
    GbnfParser,
    Node,
    Repetition,
    RuleReference,
    mask_of,
)
from shimmy.errors import BadRequest


def root(source: str) -> Node:
    return GbnfParser(f"root ::= {source}").rules()["root"]


def letter(text: str) -> Characters:
    return Characters(f'"{text}"', mask_of(text, text), mask_of(text, text))


def test_a_rule_is_alternatives_of_sequences() -> None:
    assert root('"a" other | "b"') == Alternatives(
        [Concatenation([letter("a"), RuleReference("other")]), Concatenation([letter("b")])]
    )


@pytest.mark.parametrize(
    ("suffix", "at_least", "at_most"), [("?", 0, 1), ("*", 0, None), ("+", 1, None), ("{2}", 2, 2), ("{2,}", 2, None)]
)
def test_repetitions(suffix: str, at_least: int, at_most: int | None) -> None:
    assert root(f'"a"{suffix}') == Alternatives([Concatenation([Repetition(letter("a"), at_least, at_most)])])


def test_a_mask_has_one_bit_for_all_characters_beyond_ascii() -> None:
    assert mask_of("é", "é") == mask_of("ü", "ü")
    assert mask_of("a", "c") == mask_of("a", "a") | mask_of("b", "b") | mask_of("c", "c")
    assert mask_of("a", "é") & mask_of("~", "~")


def test_an_error_names_its_line() -> None:
    with pytest.raises(BadRequest, match="grammar, line 2: expected `::=`"):
        GbnfParser('root ::= "a"\nother').rules()
