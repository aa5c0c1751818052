"""Calls with one argument after the other between marks, as bare texts: Qwen3-Coder, GLM, MiniMax, DeepSeek V3.2.

All that is known of this way of writing: finding it in what a template renders, writing it, the grammar that forces it
and reading it back as JSON. Knows the marks of a ToolFormat; no model by name, no tokens.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, takewhile
from typing import Any

from shimmy.messages.reply import ArgumentSyntax, ToolFormat
from shimmy.messages.request import ToolCall
from shimmy.text.incremental_reader import IncrementalReader, Reading, Say, Unexpected
from shimmy.text.speech.argument_types import (
    ANY,
    NAME_CHARACTERS,
    TEXT,
    LeastSets,
    SetOf,
    allows,
    as_json,
    choices,
    is_choice,
    listed,
    listed_values,
    named_arguments,
    needed,
    odd_names,
    properties,
    resolved,
    type_of,
    types_in,
    without_ambiguous,
)
from shimmy.text.speech.grammar_writer import RELATING, GrammarWriter, text_to, unenforced_of_text
from shimmy.text.string_matcher import StringMatcher

# -- finding it in what a template has written


def found(text: str, call: ToolCall, start: int) -> tuple[int, int, ToolFormat] | None:
    """Where the body of `call` begins and ends in `text`, and its marks; None where it is not written in this way.

    The call has two arguments, a text and a number.
    """
    (key, value), (second_key, second_value) = json.loads(call.arguments).items()
    pieces = [call.name, key, value, second_key, str(second_value)]
    places = []
    for piece in pieces:
        place = text.find(piece, start)
        if place < 0:
            return None
        places.append((place, start := place + len(piece)))
    head, key_end, middle, second_key_end = (text[end:begin] for (_, end), (begin, _) in pairwise(places))
    key_start = "".join(_common(_atoms(head)[::-1], _atoms(middle)[::-1])[::-1])
    separator, value_end = head[: len(head) - len(key_start)], middle[: len(middle) - len(key_start)]
    if not (key_start.strip() and key_end.strip() and value_end.strip()) or not text.startswith(value_end, start):
        return None
    form = ToolFormat(
        separator=separator, syntax=ArgumentSyntax.TAGGED, key_start=key_start, key_end=key_end, value_end=value_end
    )
    if key_end != second_key_end:
        shared = "".join(_common(key_end, second_key_end))
        form = replace(form, key_end=shared, text_mark=key_end[len(shared) :], json_mark=second_key_end[len(shared) :])
        if not (form.key_end.strip() and form.text_mark.strip() and form.json_mark.strip()):
            return None
    return places[0][0], start + len(value_end), form


_ATOM = re.compile(r"<[^<>\s]*>|.", re.DOTALL)


def _atoms(text: str) -> list[str]:
    return _ATOM.findall(text)


def _common(left: Sequence[str], right: Sequence[str]) -> list[str]:
    """The first items of both that are the same."""
    return [item for item, other in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))]


def short_start(form: ToolFormat) -> str:
    """How a call begins without its first mark, which Qwen3-Coder leaves out now and then; empty where there is one."""
    rest = form.call_start.strip().partition("\n")[2]
    return rest if rest.startswith("<") and not form.section_start else ""


# -- writing it


def written(arguments: str, form: ToolFormat) -> str:
    """The arguments of a call, a JSON object, as a model writes them; other JSON is the argument `input`."""
    values = named_arguments(arguments)
    return "".join(f"{form.key_start}{_key(key, form)}{form.key_end}{_value(values[key], form)}" for key in values)


def _value(value: object, form: ToolFormat) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and _QUOTED.search(value):
        text = f"{form.quote_start}{text}{form.quote_end}"
    return f"{_mark(type_of(value), form)}{text}{form.value_end}"


def _key(name: str, form: ToolFormat) -> str:
    """A name as it is, or where types are said, beside it, as an attribute of XML."""
    return name.replace("&", "&amp;").replace('"', "&quot;") if form.type_end else name


def _mark(kind: str, form: ToolFormat) -> str:
    """What stands in front of a value of this type."""
    if form.type_end:
        return f"{'number' if kind == 'integer' else kind}{form.type_end}"
    return form.text_mark if kind == "string" else form.json_mark


_QUOTED = re.compile(r"[<&\n]")  # what needs quotes, in forms that have some
_PLAIN, _ANY_TEXT = r"[^<&\n]*", "(?s:.*)"


# -- forcing it

_LEFT_OF_TEXTS = frozenset(("format", "allOf", "anyOf", "oneOf", "not", "if"))


def unenforced(schema: Mapping[str, Any]) -> list[str]:
    """The parts of a tool's schema that the grammar of this way of writing leaves to the model, in words."""
    lost = [f"`{keyword}` at `#`" for keyword in RELATING if keyword in resolved(schema, schema)]
    found = _unenforced_in(schema)
    for name, part in properties(schema).items():
        lost += [f"`{keyword}` at `#/properties/{name}`" for keyword in found.of(part)]
    return sorted(lost)


