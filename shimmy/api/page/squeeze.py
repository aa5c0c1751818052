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
_INDENT = re.compile(r"\n\s+")
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
            at = _template_end(source, at)
            yield _INDENT.sub("\n", source[found.start() : at])
        elif found.lastgroup:
            yield " "
        else:
            yield found[0]
    yield from filter(None, [source[at:]])


def _template_end(source: str, at: int) -> int:
    """Where the text in backticks ends that has begun before `at`."""
    depths: list[int] = []  # of braces, in each expression that we are in
    while True:
        character = source[at]
        at += 2 if character == "\\" else 1
        if not depths or depths[-1] == -1:  # in a text
            if character == "`":
                if not depths:
                    return at
                depths.pop()
            elif character == "$" and source[at] == "{":
                depths.append(0)
                at += 1
        elif character == "`":
            depths.append(-1)
        elif character == "{":
            depths[-1] += 1
        elif character == "}":
            depths[-1] -= 1
            if depths[-1] < 0:
                depths.pop()
