"""Calls of MiniMax M3: each argument is an element of its name, with elements inside for objects and arrays.

All that is known of this way of writing: recognising its template, writing it, the grammar that forces it and reading
it back as JSON. A mark of the vocabulary stands in front of each tag, so texts need no quotes. Knows no tokens.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shimmy.messages.reply import ArgumentSyntax, ToolFormat
from shimmy.text.incremental_reader import IncrementalReader, Reading, Say, Unexpected
from shimmy.text.speech.argument_types import (
    ANY,
    NAME_CHARACTERS,
    TEXT,
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
    types_in,
    without_ambiguous,
)
from shimmy.text.speech.grammar_writer import RELATING, GrammarWriter, limit, text_to, unenforced_of_text
from shimmy.text.string_matcher import StringMatcher

_MARK = "]<]minimax[>["
OPENS, CLOSES = f"{_MARK}<", f"{_MARK}</"
_ITEM = "item"
FORM = ToolFormat(
    section_start=f"{OPENS}tool_call>\n",
    call_start=f'{OPENS}invoke name="',
    call_end=f"{CLOSES}invoke>\n",
    section_end=f"{CLOSES}tool_call>",
    separator='">',
    syntax=ArgumentSyntax.ELEMENTS,
)


def is_taught(template: str) -> bool:
    """Whether a template writes calls in this way."""
    return _MARK in template and '<invoke name="' in template


# -- writing it


def written(arguments: str) -> str:
    """The arguments of a call, a JSON object, as a model writes them; other JSON is the argument `input`.

    As in the template, a member that is null is left out.
    """
    return _written(named_arguments(arguments))


def _written(value: object) -> str:
    match value:
        case str():
            return value
        case None:
            return ""
        case dict():
            return "".join(_element(key, member) for key, member in value.items() if member is not None)
        case list():
            return "".join(_element(_ITEM, item) for item in value)
        case _:
            return json.dumps(value)


def _element(name: str, value: object) -> str:
    return f"{OPENS}{name}>{_written(value)}{CLOSES}{name}>"


# -- forcing it

_LEFT = (*RELATING, "contains", "prefixItems", "uniqueItems")
_PLAIN = frozenset(("number", "integer", "boolean", "null"))
_MAX_ITEMS = 1000
_PLACE_CHARACTERS = 160


def unenforced(root: Mapping[str, Any]) -> list[str]:
    """The parts of a tool's schema that this grammar leaves to the model, in words, each by what refers to it first."""
    kinds, lost = types_in(root), set[str]()
    pending: list[tuple[object, str]] = [(root, "#")]
    seen: set[int] = set()
    while pending:
        schema, place = pending.pop()
        part = resolved(schema, root)
        if id(part) in seen:
            continue
        seen.add(id(part))
        place = place[:_PLACE_CHARACTERS]
        if is_choice(part) and place != "#":
            pending += [(choice, place) for choice in choices(part)]
            continue
        left = [keyword for keyword in _LEFT if keyword in part and (place == "#" or keyword not in {"enum", "const"})]
        if "string" in (kinds.of(part) or ANY):
            left += [*(["format"] if "format" in part else []), *unenforced_of_text(part)]
        left += [word for word in ("minItems", "maxItems") if limit(part, word, _MAX_ITEMS) is None and word in part]
        lost.update(f"`{keyword}` at `{place}`" for keyword in left)
        for name, child in properties(part).items():
            if not _is_writable(name):
                lost.add(f"the argument `{name[:_PLACE_CHARACTERS]}` at `{place}`")
            pending.append((child, f"{place}/properties/{name}"))
        pending += [(part[word], f"{place}/{word}") for word in ("items", "additionalProperties") if word in part]
    return sorted(lost)


def _is_told(value: object) -> bool:
    """Whether elements tell a listed value by themselves: inside of it, nothing says what is a text or an array."""
    match value:
        case dict():
            return bool(value) and _ITEM not in value and all(map(_is_told, value.values()))
        case list():
            return bool(value) and all(map(_is_told, value))
        case str():
            return as_json(value, ANY) == as_json(value, TEXT)
        case _:
            return value is not None


