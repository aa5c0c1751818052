"""Tools and choices as two dialects write them."""

import json

import pytest

from shimmy.api.body import MAX_DEPTH
from shimmy.api.request_fields.tool_kinds import N_TOOLS_MAX, Callee, DeclaredTool, Tools, ToolSet, text_arguments
from shimmy.api.request_fields.tools import FunctionCallChoice, RequestedToolChoice, ToolChoiceField, offered
from shimmy.errors import BadRequest
from shimmy.messages.request import Tool, ToolChoice
from shimmy.text.text_argument import TextArgument, text_in

F, G = Tool("f"), Tool("g")
FUNCTION = {"name": "f", "description": "é", "parameters": {"type": "object", "x": ["é"]}, "strict": True}
READ = Tool("f", "é", '{"type":"object","x":["é"]}', strict=True)
NESTED, FLAT = DeclaredTool(is_flat=False), DeclaredTool(is_flat=True, may_nest=True)


def declared(*tools: Tool) -> ToolSet:
    return ToolSet(tuple(Callee(tool, tool.name) for tool in tools))


def test_a_tool_is_nested_or_flat() -> None:
    assert NESTED.read({"type": "function", "function": FUNCTION}, "t") == declared(READ)
    assert NESTED.read({"function": FUNCTION | {"more": 1}}, "t") == declared(READ)
    assert FLAT.read({"type": "function", **FUNCTION}, "t") == declared(READ)
    bare = {"name": "f", "description": None, "parameters": None, "strict": None}
    assert FLAT.read(bare, "t") == Tools(NESTED).read([{"function": bare}], "t") == declared(F)
    assert FLAT.read({"name": "f", "defer_loading": True, "output_schema": {}}, "t") == declared(F)


def test_parameters_may_be_the_schema_that_allows_anything_unless_they_are_strict() -> None:
    assert FLAT.read({"name": "f", "parameters": True}, "t") == declared(Tool("f", "", "{}"))
    nested = {"function": {"name": "f", "parameters": True, "strict": False}}
    assert NESTED.read(nested, "t") == declared(Tool("f", "", "{}"))
    with pytest.raises(BadRequest, match="the parameters of `f` are not those of an object"):
        FLAT.read({"name": "f", "parameters": True, "strict": True}, "t")
    with pytest.raises(BadRequest, match=r"t.parameters: expected a JSON Schema object, got"):
        FLAT.read({"name": "f", "parameters": False}, "t")


TEXT_SCHEMA = (
    '{"type":"object","properties":{"input":{"type":"string"%s}},"required":["input"],"additionalProperties":false}'
)


