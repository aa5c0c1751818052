"""Takes out of the page's own modules what only people read: comments, and spaces and line ends where nothing changes.

Knows as much of JavaScript as these modules use: statements end with semicolons, a division has spaces around its sign,
and no text in backticks has lines whose indentation matters.
"""

import re
from collections.abc import Iterator

_PIECES = re.compile(
    r"""
    "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'                                  # a text
    | (?P<comment> //[^\n]* )
    | / (?![/*\s]) (?: \\. | \[ (?:\\.|[^\]\\\n])* \] | [^/\\\[\n] )+ / [a-z]*  # a regular expression
    | (?P<template> ` )
    | (?P<space> \s+ )
    """,
    re.VERBOSE,
)
_TEXT = re.compile(r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""")
_INDENT = re.compile(r"\s*")
_PUNCTUATION = "{}()[];,:?=<>!&|+-*%/."


def squeezed(source: str) -> str:
    """The same program in fewer characters."""
    text = ""
    for piece in _pieces(source):
        if not piece.isspace():
            spare = text.endswith(" ") and (text[-2:-1] in _PUNCTUATION or piece[0] in _PUNCTUATION)
            text = (text[:-1] if spare else text) + piece
        elif text and not text.endswith(" "):
            text += " "
    return text.strip()


def _pieces(source: str) -> Iterator[str]:
    """Texts and regular expressions whole, a space for any white space, and what stands between them."""
    at = 0
    while found := _PIECES.search(source, at):
        yield from filter(None, [source[at : found.start()]])
        at = found.end()
        if found.lastgroup == "template":
            template, at = _template(source, at)
            yield template
        elif found.lastgroup:
            yield " "
        else:
            yield found[0]
    yield from filter(None, [source[at:]])


def _template(source: str, at: int) -> tuple[str, int]:
    """The text in backticks that has begun before `at`, with its code squeezed, no line indented and none ended beside
    a tag; and its end."""
    text = "`"
    while (character := source[at]) != "`":
        if source.startswith("${", at):
            end = _code_end(source, at + 2)
            text += f"${{{squeezed(source[at + 2 : end])}}}"
            at = end + 1
        else:
            n = 2 if character == "\\" else 1
            text += source[at : at + n]
            at += n
        if character == "\n":
            at = _INDENT.match(source, at).end()  # type: ignore[union-attr] # it always matches
            if text.endswith(">\n") or source.startswith("<", at):
                text = text[:-1]  # htm ignores it
    return text + "`", at + 1


def _code_end(source: str, at: int) -> int:
    """Where the code ends, at a brace, that has begun at `at` within a text in backticks."""
    depth = 0
    while (character := source[at]) != "}" or depth:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "`":
            at = _template(source, at + 1)[1]
        else:
            text = _TEXT.match(source, at)
            at = text.end() if text else at + 1
    return at
