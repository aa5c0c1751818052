"""Parts of a schema as schemas of their own."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from shimmy.engine.constrain.json_schema import STYLE, standalone

ROOT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "tree": {"$ref": "#/$defs/tree"},
        "again": {"type": "array", "items": {"$ref": "#"}},
        "same": {"$ref": "#/properties/n", "maximum": 9},
        "odd": {"$ref": "#/$defs/o~1d%20d"},
        "named": {"items": {"$ref": "#anchor"}},
        "plain": {"const": {"$ref": "#/$defs/tree"}},
    },
    "$defs": {
        "tree": {"type": "object", "properties": {"$ref": {"$ref": "#/$defs/tree"}, "n": {"$ref": "#/properties/n"}}},
        "o/d d": {"enum": [1]},
        "unused": {"$anchor": "anchor", "type": "boolean"},
    },
    "x-guidance": {**STYLE, "coerce_one_of": True},
}


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("n", 1, "1"), ("tree", {"$ref": {"$ref": {}, "n": 1}}, {"$ref": {"$ref": 1}}),
        ("again", [{"n": 1}], [{"n": ""}]), ("same", 9, 10), ("odd", 1, 2), ("named", [True], [1]),
        ("plain", {"$ref": "#/$defs/tree"}, {}),
    ],
)  # fmt: skip
def test_a_part_by_itself_allows_what_it_allows_in_its_place(name: str, right: object, wrong: object) -> None:
    before = json.dumps(ROOT)
    part = standalone(ROOT["properties"][name], ROOT)
    assert json.dumps(ROOT) == before
    assert part["x-guidance"] == ROOT["x-guidance"]
    assert Draft202012Validator(part).is_valid(right)
    assert not Draft202012Validator(part).is_valid(wrong)


def test_a_part_has_no_definitions_that_it_does_not_need() -> None:
    assert standalone(ROOT["properties"]["n"], ROOT).keys() == {"type", "x-guidance"}
    assert standalone(ROOT["properties"]["tree"], ROOT)["$defs"].keys() == {"d0", "d1"}
    assert len(standalone(ROOT["properties"]["again"], ROOT)["$defs"]) == 5