def _is_writable(name: str) -> bool:
    """Whether the tag of a name can be read: one with a slash in front would be the end of an element."""
    return not name.startswith("/") and _MARK not in name


def arguments_rule(grammar: GrammarWriter, name: str, schema: Mapping[str, Any]) -> str:
    """The arguments of a tool with this schema, as the body of the rule `name`."""
    return _Elements(grammar, name, schema).body()


def text_rule(grammar: GrammarWriter, key: str, lark: str) -> str:
    """The one argument `key`, a text that another grammar describes."""
    tag = json.dumps(f"{key}>")
    return f"{grammar.text(OPENS)} {tag} %lark {{\n{lark}\n}} {grammar.text(CLOSES)} {tag}"


class _Elements:
    """Writes the rules of one tool's arguments. The values of each part of its schema are a rule of their own, from
    behind the tag in front to the mark of the tag behind, so parts may lead back to themselves."""

    def __init__(self, grammar: GrammarWriter, name: str, root: Mapping[str, Any]) -> None:
        self._grammar = grammar
        self._name = name
        self._root = root
        self._types = types_in(root)
        self._end = grammar.text(CLOSES)
        self._rules: dict[int, str] = {}  # of values, by the identity of parts
        self._unwritten: list[tuple[str, Mapping[str, Any]]] = []  # of these

    def body(self) -> str:
        self._grammar.rule("KEY", r"/[\w.\-]{1,64}>/")
        text = self._members(resolved(self._root, self._root))
        while self._unwritten:
            rule, part = self._unwritten.pop()
            self._grammar.rule(rule, " | ".join(dict.fromkeys(self._values(rule, part))))
        return text or '""'

    def _members(self, part: Mapping[str, Any]) -> str:
        """Members come in the schema's order, as in calls of other families; those not required may be missing."""
        known, required = properties(part), needed(part)
        more = part.get("additionalProperties", not known)
        members = []
        for key in (*known, *sorted(required - known.keys())):
            child = known.get(key, {})
            if child is not False and _is_writable(key):
                members.append(f"({self._element(key, self._rule_of(child))}){'' if key in required else '?'}")
        if more is not False:
            members.append(f"({self._element(None, self._rule_of(more))})*")
        return " ".join(members)

    def _element(self, name: str | None, value: str) -> str:
        """An element with this name, or with any; `value` is what stands behind its first tag."""
        tag = "KEY" if name is None else json.dumps(f"{name}>")
        return f"{self._grammar.text(OPENS)} {tag} {value} {tag}"

    def _rule_of(self, schema: object) -> str:
        part = resolved(schema, self._root)
        key = id(part) if part else 0
        if key not in self._rules:
            self._rules[key] = f"{self._name}_value{len(self._rules)}"
            self._unwritten.append((self._rules[key], part))
        return self._rules[key]

    def _values(self, rule: str, part: Mapping[str, Any]) -> Iterator[str]:
        if not part:
            yield self._grammar.until(CLOSES, f"{rule}_text")
            yield f"({self._element(None, self._rule_of({}))})+ {self._end}"
            return
        found = self._types.of(part)
        if found and is_choice(part):
            yield from (self._rule_of(choice) for choice in choices(part) if self._types.of(choice))
            return
        named = found or ANY
        part = without_ambiguous(part, named)
        allowed = listed(part, named)
        if listed_values(part) is not None:
            yield from self._listed(rule, part, allowed)
            return
        if "string" in allowed:
            yield text_to(self._grammar, rule, part, CLOSES)
        elif plain := allowed & _PLAIN:
            yield f"{self._grammar.json({**part, 'type': sorted(plain)}, self._root)} {self._end}"
        # What is empty is a text where it may be one.
        if "array" in allowed:
            yield self._array(part, 1 if "string" in allowed else 0)
        if "object" in allowed:
            members = self._members(part)
            if "string" not in allowed or needed(part):
                yield f"{members} {self._end}".strip()

    def _array(self, part: Mapping[str, Any], least: int) -> str:
        low, high = (limit(part, keyword, _MAX_ITEMS) for keyword in ("minItems", "maxItems"))
        if part.get("items") is False or high == 0:
            return self._end
        item = self._element(_ITEM, self._rule_of(part.get("items", {})))
        return f"({item}){{{max(low or 0, least)},{'' if high is None else high}}} {self._end}"

    def _listed(self, rule: str, part: Mapping[str, Any], allowed: frozenset[str]) -> Iterator[str]:
        if "string" in allowed:
            yield text_to(self._grammar, rule, part, CLOSES)
        others = [value for value in listed_values(part) or () if type(value) is not str and allows(allowed, value)]
        told = [value for value in others if not isinstance(value, dict | list) or _is_told(value)]
        yield from (f"{self._literal(value)} {self._end}".strip() for value in told or others)

    def _literal(self, value: object) -> str:
        """A value as the template writes it, but for null; what looks like a control token in its texts is text."""
        match value:
            case dict():
                members = ((key, value[key]) for key in filter(_is_writable, value))
            case list():
                members = ((_ITEM, item) for item in value)
            case str():
                return json.dumps(value) if value else ""
            case _:
                return json.dumps(json.dumps(value))
        return " ".join(self._element(key, f"{self._literal(member)} {self._end}") for key, member in members)


