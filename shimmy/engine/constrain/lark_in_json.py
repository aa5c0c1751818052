"""A Lark grammar of a text, rewritten for the same text as it stands between the quotes of a JSON string.

Models write calls as JSON, so the text of a tool that takes nothing but text is escaped there. The grammar is taken
apart to characters and becomes one in GBNF, since a terminal of Lark would take the beginning of an escape for its own;
gbnf/ makes terminals again where that cannot be. Knows the notation of llguidance's Lark as far as it describes texts
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md), and Python's regular expressions.
"""

import json
import re
from re import _constants as sre  # type: ignore[attr-defined] # typeshed has no private modules
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

Ranges = list[tuple[int, int]]  # of characters, both ends included, in their order and apart


class NotInJson(Exception):
    """The grammar has what cannot be rewritten; the message says what."""


_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r]|//[^\n]*|\#[^\n]*)+)
      | (?P<line>\n)
      | (?P<string>"(?:\\.|[^"\\\n])*"i?)
      | (?P<regex>/(?![/*])(?:\\.|[^/\\\n])+/[imslux]*)
      | (?P<name>[_A-Za-z][\w-]*)
      | (?P<number>[0-9]+)
      | (?P<directive>%[a-z]+)
      | (?P<mark>->|\.\.|[][(){}|?*+~:,.!])
    """,
    re.VERBOSE,
)
# The terminals of `%import common`.
_COMMON = {
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[a-fA-F0-9]",
    "INT": "[0-9]+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"(?:[0-9]+\.[0-9]*|\.[0-9]+)",
    "FLOAT": r"(?:[0-9]+(?:\.[0-9]*)?[eE][+-]?[0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)",
    "SIGNED_FLOAT": r"[+-]?(?:[0-9]+(?:\.[0-9]*)?[eE][+-]?[0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)",
    "NUMBER": r"(?:[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)",
    "SIGNED_NUMBER": r"[+-]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)",
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\["\\/bfnrt])*"',
    "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]",
    "LETTER": "[A-Za-z]",
    "WORD": "[A-Za-z]+",
    "CNAME": "[_A-Za-z][_A-Za-z0-9]*",
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"//[^\n]*",
    "C_COMMENT": r"/\*(?:[^*]|\*[^/])*\*/",
    "SQL_COMMENT": r"--[^\n]*",
}
_FLAGS = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}
_NOTHING = '""'
_LAST = 0x10FFFF
# Beyond ASCII, a letter of any language is one of these; that is a little more than there are.
_LETTERS: Ranges = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A), (0xAA, 0xAA), (0xB5, 0xB5), (0xBA, 0xBA),
                    (0xC0, 0x1FFF), (0x2C00, 0x2DFF), (0x3040, 0xD7FF), (0xF900, 0xFFDC), (0x10000, 0x1EFFF),
                    (0x20000, _LAST)]  # fmt: skip
_SPACES: Ranges = [(0x09, 0x0D), (0x20, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x2000, 0x200A), (0x2028, 0x2029)]
# What has a short escape in JSON. Other control characters are not written: no text of a tool has them.
_ESCAPED = {char: json.dumps(char)[1:-1] for char in '"\\\b\f\n\r\t'}
_NEVER_PLAIN: Ranges = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0xD800, 0xDFFF)]


def lark_in_json(source: str) -> str:
    """The grammar between quotes in GBNF, which begins with `root`; raises NotInJson."""
    try:
        return _Grammar(source).text()
    except RecursionError as exc:
        raise NotInJson("it is nested too deeply") from exc


