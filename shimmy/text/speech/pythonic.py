"""Calls written as a list of Python's: `[f(city="Paris", n=3), g()]`, as LFM2 writes them.

All that is known of this way of writing: recognising its templates, writing it, the grammar that forces it and reading
it back as JSON. Knows no tokens.
"""

import ast
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from shimmy.messages.reply import ArgumentSyntax, ToolFormat
from shimmy.text.incremental_reader import IncrementalReader, Reading, Say, Unexpected
from shimmy.text.speech.argument_types import (
    ANY,
    NAME_CHARACTERS,
    TEXT,
    LeastSets,
    SetOf,
    as_json,
    choices,
    listed,
    listed_values,
    named_arguments,
    needed,
    no_constant,
    odd_names,
    properties,
    resolved,
    type_of,
    types_in,
)
from shimmy.text.speech.grammar_writer import RELATING, GrammarWriter, members

FORM = ToolFormat(
    section_start="<|tool_call_start|>[",
    between=", ",
    section_end="]<|tool_call_end|>",
    separator="(",
    call_end=")",
    syntax=ArgumentSyntax.PYTHON,
)
# Templates of LFM2 show lists of tools in one of these ways; some show no calls.
_TAUGHT = ("<|tool_list_start|>", "<|tool_call_start|>", '"List of tools: ["')


def is_taught(template: str) -> bool:
    """Whether a template is of a model that writes calls in this way."""
    return any(words in template for words in _TAUGHT)


# -- writing it

_NAMES = {True: "True", False: "False", None: "None"}


def written(arguments: str) -> str:
    """The arguments of a call, a JSON object, as a model writes them; other JSON is the argument `input`."""
    values = named_arguments(arguments)
    return ", ".join(f"{key}={_written(value)}" for key, value in values.items())


def _written(value: object) -> str:
    return _NAMES[value] if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


# -- forcing it

_CONSTANTS = frozenset(("boolean", "null"))
_SHAPED = ("enum", "const", "pattern", "format", "minLength", "maxLength", "anyOf", "oneOf", "allOf", "$ref")


def unenforced(schema: Mapping[str, Any]) -> list[str]:
    """The parts of a tool's schema that this grammar leaves to the model, in words."""
    return [f"`{keyword}` at `#`" for keyword in RELATING if keyword in resolved(schema, schema)]


def arguments_rule(grammar: GrammarWriter, name: str, schema: Mapping[str, Any]) -> str:
    """The arguments of a tool with this schema, as the body of the rule `name`."""
    known, required = properties(schema), needed(schema)
    found = types_in(schema), _constants_in(schema)
    rules = []
    for index, key in enumerate([*known, *sorted(required - known.keys())]):
        part = known.get(key, True)
        if part is not False:
            rule = f"{name}_{index}"
            grammar.rule(rule, f"{json.dumps(f'{key}=')} ({' | '.join(_values(grammar, part, schema, found))})")
            rules.append((rule, key in required))
    further, more = "", resolved(schema, schema).get("additionalProperties", not known)
    if more is not False:
        further = f"{name}_more"
        grammar.rule("KEY", r"/[A-Za-z_]\w{0,63}/")
        grammar.rule(further, f'KEY "=" ({" | ".join(_values(grammar, more, schema, found))})')
    return members(grammar, name, rules, '", "', further)


def _values(
    grammar: GrammarWriter,
    schema: object,
    root: Mapping[str, Any],
    found: tuple[LeastSets[str], LeastSets[bool | None]],
) -> Iterator[str]:
    """The ways to write a value: as JSON, but for the names of Python's constants, and strings in single quotes.

    `found` are the types of parts of `root`, and the constants that they allow.
    """
    part = schema if isinstance(schema, Mapping) else {}
    named = found[0].of(part) or ANY
    allowed = listed(part, named)
    if rest := sorted(allowed - _CONSTANTS):
        kinds = {} if set(rest) == named and named != ANY else {"type": rest}
        yield grammar.json({**part, **kinds}, root)
    if "string" in allowed and part.keys().isdisjoint(_SHAPED):
        grammar.rule("QUOTED", r"/'([^'\\\x00-\x1f]|\\['\\nt])*'/")
        yield "QUOTED"
    constants = found[1].of(schema)
    yield from (json.dumps(name) for value, name in _NAMES.items() if value in constants and type_of(value) in allowed)


