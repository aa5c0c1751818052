"""Arguments as bare texts between marks: what a grammar leaves to the model, and what is read of odd calls."""

import json
from time import thread_time
from typing import Any

import pytest

from shimmy.engine.constrain.tool_grammar import tool_lark
from shimmy.messages.reply import ArgumentSyntax, ReplyFormat, ToolFormat
from shimmy.messages.request import Tool, ToolChoice
from shimmy.text.reply_parser import ReplyParser
from shimmy.text.speech.argument_types import argument_types
from shimmy.text.speech.tagged import arguments_rule, unenforced, written
from tests.engine.constrain.walker import Walker
from tests.text.speech import whole_and_cut
from tests.text.speech.test_pythonic import Rules

QWEN = ToolFormat(
    call_start="<tool_call>\n<function=",
    call_end="\n</function>\n</tool_call>",
    between="\n",
    separator=">",
    syntax=ArgumentSyntax.TAGGED,
    key_start="\n<parameter=",
    key_end=">\n",
    value_end="\n</parameter>",
)

TOOL = Tool("f", "", json.dumps({"properties": {"text": {"type": "string"}, "n": {"type": "integer"}, "any": {}}}))


def read(text: str) -> tuple[list[tuple[str, str]], str]:
    return whole_and_cut.read(text, ReplyFormat(tools=QWEN, argument_types=argument_types([TOOL])))


def called(arguments: str) -> str:
    return f"<tool_call>\n<function=f>{arguments}\n</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ("\n<parameter=text>\n3\n</parameter>", {"text": "3"}),
        ("\n<parameter=n>\n3\n</parameter>", {"n": 3}),
        ("\n<parameter=n>\nthree\n</parameter>", {"n": "three"}),
        ("\n<parameter=any>\n[1, 2]\n</parameter>", {"any": [1, 2]}),
        ("\n<parameter=unknown>\n1\n</parameter>", {"unknown": 1}),
        ("<parameter=text>as it is</parameter><parameter=n>4</parameter>", {"text": "as it is", "n": 4}),
        ("\n<parameter=text>\n\n two \n\n</parameter>", {"text": "\n two \n"}),
        ("\n<parameter=text>\n</param\n<parameter=\n</parameter>", {"text": "</param\n<parameter="}),
        ("\n<parameter=text>\n\n</parameter>", {"text": ""}),
    ],
)
def test_arguments(arguments: str, expected: object) -> None:
    calls, content = read(called(arguments))
    assert [(name, json.loads(text)) for name, text in calls] == [("f", expected)]
    assert not content


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n{}",
        "<tool_call>\n<function=f>x",
        "<tool_call>\n<function=f g>\n</function>\n</tool_call>",
        "<tool_call>\n<function=>\n</function>\n</tool_call>",
        "<tool_call> is a tag",
    ],
)
def test_what_is_no_call_is_content(text: str) -> None:
    assert read(text) == ([], text)


def test_a_call_may_lack_its_first_mark_and_its_last() -> None:
    call = "<function=f>\n<parameter=n>\n1\n</parameter>\n</function>"
    assert read(f"Wait. {call}\n</tool_call>") == ([("f", '{"n": 1}')], "Wait. ")
    assert read(call) == ([("f", '{"n": 1}')], "")
    assert read(f"{call}\n{call}") == ([("f", '{"n": 1}')] * 2, "")


def test_text_goes_on_behind_a_call_with_a_broken_end() -> None:
    calls, content = read("<tool_call>\n<function=f>\n<parameter=n>\n1\n</parameter> and so on")
    assert calls == [("f", '{"n": 1}')]
    assert content == " and so on"


def test_a_text_is_said_as_it_comes_and_another_value_once_it_is_whole() -> None:
    parser = ReplyParser(ReplyFormat(tools=QWEN, argument_types=argument_types([TOOL])))
    parser.feed("<tool_call>\n<function=f>\n<parameter=text>\n")
    assert "".join(call.arguments for call in parser.feed("Once upon a time\n").calls) == "Once upon a time"
    assert "".join(call.arguments for call in parser.feed('"x"\n</parameter>').calls) == '\\n\\"x\\""'
    assert parser.feed("\n<parameter=n>\n1").calls[-1].arguments == ', "n": '
    assert not parser.feed("2").calls
    assert parser.feed("\n</parameter>").calls[-1].arguments == "12"


