"""Grammars in GBNF, the notation of llama.cpp, written anew for llguidance (a dialect of Lark).

Knows the notation (llama.cpp, grammars/README.md and src/llama-grammar.cpp) and that llguidance reads text in two
stages: terminals are regular expressions, rules put them together. A terminal takes the longest text that fits,
without regard to what follows. So terminals are made as large as they can be (they are fast), but only of what does not
refer to itself, stays small, and cannot go on with a character that might follow it as well.
"""

import functools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from operator import or_
from typing import Any

from shimmy.errors import BadRequest

MAX_CHARACTERS = 1 << 15
_MAX_REPETITIONS = 2000  # llama.cpp's limit
_MAX_TERMINAL_SIZE = 2_000  # of a terminal, in literals and classes, when all it refers to is written out
_MAX_GROUP = 8  # neighbours in a rule that are made into one terminal
_MAX_STEPS = 1_000_000  # for the facts about its rules, a microsecond each
_MAX_SIZE = 100_000  # of all terminals together
_NAME = re.compile(r"[A-Za-z0-9-]+")
_NUMBER = re.compile(r"[0-9]{1,9}")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_END_OF_LINE = re.compile(r"\r\n|\r|\n|\Z")
_HEXADECIMAL = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"} | {char: char for char in '\\"[]-'}


@dataclass(frozen=True, slots=True)
class _Token:
    """A literal or a class of characters, as Lark has it."""

    lark: str
    first: int  # the characters that it may begin with, and
    characters: int  # all that it may have, as `_mask` has them


@dataclass(frozen=True, slots=True)
class _Reference:
    name: str


@dataclass(frozen=True, slots=True)
class _Repeated:
    item: "_Node"
    at_least: int
    at_most: int | None

    @property
    def suffix(self) -> str:
        return f"{{{self.at_least},{'' if self.at_most is None else self.at_most}}}"


@dataclass(frozen=True, slots=True)
class _Sequence:
    items: "list[_Node]"


@dataclass(frozen=True, slots=True)
class _Choice:
    options: "list[_Node]"


def _mask(first: str, last: str) -> int:
    """A bit for each character of ASCII from `first` to `last`, and one for all others."""
    bits = (2 << min(ord(last), 127)) - (1 << min(ord(first), 128))
    return max(bits, 0) | (_OTHER if ord(last) > 127 else 0)


_OTHER = 1 << 128
_ALL = 2 * _OTHER - 1
_ANY = _Token("/(?s:.)/", _ALL, _ALL)
_Node = _Token | _Reference | _Repeated | _Sequence | _Choice


def to_lark(source: str) -> str:
    """The same grammar for llguidance, with `start` in the place of `root`; raises BadRequest."""
    if len(source) > MAX_CHARACTERS:
        raise BadRequest(f"grammar: it has {len(source)} characters, {MAX_CHARACTERS} are allowed")
    try:
        return _Writer(_Reader(source).rules()).text()
    except RecursionError as exc:
        raise BadRequest("grammar: its rules are nested too deeply") from exc


