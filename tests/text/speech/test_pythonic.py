"""Calls as Python writes them: what is read of them, whole, cut and broken."""

import json
from collections.abc import Mapping
from time import thread_time
from typing import Any

import pytest

from shimmy.messages.reply import ReplyFormat
from shimmy.text.speech.pythonic import FORM, _as_json, arguments_rule, unenforced, written
from tests.text.speech import whole_and_cut


def read(text: str) -> tuple[list[tuple[str, str]], str]:
    return whole_and_cut.read(text, ReplyFormat(tools=FORM))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ('a="x, ) \\" ]"', {"a": 'x, ) " ]'}),
        ("a='it\\'s', b=\"it's\"", {"a": "it's", "b": "it's"}),
        ("a=1, b=-2.5, c=True, d=None", {"a": 1, "b": -2.5, "c": True, "d": None}),
        ("e=false, f=null", {"e": False, "f": None}),
        ("a=['x', {'y': None}], b={\"z\": [1, true]}", {"a": ["x", {"y": None}], "b": {"z": [1, True]}}),
        ("a={'x': true, \"y\": 'null'}", {"a": {"x": True, "y": "null"}}),
        (" a = 1 ,b=2 ", {"a": 1, "b": 2}),
        ("a=(1, 2)", {"a": [1, 2]}),
        ("a=bare", {"a": "bare"}),
        ("a=open('x')", {"a": "open('x')"}),
        (r"a='\d+'", {"a": r"\d+"}),
    ],
)  # fmt: skip
def test_arguments(arguments: str, expected: object) -> None:
    calls, content = read(f"<|tool_call_start|>[f({arguments})]<|tool_call_end|>")
    assert [(name, json.loads(text)) for name, text in calls] == [("f", expected)]
    assert not content


@pytest.mark.parametrize("unit", ["True,", "'a',", "'a'", "x.", "1+", "(", "-"])
def test_what_python_would_read_for_long_is_text(unit: str) -> None:
    value = "[" + unit * 100_000 + "]"
    assert json.loads(_as_json(value)) == value


def test_a_long_string_is_one() -> None:
    assert json.loads(_as_json("'" + "print(x)," * 100_000 + "'")) == "print(x)," * 100_000


def test_several_calls_and_text_around_them() -> None:
    text = "Wait.<|tool_call_start|>[f(a=1), g.h()]<|tool_call_end|>Done."
    assert read(text) == ([("f", '{"a": 1}'), ("g.h", "{}")], "Wait.Done.")


@pytest.mark.parametrize("arguments", ["a", "a=", "a=[", "a=[1)", "a='", "a=1 b=2", "=", "a=" + "[" * 3000, ",,"])
def test_a_broken_form_ends_somewhere(arguments: str) -> None:
    calls, _ = read(f"<|tool_call_start|>[f({arguments}")
    assert len(calls) == 1


def test_what_has_no_name_is_text() -> None:
    text = "<|tool_call_start|>[1, (2)]"
    assert read(text) == ([], text)


def test_what_a_template_has_no_place_for_is_written() -> None:
    assert written('{"a": "it\'s", "b": true, "c": [null], "d": null}') == 'a="it\'s", b=True, c=[null], d=None'
    assert written("no JSON") == 'input="no JSON"'


def test_what_the_grammar_leaves_to_the_model() -> None:
    assert unenforced({"properties": {"a": {"pattern": "x"}}, "required": ["a"]}) == []
    assert unenforced({"anyOf": [], "minProperties": 1}) == ["`anyOf` at `#`", "`minProperties` at `#`"]


class Rules:
    """A grammar of which only the rules are kept."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def rule(self, name: str, text: str) -> None:
        self.found[name] = text

    def json(self, _schema: Mapping[str, Any], _root: Mapping[str, Any]) -> str:
        return "json"

    def text(self, text: str) -> str:
        return json.dumps(text)

    def until(self, _text: str, name: str) -> str:
        return name


def test_constants_among_definitions_that_lead_back_to_each_other_are_found_soon() -> None:
    """Looking through the rest again from each of them took 50 s here; it takes 0.2."""
    ring: dict[str, Any] = {
        f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{(n * 7 + k) % 100}"} for k in range(5)]} for n in range(100)
    }
    ring["d99"]["anyOf"].append({"const": True})
    known = {f"a{n}": {"$ref": f"#/$defs/d{n}"} for n in range(64)}
    rules = Rules()
    begun_s = thread_time()
    arguments_rule(rules, "arguments", {"type": "object", "properties": known, "$defs": ring})
    assert thread_time() - begun_s < 5
    assert '"True"' in rules.found["arguments_0"]


def test_the_types_of_a_definition_are_looked_at_once_for_all_arguments() -> None:
    """Each argument looked at all of it again: 7 s here. It takes 0.02."""
    listed = {"anyOf": [{"type": "string", "enum": [str(n)]} for n in range(1000)]}
    known = {f"a{n}": {"$ref": "#/$defs/d"} for n in range(1000)}
    begun_s = thread_time()
    arguments_rule(Rules(), "arguments", {"type": "object", "properties": known, "$defs": {"d": listed}})
    assert thread_time() - begun_s < 0.7


def test_definitions_that_refer_to_each_other_keep_their_constants() -> None:
    """The second of them lost what the first allows."""
    here = {"anyOf": [{"$ref": "#/$defs/there"}, {"const": None}]}
    there = {"anyOf": [{"$ref": "#/$defs/here"}, {"const": True}]}
    known = {"a": {"$ref": "#/$defs/here"}, "b": {"$ref": "#/$defs/there"}}
    rules = Rules()
    arguments_rule(rules, "arguments", {"properties": known, "$defs": {"here": here, "there": there}})
    for name in ("arguments_0", "arguments_1"):
        assert '"None"' in rules.found[name]
        assert '"True"' in rules.found[name]
        assert '"False"' not in rules.found[name]
