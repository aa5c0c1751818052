"""Every way to say what a reply has to look like."""

from dataclasses import replace

import pytest

from shimmy.api.request_fields.field_kinds import Record
from shimmy.api.request_fields.grammar import ANY_OBJECT, GRAMMAR_FIELDS, read_grammar
from shimmy.errors import BadRequest
from shimmy.messages.request import Grammar, GrammarKind

SCHEMA = {"type": "object", "properties": {"é": {"const": 1}}}
READ_SCHEMA = Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object","properties":{"é":{"const":1}}}')
REGEX = Grammar(GrammarKind.REGEX, "[a-z]+")
CHOICE = Grammar(GrammarKind.CHOICE, '["a", "b"]')
GBNF = Grammar(GrammarKind.GBNF, 'root ::= "a"')
LARK = Grammar(GrammarKind.LARK, 'start: "a" | "b"')
BODY = Record(GRAMMAR_FIELDS)


def read(**fields: object) -> Grammar | None:
    return read_grammar(BODY.read(fields))


@pytest.mark.parametrize(
    ("field", "value", "grammar"),
    [
        ("response_format", {"type": "text"}, None),
        ("response_format", {"type": "json_object"}, ANY_OBJECT),
        ("response_format", {"type": "json_object", "schema": SCHEMA}, READ_SCHEMA),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
            READ_SCHEMA,
        ),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}, ANY_OBJECT),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "n", "strict": False, "schema": SCHEMA}},
            replace(READ_SCHEMA, strict=False),
        ),
        ("json_schema", {"description": "anything"}, Grammar(GrammarKind.JSON_SCHEMA, '{"description":"anything"}')),
        ("grammar", LARK.text, LARK),
        ("guided_grammar", LARK.text, LARK),
        ("structured_outputs", {"grammar": LARK.text}, LARK),
        ("grammar", 'start: "::="', Grammar(GrammarKind.LARK, 'start: "::="')),
        ("grammar", '# one\nroot\t::= "a: b"', Grammar(GrammarKind.GBNF, '# one\nroot\t::= "a: b"')),
        ("json_schema", SCHEMA, READ_SCHEMA),
        ("json_schema", {}, ANY_OBJECT),
        ("grammar", GBNF.text, GBNF),
        ("grammar", "", None),
        ("regex", REGEX.text, REGEX),
        ("choice", ["a", "b"], CHOICE),
        ("guided_json", SCHEMA, READ_SCHEMA),
        ("guided_json", READ_SCHEMA.text, READ_SCHEMA),
        ("guided_regex", REGEX.text, REGEX),
        ("guided_choice", ["a", "b"], CHOICE),
        ("guided_grammar", GBNF.text, GBNF),
        ("structured_outputs", {}, None),
        ("structured_outputs", {"json": SCHEMA}, READ_SCHEMA),
        ("structured_outputs", {"json": READ_SCHEMA.text, "regex": None, "json_object": False}, READ_SCHEMA),
        ("structured_outputs", {"regex": REGEX.text}, REGEX),
        ("structured_outputs", {"choice": ["a", "b"]}, CHOICE),
        ("structured_outputs", {"grammar": GBNF.text}, GBNF),
        ("structured_outputs", {"json_object": True}, ANY_OBJECT),
    ],
)
def test_a_grammar_has_many_names(field: str, value: object, grammar: Grammar | None) -> None:
    assert read(**{field: value}) == grammar


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"response_format": "json"}, "response_format: expected an object, got a string"),
        ({"response_format": {}}, "response_format.type: expected a string, got nothing"),
        (
            {"response_format": {"type": "xml"}},
            'response_format.type: expected one of text, json_object, json_schema, got "xml"',
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema: expected an object with a name and a schema, got nothing",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
            (
                "response_format.json_schema.schema: expected a JSON Schema object, got nothing; the one in "
                "response_format.json_schema belongs there"
            ),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True}}},
            "response_format.json_schema.schema: expected a JSON Schema object, got nothing",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": None}}},
            "response_format.json_schema.schema: expected a JSON Schema object, got nothing",
        ),
        (
            {"response_format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
            (
                "response_format.json_schema: expected an object with a name and a schema, got a schema in "
                "response_format.schema, which belongs into response_format.json_schema.schema"
            ),
        ),
        (
            {"response_format": SCHEMA},
            (
                'response_format: expected {"type": "json_schema", …} with the schema in '
                "response_format.json_schema.schema, got a schema"
            ),
        ),
        (
            {"response_format": {"properties": {}}},
            (
                'response_format: expected {"type": "json_schema", …} with the schema in '
                "response_format.json_schema.schema, got a schema"
            ),
        ),
        (
            {"response_format": {"type": "json_object", "json_schema": {"schema": SCHEMA}}},
            'response_format.type: expected "json_schema" where there is a json_schema, got "json_object"',
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": "{}"}},
            "response_format.json_schema: expected an object, got a string",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"name": "n", "schema": SCHEMA}}}},
            "response_format.json_schema.schema: expected a JSON Schema object, got an object that has one in `schema`",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"city": {"type": "string"}}}}},
            (
                "response_format.json_schema.schema: expected a JSON Schema object, got an object without any of its "
                "keywords"
            ),
        ),
        (
            {"guided_json": {"name": "n", "json_schema": {"schema": SCHEMA}}},
            "guided_json: expected a JSON Schema object, got an object that has one in `json_schema`",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": True}}},
            "response_format.json_schema.schema: expected a JSON Schema object, got a boolean",
        ),
        ({"json_schema": "{}"}, "json_schema: expected a JSON Schema object, got a string"),
        ({"guided_json": "[]"}, "guided_json: expected a JSON Schema object, got an array"),
        (
            {"guided_json": "{"},
            "guided_json: expected a JSON Schema object, or the JSON text of one, got text that is not JSON",
        ),
        (
            {"guided_json": "[" * 200_000},
            "guided_json: expected a JSON Schema object, or the JSON text of one, got text that is not JSON",
        ),
        ({"grammar": ["a"]}, "grammar: expected a string, got an array"),
        ({"choice": []}, "choice: expected an array of strings, got an empty one"),
        ({"choice": ["a", ""]}, "choice[1]: expected a string that is not empty, got an empty one"),
        ({"choice": ["a"] * 1025}, "choice: expected at most 1024 strings, got 1025"),
        (
            {"structured_outputs": {"choice": "a"}},
            "structured_outputs.choice: expected an array of strings, got a string",
        ),
        (
            {"structured_outputs": {"regex": "a", "json": {}}},
            "structured_outputs.regex: cannot be combined with structured_outputs.json; leave one of them out",
        ),
        (
            {"grammar": "a", "response_format": {"type": "json_object"}},
            "grammar: cannot be combined with response_format; leave one of them out",
        ),
    ],
)
def test_a_bad_grammar_is_refused_by_its_path(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    assert caught.value.message == complaint
    assert caught.value.param == complaint.partition(":")[0]


def test_a_format_of_text_goes_with_a_grammar() -> None:
    assert read(grammar=GBNF.text, response_format={"type": "text"}) == GBNF
