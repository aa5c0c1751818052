"""Schemas in plainer words: a `type` beside choices, which families' grammars follow where nothing is beside them."""

from copy import deepcopy
from typing import Any

import pytest

from shimmy.engine.constrain.simpler_schema import simplify


def simplified(part: dict[str, Any]) -> Any:
    schema = {"type": "object", "properties": {"a": part}}
    simplify(schema)
    return schema["properties"]["a"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (
            {"type": "string", "title": "Mode", "oneOf": [{"const": "a", "title": "A"}, {"pattern": "^b"}, False]},
            {
                "title": "Mode",
                "oneOf": [
                    {"const": "a", "title": "A", "type": "string"},
                    {"pattern": "^b", "type": "string"},
                    False,
                ],
            },
        ),
        (
            {"type": ["number", "string"], "anyOf": [{"type": "integer"}, {"type": ["null", "string"]}, True]},
            {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": ["number", "string"]}]},
        ),
        ({"type": "integer", "anyOf": [{"type": "number", "minimum": 1}, {"type": "string"}]},
         {"anyOf": [{"type": "integer", "minimum": 1}, False]}),
    ],
)  # fmt: skip
def test_a_type_beside_choices_is_said_in_each(part: dict[str, Any], expected: dict[str, Any]) -> None:
    assert simplified(part) == expected


@pytest.mark.parametrize(
    "part",
    [
        {"type": "string", "minLength": 2, "anyOf": [{"const": "a"}]},
        {"type": "string", "anyOf": [{"$ref": "#/$defs/a"}]},
        {"type": "string", "anyOf": [{"anyOf": [{"const": "a"}]}]},
        {"type": "string", "anyOf": [{"type": "null"}]},
        {"type": "string", "anyOf": [], "description": "x"},
        {"type": [1], "anyOf": [{"const": "a"}]},
        {"type": "string", "anyOf": {"const": "a"}},
    ],
    ids=str,
)
def test_other_choices_are_left_as_they_are(part: dict[str, Any]) -> None:
    assert simplified({**part}) == part


@pytest.mark.parametrize("word", ["anyOf", "oneOf"])
@pytest.mark.parametrize("name", [{}, {"$anchor": "long"}])
def test_a_choice_that_is_used_elsewhere_gets_no_type(word: str, name: dict[str, Any]) -> None:
    reference = "#long" if name else f"#/properties/x/{word}/0"
    choices = {"type": "string", word: [{"minLength": 2, **name}, {"enum": ["a"]}]}
    schema: dict[str, Any] = {"type": "object", "properties": {"x": choices, "y": {"$ref": reference}}}
    before = deepcopy(schema)
    simplify(schema)
    assert schema == before
