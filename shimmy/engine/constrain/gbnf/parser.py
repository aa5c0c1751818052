"""The parser of GBNF: a grammar's text becomes a tree of nodes for each rule.

Knows the notation (llama.cpp, grammars/README.md and src/llama-grammar.cpp) and how Lark writes a literal or a class of
characters; knows nothing of what a rule means for other rules.
"""

import functools
import json
import re
from dataclasses import dataclass
from operator import or_

from shimmy.errors import BadRequest

_MAX_REPETITIONS = 2000  # llama.cpp's limit
_NAME = re.compile(r"[A-Za-z0-9-]+")
_NUMBER = re.compile(r"[0-9]{1,9}")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_END_OF_LINE = re.compile(r"\r\n|\r|\n|\Z")
_HEXADECIMAL = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"} | {char: char for char in '\\"[]-'}


@dataclass(frozen=True, slots=True)
class Characters:
    """A literal, or a class of characters."""

    lark: str  # as Lark writes it
    first: int  # the characters that it may begin with, as a mask (`mask_of`)
    characters: int  # all characters that it may have, as a mask


@dataclass(frozen=True, slots=True)
class RuleReference:
    """The name of a rule, where another rule uses it."""

    name: str


@dataclass(frozen=True, slots=True)
class Repetition:
    """An item so many times; `at_most` None is any number."""

    item: "Node"
    at_least: int
    at_most: int | None

    @property
    def suffix(self) -> str:
        return f"{{{self.at_least},{'' if self.at_most is None else self.at_most}}}"


@dataclass(frozen=True, slots=True)
class Concatenation:
    """Items one after the other."""

    items: "list[Node]"


@dataclass(frozen=True, slots=True)
class Alternatives:
    """One of several options."""

    options: "list[Node]"


def mask_of(first: str, last: str) -> int:
    """A mask with a bit for each ASCII character from `first` to `last`, and one bit for all other characters."""
    bits = (2 << min(ord(last), 127)) - (1 << min(ord(first), 128))
    return max(bits, 0) | (_OTHER if ord(last) > 127 else 0)


_OTHER = 1 << 128
_ALL = 2 * _OTHER - 1
_ANY = Characters("/(?s:.)/", _ALL, _ALL)
Node = Characters | RuleReference | Repetition | Concatenation | Alternatives


class GbnfParser:
    """Reads the notation into nodes, as `llama_grammar_parser` does."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def rules(self) -> dict[str, Node]:
        """The rules by name; where a name is defined twice, the last one counts."""
        rules: dict[str, Node] = {}
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._source):
            name = self._take(_NAME, "the name of a rule")
            self._skip(_SPACE)
            self._expect("::=")
            self._skip(_SPACE_AND_LINES)
            rules[name] = self._choice(_SPACE)
            self._take(_END_OF_LINE, "the end of the line")
            self._skip(_SPACE_AND_LINES)
        return rules

    def _choice(self, space: re.Pattern[str]) -> Alternatives:
        options: list[Node] = [self._sequence(space)]
        while self._peek() == "|":
            self._at += 1
            self._skip(_SPACE_AND_LINES)
            options.append(self._sequence(space))
        return Alternatives(options)

    def _sequence(self, space: re.Pattern[str]) -> Concatenation:
        items: list[Node] = []
        starts = {'"': self._literal, "[": self._class, "(": self._group, ".": self._any}
        while char := self._peek():
            if char in starts:
                items.append(starts[char]())
            elif _NAME.match(char):
                items.append(RuleReference(self._take(_NAME, "the name of a rule")))
            elif char in "*+?{":
                if not items:
                    raise self._error("there is nothing to repeat")
                items[-1] = self._repeated(items[-1])
            elif char in "<!":
                raise self._error("tokens by name or number are not supported")
            else:
                break
            self._skip(space)
        return Concatenation(items)

    def _group(self) -> Node:
        self._at += 1
        self._skip(_SPACE_AND_LINES)
        choice = self._choice(_SPACE_AND_LINES)
        self._expect(")")
        return choice

    def _literal(self) -> Node:
        self._at += 1
        text = ""
        while self._peek() != '"':
            text += self._character()
        self._at += 1
        masks = [mask_of(char, char) for char in text]
        first = masks[0] if masks else 0
        return Characters(json.dumps(text, ensure_ascii=False), first, functools.reduce(or_, masks, 0))

    def _class(self) -> Node:
        self._at += 1
        is_negated = self._peek() == "^"
        self._at += is_negated
        ranges, mask = "", 0
        while self._peek() != "]":
            first = last = self._character()
            if self._peek() == "-" and self._source[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = self._character()
            if last < first:
                raise self._error(f"the range ends before it begins: {first!r} to {last!r}")
            ranges += f"\\x{{{ord(first):X}}}-\\x{{{ord(last):X}}}"
            mask |= mask_of(first, last)
        self._at += 1
        if not ranges and not is_negated:
            raise self._error("nothing fits an empty class")
        if not ranges:
            return _ANY
        mask = _ALL & ~mask | _OTHER if is_negated else mask
        return Characters(f"/[{'^' if is_negated else ''}{ranges}]/", mask, mask)

    def _any(self) -> Node:
        self._at += 1
        return _ANY

    def _repeated(self, item: Node) -> Node:
        char = self._source[self._at]
        self._at += 1
        if char != "{":
            return Repetition(item, int(char == "+"), 1 if char == "?" else None)
        self._skip(_SPACE_AND_LINES)
        at_least = int(self._take(_NUMBER, "a number"))
        at_most: int | None = at_least
        self._skip(_SPACE_AND_LINES)
        if self._peek() == ",":
            self._at += 1
            self._skip(_SPACE_AND_LINES)
            at_most = None if self._peek() == "}" else int(self._take(_NUMBER, "a number"))
            self._skip(_SPACE_AND_LINES)
        self._expect("}")
        if max(at_least, at_most or 0) > _MAX_REPETITIONS:
            raise self._error(f"more than {_MAX_REPETITIONS} repetitions")
        if at_most is not None and at_most < at_least:
            raise self._error("fewer repetitions at most than at least")
        return Repetition(item, at_least, at_most)

    def _character(self) -> str:
        char = self._peek()
        self._at += 1
        if char != "\\":
            if not char or "\ud800" <= char <= "\udfff":
                raise self._error("a character is missing")
            return char
        escape = self._peek()
        self._at += 1
        if escape not in _HEXADECIMAL:
            if escape not in _ESCAPES:
                raise self._error(f"there is no escape `\\{escape}`")
            return _ESCAPES[escape]
        digits = self._source[self._at : self._at + _HEXADECIMAL[escape]]
        self._at += len(digits)
        code = int(digits, 16) if re.fullmatch(r"[0-9A-Fa-f]+", digits) else -1
        if len(digits) < _HEXADECIMAL[escape] or not 0 <= code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise self._error(f"`\\{escape}{digits}` is no character")
        return chr(code)

    def _peek(self) -> str:
        return self._source[self._at : self._at + 1]

    def _skip(self, space: re.Pattern[str]) -> None:
        match = space.match(self._source, self._at)
        self._at = match.end() if match else self._at

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self._source, self._at)
        if match is None:
            raise self._error(f"expected {what}")
        self._at = match.end()
        return match.group()

    def _expect(self, text: str) -> None:
        if not self._source.startswith(text, self._at):
            raise self._error(f"expected `{text}`")
        self._at += len(text)

    def _error(self, message: str) -> BadRequest:
        line = self._source.count("\n", 0, self._at) + 1
        return BadRequest(f"grammar, line {line}: {message}")