def test_what_a_template_has_no_place_for_is_written() -> None:
    assert written('{"a": "x", "b": [1]}', QWEN) == (
        "\n<parameter=a>\nx\n</parameter>\n<parameter=b>\n[1]\n</parameter>"
    )
    assert written("no JSON", QWEN) == written('"no JSON"', QWEN) == "\n<parameter=input>\nno JSON\n</parameter>"


@pytest.mark.parametrize(
    ("schema", "lost"),
    [
        ({"properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]}, []),
        ({"properties": {"a": {"type": "string", "pattern": "^x|y"}}}, ["`pattern` at `#/properties/a`"]),
        ({"properties": {"a": {"type": "string", "maxLength": 5000}}}, ["`maxLength` at `#/properties/a`"]),
        ({"properties": {"a": {"type": "string", "format": "date"}}}, ["`format` at `#/properties/a`"]),
        ({"properties": {"a": {"type": "string", "pattern": "^[a-z/]+$"}}, "x-note": 1}, []),
        (
            {"properties": {"a": {"type": "string", "minLength": 1, "anyOf": [{"pattern": "^x"}, {"const": "y"}]}}},
            ["`anyOf` at `#/properties/a`"],
        ),
        ({"properties": {"a": {"type": "object", "properties": {"b": {"pattern": "x"}}}}}, []),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ["`anyOf` at `#`"]),
        ({"minProperties": 1, "description": "x"}, ["`minProperties` at `#`"]),
    ],
)
def test_what_the_grammar_leaves_to_the_model(schema: dict[str, Any], lost: list[str]) -> None:
    assert unenforced(schema) == lost


def test_each_choice_of_a_schema_is_looked_at_once() -> None:
    ring = {"anyOf": [{"$ref": "#/$defs/ring"}] * 30 + [{"type": "string", "format": "date"}]}
    parameters = {"properties": {"a": {"$ref": "#/$defs/ring"}}, "$defs": {"ring": ring}}
    assert unenforced(parameters) == ["`format` at `#/properties/a`"]


LARGE = {
    "choices": {"anyOf": [{"$ref": "#/$defs/n"}] * 2000},
    "texts": {"anyOf": [{"type": "string", "format": "date"}] * 1000},
    "values": {"type": "integer", "enum": ["a"] * 8000},
}


@pytest.mark.parametrize("name", LARGE)
def test_what_many_arguments_refer_to_is_looked_at_once(name: str) -> None:
    """Each argument looked at all of it: up to 16 s of 50 KB. They take 0.05."""
    known = {f"a{n}": {"$ref": f"#/$defs/b{n}"} for n in range(500)}
    definitions = {f"b{n}": {"oneOf": [{"$ref": f"#/$defs/{name}"}]} for n in range(500)}
    schema = {"properties": known, "$defs": {**definitions, **LARGE, "n": {"type": "integer"}}}
    rules = Rules()
    begun_s = thread_time()
    arguments_rule(rules, "arguments", schema, QWEN)
    assert len(unenforced(schema)) == (500 if name == "texts" else 0)
    assert thread_time() - begun_s < 1
    assert sum(map(len, rules.found.values())) < 500_000


def test_definitions_that_refer_to_each_other_lead_to_all_of_their_values() -> None:
    here = {"anyOf": [{"$ref": "#/$defs/there"}, {"const": "x"}]}
    there = {"anyOf": [{"$ref": "#/$defs/here"}, {"const": "y"}]}
    known = {"a": {"$ref": "#/$defs/here"}, "b": {"$ref": "#/$defs/there"}}
    tool = Tool("f", "", json.dumps({"properties": known, "$defs": {"here": here, "there": there}}))
    lark = tool_lark([tool], ToolChoice(required=True), QWEN, prepare=lambda tool: json.loads(tool.parameters))
    walker = Walker()
    for a, is_right in (("x", True), ("y", True), ("z", False)):
        for b in "xy":
            call = f"{QWEN.call_start}f>{written(json.dumps({'a': a, 'b': b}), QWEN)}{QWEN.call_end}"
            assert walker.takes(lark, call) == is_right
