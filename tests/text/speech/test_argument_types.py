"""What an argument without quotes may be, by its schema, and what is made of its text."""

import json
from typing import Any

import pytest

from shimmy.messages.request import Tool
from shimmy.text.speech import argument_types as module
from shimmy.text.speech.argument_types import ANY, TEXT, argument_types, as_json, types_in

DEFINITIONS = {
    "name": {"type": "string"},
    "ring": {"$ref": "#/$defs/ring"},
    "here": {"anyOf": [{"$ref": "#/$defs/there"}, {"type": "null"}]},
    "there": {"anyOf": [{"$ref": "#/$defs/here"}, {"type": "object"}]},
}


def types_of(schema: object) -> frozenset[str]:
    parameters = {"type": "object", "properties": {"a": schema}, "$defs": DEFINITIONS}
    return argument_types([Tool("f", "", json.dumps(parameters))])["f"]["a"]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, TEXT),
        ({"type": ["string", "null"]}, TEXT | {"null"}),
        ({"$ref": "#/$defs/name"}, TEXT),
        ({"$ref": "#/$defs/ring"}, ANY),
        ({"$ref": "#/$defs/here"}, {"null", "object"}),
        ({"$ref": "#/$defs/there"}, {"null", "object"}),
        ({"$ref": "elsewhere.json"}, ANY),
        ({"enum": ["a", "b"]}, TEXT),
        ({"enum": ["a", None]}, TEXT | {"null"}),
        ({"const": 1}, {"integer"}),
        ({"anyOf": [{"$ref": "#/$defs/name"}, {"type": "integer"}]}, TEXT | {"integer"}),
        ({"allOf": [{"type": ["string", "null"]}, {"type": "string"}]}, TEXT),
        ({"minLength": 1}, TEXT),
        ({"items": {}}, {"array"}),
        ({}, ANY),
        (True, ANY),
        ({"type": "unheard-of"}, ANY),
        ({"type": [7, ["null"], {}, "string"]}, TEXT),
        ({"type": [["string"]]}, ANY),
    ],
    ids=lambda each: " ".join(sorted(each)) if isinstance(each, set | frozenset) else str(each),
)  # fmt: skip
def test_the_types_of_an_argument(schema: Any, expected: frozenset[str]) -> None:
    assert types_of(schema) == expected


@pytest.mark.parametrize("first", ["here", "there"])
def test_definitions_that_refer_to_each_other_have_the_same_types_whichever_is_asked_for_first(first: str) -> None:
    found = types_in({"$defs": DEFINITIONS})
    for name in (first, "here", "there"):
        assert found.of({"$ref": f"#/$defs/{name}"}) == {"null", "object"}


@pytest.mark.parametrize(
    "parameters", ["", "[]", "{", "true", '{"properties": []}', '{"properties": {"a": 1}}', "[" * 9999]
)
def test_what_is_no_schema_names_no_argument_or_one_of_any_type(parameters: str) -> None:
    assert set(argument_types([Tool("f", "", parameters)])["f"].values()) <= {ANY}


TWICE = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**TWICE, "d30": {"type": "string"}}}, TEXT),
        ({"properties": {"a": {"anyOf": [{"$ref": "#/properties/a"}] * 2}}}, ANY),
        ({"properties": {"a": {"allOf": [{"$ref": "#/properties/a"}, {"type": "string"}]}}}, TEXT),
    ],
)
def test_each_part_of_a_schema_is_looked_at_once(
    schema: Any, expected: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    n_looks, resolved = 0, module.resolved

    def counted(part: object, root: Any) -> Any:
        nonlocal n_looks
        n_looks += 1
        assert n_looks < 1000
        return resolved(part, root)

    monkeypatch.setattr(module, "resolved", counted)
    assert argument_types([Tool("f", "", json.dumps(schema))])["f"]["a"] == expected


@pytest.mark.parametrize(
    ("text", "allowed", "expected"),
    [
        ("3", TEXT, '"3"'),
        ("3", ANY, "3"),
        (" 3\n", {"integer"}, "3"),
        ("3", {"number"}, "3"),
        ("3.0", {"integer"}, "3.0"),
        ("3.5", {"integer", "string"}, '"3.5"'),
        ("three", {"integer"}, '"three"'),
        ("null", TEXT | {"null"}, "null"),
        ("null", TEXT, '"null"'),
        ("None", {"null", "integer"}, "null"),
        ("None", TEXT | {"null"}, '"None"'),
        ("True", {"boolean"}, "true"),
        ('{"a": [1,\n2]}', {"object"}, '{"a": [1,\n2]}'),
        ('{"a": [1', {"object"}, '"{\\"a\\": [1"'),
        ('"quoted"', ANY, '"\\"quoted\\""'),
        ("NaN", ANY, '"NaN"'),
        ("9" * 5000, ANY, f'"{"9" * 5000}"'),
        ("[" * 5000, ANY, f'"{"[" * 5000}"'),
    ],
)  # fmt: skip
def test_a_text_as_json(text: str, allowed: frozenset[str], expected: str) -> None:
    assert as_json(text, frozenset(allowed)) == expected
