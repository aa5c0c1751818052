"""What a caller may write to say what a reply has to look like, and the Grammar each of these fields becomes.

The names are OpenAI's (`response_format`), llama-server's (`grammar`, `json_schema`), and those of vLLM, old
(`guided_*`) and new (`structured_outputs`, and its fields by themselves). Whether a schema or grammar can be honoured
is the worker's to say, which has the vocabulary. Every kind here reads to None where nothing is asked for.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shimmy.api.body import decode
from shimmy.api.fields import (
    Fields,
    Json,
    JsonObject,
    Kind,
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
from shimmy.messages import Grammar, GrammarKind

N_CHOICES_MAX, N_CHOICE_CHARACTERS_MAX = 1024, 1 << 18  # texts of which a reply has to be one
N_GRAMMAR_CHARACTERS_MAX = 1 << 20
ANY_OBJECT = Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object"}')
SCHEMA = JsonObject("a JSON Schema object")


@dataclass(frozen=True, slots=True)
class Written:
    """A grammar as text; an empty one asks for nothing."""

    kind: GrammarKind

    def read(self, value: object, path: str) -> Grammar | None:
        if len(written := read_text(value, path)) > N_GRAMMAR_CHARACTERS_MAX:
            refuse(path, f"at most {N_GRAMMAR_CHARACTERS_MAX} characters", str(len(written)))
        return Grammar(self.kind, written) if written else None

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
        return schema_grammar(SCHEMA.read(value, path))

    def schema(self) -> Json:
        return {"anyOf": [SCHEMA.schema(), text.schema()]} if self.or_text else SCHEMA.schema()


@dataclass(frozen=True, slots=True)
class Choice:
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
    """OpenAI's `response_format`; a schema beside json_object is llama-server's. A schema is always obeyed."""

    def read(self, value: object, path: str) -> Grammar | None:
        given = _format.read(value, path)
        match given["type"]:
            case "json_object":
                return given.get("schema") or ANY_OBJECT
            case "json_schema" if "json_schema" in given:
                grammar: Grammar | None = given["json_schema"].get("schema")
                return grammar or ANY_OBJECT
            case "json_schema":
                refuse(f"{path}.json_schema", "an object with a name and a schema", "nothing")
        return None

    def schema(self) -> Json:
        return {"anyOf": [_plain_format.schema(), _schema_format.schema()]}


_choices = Texts(at_most=N_CHOICES_MAX, n_characters_max=N_CHOICE_CHARACTERS_MAX)
_STRUCTURED: dict[str, Kind[Grammar | None]] = {
    "json": Schema(or_text=True),
    "regex": Written(GrammarKind.REGEX),
    "choice": Choice(),
    "grammar": Written(GrammarKind.GBNF),
    "json_object": ObjectFlag(),
}
_structured = Record(_STRUCTURED)
# A name, a description, and whether the schema is to be obeyed strictly: they change nothing about what it allows.
SCHEMA_FIELDS: Fields = {"name": Text(), "description": Text(), "schema": Schema(), "strict": boolean}
_format = Record(
    {
        "type": OneOf(("text", "json_object", "json_schema")),
        "schema": Schema(),
        "json_schema": Record(SCHEMA_FIELDS),
    },
    required={"type": "a string"},
)
_plain_format = Record({**_format.fields, "type": OneOf(("text", "json_object"))}, _format.required)
_schema_format = Record(
    {"type": OneOf(("json_schema",)), "json_schema": Record(SCHEMA_FIELDS)},
    {**_format.required, "json_schema": "an object with a name and a schema"},
)
GRAMMAR_FIELDS: Mapping[str, Kind[Grammar | None]] = {
    "response_format": ResponseFormat(),
    "json_schema": Schema(),
    "grammar": Written(GrammarKind.GBNF),
    "regex": Written(GrammarKind.REGEX),
    "choice": Choice(),
    "guided_json": Schema(or_text=True),
    "guided_regex": Written(GrammarKind.REGEX),
    "guided_choice": Choice(),
    "guided_grammar": Written(GrammarKind.GBNF),
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
