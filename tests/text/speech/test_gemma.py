"""Calls of Gemma 4: what is read of them, whole, cut and broken, and what the grammar leaves to the model."""

import json
from typing import Any

import pytest

from shimmy.messages.reply import ReplyFormat
from shimmy.text.reply_parser import ReplyParser
from shimmy.text.speech.gemma import FORM, unenforced, written
from tests.text.speech import whole_and_cut


def read(text: str) -> tuple[list[str], str]:
    calls, content = whole_and_cut.read(text, ReplyFormat(tools=FORM))
    return [arguments for _, arguments in calls], content


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ('a:<|"|>x } , "y"<|"|>', {"a": 'x } , "y"'}),
        ("a:1,b:-2.5e3,c:true", {"a": 1, "b": -2500, "c": True}),
        ("d:null,e:None,f:False", {"d": None, "e": None, "f": False}),
        ('a:{b:[1,{c:<|"|>x<|"|>},[]],d:{}},e:[2]', {"a": {"b": [1, {"c": "x"}, []], "d": {}}, "e": [2]}),
        ('<|"|>a<|"|>: 1 , b : [ 1 , 2 ] ', {"a": 1, "b": [1, 2]}),
        ("a:bare words", {"a": "bare words"}),
        ('<|"|>a:b<|"|>:1,c:{<|"|>}, "d":{<|"|>: 2}', {"a:b": 1, "c": {'}, "d":{': 2}}),
        ('<|"|><|"|>:1,<|"|> <|"|> :2', {"": 1, " ": 2}),
        ('a:<|"|><|"|>', {"a": ""}),
    ],
)  # fmt: skip
def test_arguments(arguments: str, expected: object) -> None:
    calls, content = read(f"<|tool_call>call:f{{{arguments}}}<tool_call|>")
    assert [json.loads(call) for call in calls] == [expected]
    assert not content


def test_several_calls_and_text_before_them() -> None:
    assert read("Wait.<|tool_call>call:f{}<tool_call|><|tool_call>call:f{a:1}<tool_call|>") == (
        ["{}", '{"a": 1}'],
        "Wait.",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        "a:[1}",
        "a:]",
        "a",
        "}",
        "a:{]",
        ":,:",
        "a:" + "[" * 3000,
        "a:[,",
        '<|"|>a',
        '<|"|>a<|"|>b:1',
        '<|"|>a<|"|>',
        '<|"|>' + "a" * 5000,
    ],
)
def test_a_broken_form_ends_somewhere(arguments: str) -> None:
    calls, _ = read(f"<|tool_call>call:f{{{arguments}<tool_call|> more")
    assert len(calls) == 1


def test_what_has_no_name_is_text() -> None:
    assert read("<|tool_call>call:f g{}<tool_call|>") == ([], "<|tool_call>call:f g{}<tool_call|>")


def test_a_string_is_said_as_it_comes() -> None:
    parser = ReplyParser(ReplyFormat(tools=FORM))
    parser.feed('<|tool_call>call:f{a:<|"|>Once ')
    assert parser.feed("upon").calls[-1].arguments == "upon"
    assert not parser.feed('<|"').calls


def test_what_is_written_is_sorted() -> None:
    assert written('{"b": {"d": 1, "C": null}, "a": ["x"]}') == 'a:[<|"|>x<|"|>],b:{C:null,d:1}'
    assert written('{"a:b": 1, "c": {"}": 2, "": 3}}') == '<|"|>a:b<|"|>:1,c:{<|"|><|"|>:3,<|"|>}<|"|>:2}'
    assert written("no JSON") == 'input:<|"|>no JSON<|"|>'


@pytest.mark.parametrize(
    ("schema", "lost"),
    [
        ({"properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]}, []),
        ({"properties": {"a": {"items": {"format": "date"}}}}, ["`format` at `#/properties/a/items`"]),
        ({"properties": {"a": {"type": "string", "pattern": "x$", "enum": ["x"]}}}, []),
        ({"properties": {"a": {"anyOf": [{"uniqueItems": True}]}}}, ["`uniqueItems` at `#/properties/a`"]),
        (
            {"properties": {"a": {"type": "string", "minLength": 1, "anyOf": [{"pattern": "^x"}, {"const": "y"}]}}},
            ["`anyOf` at `#/properties/a`"],
        ),
        ({"properties": {"a": {"oneOf": [{"const": "x"}, {"type": "integer"}]}}}, []),
        ({"properties": {"a:b {}": {}, "": {}, 'a<|"|>b': {}}}, ['the argument `a<|"|>b` at `#`']),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"minProperties": 1}}}, ["`minProperties` at `#`"]),
    ],
)
def test_what_the_grammar_leaves_to_the_model(schema: dict[str, Any], lost: list[str]) -> None:
    assert unenforced(schema) == lost


def test_what_others_refer_to_is_named_once() -> None:
    node = {"properties": {name: {"$ref": "#/$defs/n"} for name in "abcdef"}, "minProperties": 1}
    assert unenforced({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": node}}) == [
        "`minProperties` at `#/$defs/n`"
    ]