def _unenforced_in(root: Mapping[str, Any]) -> LeastSets[str]:
    """The keywords about strings, in parts of `root`, that are left to the model."""
    kinds = types_in(root)

    def read(part: Mapping[str, Any], of: SetOf[str]) -> frozenset[str]:
        if "string" not in (kinds.of(part) or ANY):
            return frozenset()
        if is_choice(part):
            return frozenset().union(*map(of, choices(part)))
        return _LEFT_OF_TEXTS.intersection(part).union(unenforced_of_text(part))

    return LeastSets(root, read, frozenset())


def arguments_rule(grammar: GrammarWriter, name: str, schema: Mapping[str, Any], form: ToolFormat) -> str:
    """The arguments of a tool with this schema, as the body of the rule `name`.

    Arguments come in the schema's order, those that are not required may be missing. Further ones are allowed where the
    schema names none, or says of them that they may be there.
    """
    known, required = properties(schema), needed(schema)
    more = resolved(schema, schema).get("additionalProperties", not known)
    values = _Values(grammar, name, schema, form)
    parts = []
    for index, key in enumerate([*known, *sorted(required - known.keys())]):
        part = known.get(key, {})
        if part is False:
            continue
        rule = f"{name}_{index}"
        head = f"{grammar.text(form.key_start)} {json.dumps(_key(key, form))} {grammar.text(form.key_end)}"
        grammar.rule(rule, f"{head} {values.rule(part)}")
        parts.append(rule if key in required else f"{rule}?")
    if more is not False:
        rule = f"{name}_more"
        key = f"KEY {grammar.text(form.key_end)}"
        grammar.rule("KEY", r"/[\w.:\-]{1,64}/")
        grammar.rule(rule, f"{grammar.text(form.key_start)} {key} {values.rule(more)}")
        parts.append(f"{rule}*")
    return " ".join(parts) or '""'


def text_rule(grammar: GrammarWriter, key: str, lark: str, form: ToolFormat) -> str:
    """The one argument `key`, a text that another grammar describes."""
    head = f"{grammar.text(form.key_start)} {grammar.text(key)} {grammar.text(form.key_end)}"
    start, end = f"{_mark('string', form)}{form.quote_start}", f"{form.quote_end}{form.value_end}"
    return f"{head} {grammar.text(start)} %lark {{\n{lark}\n}} {grammar.text(end)}"


