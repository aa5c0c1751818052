"""Calls of Gemma 4: `call:NAME{key:value,…}` with bare keys and strings between marks of their own.

All that is known of this way of writing: recognising its templates, writing it, the grammar that forces it and reading
it back as JSON. Knows no tokens.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from shimmy.messages.reply import ArgumentSyntax, ToolFormat
from shimmy.text.incremental_reader import IncrementalReader, Reading, Say, Unexpected
from shimmy.text.speech.argument_types import (
    ANY,
    TEXT,
    allows,
    as_json,
    choices,
    listed,
    listed_values,
    named_arguments,
    resolved,
    types_in,
)
from shimmy.text.speech.grammar_writer import RELATING, GrammarWriter, limit, members, text_to, unenforced_of_text
from shimmy.text.string_matcher import StringMatcher

QUOTE = '<|"|>'
FORM = ToolFormat(
    call_start="<|tool_call>call:",
    call_end="}<tool_call|>",
    separator="{",
    syntax=ArgumentSyntax.GEMMA,
    text_mark=QUOTE,
)


def is_taught(template: str) -> bool:
    """Whether a template writes calls in this way."""
    return FORM.call_start in template and QUOTE in template


# -- writing it


def written(arguments: str) -> str:
    """The arguments of a call, a JSON object, as a model writes them; other JSON is the argument `input`."""
    return _written(named_arguments(arguments))[1:-1]


def _written(value: object) -> str:
    match value:
        case str():
            return f"{QUOTE}{value}{QUOTE}"
        case dict():
            return f"{{{','.join(f'{_name(key)}:{_written(value[key])}' for key in _sorted(value))}}}"
        case list():
            return f"[{','.join(map(_written, value))}]"
        case _:
            return json.dumps(value)


def _name(key: str) -> str:
    """A name in front of its colon: bare where it can be read so, and otherwise between the marks of strings."""
    return key if _BARE_NAME.fullmatch(key) and not key.startswith(QUOTE) else f"{QUOTE}{key}{QUOTE}"


# As the template writes all names; what ends a name or an object, or is dropped in front of a name, is not read so.
_BARE_NAME = re.compile(r"[^\s:,}](?:[^:]*[^\s:])?")


def _sorted(keys: Mapping[str, Any]) -> list[str]:
    """As the template sorts them, whatever their case."""
    return sorted(keys, key=str.lower)


# -- forcing it

_OF_NUMBERS = ("type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_LEFT = (*RELATING, "contains", "format", "prefixItems", "uniqueItems")
_FOLLOWED = ("enum", "const")  # of these, but not beside `properties`
_CHOICES = ("anyOf", "oneOf")  # which are followed, too, where there is no `type` beside them
_MAX_ITEMS = 1000
_MAX_DEPTH = 6  # of objects and arrays that are written one in the other; what is deeper is left to the model
_PLACE_CHARACTERS = 160


def unenforced(schema: Mapping[str, Any]) -> list[str]:
    """The parts of a tool's schema that this grammar leaves to the model, in words."""
    return sorted(set(_lost(schema)))


def _lost(root: Mapping[str, Any]) -> Iterator[str]:
    """Each part that others refer to is named once, by what refers to it first."""
    pending: list[tuple[object, str, int]] = [(root, "#", 0)]
    seen: set[int] = set()
    while pending:
        schema, place, depth = pending.pop()
        part = resolved(schema, root)
        if part is not schema and place != "#":
            depth, place = 0, str(schema["$ref"]) if isinstance(schema, Mapping) else place
            if id(part) in seen:
                continue
            seen.add(id(part))
        place = place[:_PLACE_CHARACTERS]
        if depth > _MAX_DEPTH and part:
            yield f"the schema at `{place}`"
            continue
        left = [keyword for keyword in _LEFT if keyword in part]
        left += unenforced_of_text(part)
        left += (word for word in ("minItems", "maxItems") if limit(part, word, _MAX_ITEMS) is None and word in part)
        followed = _FOLLOWED if "type" in part else (*_FOLLOWED, *_CHOICES)
        is_object = place == "#" or "properties" in part
        yield from (f"`{keyword}` at `{place}`" for keyword in left if is_object or keyword not in followed)
        for name, child in _properties(part).items():
            if QUOTE in name or len(name) > _NAME_CHARACTERS:
                yield f"the argument `{name}` at `{place}`"
            pending.append((child, f"{place}/properties/{name}", depth + 1))
        if "items" in part:
            pending.append((part["items"], f"{place}/items", depth + 1))
        pending += [(child, place, depth + 1) for child in choices(part)]


