"""Calls of MiniMax M3: elements in elements, forced along schemas and read back, and what is read of odd ones."""

import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from shimmy.engine.constrain.json_schema import STYLE
from shimmy.engine.constrain.tool_grammar import tool_lark
from shimmy.messages.reply import ReplyFormat
from shimmy.messages.request import Tool, ToolChoice
from shimmy.text.reply_parser import Reply, ReplyParser
from shimmy.text.speech.argument_types import argument_schemas
from shimmy.text.speech.minimax import CLOSES, FORM, OPENS, unenforced, written
from tests.engine.constrain.walker import Walker
from tests.text.speech import whole_and_cut

MARK = OPENS[:-1]
NODE = {
    "type": "object",
    "properties": {
        "s": {"type": "string", "maxLength": 4},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "again": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
        "one": {"$ref": "#/$defs/node"},
    },
    "required": ["n"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "node": {"$ref": "#/$defs/node"},
        "lists": {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}}, "maxItems": 3},
        "free": {"type": "object"},
        "map": {"type": "object", "additionalProperties": {"type": "number"}},
        "any": {},
        "one_of": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "array", "items": {"enum": [1, "a"]}}]},
        "shapes": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "object", "properties": {"x": {"const": "2"}}}]},
        "listed": {"enum": ["a", 3, None, {"k": ["v", 2]}, {"k": []}, [1, "1"], "3"]},
        "none": {"type": ["null", "integer"]},
        "all": {"allOf": [{"type": ["string", "null"]}, {"type": "string"}]},
    },
    "required": ["node", "lists"],
    "additionalProperties": False,
    "$defs": {"node": NODE},
}
TOOL = Tool("f", "", json.dumps(SCHEMA))


def read(text: str, tool: Tool = TOOL) -> tuple[list[tuple[str, str]], str]:
    return whole_and_cut.read(text, ReplyFormat(tools=FORM, argument_schemas=argument_schemas([tool])))


def called(arguments: str) -> str:
    return f"{FORM.section_start}{FORM.call_start}f{FORM.separator}{arguments}{FORM.call_end}{FORM.section_end}"


def lark_of(tool: Tool, walker: Walker) -> str:
    def prepare(tool: Tool) -> dict[str, Any]:
        return {**json.loads(tool.parameters), "x-guidance": STYLE}

    return tool_lark([tool], ToolChoice(required=True, parallel=False), FORM, prepare=prepare, special=walker.id)


@pytest.mark.parametrize("with_special", [False, True])
def test_drawn_elements_are_read_back_and_follow_their_schema(with_special: bool) -> None:
    walker = Walker([MARK, "<tool_call>", "</tool_call>"] if with_special else [])
    lark = lark_of(TOOL, walker)
    for seed in range(12):
        calls, content = read(walker.reply(lark, seed, (CLOSES, f"{CLOSES}item>", f"{CLOSES}invoke>")))
        assert not content
        Draft202012Validator(SCHEMA).validate(json.loads(calls[0][1]))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"node": {"n": 1, "again": [{"n": 2, "s": "3"}], "one": {"n": 4}}, "lists": [[True], []]}, None),
        (
            {"node": {"n": 1, "s": "null"}, "lists": [], "free": {"a": "x", "b": {"c": [1, "d"]}}, "map": {"k": 1.5}},
            None,
        ),
        ({"any": "a\n b", "one_of": [1, "a"], "shapes": {"x": "2"}, "listed": {"k": ["v", 2]}}, None),
        ({"any": {"a": []}, "all": "1"}, {"any": {"a": ""}, "all": "1"}),  # of what no schema tells
        ({"listed": None, "any": {"a": None, "b": 1}}, {"any": {"b": 1}}),
        ({}, None),
    ],
)
def test_what_is_written_is_read(arguments: dict[str, Any], expected: Any) -> None:
    calls, content = read(called(written(json.dumps(arguments))))
    assert [(name, json.loads(text)) for name, text in calls] == [("f", arguments if expected is None else expected)]
    assert not content


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (f"{OPENS}node>\n {OPENS}n> 1 {CLOSES}n>\n{CLOSES}node>", {"node": {"n": 1}}),
        (f"{OPENS}node>{OPENS}n>1{CLOSES}other>{CLOSES}node>\n", {"node": {"n": 1}}),
        (f'{OPENS}node>{{"n": 1}}{CLOSES}node>', {"node": {"n": 1}}),  # as JSON
        (f"{OPENS}lists>[[true]]{CLOSES}lists>", {"lists": [[True]]}),
        (f"{OPENS}node>{OPENS}item>1{CLOSES}item>{CLOSES}node>", {"node": {"item": 1}}),
        (f"{OPENS}none>{OPENS}a>1{CLOSES}a>{CLOSES}none>", {"none": {"a": 1}}),
        (f"{OPENS}none>{OPENS}item>1{CLOSES}item>{CLOSES}none>", {"none": [1]}),
        (f"{OPENS}none>None{CLOSES}none>", {"none": None}),
        (f"{OPENS}all> <b>{CLOSES}all>", {"all": " <b>"}),
        (f"{OPENS}unknown>{OPENS}item>{OPENS}a>x{CLOSES}a>{CLOSES}item>{CLOSES}unknown>", {"unknown": [{"a": "x"}]}),
        (f"{OPENS}node>{OPENS}n>1{CLOSES}n>what{CLOSES}node>", {"node": {"n": 1}}),
    ],
)
def test_arguments(arguments: str, expected: object) -> None:
    calls, _ = read(called(arguments))
    assert [(name, json.loads(text)) for name, text in calls] == [("f", expected)]