class _Grammar:
    """Reads rule after rule and writes each as soon as it is read."""

    def __init__(self, source: str) -> None:
        self._tokens = _tokens(source)
        self._at = 0
        self._names: dict[str, str] = {}
        self._rules: list[str] = []
        self._classes: dict[str, str] = {}
        self._ignored: list[str] = []
        self._is_rule = False
        # What is ignored has to be known before a rule is written.
        self._ignores = ("directive", "%ignore") in self._tokens

    def text(self) -> str:
        defined = set()
        while self._at < len(self._tokens):
            kind, value = self._take()
            if kind == "line" or value in ("?", "!"):
                continue
            if value == "%import":
                defined |= self._import()
            elif value == "%ignore":
                self._is_rule = False
                self._ignored.append(self._choice())
            elif kind == "name":
                defined.add(value)
                self._define(value)
            else:
                raise NotInJson(f"`{value}` is not supported where a rule begins")
        if missing := self._names.keys() - defined - {"start"}:
            raise NotInJson(f"there is no rule `{min(missing)}`")
        if "start" not in defined:
            raise NotInJson("there is no rule `start`")
        ignored = f"ignored ::= ({' | '.join(self._ignored)})*\n" if self._ignored else ""
        begins = "ignored " if self._ignored else ""
        classes = "".join([f"{name} ::= {text}\n" for text, name in self._classes.items()])
        return f"root ::= {begins}{self._name('start')}\n{''.join(self._rules)}{classes}{ignored}"

    def _define(self, name: str) -> None:
        if self._peek() == ".":
            self._take(2)  # a priority, which says how to read what is ambiguous
        self._expect(":")
        self._is_rule = name.strip("_")[:1].islower()
        self._rules.append(f"{self._name(name)} ::= {self._choice()}\n")

    def _import(self) -> set[str]:
        if self._take()[1] != "common":
            raise NotInJson("only `common` can be imported")
        found = []
        if self._take()[1] == "(":
            while (token := self._take())[1] != ")":
                found.append((token[1], token[1])) if token[0] == "name" else None
        else:
            name = self._take()[1]
            alias = name
            if self._peek() == "->":
                alias = self._take(2)[1]
            found.append((name, alias))
        for name, alias in found:
            if name not in _COMMON:
                raise NotInJson(f"there is no `common.{name[:40]}`")
            self._rules.append(f"{self._name(alias)} ::= {self._expression(_COMMON[name], '')}\n")
        return {alias for _, alias in found}

    # -- expansions ----------------------------------------------------------------------------------------------------

    def _choice(self, end: str = "") -> str:
        """Alternatives up to `end`, or to the end of a line that no `|` follows."""
        options = [[]]  # type: list[list[str]]
        while True:
            kind, value = self._take() if self._at < len(self._tokens) else ("line", "")
            if value == end and end:
                break
            if value == "|":
                options.append([])
            elif kind == "line":
                if end and value:
                    continue
                following = next((index for index in range(self._at, len(self._tokens))
                                  if self._tokens[index][0] != "line"), None)  # fmt: skip
                if end or following is None or self._tokens[following][1] != "|":
                    if end:
                        raise NotInJson(f"`{end}` is missing")
                    break
                self._at = following
            elif value == "->":
                self._take()
            else:
                options[-1].append(self._repeated(self._atom(kind, value)))
        return f"({' | '.join([' '.join(option) or _NOTHING for option in options])})"

    def _atom(self, kind: str, value: str) -> str:
        if value == "(":
            return self._choice(")")
        if value == "[":
            return f"{self._choice(']')}?"
        if kind == "name":
            is_terminal = value.strip("_")[:1].isupper()
            return self._terminal(self._name(value)) if is_terminal else self._name(value)
        if kind == "string":
            if self._peek() == "..":
                return self._terminal(self._between(_unquoted(value), _unquoted(self._take(2)[1])))
            if value.endswith("i"):
                return self._terminal(self._expression(re.escape(_unquoted(value[:-1])), "i"))
            return self._terminal(_literal(_unquoted(value)))
        if kind == "regex":
            pattern, _, flags = value[1:].rpartition("/")
            return self._terminal(self._expression(pattern, flags))
        raise NotInJson(f"`{value}` is not supported")

    def _terminal(self, text: str) -> str:
        return f"({text} ignored)" if self._is_rule and self._ignores else text

    def _between(self, first: str, last: str) -> str:
        if len(first) != 1 or len(last) != 1 or first > last:
            raise NotInJson("a range needs two characters in their order")
        return self._one_of([(ord(first), ord(last))])

    def _repeated(self, item: str) -> str:
        while (mark := self._peek()) in ("?", "*", "+", "~", "{"):
            self._take()
            if mark in ("?", "*", "+"):
                item = f"({item}){mark}"
            elif mark == "~":
                least = most = self._number()
                if self._peek() == "..":
                    self._take()
                    most = self._number()
                item = f"({item}){{{least},{most}}}"
            else:
                item = f"({item}){{{self._bounds()}}}"
        return item

    def _bounds(self) -> str:
        least = self._number() if self._peek() != "," else "0"
        most = least
        if self._peek() == ",":
            self._take()
            most = self._number() if self._peek() != "}" else ""
        self._expect("}")
        return f"{least},{most}"

    # -- tokens --------------------------------------------------------------------------------------------------------

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _take(self, n_tokens: int = 1) -> tuple[str, str]:
        self._at += n_tokens
        if self._at > len(self._tokens):
            raise NotInJson("it ends too early")
        return self._tokens[self._at - 1]

    def _expect(self, value: str) -> None:
        if self._take()[1] != value:
            raise NotInJson(f"expected `{value}`")

    def _number(self) -> str:
        kind, value = self._take()
        if kind != "number":
            raise NotInJson("expected a number")
        return value

    def _name(self, name: str) -> str:
        return self._names.setdefault(name, f"rule-{len(self._names)}")

    # -- expressions ---------------------------------------------------------------------------------------------------

    def _expression(self, pattern: str, flags: str) -> str:
        given = re.RegexFlag(0)
        for flag in flags:
            given |= _FLAGS.get(flag, re.RegexFlag(0))
        try:
            parsed = sre_parser.parse(pattern, given)
        except (re.error, OverflowError) as exc:
            raise NotInJson(f"the expression `{pattern[:60]}`: {exc}") from exc
        return self._nodes(parsed, int(parsed.state.flags))

    def _nodes(self, nodes: Any, flags: int) -> str:
        return f"({' '.join([self._node(kind, value, flags) for kind, value in nodes]) or _NOTHING})"

    def _node(self, kind: Any, value: Any, flags: int) -> str:
        match kind:
            case sre.LITERAL if flags & re.IGNORECASE and chr(value).isalpha():
                return self._one_of(_sorted([(ord(each), ord(each)) for each in {chr(value).lower(), chr(value).upper()}
                                             if len(each) == 1]))  # fmt: skip
            case sre.LITERAL:
                return _literal(chr(value))
            case sre.NOT_LITERAL:
                return self._one_of(_others([(value, value)]))
            case sre.IN:
                return self._one_of(_class(value, is_folded=bool(flags & re.IGNORECASE)))
            case sre.ANY:
                return self._one_of([(0, _LAST)] if flags & re.DOTALL else _others([(10, 10)]))
            case sre.BRANCH:
                return f"({' | '.join([self._nodes(option, flags) for option in value[1]])})"
            case sre.SUBPATTERN:
                _, added, removed, nodes = value
                return self._nodes(nodes, (flags | added) & ~removed)
            case sre.MAX_REPEAT | sre.MIN_REPEAT:
                least, most, nodes = value
                return f"{self._nodes(nodes, flags)}{{{least},{'' if most is sre.MAXREPEAT else most}}}"
        raise NotInJson(f"an expression with {str(kind).lower()}")

    def _one_of(self, ranges: Ranges) -> str:
        """A rule for one of some characters, as they are or escaped."""
        plain = _without(ranges, _NEVER_PLAIN)
        options = [f"[{''.join([f'{_code(first)}-{_code(last)}' for first, last in plain])}]"] if plain else []
        options += [_literal(char) for char in _ESCAPED if any(first <= ord(char) <= last for first, last in ranges)]
        if not options:
            raise NotInJson("nothing fits a class of characters")
        return self._classes.setdefault(" | ".join(options), f"class-{len(self._classes)}")