def _constants_in(root: Mapping[str, Any]) -> LeastSets[bool | None]:
    """Which of Python's constants parts of `root` allow."""

    def read(part: Mapping[str, Any], of: SetOf[bool | None]) -> frozenset[bool | None]:
        kinds, values, parts, whole = part.get("type"), listed_values(part), choices(part), part.get("allOf")
        found = frozenset(
            value
            for value in _NAMES
            if (not isinstance(kinds, str | list) or type_of(value) in ([kinds] if isinstance(kinds, str) else kinds))
            and (values is None or any(value is one for one in values))
        )
        if parts:
            found &= frozenset().union(*map(of, parts))
        return found.intersection(*map(of, whole)) if isinstance(whole, list) else found

    return LeastSets(root, read, frozenset(_NAMES))


# -- reading it

_KEY_END = re.compile("=")
_QUOTES = ('"', "'")
_STRUCTURE = re.compile(r"""["'()\[\]{},]""")
_STRING_STRUCTURE = {quote: re.compile(rf"[\\{quote}]") for quote in _QUOTES}


class PythonReader:
    """Reads the arguments of one call, behind its first bracket and up to its last, and says them as a JSON object."""

    def __init__(self, reader: IncrementalReader, names: Collection[str] = ()) -> None:
        """`names` are those of the arguments that the tool has."""
        self._reader = reader
        odd = [*odd_names(names, "="), *(name for name in names if name.startswith((",", ")")))]
        self._odd_names = {f"{name}=": name for name in odd}

    def read(self, say: Say) -> Reading[None]:
        """Say the arguments. Where the text ends inside, or the form is broken, the JSON is not finished either."""
        reader, separator = self._reader, ""
        say("{")
        while True:
            odd_name = yield from reader.one_of(self._odd_names)
            if not odd_name:
                yield from reader.space()
                character = yield from reader.peek()
                if character == ")":
                    say("}")
                    return
                if not character:
                    return
                if character == ",":
                    reader.take(1)
                    yield from reader.expect(" ")
                    continue
            try:
                key = self._odd_names[odd_name] if odd_name else (yield from self._name())
                reader.unsaid.clear()
                say(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
                value = yield from self._value()
            except Unexpected:
                return
            say(_as_json(value.strip()))
            separator = ", "

    def _name(self) -> Reading[str]:
        name = yield from self._reader.before(_KEY_END, NAME_CHARACTERS)
        return name.strip()

    def _value(self) -> Reading[str]:
        """The text of a value, up to the comma or bracket behind it."""
        reader, parts, depth, quote = self._reader, [""], 0, ""
        while True:
            if not (yield from reader.peek()):
                raise Unexpected
            found = (_STRING_STRUCTURE[quote] if quote else _STRUCTURE).search(reader.ahead)
            parts.append(reader.take(found.start() if found else len(reader.ahead)))
            reader.unsaid.clear()
            if not found:
                continue
            character = found[0]
            if character == "\\":
                while len(reader.ahead) < 2 and not reader.is_last:
                    yield
                parts.append(reader.take(2))
                continue
            if not quote and not depth and character in ",)]}":
                return "".join(parts)
            parts.append(reader.take(1))
            if quote:
                quote = "" if character == quote else quote
            elif character in _QUOTES:
                quote = character
            else:
                depth += {"(": 1, "[": 1, "{": 1, ",": 0}.get(character, -1)


def _as_json(text: str) -> str:
    """JSON as it is, or what Python means by the text; a string where it is neither."""
    try:
        json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError):
        pass
    else:
        return text
    if text.count('"') + text.count("'") > _MAX_PARTS or len(_STRING.sub("", text)) > _MAX_PARTS:
        return as_json(text, TEXT)  # Python's parser would hold everybody up
    try:
        with warnings.catch_warnings():  # of escapes that Python does not know, and leaves as they are
            warnings.simplefilter("ignore")
            meant = ast.literal_eval(_PYTHON_NAMES.sub(_python_name, text))
        return json.dumps(meant, ensure_ascii=False, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return as_json(text, TEXT)


_MAX_PARTS = 16_384  # quotes, or characters outside of strings: 20 ms
# Outside of strings, JSON's names of constants become Python's.
# A text without an end reaches to the end of all.
_STRING = re.compile(r"""("(?:[^"\\]|\\.)*+(?:"|\\?\Z)|'(?:[^'\\]|\\.)*+(?:'|\\?\Z))""", re.DOTALL)
_PYTHON_NAMES = re.compile(rf"{_STRING.pattern}|\b(true|false|null)\b", re.DOTALL)
_OF_PYTHON = {"true": "True", "false": "False", "null": "None"}


def _python_name(found: re.Match[str]) -> str:
    return found[1] or _OF_PYTHON[found[2]]
