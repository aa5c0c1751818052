"""Schemas that are kept as far as they can be enforced, on the real llguidance; strict ones are refused by place."""

import json
import os
from contextlib import suppress
from pathlib import Path
from time import perf_counter, sleep
from typing import Any
from unittest.mock import Mock

import llguidance
import pytest

from shimmy.engine.constrain import enforceable_schema
from shimmy.engine.constrain.enforceable_schema import enforceable
from shimmy.engine.constrain.guides import Grammars
from shimmy.engine.constrain.json_schema import prepared
from shimmy.engine.constrain.simpler_schema import parts
from shimmy.errors import BadRequest
from tools.steps import ROOT

SCHEMAS = Path(os.environ.get("SHIMMY_SHARED_DATA", ROOT.parent / "shared" / "data")) / "json_schemas.jsonl"
TOKENIZER = llguidance.LLTokenizer("byte")
GRAMMARS = Grammars(Mock())


def field(schema: object) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}


def loosened(schema: object) -> tuple[dict[str, Any], tuple[str, ...]]:
    return enforceable(json.dumps(schema), GRAMMARS.takes)


def takes(schema: dict[str, Any], value: object) -> bool:
    matcher = llguidance.LLMatcher(TOKENIZER, json.dumps({"grammars": [{"json_schema": schema}]}), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    text = json.dumps(value, ensure_ascii=False).encode()
    return matcher.try_consume_tokens(list(text)) == len(text) and bool(matcher.is_accepting() or matcher.is_stopped())


STRING = {"type": "string"}
# A schema of the field `a`; what is lost; values that it takes, and values that are refused all the same.
CASES: list[tuple[str, object, list[str], list[object], list[object]]] = [
    # What constrains nothing.
    ("zod record", {"type": "object", "propertyNames": STRING, "additionalProperties": STRING}, [], [{"x": "y"}], [1]),
    ("zod never", {"type": "array", "items": {"not": {}}}, [], [[]], [[1]]),
    ("not false", {"type": "string", "not": False}, [], ["x"], [1]),
    ("annotated never", {"anyOf": [{"not": {}, "description": "x"}, STRING]}, [], ["x"], [1]),
    ("format json", {"type": "string", "format": "json"}, [], ["{}"], [1]),
    ("format color", {"type": "string", "format": "color"}, [], ["#fff"], [1]),
    ("format regex", {"type": "string", "format": "regex"}, [], ["a+"], [1]),
    ("format cuid", {"type": "string", "format": "cuid", "pattern": "^[cC][^\\s-]{8,}$"}, [], ["c12345678"], ["x"]),
    ("format int32", {"type": "integer", "format": "int32"}, [], [3], ["3"]),
    ("format jwt", {"type": "string", "format": "jwt"}, [], ["a.b.c"], [1]),
    ("format uri-reference", {"type": "string", "format": "uri-reference"}, [], ["/a"], [1]),
    ("unique false", {"type": "array", "uniqueItems": False, "items": STRING}, [], [["a", "a"]], [[1]]),
    ("unique of one", {"type": "array", "uniqueItems": True, "maxItems": 1}, [], [[1]], [[1, 2]]),
    ("null keywords", {"type": "string", "enum": None, "pattern": None}, [], ["x"], [1]),
    ("null default", {"type": ["string", "null"], "default": None}, [], [None, "x"], [1]),
    ("unevaluated closed", {"type": "object", "properties": {"b": {}}, "unevaluatedProperties": False}, [],
     [{"b": 1}], [{"c": 1}]),
    ("unevaluated anything", {"type": "object", "unevaluatedProperties": {}}, [], [{"c": 1}], [1]),
    ("lone then", {"type": "string", "then": {"minLength": 3}}, [], ["x"], [1]),
    ("if of nothing", {"type": "string", "if": {"minLength": 3}, "then": True}, [], ["x"], [1]),
    ("no dependencies", {"type": "object", "dependentRequired": {}, "dependencies": {"b": []}}, [], [{}], [1]),
    ("other type", {"type": "string", "uniqueItems": True, "minProperties": 3, "contains": {}}, [], ["x"], [1]),
    ("dynamic anchor", {"$dynamicAnchor": "n", "type": "object", "properties": {"b": {"$dynamicRef": "#n"}},
                        "additionalProperties": False}, [], [{"b": {"b": {}}}], [{"b": {"c": 1}}]),
    ("foreign $schema", {"$schema": "https://example.org/dialect", "type": "string"}, [], ["x"], [1]),
    # What cannot be enforced, and all the rest of the same schema, which is.
    ("pydantic set", {"type": "array", "uniqueItems": True, "items": {"type": "integer"}}, ["`uniqueItems`"],
     [[1, 1]], [["x"], 1]),
    ("names", {"type": "object", "propertyNames": {"pattern": "^x"}, "additionalProperties": STRING},
     ["`propertyNames`"], [{"y": "z"}], [{"y": 1}]),
    ("not", {"type": "string", "not": {"const": "x"}, "maxLength": 3}, ["`not`"], ["x"], ["long"]),
    ("if then else", {"type": "object", "properties": {"b": {"type": "integer"}}, "if": {"required": ["b"]},
                      "then": {"required": ["c"]}, "else": {"required": ["d"]}}, ["`if`", "`then`", "`else`"],
     [{"b": 1}], [{"b": "x"}]),
    ("contains", {"type": "array", "items": STRING, "contains": {"const": "x"}, "minContains": 2},
     ["`contains`", "`minContains`"], [["y"]], [[1]]),
    ("dependent", {"type": "object", "dependentRequired": {"b": ["c"]}, "properties": {"b": STRING},
                   "dependentSchemas": {"b": {"required": ["c"]}}}, ["`dependentRequired`", "`dependentSchemas`"],
     [{"b": "x"}], [{"b": 1}]),
    ("dependencies", {"type": "object", "dependencies": {"b": ["c"]}}, ["`dependencies`"], [{"b": 1}], [1]),
    ("unevaluated", {"type": "object", "allOf": [{"properties": {"b": STRING}}], "unevaluatedProperties": False},
     ["`unevaluatedProperties`"], [{"b": "x"}], [{"b": 1}]),
    ("look ahead", {"type": "string", "pattern": "^(?!\\.)(?=.*x)[a-z.]+$"}, ["`pattern`"], [".a"], ["A"]),
    ("look behind", {"type": "string", "pattern": "^[a-z]+(?<!x)$"}, ["`pattern`"], ["x"], ["A"]),
    ("zod email", {"type": "string", "pattern": "^(?!\\.)(?!.*\\.\\.)([A-Za-z0-9_'+\\-\\.]*)[A-Za-z0-9_+-]@"
                                                "([A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$"}, ["`pattern`"],
     ["a@b.cd"], ["ab"]),
    ("word border", {"type": "string", "pattern": "^a\\b c$"}, ["`pattern`"], ["a c"], ["b"]),
    ("repeated group", {"type": "string", "pattern": "^(a)\\1$", "maxLength": 4}, ["`pattern`"], ["bbbb"], ["bbbbb"]),
    ("broken pattern", {"type": "string", "pattern": "[a-", "maxLength": 2}, ["`pattern`"], ["zz"], ["zzz"]),
    ("one of two", {"oneOf": [STRING, {"type": "string", "enum": ["x"]}, {"type": "integer"}]}, ["`oneOf`"],
     ["x", "y", 1], [None]),
    ("one of numbers", {"oneOf": [{"type": "number"}, {"type": "integer"}]}, ["`oneOf`"], [1, 1.5], ["x"]),
    ("other document", {"$ref": "https://example.com/x.json", "description": "x"}, ["`$ref`"], [1, "x"], []),
    ("relative document", {"anyOf": [{"$ref": "other.json#/x"}, STRING]}, ["`$ref`"], [1], []),
    ("reference to nothing", {"type": "array", "items": {"$ref": "#/$defs/gone"}}, ["`$ref`"], [[1, "x"]], [1]),
    ("itself", {"$ref": "#/properties/a"}, ["`$ref`"], [1], []),
    ("several properties", {"type": "object", "minProperties": 3, "additionalProperties": STRING},
     ["`minProperties`"], [{}], [{"b": 1}]),
    ("names ahead", {"type": "object", "patternProperties": {"^(?!x)": STRING, "^n": {"type": "integer"}},
                     "additionalProperties": False}, ["`^(?!x)`"], [{"b": 1}, {"n": 1}], [{"n": "x"}]),
    ("unknown type", {"type": "any", "maxLength": 2}, ["`type`"], [1, "xx"], ["xxx"]),
    ("required of a field", {"type": "object", "required": True, "properties": {"b": STRING}}, ["`required`"],
     [{}], [{"b": 1}]),
    ("properties in a list", {"type": "object", "properties": [{"name": "b"}]}, ["`properties`"], [{"b": 1}], [1]),
    ("child in a text", {"type": "object", "properties": {"b": "string", "c": STRING}}, ["`b`"], [{"b": 1}],
     [{"c": 1}]),
    ("two broken words", {"type": "string", "minLength": -1, "pattern": "(", "maxLength": 1},
     ["`minLength`", "`pattern`"], ["x", ""], ["xx"]),
    ("contradiction", {"type": "object", "properties": {"b": {"allOf": [{"type": "string"}, {"type": "integer"}]},
                       "c": STRING}, "required": ["b"]}, ["`allOf`"], [{"b": 1}], [{"c": 1}]),
    ("impossible need", {"type": "object", "properties": {"c": STRING}, "required": ["b"],
                         "additionalProperties": False}, ["`required`"], [{}], [{"c": 1}]),
    ("bounds", {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, ["`exclusiveMinimum`"], [0, 0.5], [1]),
    ("minimum above maximum", {"type": "integer", "minimum": 5, "maximum": 1}, ["`minimum`"], [0], ["x", 5]),
    ("values of another type", {"type": "string", "enum": [1, 2]}, ["`enum`"], ["x"], [3]),
    # Large and recursive ones, which are taken as they are.
    ("huge length", {"type": "string", "maxLength": 10**9}, [], ["x"], [1]),
    ("a tree", {"$ref": "#/$defs/node"}, [], [{"next": {"next": {}}}], [{"next": 1}]),
    ("pydantic union", {"anyOf": [STRING, {"type": "null"}], "default": None, "title": "A"}, [], ["x", None], [1]),
    ("enum of one", {"const": "x", "title": "Kind"}, [], ["x"], ["y"]),
    ("tuple", {"type": "array", "prefixItems": [STRING, {"type": "integer"}], "items": False}, [], [["x", 1]], [[1]]),
    ("draft 4 bounds", {"type": "integer", "minimum": 5, "exclusiveMinimum": True}, [], [6], ["x"]),
]  # fmt: skip
DEFS = {"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}}


@pytest.mark.parametrize(
    ("schema", "lost", "good", "bad"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_can_be_enforced_of_a_schema_is(
    schema: object, lost: list[str], good: list[object], bad: list[object]
) -> None:
    kept, told = loosened(field(schema) | DEFS)
    for words in lost:
        assert any(words in each and "`#/properties/a" in each for each in told), told
    assert len(told) == len(lost)
    assert all(takes(kept, {"a": value}) for value in good)
    assert not any(takes(kept, {"a": value}) for value in bad)
    assert not takes(kept, {})
    assert not takes(kept, {"a": good[0], "b": 1})


@pytest.mark.parametrize(("schema", "lost"), [case[1:3] for case in CASES], ids=[case[0] for case in CASES])
def test_a_strict_schema_is_refused_for_what_would_be_lost_and_by_its_place(schema: object, lost: list[str]) -> None:
    text = json.dumps(field(schema) | DEFS)
    if not lost:
        assert GRAMMARS.schema(text, strict=True) == (GRAMMARS.schema(text, strict=False)[0], ())
        return
    with pytest.raises(BadRequest, match="`#/properties/a") as caught:
        GRAMMARS.schema(text, strict=True)
    assert any(words in caught.value.message for words in lost)
    assert len(caught.value.message) < 300


@pytest.mark.skipif(not SCHEMAS.exists(), reason=f"the schemas are not at `{SCHEMAS}`")
def test_no_schema_of_many_is_refused_and_all_keep_their_valid_instances() -> None:
    n_lost = 0
    for case in map(json.loads, SCHEMAS.read_text().splitlines()):
        kept, lost = loosened(case["schema"])
        assert GRAMMARS.takes(kept), case["name"]
        n_lost += bool(lost)
        assert len(lost) < 4
    assert n_lost == 10  # `oneOf`, `not` and `dependencies`


def test_a_schema_that_is_too_deep_is_kept_down_to_where_it_can_be_read() -> None:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(120):
        deep = {"type": "object", "properties": {"a": deep}}
    kept, lost = loosened(deep | {"properties": {**deep["properties"], "b": STRING}})
    assert GRAMMARS.takes(kept)
    assert len(lost) == 1
    assert "below" in lost[0]
    assert takes(kept, {"a": {"a": {}}, "b": "x"})
    assert not takes(kept, {"a": {"a": 1}})
    assert not takes(kept, {"b": 1})


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 3000 + "1" + "}" * 3000,
        json.dumps({"enum": ["x" * 300_000]}),
        json.dumps({"type": "object", "properties": {f"p{i}": {"type": f"t{i}"} for i in range(1500)}}),
        json.dumps({"type": "object", "properties": {f"p{i}": {} for i in range(3000)}, "required": ["p1"]}),
        json.dumps({"allOf": [{"anyOf": [{"required": [f"{k}{i}"]} for k in "ab"]} for i in range(30)]}),
        json.dumps({"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": None}),
        json.dumps({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        "true",
    ],
    ids=["deep", "long", "broken", "wide", "branching", "no definitions", "in a ring", "true"],
)  # fmt: skip
def test_what_is_out_of_all_bounds_leaves_an_answer(text: str) -> None:
    kept, lost = enforceable(text, GRAMMARS.takes)
    assert GRAMMARS.takes(kept)
    assert lost or text == "true"


N = 8_000
LARGE = {
    "references in a row": {"$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(N)} | {f"a{N}": {}}},
    "references to nothing": {"anyOf": [{"$ref": "x"} for _ in range(N)]},
    "bounds": {"anyOf": [{"exclusiveMinimum": 0} for _ in range(N)] + [{"maximum": 0.5}]},
    "dependencies": {
        "required": [f"a{i}" for i in range(N)],
        "dependentRequired": {f"a{i}": [f"a{i}"] for i in range(N)},
    },
    "names beside names": {"required": [*map(str, range(3 * N))], "dependencies": {"x": [*map(str, range(3 * N))]}},
}


@pytest.mark.parametrize("schema", LARGE.values(), ids=LARGE)
def test_large_schemas_take_no_time_that_grows_with_their_square(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    for look in (lambda: enforceable(text, lambda _: True), lambda: prepared(text)):
        started_s = perf_counter()
        with suppress(BadRequest):
            look()
        assert perf_counter() - started_s < 5, "a hundred times as long as it takes"


@pytest.mark.parametrize("text", ["[]", "1", "{", '{"minimum": NaN}', '{"minimum": 1e999}'])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        enforceable(text, GRAMMARS.takes)


def test_a_reference_by_the_name_of_the_document_is_one_within_it() -> None:
    schema = {"$id": "https://a/b", "properties": {"x": {"$ref": "https://a/b#/$defs/y"}}, "$defs": {"y": STRING}}
    kept, lost = loosened(schema)
    assert not lost
    assert not takes(kept, {"x": 1})


def test_the_schema_of_a_tool_is_looked_into_once() -> None:
    text = json.dumps(field({"oneOf": [STRING, {"const": "once"}]}))
    asked = Mock(wraps=GRAMMARS.takes)
    grammars = Grammars(Mock())
    grammars.takes = asked  # type: ignore[method-assign]
    first = grammars.schema(text, strict=False)
    n_asked = asked.call_count
    assert grammars.schema(text, strict=False) == first
    assert asked.call_count == n_asked > 0


def test_places_point_into_the_schema() -> None:
    schema = {"properties": {"a/b": {"items": [{"not": {"type": "null"}}]}}}
    _, lost = loosened(schema)
    assert lost == ("`not` at `#/properties/a~1b/items/0`",)
    places = ["#", "#/properties/a~1b", "#/properties/a~1b/items/0", "#/properties/a~1b/items/0/not"]
    assert [place for place, _ in parts(schema)] == places


def test_a_busy_machine_gives_up_mending_no_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforceable_schema, "_MENDING_S", 0.25)
    n_asked = 0

    def takes_late(schema: dict[str, Any]) -> bool:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 2:
            sleep(0.5)  # as if others had the processor
        return GRAMMARS.takes(schema)

    text = json.dumps(field({"type": "integer", "minimum": 3, "maximum": 2}))
    _, lost = enforceable(text, takes_late)
    assert n_asked > 2
    assert lost == enforceable(text, GRAMMARS.takes)[1]
    assert lost != ("the schema, which is at fault in too many places",)


def test_a_schema_that_takes_too_long_to_mend_is_not_enforced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforceable_schema, "_MENDING_S", -1.0)
    kept, lost = loosened(field({"type": "integer", "minimum": 3, "maximum": 2}))
    assert kept.keys() == {"x-guidance"}
    assert lost == ("the schema, which is at fault in too many places",)