def arguments_rule(grammar: GrammarWriter, name: str, schema: Mapping[str, Any]) -> str:
    """The arguments of a tool with this schema, as the body of the rule `name`."""
    return _Arguments(grammar, name, schema).body()


def text_rule(grammar: GrammarWriter, key: str, lark: str) -> str:
    """The one argument `key`, a text that another grammar describes."""
    return f"{grammar.text(f'{key}:')} {grammar.text(QUOTE)} %lark {{\n{lark}\n}} {grammar.text(QUOTE)}"


def _properties(schema: Mapping[str, Any]) -> dict[str, Any]:
    found = schema.get("properties")
    return found if isinstance(found, dict) else {}


class _Arguments:
    """Writes the rules of one tool's arguments. What a `$ref` refers to is a rule of its own, and written once."""

    def __init__(self, grammar: GrammarWriter, name: str, root: Mapping[str, Any]) -> None:
        self._grammar = grammar
        self._name = name
        self._root = root
        self._types = types_in(root)
        self._rules: dict[int, str] = {}  # of what is referred to, by its identity
        self._unwritten: list[tuple[str, Mapping[str, Any]]] = []  # of these

    def body(self) -> str:
        text = self._members(self._name, resolved(self._root, self._root), 0)
        while self._unwritten:
            rule, part = self._unwritten.pop()
            self._grammar.rule(rule, self._value(rule, part, 0))
        return text

    def _members(self, name: str, schema: Mapping[str, Any], depth: int) -> str:
        grammar, known, required = self._grammar, _properties(schema), schema.get("required")
        needed = {key for key in required if isinstance(key, str)} if isinstance(required, list) else set()
        rules = []
        for index, key in enumerate(_sorted({**known, **dict.fromkeys(needed - known.keys(), True)})):
            part = known.get(key, True)
            if part is not False and QUOTE not in key:
                rule = f"{name}_{index}"
                grammar.rule(rule, f"{self._head(key)} ({self._value(rule, part, depth + 1)})")
                rules.append((rule, key in needed))
        further = ""
        more = schema.get("additionalProperties", not known)
        if more is not False:
            further = f"{name}_more"
            grammar.rule("KEY", r"/[\w.\-]{1,64}/")
            grammar.rule(further, f'KEY ":" ({self._value(further, more, depth + 1)})')
        return members(grammar, name, rules, '","', further)

    def _head(self, key: str) -> str:
        """A name and its colon. What looks like a control token in a name is text."""
        name = _name(key)
        if name == key:
            return json.dumps(f"{key}:")
        mark = self._grammar.text(QUOTE)
        return f'{mark} {json.dumps(key)} {mark} ":"' if key else f'{mark} {mark} ":"'

    def _value(self, name: str, schema: object, depth: int) -> str:
        """The ways to write a value, as the body of a rule or a group."""
        part = resolved(schema, self._root)
        if not part:
            return _any(self._grammar)
        if part is not schema:
            return self._rule_of(part)
        if depth > _MAX_DEPTH:
            return _any(self._grammar)
        parts = choices(part)
        if parts and "type" not in part:
            return " | ".join(self._value(f"{name}_{index}", choice, depth + 1) for index, choice in enumerate(parts))
        return " | ".join(self._by_type(name, part, depth)) or _any(self._grammar)

    def _rule_of(self, part: Mapping[str, Any]) -> str:
        if id(part) not in self._rules:
            rule = self._rules[id(part)] = f"{self._name}_ref{len(self._rules)}"
            self._unwritten.append((rule, part))
        return self._rules[id(part)]

    def _by_type(self, name: str, part: Mapping[str, Any], depth: int) -> Iterator[str]:
        grammar, allowed = self._grammar, listed(part, self._types.of(part) or ANY)
        if "string" in allowed:
            yield f"{grammar.text(QUOTE)} {text_to(grammar, name, part, QUOTE)}"
        if plain := allowed & {"number", "integer", "boolean", "null"}:
            schema = {key: part[key] for key in _OF_NUMBERS if key in part} | {"type": sorted(plain)}
            yield grammar.json(schema, {})
        if (values := listed_values(part)) is not None:
            yield from (
                self._literal(value) for value in values if isinstance(value, dict | list) and allows(allowed, value)
            )
            return
        if "array" in allowed:
            item, items = f"{name}_item", part.get("items", True)
            low, high = (limit(part, keyword, _MAX_ITEMS) for keyword in ("minItems", "maxItems"))
            if not low:
                yield '"[" "]"'
            if high != 0 and items is not False:
                grammar.rule(item, self._value(item, items, depth + 1))
                n_more = f"{{{max((low or 0) - 1, 0)},{'' if high is None else high - 1}}}"
                yield f'"[" {item} ("," {item}){n_more} "]"'
        if "object" in allowed:
            grammar.rule(f"{name}_object", self._members(f"{name}_object", part, depth))
            yield f'"{{" {name}_object "}}"'

    def _literal(self, value: object) -> str:
        """One value, as the template writes it. What looks like a control token in its texts is text."""
        match value:
            case str():
                mark = self._grammar.text(QUOTE)
                return f"{mark} {json.dumps(value)} {mark}" if value else f"{mark} {mark}"
            case dict():
                items = ' "," '.join(f"{self._head(key)} {self._literal(value[key])}" for key in _sorted(value))
                return f'"{{" {items} "}}"'
            case list():
                items = ' "," '.join(map(self._literal, value))
                return f'"[" {items} "]"'
            case _:
                return json.dumps(json.dumps(value))