def _tokens(source: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(source):
        token = _TOKEN.match(source, at)
        if token is None:
            raise NotInJson(f"`{source[at : at + 20]}` is not supported")
        at = token.end()
        if token.lastgroup != "space":
            found.append((str(token.lastgroup), token[0]))
    return found


def _unquoted(literal: str) -> str:
    """The text of a literal; JSON has no `\\x41`, which Lark may have."""
    plain = re.sub(r"(?<!\\)((?:\\\\)*)\\x([0-9a-fA-F]{2})", r"\1\\u00\2", literal)
    try:
        return str(json.loads(plain))
    except ValueError as exc:
        raise NotInJson(f"the literal {literal[:40]}") from exc


def _literal(text: str) -> str:
    """A text as GBNF has it, of which JSON escapes some."""
    written = json.dumps(text, ensure_ascii=False)[1:-1]
    escaped = "".join([char if char.isprintable() and char not in '"\\' else _code(ord(char)) for char in written])
    return f'"{escaped}"'


def _code(code: int) -> str:
    return f"\\U{code:08X}" if code > 0xFFFF else f"\\u{code:04X}"


def _class(items: list[tuple[Any, Any]], *, is_folded: bool) -> Ranges:
    ranges: Ranges = []
    for kind, value in items:
        if kind is sre.LITERAL:
            ranges.append((value, value))
        elif kind is sre.RANGE:
            ranges.append(value)
        elif kind is sre.CATEGORY:
            ranges += _category(value)
    if is_folded:
        ranges += [
            (ord(each), ord(each))
            for first, last in ranges
            for code in range(first, min(last, 0x17F) + 1)
            for each in (chr(code).lower(), chr(code).upper())
            if len(each) == 1
        ]
    return _others(_sorted(ranges)) if items[0][0] is sre.NEGATE else _sorted(ranges)


def _category(category: Any) -> Ranges:
    known = {
        sre.CATEGORY_DIGIT: [(0x30, 0x39)],
        sre.CATEGORY_SPACE: _SPACES,
        sre.CATEGORY_WORD: _LETTERS,
        sre.CATEGORY_NOT_DIGIT: _others([(0x30, 0x39)]),
        sre.CATEGORY_NOT_SPACE: _others(_SPACES),
        sre.CATEGORY_NOT_WORD: _others(_LETTERS),
    }
    if category not in known:
        raise NotInJson(f"an expression with {str(category).lower()}")
    return known[category]


def _sorted(ranges: Ranges) -> Ranges:
    """The same characters, in their order and apart."""
    merged: Ranges = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged


def _others(ranges: Ranges) -> Ranges:
    found, start = [], 0
    for first, last in ranges:
        if first > start:
            found.append((start, first - 1))
        start = last + 1
    return [*found, (start, _LAST)] if start <= _LAST else found


def _without(ranges: Ranges, excluded: Ranges) -> Ranges:
    return [
        (max(first, low), min(last, high))
        for first, last in ranges
        for low, high in _others(excluded)
        if max(first, low) <= min(last, high)
    ]