class _Values:
    """Writes the rules of one tool's values, from behind `key_end` to `value_end`. Those of each part are written once,
    however many arguments and choices refer to it."""

    def __init__(self, grammar: GrammarWriter, name: str, root: Mapping[str, Any], form: ToolFormat) -> None:
        """`name` begins the names of rules."""
        self._grammar = grammar
        self._name = name
        self._root = root
        self._form = form
        self._types = types_in(root)
        self._rules: dict[tuple[int, frozenset[str]], str] = {}  # by the part, and as what its value is read
        self._unwritten: list[tuple[str, Mapping[str, Any], frozenset[str]]] = []  # of these

    def rule(self, schema: object) -> str:
        """The name of the rule for the values of an argument."""
        name = self._rule_of(schema, self._types.of(schema) or ANY)
        while self._unwritten:
            rule, part, read_as = self._unwritten.pop()
            self._grammar.rule(rule, " | ".join(self._values(rule, part, read_as)))
        return name

    def _rule_of(self, schema: object, read_as: frozenset[str]) -> str:
        part = resolved(schema, self._root)
        key = id(part) if part else 0, read_as
        if key not in self._rules:
            self._rules[key] = f"{self._name}_value{len(self._rules)}"
            self._unwritten.append((self._rules[key], part, read_as))
        return self._rules[key]

    def _values(self, rule: str, part: Mapping[str, Any], read_as: frozenset[str]) -> Iterable[str]:
        """The ways to write a value of `part`; choices by themselves where strings are among them."""
        found = self._types.of(part)
        if "string" in found and is_choice(part):
            possible = (
                choice for choice in choices(part) if self._types.of(choice)
            )  # others say nothing but themselves
            return dict.fromkeys(self._rule_of(choice, read_as) for choice in possible)
        return self._plain(rule, part, found or ANY, read_as)

    def _plain(
        self, rule: str, part: Mapping[str, Any], named: frozenset[str], read_as: frozenset[str]
    ) -> Iterator[str]:
        grammar, form = self._grammar, self._form
        are_told = bool(form.json_mark or form.type_end)  # by marks; otherwise texts are by the types alone
        if not are_told:
            part = without_ambiguous(part, read_as)
        allowed = listed(part, named)
        if "string" in allowed:
            mark = grammar.text(_mark("string", form))
            yield from (f"{mark} {text}".strip() for text in _texts(grammar, rule, part, form))
            if not are_told:
                for value in listed_values(part) or ():
                    if type(value) is not str and allows(allowed, value):
                        yield f"{json.dumps(json.dumps(value))} {grammar.text(form.value_end)}"
        others: dict[str, list[str]] = {}  # by their marks
        for kind in sorted(allowed - TEXT) if are_told or "string" not in allowed else ():
            others.setdefault(_mark(kind, form), []).append(kind)
        for mark, kinds in others.items():
            value = {**part, **({} if set(kinds) == named else {"type": kinds})}
            pieces = grammar.text(mark), grammar.json(value, self._root), grammar.text(form.value_end)
            yield " ".join(pieces).strip()


def _texts(grammar: GrammarWriter, name: str, schema: Mapping[str, Any], form: ToolFormat) -> Iterator[str]:
    """The ways to write a string, to `value_end`."""
    if not form.quote_start:
        yield text_to(grammar, name, schema, form.value_end)
        return
    values = listed_values(schema)
    for is_quoted in (False, True):
        part = schema
        if values is not None:
            part = {
                "enum": [value for value in values if type(value) is str and is_quoted == bool(_QUOTED.search(value))]
            }
            if not part["enum"]:
                continue
        if is_quoted:
            text = text_to(grammar, f"{name}_quoted", part, f"{form.quote_end}{form.value_end}", _ANY_TEXT)
            yield f"{grammar.text(form.quote_start)} {text}"
        else:
            yield text_to(grammar, name, part, form.value_end, _PLAIN)


# -- reading it


_TYPE_CHARACTERS = 32  # of the name of a type, and more than any has


