"""What the rules of a grammar begin with, end with and are followed by."""

import math

from shimmy.engine.constrain.gbnf.analysis import GrammarAnalysis
from shimmy.engine.constrain.gbnf.parser import GbnfParser, RuleReference, mask_of


def analysis(*lines: str) -> GrammarAnalysis:
    return GrammarAnalysis(GbnfParser("\n".join(lines)).rules())


def test_what_a_rule_begins_with_and_whether_it_may_be_empty() -> None:
    found = analysis('root ::= a "x"', "a ::= [b-d]*")
    assert found.first(RuleReference("a")) == (mask_of("b", "d"), True)
    assert found.first(RuleReference("root")) == (mask_of("b", "d") | mask_of("x", "x"), False)


def test_what_follows_a_rule_and_what_it_may_go_on_with() -> None:
    found = analysis('root ::= a "x"', "a ::= [b-d]+")
    assert found.follows["a"] == mask_of("x", "x")
    assert found.extension(RuleReference("a")) == mask_of("b", "d")


def test_a_rule_that_refers_to_itself_is_no_terminal() -> None:
    found = analysis('root ::= "(" root ")" | a', 'a ::= "1"')
    assert found.size(RuleReference("root")) == math.inf
    assert found.size(RuleReference("a")) < 10
