"""What a family's file may ask of the grammar that it writes its part of, and the parts that several of them write.

Knows no engine: `engine.constrain.tool_grammar` has the grammar.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, Protocol

# Keywords that relate the arguments of a call to each other, or name them by patterns.
RELATING = (
    *("allOf", "anyOf", "const", "dependencies", "dependentRequired", "dependentSchemas", "else", "enum", "if"),
    *("maxProperties", "minProperties", "not", "oneOf", "patternProperties", "propertyNames", "then"),
    *("unevaluatedProperties",),
)


class GrammarWriter(Protocol):
    """Rules in the Lark dialect of llguidance, and texts that may have control tokens in them."""

    def rule(self, name: str, text: str) -> None:
        """Add a rule, or a terminal where the name is in upper case. The same rule may be added again."""

    def json(self, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
        """The name of a rule for JSON that follows `schema`, a part of `root`, which its references lead into."""

    def text(self, text: str) -> str:
        """A text as part of a rule; empty for no text."""

    def until(self, text: str, name: str) -> str:
        """Any text up to the first `text`, which is included; `name` is for a rule that this may need."""


def text_to(grammar: GrammarWriter, name: str, schema: Mapping[str, Any], end: str, only: str = "") -> str:
    """A string without quotes, to the end of `end`, as far as its length and its choices go; `name` is for rules.

    `only` is a pattern that it has to match as well, where it is none of listed values.
    """
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        known = [value for value in values if isinstance(value, str)]
        whole = [value for value in known if end.strip() not in value] or known  # others would end in the middle
        texts = map(json.dumps, whole)  # control tokens in these are text
        return f"({' | '.join(texts)}) {grammar.text(end)}"
    patterns = [only] if only else []
    low, high = (limit(schema, keyword, MAX_CHARACTERS) for keyword in ("minLength", "maxLength"))
    if low or high is not None:
        patterns.append(f"(?s:.{{{low or 0},{'' if high is None else high}}})")
    if "pattern" in schema and (pattern := as_pattern(schema["pattern"])) is not None:
        patterns.append(pattern)
    if not patterns:
        return grammar.until(end, f"{name}_text")
    first, token, rest = grammar.text(end).partition("<[")
    if token:
        mark = _spelled(json.loads(first or '""'))
        grammar.rule(f"{name.upper()}_TEXT", " & ".join(f"/{pattern}{mark}/" for pattern in patterns))
        return f"{name.upper()}_TEXT {token}{rest}"
    # One pattern for the text and its end: a lexer would take the end for text.
    mark = _spelled(end)
    both = " & ".join(f"/{pattern}{mark}/" for pattern in patterns)
    grammar.rule(f"{name.upper()}_TEXT", rf"{both} & ~/(?s:.*){mark}(?s:.+)/")
    return f"{name.upper()}_TEXT"


def _spelled(text: str) -> str:
    """A text as a pattern."""
    return "".join(rf"\x{{{ord(character):x}}}" for character in text)


# Of a text whose length is limited: the lexer of llguidance gives up at a thousand, in the middle of a reply.
MAX_CHARACTERS = 400


def limit(schema: Mapping[str, Any], keyword: str, most: int) -> int | None:
    """A number of things that a schema allows; None where it names none, or more than `most`."""
    value = schema.get(keyword)
    return int(value) if isinstance(value, int | float) and 0 <= value <= most else None


def unenforced_of_text(schema: Mapping[str, Any]) -> Iterator[str]:
    """The keywords about a string that `text_to` leaves to the model."""
    for keyword in ("minLength", "maxLength"):
        if keyword in schema and limit(schema, keyword, MAX_CHARACTERS) is None:
            yield keyword
    if "pattern" in schema and as_pattern(schema["pattern"]) is None:
        yield "pattern"


def as_pattern(pattern: object) -> str | None:
    """A `pattern` of JSON Schema, which may match anywhere, as one for a whole text.

    None where its anchors are odd, or its repetitions too many."""
    if not isinstance(pattern, str) or prod(map(int, _TIMES.findall(pattern))) > MAX_CHARACTERS:
        return None
    inner = pattern.removeprefix("^")
    has_end = re.search(r"(?<!\\)(?:\\\\)*\$$", inner) is not None
    inner = inner[:-1] if has_end else inner
    outside = _outside_classes(inner)
    if "^" in outside or "$" in outside or ("|" in _outside_groups(outside) and inner != pattern):
        return None
    inner = _in_ascii(inner)
    before, behind = "" if pattern.startswith("^") else "(?s:.*)", "" if has_end else "(?s:.*)"
    return f"{before}(?:{_SLASH.sub('/', inner).replace('/', _ESCAPED_SLASH)}){behind}".replace("\n", "\\n")


def _outside_classes(pattern: str) -> list[str]:
    """Its pieces, a character or an escaped one each, without those in brackets."""
    pieces, is_in_class = [], False
    for piece in _PIECE.findall(pattern):
        if not is_in_class:
            pieces.append(piece)
        is_in_class = piece == "[" or (is_in_class and piece != "]")
    return pieces


def _outside_groups(pieces: list[str]) -> Iterator[str]:
    depth = 0
    for piece in pieces:
        depth += (piece == "(") - (piece == ")")
        if depth <= 0:
            yield piece


def _in_ascii(pattern: str) -> str:
    """Digits and letters are those of ASCII in JSON Schema's patterns, and all of Unicode's in Lark's."""
    parts, is_in_class = [], False
    for piece in _PIECE.findall(pattern):
        is_in_class = piece == "[" or (is_in_class and piece != "]")
        known = _OF_ASCII.get(piece)
        parts.append(piece if known is None else known if is_in_class else f"[{known}]")
    return "".join(parts)


_PIECE = re.compile(r"\\.|.", re.DOTALL)
_OF_ASCII = {r"\d": "0-9", r"\w": "0-9A-Za-z_"}
_TIMES = re.compile(r"(?<=[{,])[1-9][0-9]{0,8}(?=\})")
_SLASH = re.compile(r"\\/")
_ESCAPED_SLASH = "\\/"


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