class _Reader:
    """Reads the notation into nodes, as `llama_grammar_parser` does."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def rules(self) -> dict[str, _Node]:
        """The rules by name; where a name is defined twice, the last one counts."""
        rules: dict[str, _Node] = {}
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

    def _choice(self, space: re.Pattern[str]) -> _Choice:
        options: list[_Node] = [self._sequence(space)]
        while self._peek() == "|":
            self._at += 1
            self._skip(_SPACE_AND_LINES)
            options.append(self._sequence(space))
        return _Choice(options)

    def _sequence(self, space: re.Pattern[str]) -> _Sequence:
        items: list[_Node] = []
        starts = {'"': self._literal, "[": self._class, "(": self._group, ".": self._any}
        while char := self._peek():
            if char in starts:
                items.append(starts[char]())
            elif _NAME.match(char):
                items.append(_Reference(self._take(_NAME, "the name of a rule")))
            elif char in "*+?{":
                if not items:
                    raise self._error("there is nothing to repeat")
                items[-1] = self._repeated(items[-1])
            elif char in "<!":
                raise self._error("tokens by name or number are not supported")
            else:
                break
            self._skip(space)
        return _Sequence(items)

    def _group(self) -> _Node:
        self._at += 1
        self._skip(_SPACE_AND_LINES)
        choice = self._choice(_SPACE_AND_LINES)
        self._expect(")")
        return choice

    def _literal(self) -> _Node:
        self._at += 1
        text = ""
        while self._peek() != '"':
            text += self._character()
        self._at += 1
        masks = [_mask(char, char) for char in text]
        return _Token(json.dumps(text, ensure_ascii=False), masks[0] if masks else 0, functools.reduce(or_, masks, 0))

    def _class(self) -> _Node:
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
            mask |= _mask(first, last)
        self._at += 1
        if not ranges and not is_negated:
            raise self._error("nothing fits an empty class")
        if not ranges:
            return _ANY
        mask = _ALL & ~mask | _OTHER if is_negated else mask
        return _Token(f"/[{'^' if is_negated else ''}{ranges}]/", mask, mask)

    def _any(self) -> _Node:
        self._at += 1
        return _ANY

    def _repeated(self, item: _Node) -> _Node:
        char = self._source[self._at]
        self._at += 1
        if char != "{":
            return _Repeated(item, int(char == "+"), 1 if char == "?" else None)
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
        return _Repeated(item, at_least, at_most)

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


class _Facts:
    """What the rules of a grammar can begin with, end with, and be followed by, as masks of characters."""

    def __init__(self, rules: dict[str, _Node]) -> None:
        self.rules = rules
        self._sizes: dict[str, float] = {}
        self._extensions: dict[str, int] = {}
        self._alphabets: dict[str, int] = {}
        self._firsts = dict.fromkeys(rules, (0, False))
        self.follows = dict.fromkeys(rules, 0)
        n_nodes = sum(map(_n_nodes, rules.values()))
        for _ in _until_stable(self._firsts, n_nodes):
            for name, node in rules.items():
                self._firsts[name] = self.first(node)
        for _ in _until_stable(self.follows, n_nodes):
            for name, node in rules.items():
                self._spread(node, self.follows[name])

    def first(self, node: _Node) -> tuple[int, bool]:
        """The characters it may begin with, and whether it may be empty."""
        match node:
            case _Token():
                return node.first, not node.first
            case _Reference():
                return self._firsts[node.name]
            case _Repeated():
                mask, is_nullable = self.first(node.item)
                return mask, is_nullable or node.at_least == 0
            case _Sequence():
                return self.first_of(node.items)
            case _Choice():
                firsts = [self.first(option) for option in node.options]
                return functools.reduce(or_, (mask for mask, _ in firsts)), any(nullable for _, nullable in firsts)

    def first_of(self, items: list[_Node]) -> tuple[int, bool]:
        """The same for one after the other."""
        found = 0
        for item in items:
            mask, is_nullable = self.first(item)
            found |= mask
            if not is_nullable:
                return found, False
        return found, True

    def behind(self, items: list[_Node], follow: int) -> list[int]:
        """What may follow each of `items`, when `follow` may follow them all."""
        found: list[int] = []
        for item in reversed(items):
            found.append(follow)
            mask, is_nullable = self.first(item)
            follow = mask | follow if is_nullable else mask
        return found[::-1]

    def _spread(self, node: _Node, follow: int) -> None:
        match node:
            case _Reference():
                self.follows[node.name] |= follow
            case _Repeated():
                self._spread(node.item, self.inside(node, follow))
            case _Sequence():
                for item, behind in zip(node.items, self.behind(node.items, follow), strict=True):
                    self._spread(item, behind)
            case _Choice():
                for option in node.options:
                    self._spread(option, follow)

    def inside(self, node: _Repeated, follow: int) -> int:
        """What may follow an item of a repetition that is followed by `follow`."""
        return follow | (self.first(node.item)[0] if node.at_most != 1 else 0)

    def extension(self, node: _Node) -> int:
        """The characters by which something of this kind, complete already, may go on and still be of this kind."""
        match node:
            case _Token():
                return 0
            case _Reference(name):
                if name not in self._extensions:
                    self._extensions[name] = self.extension(self.rules[name])
                return self._extensions[name]
            case _Repeated():
                return self.extension(node.item) | self.inside(node, 0)
            case _Sequence():
                found = 0
                for item in reversed(node.items):
                    found |= self.extension(item)
                    mask, is_nullable = self.first(item)
                    if not is_nullable:
                        break
                    found |= mask
                return found
            case _Choice():
                found, firsts = 0, 0
                for option in node.options:
                    found |= self.extension(option)
                    mask = self.first(option)[0]
                    if mask & firsts:  # one may be the beginning of another
                        return functools.reduce(or_, map(self._characters, node.options))
                    firsts |= mask
                return found

    def _characters(self, node: _Node) -> int:
        match node:
            case _Token():
                return node.characters
            case _Reference(name):
                if name not in self._alphabets:
                    self._alphabets[name] = self._characters(self.rules[name])
                return self._alphabets[name]
            case _Repeated():
                return self._characters(node.item)
            case _Sequence(nodes) | _Choice(nodes):
                return functools.reduce(or_, map(self._characters, nodes), 0)

    def size(self, node: _Node) -> float:
        """Of a terminal with everything that it refers to written out; infinite where it refers to itself."""
        match node:
            case _Token():
                return 1 + len(node.lark) / 32
            case _Reference():
                return self._size_of_rule(node.name)
            case _Repeated():
                return 1 + self.size(node.item)
            case _Sequence(nodes) | _Choice(nodes):
                return 1 + sum(map(self.size, nodes))

    def _size_of_rule(self, name: str) -> float:
        if name not in self._sizes:
            self._sizes[name] = math.inf  # what it is to those that it refers to
            size = self.size(self.rules[name])
            self._sizes[name] = size if size <= _MAX_TERMINAL_SIZE else math.inf
        return self._sizes[name]


class _Writer:
    """Writes rules for llguidance: `r1` as a rule, `T1` as a terminal, and `G1` for a part of a rule as a terminal."""

    def __init__(self, rules: dict[str, _Node]) -> None:
        _check_names(rules)
        self._rules = rules
        self._facts = _Facts(rules)
        self._numbers = {name: index for index, name in enumerate(rules)}
        self._lines: dict[str, str] = {}
        self._total: float = 0
        self._n_groups = 0

    def text(self) -> str:
        start = self._reference("root", 0)
        return "\n".join([f"start: {start}", *(f"{name}: {body}" for name, body in self._lines.items())])

    def _reference(self, name: str, follow: int) -> str:
        """A name for a rule in a rule; with `follow`, and all that follows it elsewhere, in mind."""
        if self._is_terminal([_Reference(name)], follow | self._facts.follows[name]):
            return self._terminal(name)
        written = f"r{self._numbers[name]}"
        if written not in self._lines:
            self._lines[written] = ""  # it may refer to itself
            self._lines[written] = self._rule(self._rules[name], self._facts.follows[name])
        return written

    def _terminal(self, name: str) -> str:
        written = f"T{self._numbers[name]}"
        if written not in self._lines:
            self._grow(self._facts.size(self._rules[name]))
            self._lines[written] = self._regex(self._rules[name])
        return written

    def _is_terminal(self, items: list[_Node], follow: int) -> bool:
        sequence = _Sequence(items)
        if self._facts.size(sequence) > _MAX_TERMINAL_SIZE:
            return False
        return not self._facts.extension(sequence) & follow

    def _rule(self, node: _Node, follow: int) -> str:
        match node:
            case _Token():
                return node.lark
            case _Reference():
                return self._reference(node.name, follow)
            case _Repeated():
                return f"({self._rule(node.item, self._facts.inside(node, follow))}){node.suffix}"
            case _Sequence():
                return " ".join(self._grouped(node.items, follow)) or '""'
            case _Choice():
                return f"({' | '.join(self._rule(option, follow) for option in node.options)})"

    def _grouped(self, items: list[_Node], follow: int) -> Iterator[str]:
        """The items of a sequence in a rule, joined to terminals as far as they can be."""
        behind = self._facts.behind(items, follow)
        at = 0
        while at < len(items):
            ends = range(min(len(items), at + _MAX_GROUP), at + 1, -1)
            end = next((end for end in ends if self._is_terminal(items[at:end], behind[end - 1])), at + 1)
            yield self._group(items[at:end]) if end > at + 1 else self._rule(items[at], behind[at])
            at = end

    def _group(self, items: list[_Node]) -> str:
        self._n_groups += 1
        self._grow(self._facts.size(_Sequence(items)))
        self._lines[f"G{self._n_groups}"] = self._regex(_Sequence(items))
        return f"G{self._n_groups}"

    def _regex(self, node: _Node) -> str:
        match node:
            case _Token():
                return node.lark
            case _Reference():
                return self._terminal(node.name)
            case _Repeated():
                return f"({self._regex(node.item)}){node.suffix}"
            case _Sequence():
                return " ".join(map(self._regex, node.items)) or '""'
            case _Choice():
                return f"({' | '.join(map(self._regex, node.options))})"

    def _grow(self, size: float) -> None:
        self._total += size
        if self._total > _MAX_SIZE:
            raise BadRequest("grammar: it is too large")


def _until_stable(facts: dict[str, Any], n_nodes: int) -> Iterator[None]:
    """Once for each time that all rules have to be looked at, until `facts` stay as they are."""
    before = None
    n_seen = 0
    while before != facts:
        before = dict(facts)
        n_seen += n_nodes
        if n_seen > _MAX_STEPS:
            raise BadRequest("grammar: it is too large")
        yield


def _n_nodes(node: _Node) -> int:
    match node:
        case _Repeated(item):
            return 1 + _n_nodes(item)
        case _Sequence(nodes) | _Choice(nodes):
            return 1 + sum(map(_n_nodes, nodes))
    return 1


def _check_names(rules: dict[str, _Node]) -> None:
    if "root" not in rules:
        raise BadRequest("grammar: it has no rule `root`, where a reply begins")
    waiting = [*rules.values()]
    while waiting:
        match waiting.pop():
            case _Reference(name) if name not in rules:
                raise BadRequest(f"grammar: it has no rule `{name}`")
            case _Repeated(item):
                waiting.append(item)
            case _Sequence(nodes) | _Choice(nodes):
                waiting += nodes