# -- reading it

_MAX_DEPTH = 64  # of elements inside of each other
_MAX_CHOICES = 64  # of schemas that are looked through for a member
_TAG_END = re.compile(">")
_ENDS = StringMatcher(CLOSES)
_FIRST_ITEM = f"{OPENS}{_ITEM}>"


@dataclass(slots=True)
class _Open:
    """An object or an array that has begun."""

    schemas: list[Mapping[str, Any]]  # that its value may follow
    name: str  # of its own element
    is_array: bool = False
    is_empty: bool = True  # so far


class ElementReader:
    """Reads the arguments of one call, from behind the separator on, and says them as one JSON object."""

    def __init__(self, reader: IncrementalReader, schema: Mapping[str, Any]) -> None:
        """`schema` is that of the tool's arguments: it tells a text from a number, and an array from an object."""
        self._reader = reader
        self._root = schema
        self._types = types_in(schema)
        self._odd_names: dict[int, list[str]] = {}  # of the members of each schema, by its identity

    def require_arguments(self) -> Reading[None]:
        """Raises Unexpected where neither an argument nor the end of the call comes next."""
        if not (yield from self._comes(OPENS)):
            raise Unexpected

    def _comes(self, text: str) -> Reading[bool]:
        reader = self._reader
        yield from reader.space()
        while len(reader.ahead) < len(text) and text.startswith(reader.ahead) and not reader.is_last:
            yield
        return reader.ahead.startswith(text)

    def read(self, say: Say) -> Reading[None]:
        """Say the arguments. Where the text ends inside of one, the JSON is not finished either."""
        reader = self._reader
        opened = [_Open(self._schemas([self._root]), "")]
        say("{")
        while opened:
            here = opened[-1]
            if (yield from self._comes(CLOSES)):
                if len(opened) > 1:
                    reader.take(len(CLOSES))
                    yield from self._end_of(here.name)
                reader.unsaid.clear()
                say("]" if here.is_array else "}")
                opened.pop()
                continue
            try:
                yield from self._read_element(opened, say)
            except Unexpected:
                if (yield from reader.peek()):  # something follows that is no element
                    say("".join("]" if each.is_array else "}" for each in reversed(opened)))
                return

    def _read_element(self, opened: list[_Open], say: Say) -> Reading[None]:
        """Say a member, or begin it where it has elements inside."""
        reader, here = self._reader, opened[-1]
        yield from reader.require(OPENS)
        name = yield from self._name(here)
        reader.unsaid.clear()
        say("" if here.is_empty else ", ")
        here.is_empty = False
        if not here.is_array:
            say(f"{json.dumps(name, ensure_ascii=False)}: ")
        said = self._inside(here, name)
        allowed = frozenset[str]().union(*(self._types.of(schema) or ANY for schema in said)) or ANY
        if allowed == TEXT:
            say('"')
            if (yield from reader.until(_ENDS, lambda text: say(json.dumps(text, ensure_ascii=False)[1:-1]))):
                reader.unsaid.clear()
                say('"')
                yield from self._end_of(name)
            return
        parts: list[str] = []
        if not (yield from self._has_elements(parts)):
            if (yield from reader.until(_ENDS, parts.append)):
                reader.unsaid.clear()
                say(_meant("".join(parts), allowed))
                yield from self._end_of(name)
            return
        if len(opened) > _MAX_DEPTH:
            say("null")
            raise Unexpected
        is_item = reader.ahead.startswith(_FIRST_ITEM)
        is_array = is_item if ("array" in allowed) is ("object" in allowed) else "array" in allowed
        opened.append(_Open(self._schemas(said), name, is_array))
        say("[" if opened[-1].is_array else "{")

    def _has_elements(self, parts: list[str]) -> Reading[bool]:
        """Whether an element comes next, and not the end of this one; what was read instead goes to `parts`."""
        reader = self._reader
        n_unsaid = len(reader.unsaid)
        yield from reader.space()
        parts += reader.unsaid[n_unsaid:]
        while not reader.is_last and any(
            mark.startswith(reader.ahead) and mark != reader.ahead for mark in (_FIRST_ITEM, CLOSES)
        ):
            yield
        return reader.ahead.startswith(OPENS) and not reader.ahead.startswith(CLOSES)

    def _name(self, here: _Open) -> Reading[str]:
        for schema in here.schemas:
            if id(schema) not in self._odd_names:
                self._odd_names[id(schema)] = odd_names(properties(schema), ">")
        odd = {f"{name}>": name for schema in here.schemas for name in self._odd_names[id(schema)]}
        tag = yield from self._reader.one_of(odd)
        return odd[tag] if tag else (yield from self._reader.before(_TAG_END, NAME_CHARACTERS)).strip()

    def _end_of(self, name: str) -> Reading[None]:
        """What follows the mark of an end: the name, whichever it is."""
        if not (yield from self._reader.expect(f"{name}>")):
            yield from self._reader.before(_TAG_END, NAME_CHARACTERS)
        self._reader.unsaid.clear()

    def _schemas(self, schemas: Iterable[object]) -> list[Mapping[str, Any]]:
        """These schemas and those that they are put together from, so far as they say something."""
        found: dict[int, Mapping[str, Any]] = {}
        pending = [resolved(schema, self._root) for schema in schemas]
        while pending and len(found) < _MAX_CHOICES:
            part = pending.pop(0)
            if part and id(part) not in found:
                found[id(part)] = part
                whole = part.get("allOf")
                inside = [*choices(part), *(whole if isinstance(whole, list) else ())]
                pending += [resolved(choice, self._root) for choice in inside[:_MAX_CHOICES]]
        return [*found.values()]

    def _inside(self, here: _Open, name: str) -> list[object]:
        """What is said of a member, or of the items."""
        if here.is_array:
            return [schema["items"] for schema in here.schemas if "items" in schema]
        named = [properties(schema)[name] for schema in here.schemas if name in properties(schema)]
        return named or [schema["additionalProperties"] for schema in here.schemas if "additionalProperties" in schema]


def _meant(text: str, allowed: frozenset[str]) -> str:
    """A value without elements inside as JSON."""
    if "string" in allowed:
        return as_json(text, allowed - {"array", "object"})
    if not text.strip() and not allowed.isdisjoint(("array", "object")):
        return "[]" if "array" in allowed else "{}"
    return as_json(text, allowed)
