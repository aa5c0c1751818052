"""What a caller may write to say what a reply has to look like, and the Grammar each of these fields becomes.

The names are OpenAI's (`response_format`), llama-server's (`grammar`, `json_schema`), and those of vLLM, old
(`guided_*`) and new (`structured_outputs`, and its fields by themselves). Whether a schema or grammar can be honoured
is the worker's to say, which has the vocabulary. Every kind here reads to None where nothing is asked for.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from shimmy.api.body import decode
from shimmy.api.request_fields.field_kinds import (
    Fields,
    Json,
    JsonObject,
    Kind,
    NotServed,
    OneOf,
    Record,
    Text,
    Texts,
    boolean,
    not_together,
    read_text,
    refuse,
    text,
)
from shimmy.errors import BadRequest
from shimmy.messages.request import Grammar, GrammarKind

_GBNF_RULE = re.compile(r"^[ \t]*[A-Za-z0-9_-]+[ \t]*::=", re.MULTILINE)
_TYPES_OF_VALUES = ("object", "array", "string", "number", "integer", "boolean", "null")
# Of JSON Schema; an object that has none of them is hardly meant for one.
_KEYWORDS = {
    *("type", "enum", "const", "properties", "required", "additionalProperties", "patternProperties", "items"),
    *("prefixItems", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "format", "pattern", "default", "$ref"),
    *("minProperties", "maxProperties", "minItems", "maxItems", "uniqueItems", "contains", "propertyNames"),
    *("minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems"),
    *("title", "description", "examples", "example", "$schema", "$id", "$defs", "definitions", "$comment"),
    *("$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "nullable", "deprecated"),
    *("additionalItems", "readOnly", "writeOnly", "discriminator"),
}
N_CHOICES_MAX, N_CHOICE_CHARACTERS_MAX = 1024, 1 << 18  # texts of which a reply has to be one
N_GRAMMAR_CHARACTERS_MAX = 1 << 20
ANY_OBJECT = Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object"}')
SCHEMA = JsonObject("a JSON Schema object")


def _read_written(value: object, path: str) -> str:
    if len(written := read_text(value, path)) > N_GRAMMAR_CHARACTERS_MAX:
        refuse(path, f"at most {N_GRAMMAR_CHARACTERS_MAX} characters", str(len(written)))
    return written


@dataclass(frozen=True, slots=True)
class Written:
    """A regular expression as text; an empty one asks for nothing."""

    def read(self, value: object, path: str) -> Grammar | None:
        written = _read_written(value, path)
        return Grammar(GrammarKind.REGEX, written) if written else None

    def schema(self) -> Json:
        return text.schema()


@dataclass(frozen=True, slots=True)
class GrammarField:
    """A grammar as text, in GBNF or in Lark; an empty one asks for nothing."""

    def read(self, value: object, path: str) -> Grammar | None:
        written = _read_written(value, path)
        kind = GrammarKind.GBNF if _GBNF_RULE.search(written) else GrammarKind.LARK
        return Grammar(kind, written) if written else None

    def schema(self) -> Json:
        return text.schema()


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON Schema, also as JSON text where `or_text`."""

    or_text: bool = False

    def read(self, value: object, path: str) -> Grammar:
        if self.or_text and isinstance(value, str):
            try:
                value = decode(read_text(value, path).encode())
            except BadRequest:
                refuse(path, "a JSON Schema object, or the JSON text of one", "text that is not JSON")
        written = SCHEMA.read(value, path)
        assert isinstance(value, dict)
        _refuse_what_says_nothing(value, path)
        return schema_grammar(written)

    def schema(self) -> Json:
        has_keyword = {"not": {"propertyNames": {"not": {"enum": sorted(_KEYWORDS)}}}}
        has_no_object = {"additionalProperties": {"not": {"type": "object"}}}
        schema = SCHEMA.schema() | {"anyOf": [has_keyword, has_no_object]}
        return {"anyOf": [schema, text.schema()]} if self.or_text else schema


def _refuse_what_says_nothing(schema: Json, path: str) -> None:
    """Refuse an object without one word of JSON Schema but with objects in it, which would allow anything.

    It is what wraps a schema, or its properties by themselves.
    """
    if schema.keys() & _KEYWORDS or not any(isinstance(value, dict) for value in schema.values()):
        return
    inside = next((name for name in ("schema", "json_schema") if isinstance(schema.get(name), dict)), None)
    got = "an object without any of its keywords" if inside is None else f"an object that has one in `{inside}`"
    refuse(path, "a JSON Schema object", got)


@dataclass(frozen=True, slots=True)
class ChoiceGrammar:
    """Texts, one of which the reply has to be."""

    def read(self, value: object, path: str) -> Grammar:
        texts = _choices.read(value, path) or refuse(path, "an array of strings", "an empty one")
        return Grammar(GrammarKind.CHOICE, json.dumps(texts))

    def schema(self) -> Json:
        return _choices.schema() | {"minItems": 1}


@dataclass(frozen=True, slots=True)
class ObjectFlag:
    """True: the reply has to be a JSON object."""

    def read(self, value: object, path: str) -> Grammar | None:
        return ANY_OBJECT if boolean.read(value, path) else None

    def schema(self) -> Json:
        return boolean.schema()