@pytest.mark.parametrize(
    ("given", "schema", "lark"),
    [
        (None, "", ""),
        ({"type": "text"}, "", ""),
        ({"type": "grammar", "syntax": "regex", "definition": "a|b"}, ',"pattern":"^(?:a|b)$"', ""),
        ({"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}, "", 'start: "a"'),
    ],
)
def test_a_tool_that_takes_a_text_is_a_function_of_one_argument(
    given: dict[str, str] | None, schema: str, lark: str
) -> None:
    tool = Tool("patch", "It.", TEXT_SCHEMA % schema, strict=True, lark=lark)
    expected = ToolSet((Callee(tool, "patch", is_custom=True),))
    own = {"name": "patch", "description": "It."}
    assert FLAT.read({"type": "custom", **own, "format": given}, "t") == expected
    if given and given["type"] == "grammar":
        given = {"type": "grammar", "grammar": {name: given[name] for name in ("syntax", "definition")}}  # type: ignore[dict-item]
    assert NESTED.read({"type": "custom", "custom": {**own, "format": given}}, "t") == expected
    assert list(expected.special) == ["patch"]


def test_tools_in_a_namespace_have_names_of_their_own() -> None:
    inside = [{"type": "function", "name": "f"}, {"type": "custom", "name": "t"}, {"type": "web_search"}]
    namespaces = [{"type": "namespace", "name": name, "description": "d", "tools": inside} for name in ("n", "m__")]
    tools = Tools(FLAT).read([{"type": "function", "name": "f"}, *namespaces], "tools")
    assert [(each.tool.name, each.name, each.namespace) for each in tools.callees] == [
        ("f", "f", None), ("n__f", "f", "n"), ("n__t", "t", "n"), ("m__f", "f", "m__"), ("m__t", "t", "m__"),
    ]  # fmt: skip
    assert tools.hosted == ("web_search",)
    assert offered(tools, RequestedToolChoice("required", name="n__f"), parallel=True)[1].name == "n__f"
    assert offered(tools, RequestedToolChoice("required", name="f"), parallel=True)[1].name == "f"
    with pytest.raises(BadRequest, match="no tool named t "):
        offered(tools, RequestedToolChoice("required", name="t"), parallel=True)
    one = Tools(FLAT).read([namespaces[0]], "tools")
    assert offered(one, RequestedToolChoice("required", name="t"), parallel=True)[1].name == "n__t"


@pytest.mark.parametrize(
    "kind",
    [
        "web_search", "web_search_preview", "web_search_2025_08_26", "web_search_preview_2025_03_11", "file_search",
        "computer_use_preview", "computer", "code_interpreter", "image_generation", "mcp", "local_shell", "shell",
        "apply_patch", "tool_search", "web_search_20250305", "text_editor_20250728", "openrouter:web_search",
    ],
)  # fmt: skip
def test_tools_that_a_server_runs_are_not_offered_and_no_error(kind: str) -> None:
    for tool in (NESTED, FLAT):
        tools = Tools(tool).read([{"type": kind, "external_web_access": False}], "tools")
        assert not tools
        assert tools.warnings == (f"tools: `{kind}` is not offered to the model: this server runs no tools itself",)
        assert offered(tools, RequestedToolChoice(), parallel=True) == ((), ToolChoice())
        with pytest.raises(BadRequest, match="a call is required"):
            offered(tools, RequestedToolChoice("required"), parallel=True)


def test_a_list_of_allowed_tools_may_name_those_that_are_not_offered() -> None:
    listed = [{"type": "mcp", "server_label": "x"}, {"type": "custom", "name": "t"}]
    wish = ToolChoiceField(is_flat=True).read({"type": "allowed_tools", "mode": "auto", "tools": listed}, "tool_choice")
    assert wish == RequestedToolChoice("auto", allowed=("t",))
    only = ToolChoiceField(is_flat=True).read(
        {"type": "allowed_tools", "mode": "required", "tools": listed[:1]}, "tool_choice"
    )
    with pytest.raises(BadRequest, match="none of the tools allowed"):
        offered(declared(F), only, parallel=True)


TEXTS = ("", "a", 'é"\\\n\t/😀', "\x00\x7f", "x" * 200, '{"input": "y"}')


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("is_ascii", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_the_text_of_a_call_is_taken_out_however_it_is_cut(text: str, is_ascii: bool, size: int) -> None:
    written = json.dumps({"input": text}, ensure_ascii=is_ascii)
    reader = TextArgument()
    parts = [reader.feed(written[start : start + size]) for start in range(0, len(written), size)]
    assert "".join(parts) + reader.flush() == text
    assert text_in(text_arguments(text)) == text
    for part in parts:
        part.encode()  # no half characters


def test_a_call_that_is_cut_in_front_of_its_text_has_none() -> None:
    head = '{ "input": "'
    for end in range(len(head) + 1):
        assert text_in(head[:end]) == ""
    assert text_in('{"inputs') == '{"inputs'


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ('{"other": "x"}', '{"other": "x"}'),
        ("plain words " * 20, "plain words " * 20),
        ("{}", ""),
        ("", ""),
        ('{ "input" : "cut o', "cut o"),
        ('{"input": "bad \\x escape and more"}', "bad \\x escape and more"),
        ('{"input": "' + "\\x" * 3000 + '"}', "\\x" * 3000),
    ],
)
def test_what_is_not_the_one_text_is_passed_on(written: str, text: str) -> None:
    assert text_in(written) == text


@pytest.mark.parametrize(
    ("tools", "complaint"),
    [
        ({}, "tools: expected an array of tools, got an object"),
        ([5], "tools[0]: expected a tool object, got a number"),
        ([{}], "tools[0].function: expected a function object, got nothing"),
        ([{"type": "custom", "custom": {}}], "tools[0].custom.name: expected the name of a function, got nothing"),
        (
            [{"type": "functions"}],
            'tools[0].type: expected function, custom or the type of a tool that a server runs, got "functions"',
        ),
        (
            [{"type": "custom", "custom": {"name": "x", "format": {"type": "grammar", "grammar": {"syntax": "lark"}}}}],
            "tools[0].custom.format.grammar.definition: expected a string that is not empty, got nothing",
        ),
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
        Tools(NESTED).read(tools, "tools")
    assert caught.value.message == complaint


def test_parameters_as_deep_as_a_body_may_be_are_read() -> None:
    deep: dict[str, object] = {}
    for _ in range(MAX_DEPTH):
        deep = {"a": deep}
    assert json.loads(FLAT.read({"name": "f", "parameters": deep}, "tool").callees[0].tool.parameters) == deep


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("none", RequestedToolChoice("none")),
        ("auto", RequestedToolChoice()),
        ("required", RequestedToolChoice("required")),
        ("named", RequestedToolChoice("required", name="f")),
        ("allowed", RequestedToolChoice("auto", allowed=("f", "g"))),
    ],
)
def test_a_choice_is_a_mode_a_name_or_some_names(is_flat: bool, written: str, read: RequestedToolChoice) -> None:
    names: list[dict[str, object]] = [{"name": "f"}, {"name": "g"}]
    tools = [{"type": "function", **(name if is_flat else {"function": name})} for name in names]
    allowed = {"mode": "auto", "tools": tools}
    value = {
        "named": tools[0],
        "allowed": {"type": "allowed_tools", **(allowed if is_flat else {"allowed_tools": allowed})},
    }.get(written, written)
    assert ToolChoiceField(is_flat).read(value, "tool_choice") == read


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ("any", 'tool_choice: expected one of none, auto, required, got "any"'),
        (5, "tool_choice: expected an object, got a number"),
        ({}, "tool_choice.type: expected a string, got nothing"),
        ({"type": "custom"}, "tool_choice.custom: expected an object with a name, got nothing"),
        ({"type": "mcp"}, 'tool_choice.type: expected one of function, custom, allowed_tools, got "mcp"'),
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
        ToolChoiceField().read(choice, "tool_choice")
    assert caught.value.message == complaint


def test_the_legacy_choice() -> None:
    assert FunctionCallChoice().read("none", "function_call") == RequestedToolChoice("none")
    assert FunctionCallChoice().read({"name": "f"}, "function_call") == RequestedToolChoice("required", name="f")
    with pytest.raises(BadRequest, match="function_call: expected one of none, auto"):
        FunctionCallChoice().read("required", "function_call")


def test_what_is_offered() -> None:
    both, tools = (F, G), declared(F, G)
    assert offered(tools, RequestedToolChoice(), parallel=True) == (both, ToolChoice())
    assert offered(tools, RequestedToolChoice("required"), parallel=False) == (
        both,
        ToolChoice(required=True, parallel=False),
    )
    assert offered(tools, RequestedToolChoice("required", name="g"), parallel=True) == (
        both,
        ToolChoice(required=True, name="g"),
    )
    assert offered(tools, RequestedToolChoice("required", allowed=("g",)), parallel=True) == (
        (G,),
        ToolChoice(required=True),
    )
    for some in (tools, declared()):
        assert offered(some, RequestedToolChoice("none"), parallel=True) == ((), ToolChoice())


@pytest.mark.parametrize(
    ("tools", "wish", "complaint"),
    [
        ((F,), RequestedToolChoice("required", name="g"), "tool_choice: there is no tool named g in this request"),
        (
            (F,),
            RequestedToolChoice("auto", allowed=("f", "g")),
            "tool_choice: there is no tool named g in this request",
        ),
        (
            (),
            RequestedToolChoice("required"),
            "tool_choice: a call is required, and there are no tools in this request",
        ),
    ],
)
def test_a_choice_must_fit_the_tools(tools: tuple[Tool, ...], wish: RequestedToolChoice, complaint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        offered(declared(*tools), wish, parallel=True)
    assert (caught.value.message, caught.value.param) == (complaint, "tool_choice")
