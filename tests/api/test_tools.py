"""Tools and choices as two dialects write them."""

import json

import pytest

from shimmy.api.body import MAX_DEPTH
from shimmy.api.tools import N_TOOLS_MAX, Choice, FlatTool, FunctionCallChoice, NestedTool, Tools, Wish, offered
from shimmy.errors import BadRequest
from shimmy.messages import Tool, ToolChoice

F, G = Tool("f"), Tool("g")
FUNCTION = {"name": "f", "description": "é", "parameters": {"type": "object", "x": ["é"]}, "strict": True}
READ = Tool("f", "é", '{"type":"object","x":["é"]}', strict=True)


def test_a_tool_is_nested_or_flat() -> None:
    assert NestedTool().read({"type": "function", "function": FUNCTION}, "t") == READ
    assert NestedTool().read({"function": FUNCTION | {"more": 1}}, "t") == READ
    assert FlatTool().read({"type": "function", **FUNCTION}, "t") == READ
    bare = {"name": "f", "description": None, "parameters": None, "strict": None}
    assert FlatTool().read(bare, "t") == Tools(NestedTool()).read([{"function": bare}], "t")[0] == F


@pytest.mark.parametrize(
    ("tools", "complaint"),
    [
        ({}, "tools: expected an array of tools, got an object"),
        ([5], "tools[0]: expected a tool object, got a number"),
        ([{}], "tools[0].function: expected a function object, got nothing"),
        ([{"type": "custom", "custom": {}}], 'tools[0].type: expected "function", got "custom"'),
        ([{"function": {}}], "tools[0].function.name: expected the name of a function, got nothing"),
        ([{"function": {"name": 5}}], "tools[0].function.name: expected a string, got a number"),
        (
            [{"function": {"name": 'a"b'}}],
            "tools[0].function.name: expected 1 to 128 letters, digits and _ - . : /, got 'a\"b'",
        ),
        (
            [{"function": {"name": "f", "parameters": "{}"}}],
            "tools[0].function.parameters: expected a JSON Schema object, got a string",
        ),
        (
            [{"function": {"name": "f", "parameters": {"a": "\udc00"}}}],
            "tools[0].function.parameters: expected Unicode text, got a lone surrogate",
        ),
        ([{"function": {"name": "f", "strict": 1}}], "tools[0].function.strict: expected a boolean, got a number"),
        ([{"function": {"name": "f"}}] * 2, "tools[1]: expected a tool with a name of its own, got f again"),
        ([{"function": {"name": "f"}}] * (N_TOOLS_MAX + 1), "tools: expected at most 512 tools, got 513"),
    ],
)
def test_a_bad_tool_is_refused_by_its_path(tools: object, complaint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Tools(NestedTool()).read(tools, "tools")
    assert caught.value.message == complaint


def test_parameters_as_deep_as_a_body_may_be_are_read() -> None:
    deep: dict[str, object] = {}
    for _ in range(MAX_DEPTH):
        deep = {"a": deep}
    assert json.loads(FlatTool().read({"name": "f", "parameters": deep}, "tool").parameters) == deep


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("none", Wish("none")),
        ("auto", Wish()),
        ("required", Wish("required")),
        ("named", Wish("required", name="f")),
        ("allowed", Wish("auto", allowed=("f", "g"))),
    ],
)
def test_a_choice_is_a_mode_a_name_or_some_names(is_flat: bool, written: str, read: Wish) -> None:
    names: list[dict[str, object]] = [{"name": "f"}, {"name": "g"}]
    tools = [{"type": "function", **(name if is_flat else {"function": name})} for name in names]
    allowed = {"mode": "auto", "tools": tools}
    value = {
        "named": tools[0],
        "allowed": {"type": "allowed_tools", **(allowed if is_flat else {"allowed_tools": allowed})},
    }.get(written, written)
    assert Choice(is_flat).read(value, "tool_choice") == read


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ("any", 'tool_choice: expected one of none, auto, required, got "any"'),
        (5, "tool_choice: expected an object, got a number"),
        ({}, "tool_choice.type: expected a string, got nothing"),
        ({"type": "custom"}, 'tool_choice.type: expected one of function, allowed_tools, got "custom"'),
        ({"type": "function"}, "tool_choice.function: expected an object with a name, got nothing"),
        (
            {"type": "function", "function": {}},
            "tool_choice.function.name: expected the name of a function, got nothing",
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": []}},
            'tool_choice.allowed_tools.mode: expected one of auto, required, got "none"',
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
            "tool_choice.allowed_tools.tools: expected an array of tools, got an empty one",
        ),
    ],
)
def test_a_bad_choice_is_refused_by_its_path(choice: object, complaint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Choice().read(choice, "tool_choice")
    assert caught.value.message == complaint


def test_the_legacy_choice() -> None:
    assert FunctionCallChoice().read("none", "function_call") == Wish("none")
    assert FunctionCallChoice().read({"name": "f"}, "function_call") == Wish("required", name="f")
    with pytest.raises(BadRequest, match="function_call: expected one of none, auto"):
        FunctionCallChoice().read("required", "function_call")


def test_what_is_offered() -> None:
    both = (F, G)
    assert offered(both, Wish(), parallel=True) == (both, ToolChoice())
    assert offered(both, Wish("required"), parallel=False) == (both, ToolChoice(required=True, parallel=False))
    assert offered(both, Wish("required", name="g"), parallel=True) == (both, ToolChoice(required=True, name="g"))
    assert offered(both, Wish("required", allowed=("g",)), parallel=True) == ((G,), ToolChoice(required=True))
    assert offered(both, Wish("none"), parallel=True) == offered((), Wish("none"), parallel=True) == ((), ToolChoice())


@pytest.mark.parametrize(
    ("tools", "wish", "complaint"),
    [
        ((F,), Wish("required", name="g"), "tool_choice: there is no tool named g in this request"),
        ((F,), Wish("auto", allowed=("f", "g")), "tool_choice: there is no tool named g in this request"),
        ((), Wish("required"), "tool_choice: a call is required, and there are no tools in this request"),
    ],
)
def test_a_choice_must_fit_the_tools(tools: tuple[Tool, ...], wish: Wish, complaint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        offered(tools, wish, parallel=True)
    assert (caught.value.message, caught.value.param) == (complaint, "tool_choice")