@dataclass(frozen=True, slots=True)
class StructuredOutputs:
    """vLLM's object with one of the fields below."""

    def read(self, value: object, path: str) -> Grammar | None:
        given = _structured.read(value, path)
        return _only((f"{path}.{name}", given.get(name)) for name in _STRUCTURED)

    def schema(self) -> Json:
        return _structured.schema()


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """OpenAI's `response_format`; a schema beside json_object is llama-server's."""

    def read(self, value: object, path: str) -> Grammar | None:
        if isinstance(value, dict):
            _refuse_misplaced(value, path)
        given = _format.read(value, path)
        match given["type"]:
            case "json_object":
                return given.get("schema") or ANY_OBJECT
            case "json_schema":
                return with_strictness(given["json_schema"])
        return None

    def schema(self) -> Json:
        return {"anyOf": [_plain_format.schema(), _schema_format.schema()]}


def _refuse_misplaced(value: Json, path: str) -> None:
    """Refuse a schema that does not stand where it is looked for: the reply would not be held to it."""
    kind, wrapped = value.get("type"), value.get("json_schema")
    place = f"{path}.json_schema.schema"
    if kind in _TYPES_OF_VALUES or ("type" not in value and value.keys() & _KEYWORDS):
        refuse(path, f'{{"type": "json_schema", …}} with the schema in {place}', "a schema")
    if kind == "json_schema" and wrapped is None:
        where = next((f"{path}.{name}" for name in ("schema", "parameters") if isinstance(value.get(name), dict)), None)
        got = "nothing" if where is None else f"a schema in {where}, which belongs into {place}"
        refuse(f"{path}.json_schema", "an object with a name and a schema", got)
    if kind == "json_schema" and isinstance(wrapped, dict) and wrapped.get("schema") is None:
        is_schema = wrapped.keys() & (_KEYWORDS - {"description", "title"})
        refuse(place, "a JSON Schema object", f"nothing; the one in {path}.json_schema belongs there" if is_schema else
               "nothing")  # fmt: skip
    if kind in ("text", "json_object") and wrapped is not None:
        refuse(f"{path}.type", '"json_schema" where there is a json_schema', f'"{kind}"')


def with_strictness(given: Mapping[str, Any]) -> Grammar:
    """The schema of SCHEMA_FIELDS, which a caller who says `strict: false` does not insist on as a whole."""
    grammar: Grammar = given["schema"]
    return replace(grammar, strict=False) if given.get("strict") is False else grammar


_choices = Texts(at_most=N_CHOICES_MAX, n_characters_max=N_CHOICE_CHARACTERS_MAX)
_STRUCTURED: dict[str, Kind[Grammar | None]] = {
    "json": Schema(or_text=True),
    "regex": Written(),
    "choice": ChoiceGrammar(),
    "grammar": GrammarField(),
    "json_object": ObjectFlag(),
}
_structured = Record(_STRUCTURED)
SCHEMA_FIELDS: Fields = {"name": Text(), "description": Text(), "schema": Schema(), "strict": boolean}
_format = Record(
    {
        "type": OneOf(("text", "json_object", "json_schema")),
        "schema": Schema(),
        "json_schema": Record(SCHEMA_FIELDS),
    },
    required={"type": "a string"},
)
_plain_format = Record(
    {"type": OneOf(("text", "json_object")), "schema": Schema(), "json_schema": NotServed()}, _format.required
)
_schema_format = Record(
    {"type": OneOf(("json_schema",)), "json_schema": Record(SCHEMA_FIELDS, {"schema": "a JSON Schema object"})},
    {**_format.required, "json_schema": "an object with a name and a schema"},
)
GRAMMAR_FIELDS: Mapping[str, Kind[Grammar | None]] = {
    "response_format": ResponseFormat(),
    "json_schema": Schema(),
    "grammar": GrammarField(),
    "regex": Written(),
    "choice": ChoiceGrammar(),
    "guided_json": Schema(or_text=True),
    "guided_regex": Written(),
    "guided_choice": ChoiceGrammar(),
    "guided_grammar": GrammarField(),
    "structured_outputs": StructuredOutputs(),
}


def schema_grammar(schema: str) -> Grammar:
    """The grammar of a JSON Schema; an empty one stands for any object, as in llama-server."""
    return ANY_OBJECT if schema == "{}" else Grammar(GrammarKind.JSON_SCHEMA, schema)


def read_grammar(given: Mapping[str, Any]) -> Grammar | None:
    """The one grammar among the fields that were read; raises BadRequest where there are two."""
    return _only((name, given.get(name)) for name in GRAMMAR_FIELDS if name in given)


def constraining(given: Mapping[str, Any]) -> str | None:
    """The field that says most about what a reply may be."""
    names = (name for name in (*GRAMMAR_FIELDS, "tools", "functions") if given.get(name))
    return next(names, None)


def _only(found: Iterable[tuple[str, Grammar | None]]) -> Grammar | None:
    asked = [(name, grammar) for name, grammar in found if grammar is not None]
    if len(asked) > 1:
        not_together(asked[1][0], asked[0][0])
    return asked[0][1] if asked else None