def _any(grammar: GrammarWriter) -> str:
    grammar.rule("KEY", r"/[\w.\-]{1,64}/")
    quoted = f"{grammar.text(QUOTE)} {grammar.until(QUOTE, 'any_text')}"
    grammar.rule("any_plain", '%json {"type": ["boolean", "null", "number"]}')
    grammar.rule("any_array", '"[" (any_value ("," any_value)*)? "]"')
    grammar.rule("any_object", '"{" (KEY ":" any_value ("," KEY ":" any_value)*)? "}"')
    grammar.rule("any_value", f"{quoted} | any_plain | any_array | any_object")
    return "any_value"


# -- reading it

_NAME_CHARACTERS = 256
_SCALAR_CHARACTERS = 4096
_KEY_END = re.compile(":")
_SCALAR_END = re.compile(r"(?=[,}\]])")
_CLOSERS = {"{": "}", "[": "]"}


class GemmaReader:
    """Reads the arguments of one call, behind its first brace and up to its last, and says them as JSON."""

    def __init__(self, reader: IncrementalReader) -> None:
        self._reader = reader

    def read(self, say: Say) -> Reading[None]:
        """Say the arguments. Where the text ends inside, or the form is broken, the JSON is not finished either."""
        reader, open_until, is_first = self._reader, ["}"], True
        say("{")
        while True:
            yield from reader.space()
            character = yield from reader.peek()
            if not character:
                return
            if character == open_until[-1]:
                say(open_until.pop())
                if not open_until:
                    return
                is_first = False
            elif character != ",":
                say("" if is_first else ", ")
                try:
                    opened = yield from self._item(say, has_key=open_until[-1] == "}")
                except Unexpected:
                    return
                is_first = bool(opened)
                if opened:
                    open_until.append(_CLOSERS[opened])
                continue
            reader.take(1)
            reader.unsaid.clear()

    def _item(self, say: Say, *, has_key: bool) -> Reading[str]:
        """Say a value and its key; returns the bracket of one that is only begun, and an empty text else."""
        reader = self._reader
        if has_key:
            key = yield from self._key()
            say(f"{json.dumps(key, ensure_ascii=False)}: ")
            yield from reader.space()
        reader.unsaid.clear()
        if (yield from reader.expect(QUOTE)):
            say('"')
            end = yield from reader.until(
                StringMatcher(QUOTE), lambda text: say(json.dumps(text, ensure_ascii=False)[1:-1])
            )
            say('"' if end else "")
            opened = ""
        elif (yield from reader.peek()) in _CLOSERS:
            opened = reader.take(1)
            say(opened)
        else:
            scalar = yield from reader.before(_SCALAR_END, _SCALAR_CHARACTERS)
            if not scalar.strip():
                raise Unexpected
            say(as_json(scalar.strip(), ANY - TEXT))
            opened = ""
        reader.unsaid.clear()
        return opened

    def _key(self) -> Reading[str]:
        reader = self._reader
        if not (yield from reader.expect(QUOTE)):
            key = yield from reader.before(_KEY_END, _NAME_CHARACTERS)
            return key.strip()
        parts: list[str] = []
        yield from reader.until(StringMatcher(QUOTE), parts.append)
        yield from reader.require(":")
        return "".join(parts)