@pytest.mark.parametrize("text", [f"{OPENS}tool_call>\n{{}}", called("x"), f"{OPENS}tool_call> is a tag", MARK])
def test_what_is_no_call_is_content(text: str) -> None:
    assert read(text)[0] == []
    assert read(f"{text}.")[1] == f"{text}."


def test_elements_in_elements_have_an_end() -> None:
    calls, content = read(called(f"{OPENS}a>" * 100 + f"{CLOSES}a>" * 100))
    assert json.loads(calls[0][1])
    assert content


def test_random_damage_breaks_nothing() -> None:
    drawn = random.Random(1)
    text = called(written(json.dumps({"node": {"n": 1, "again": [{"n": 2, "s": "3"}]}, "lists": [[True], []]})))
    for _ in range(60):
        start = drawn.randrange(len(text))
        read(text[:start] + drawn.choice(("", "x", "<", ">", "\n", "[", MARK)) + text[start + drawn.randrange(1, 9) :])


def test_a_text_is_said_as_it_comes() -> None:
    parser = ReplyParser(ReplyFormat(tools=FORM, argument_schemas=argument_schemas([TOOL])))
    parser.feed(f"{FORM.section_start}{FORM.call_start}f{FORM.separator}{OPENS}all>")
    assert "".join(call.arguments for call in parser.feed('Once "upon"').calls) == 'Once \\"upon\\"'


@pytest.mark.parametrize(
    ("schema", "lost"),
    [
        (SCHEMA, ["`allOf` at `#/properties/all`"]),
        ({"properties": {"a": {"items": {"pattern": "^x|y"}}}}, ["`pattern` at `#/properties/a/items`"]),
        ({"properties": {"/a": {}}}, ["the argument `/a` at `#`"]),
        ({"minProperties": 1, "anyOf": [{"required": ["a"]}]}, ["`anyOf` at `#`", "`minProperties` at `#`"]),
        ({"properties": {"a": {"type": "array", "uniqueItems": True, "maxItems": 9999}}},
         ["`maxItems` at `#/properties/a`", "`uniqueItems` at `#/properties/a`"]),
    ],
)  # fmt: skip
def test_what_the_grammar_leaves_to_the_model(schema: dict[str, Any], lost: list[str]) -> None:
    assert unenforced(schema) == lost


def test_a_text_with_a_grammar_of_its_own_stands_in_its_element() -> None:
    walker = Walker([MARK])
    tool = Tool("f", "", "{}")
    lark = tool_lark(
        [tool], ToolChoice(required=True), FORM, prepare=lambda _: {}, special=walker.id, texts={"f": 'start: "<\\n"'}
    )
    assert walker.takes(lark, called(f"{OPENS}input><\n{CLOSES}input>"))
    assert not walker.takes(lark, called(f"{OPENS}input>x{CLOSES}input>"))


def test_a_reply_without_a_thought_begins_with_the_end_of_one() -> None:
    form = ReplyFormat(("<mm:think>", "</mm:think>"), tools=FORM)
    for text, reasoning in (("</mm:think>Hi.", ""), ("<mm:think>Well.</mm:think>Hi.", "Well."), ("Hi.", "")):
        for size in (1, len(text)):
            parser, reply = ReplyParser(form), Reply()
            for start in range(0, len(text), size):
                reply.add(parser.feed(text[start : start + size]))
            reply.add(parser.flush())
            assert (reply.content, reply.reasoning) == ("Hi.", reasoning)
    walker = Walker(["<mm:think>", "</mm:think>", MARK])
    for required in (False, True):
        lark = tool_lark(
            [Tool("f", "", "{}")],
            ToolChoice(required=required),
            FORM,
            prepare=lambda _: {},
            special=walker.id,
            around=form,
        )
        for thought in ("</mm:think>", "<mm:think>Well.</mm:think>", ""):
            assert walker.takes(lark, f"{thought}{called('')}")
            assert walker.takes(lark, f"{thought}Hi.") != required