class TaggedReader:
    """Reads the arguments of one call, from behind the separator on, and says them as one JSON object."""

    def __init__(self, reader: IncrementalReader, form: ToolFormat, types_of: Mapping[str, frozenset[str]]) -> None:
        self._reader = reader
        self._types = types_of
        self._text_mark, self._json_mark = form.text_mark.strip(), form.json_mark.strip()
        self._type_end = re.compile(re.escape(form.type_end.strip())) if form.type_end else None
        self._key_start, self._call_end = form.key_start.strip(), form.call_end.strip()
        key_end = form.key_end.strip()
        self._key_end = re.compile(re.escape(key_end))
        self._odd_keys = {f"{_key(key, form)}{key_end}": key for key in odd_names(types_of, key_end)}
        self._value_end = form.value_end.strip()
        self._quote_start, self._quote_end = form.quote_start, f"{form.quote_end}{self._value_end}"
        # A line break next to a mark belongs to the mark where the format has one there.
        self._breaks_before = (form.json_mark or form.key_end).endswith("\n")
        self._breaks_behind = form.value_end.startswith("\n")

    def require_arguments(self) -> Reading[None]:
        """Raises Unexpected where neither an argument nor the end of the call comes next."""
        reader = self._reader
        yield from reader.space()
        while not reader.is_last and any(
            len(reader.ahead) < len(mark) and mark.startswith(reader.ahead)
            for mark in (self._key_start, self._call_end)
        ):
            yield
        if not reader.ahead.startswith((self._key_start, self._call_end)):
            raise Unexpected

    def read(self, say: Say) -> Reading[None]:
        """Say the arguments. Where the text ends inside of one, the JSON is not finished either."""
        reader = self._reader
        say("{")
        separator = ""
        while True:
            yield from reader.space()
            if not (yield from reader.expect(self._key_start)):
                break
            odd_key = yield from reader.one_of(self._odd_keys)
            key = self._odd_keys[odd_key] if odd_key else (yield from self._key())
            allowed = self._types.get(key, ANY)
            if self._text_mark or self._type_end:
                allowed = yield from self._said_type(allowed)
            reader.unsaid.clear()
            say(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            separator = ", "
            if not (yield from self._read_value(allowed, say)):
                return
        if (yield from reader.peek()):
            say("}")

    def _key(self) -> Reading[str]:
        key = yield from self._reader.before(self._key_end, NAME_CHARACTERS)
        key = key.strip()
        return key.replace("&quot;", '"').replace("&amp;", "&") if self._type_end else key

    def _said_type(self, allowed: frozenset[str]) -> Reading[frozenset[str]]:
        if self._type_end:
            kind = yield from self._reader.before(self._type_end, _TYPE_CHARACTERS)
            return TEXT if kind.strip() == "string" else allowed - TEXT or ANY - TEXT
        if (yield from self._reader.expect(self._text_mark)):
            return TEXT
        if not (yield from self._reader.expect(self._json_mark)):
            raise Unexpected
        return allowed - TEXT or ANY - TEXT

    def _read_value(self, allowed: frozenset[str], say: Say) -> Reading[bool]:
        """Say a value; returns whether its end was there."""
        reader = self._reader
        if self._breaks_before:
            yield from reader.expect("\n")
        ends = self._value_end
        if self._quote_start and (yield from reader.expect(self._quote_start)):
            ends = self._quote_end
        value = (
            _TextValue(say, drops_break=self._breaks_behind)
            if allowed == TEXT
            else _OtherValue(say, allowed, drops_break=self._breaks_behind)
        )
        has_end = yield from reader.until(StringMatcher(ends), value.add)
        reader.unsaid.clear()
        if has_end:
            value.end()
        return bool(has_end)


class _TextValue:
    """Says a string as it comes."""

    def __init__(self, say: Say, *, drops_break: bool) -> None:
        self._say = say
        self._drops_break = drops_break
        self._held = ""  # a line break that may belong to the mark
        say('"')

    def add(self, text: str) -> None:
        if not text:
            return
        text = self._held + text
        self._held = ""
        if self._drops_break and text.endswith("\n"):
            text, self._held = text[:-1], "\n"
        self._say(json.dumps(text, ensure_ascii=False)[1:-1])

    def end(self) -> None:
        self._say('"')


class _OtherValue:
    """Says what a value means once all of it is known."""

    def __init__(self, say: Say, allowed: frozenset[str], *, drops_break: bool) -> None:
        self._say = say
        self._allowed = allowed
        self._drops_break = drops_break
        self._parts: list[str] = []

    def add(self, text: str) -> None:
        self._parts.append(text)

    def end(self) -> None:
        text = "".join(self._parts)
        self._say(as_json(text.removesuffix("\n") if self._drops_break else text, self._allowed))
