"""GBNF written in llguidance's Lark: rules and terminals."""

import pytest

from shimmy.engine.constrain.gbnf.lark import MAX_GRAMMAR_CHARACTERS, to_lark
from shimmy.errors import BadRequest


def test_a_rule_that_could_swallow_what_follows_becomes_a_terminal_together_with_it() -> None:
    lark = to_lark('root ::= "(" root ")" | a "1" root\na ::= [0-9]*')
    assert lark.splitlines() == [
        "start: r0",
        'r0: ("(" r0 ")" | G1 r0)',
        r"T1: ((/[\x{30}-\x{39}]/){0,})",
        'G1: T1 "1"',
    ]


def test_what_nothing_follows_is_one_terminal() -> None:
    assert to_lark('root ::= "a" [b-c]*').splitlines() == ["start: T0", 'T0: ("a" (/[\\x{62}-\\x{63}]/){0,})']


def test_a_grammar_has_a_size() -> None:
    with pytest.raises(BadRequest, match="characters"):
        to_lark('root ::= "' + "a" * MAX_GRAMMAR_CHARACTERS + '"')
