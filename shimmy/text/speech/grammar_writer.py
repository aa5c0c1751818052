"""What a family's file may ask of the grammar that it writes its part of, and the parts that several of them write.

Knows no engine: `engine.constrain.tool_grammar` has the grammar.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class GrammarWriter(Protocol):
    """Rules in the Lark dialect of llguidance, and texts that may have control tokens in them."""

    def rule(self, name: str, text: str) -> None:
        """Add a rule, or a terminal where the name is in upper case. The same rule may be added again."""

    def text(self, text: str) -> str:
        """A text as part of a rule; empty for no text."""

    def until(self, text: str, name: str) -> str:
        """Any text up to the first `text`, which is included; `name` is for a rule that this may need."""


def text_to(grammar: GrammarWriter, name: str, schema: Mapping[str, Any], end: str) -> str:
    """A string without quotes, to the end of `end`, as far as its length and its choices go; `name` is for rules."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        texts = [grammar.text(value) or '""' for value in values if isinstance(value, str)]
        return f"({' | '.join(texts)}) {grammar.text(end)}"
    low, high = schema.get("minLength", 0), schema.get("maxLength", "")
    if not (low or high):
        return grammar.until(end, f"{name}_text")
    # One pattern for the text and its end: a lexer would take the end for text.
    mark = "".join(rf"\x{{{ord(character):x}}}" for character in end)
    grammar.rule(f"{name.upper()}_SIZE", rf"/(?s:.{{{int(low)},{high}}}){mark}/ & ~/(?s:.*){mark}(?s:.+)/")
    return f"{name.upper()}_SIZE"


def members(
    grammar: GrammarWriter, name: str, rules: Sequence[tuple[str, bool]], separator: str, further: str = ""
) -> str:
    """Items in their order, as the body of a rule; `rules` has the rule of each, and whether the item has to be there.

    `further` is the rule of items that may come behind these; `name` begins the names of rules.
    """
    last = len(rules)
    grammar.rule(f"{name}_tail{last}", f"({separator} {further})*" if further else '""')
    for index in reversed(range(last)):
        rule, is_needed = rules[index]
        there = f"{separator} {rule} {name}_tail{index + 1}"
        grammar.rule(f"{name}_tail{index}", there if is_needed else f"{there} | {name}_tail{index + 1}")
    options = []
    for index, (rule, is_needed) in enumerate(rules):
        options.append(f"{rule} {name}_tail{index + 1}")
        if is_needed:
            return " | ".join(options)
    if further:
        options.append(f"{further} {name}_tail{last}")
    return " | ".join([*options, '""'])
