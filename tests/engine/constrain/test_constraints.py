"""What becomes of a job's tools and grammar with a real model: guides, and warnings of what is left to the model."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shimmy.engine.chat.detect_tool_format import GENERIC, written
from shimmy.engine.constrain import constraints as rules
from shimmy.engine.constrain import enforceable_schema
from shimmy.engine.constrain.constraints import GuideFactory
from shimmy.engine.constrain.enforceable_schema import SearchBudget
from shimmy.engine.constrain.json_schema import standalone
from shimmy.engine.constrain.simpler_schema import Schema, simplify
from shimmy.engine.constrain.tool_grammar import tool_lark
from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.errors import BadRequest
from shimmy.messages.reply import ArgumentSyntax, Channels, ReplyFormat, ToolFormat
from shimmy.messages.request import (
    ChatPrompt,
    GenerateRequest,
    Grammar,
    GrammarKind,
    Message,
    Tool,
    ToolCall,
    ToolChoice,
)
from shimmy.text.speech import gemma, harmony, pythonic
from tests.engine.constrain.walker import Walker

FORM = ReplyFormat(tools=GENERIC)
SET = '{"type":"object","properties":{"tags":{"type":"array","uniqueItems":true}}}'


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    model = LlamaModel(tiny_model, CpuBackend(variants.libraries(LIBRARY_FOLDER, None)))
    yield model
    model.close()


def request(*tools: Tool, grammar: Grammar | None = None) -> GenerateRequest:
    prompt = ChatPrompt((Message("user", "hi"),), tools=tools, tool_choice=ToolChoice(required=bool(tools)))
    return GenerateRequest("tiny", prompt, grammar=grammar)


def large_tool(index: int, *, strict: bool = False) -> Tool:
    properties = {f"p{i}": {"type": "string", "description": "x" * 40} for i in range(400)}
    return Tool(f"f{index}", "", json.dumps({"type": "object", "properties": properties}), strict=strict)


def test_tools_that_are_not_strict_are_taken_and_what_is_lost_is_told_once(
    model: LlamaModel, caplog: pytest.LogCaptureFixture
) -> None:
    rules = GuideFactory(model.vocab)
    expected = "tools: `f`: `uniqueItems` at `#/properties/tags` is not enforced"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            guide, warnings = rules.guide(request(Tool("f", "", SET), Tool("g")), FORM)
            assert guide is not None
            assert warnings == (expected,)
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_a_strict_tool_is_refused_by_its_name_and_the_place(model: LlamaModel) -> None:
    with pytest.raises(BadRequest) as caught:
        GuideFactory(model.vocab).guide(request(Tool("g"), Tool("f", "", SET, strict=True)), FORM)
    assert caught.value.param == "tools"
    assert caught.value.message == (
        "tools: the parameters of `f`: `uniqueItems` at `#/properties/tags` cannot be enforced"
    )


NO_OBJECTS = [
    {"type": "string"},
    {"type": ["string", "null"]},
    {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    {"enum": ["a", 1]},
    {"const": None},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}},
]


@pytest.mark.parametrize("schema", NO_OBJECTS, ids=json.dumps)
def test_a_schema_of_no_object_is_let_go_unless_it_is_strict(model: LlamaModel, schema: object) -> None:
    tool, other = Tool("f", "", json.dumps(schema)), Tool("g", "", SET.replace(',"uniqueItems":true', ""))
    guide, warnings = GuideFactory(model.vocab).guide(request(tool, other), FORM)
    assert guide is not None
    assert warnings == ("tools: `f`: the schema, which is not one of an object, is not enforced",)
    with pytest.raises(BadRequest):
        GuideFactory(model.vocab).guide(request(replace(tool, strict=True)), FORM)


@pytest.mark.parametrize(
    "schema",
    [{}, {"anyOf": [{"type": "object"}, {"type": "null"}]}, {"type": ["object", "null"]}, {"properties": {"a": {}}}],
    ids=json.dumps,
)
def test_a_schema_of_objects_among_others_is_enforced(model: LlamaModel, schema: object) -> None:
    guide, warnings = GuideFactory(model.vocab).guide(request(Tool("f", "", json.dumps(schema))), FORM)
    assert guide is not None
    assert not warnings


def test_a_schema_for_the_reply_is_enforced_as_far_as_it_can_be_where_the_caller_does_not_insist(
    model: LlamaModel,
) -> None:
    rules = GuideFactory(model.vocab)
    guide, warnings = rules.guide(request(grammar=Grammar(GrammarKind.JSON_SCHEMA, SET, strict=False)), ReplyFormat())
    assert guide is not None
    assert warnings == ("the schema: `uniqueItems` at `#/properties/tags` is not enforced",)
    with pytest.raises(BadRequest, match="`uniqueItems` at `#/properties/tags`"):
        rules.guide(request(grammar=Grammar(GrammarKind.JSON_SCHEMA, SET)), ReplyFormat())


TEXT = '{"type":"object","properties":{"input":{"type":"string"}},"required":["input"],"additionalProperties":false}'
NAMED_FORM = ReplyFormat(tools=ToolFormat(call_start="<function=", call_end="</function>", separator=">"))


TAGGED_FORM = ReplyFormat(
    tools=ToolFormat(
        call_start="<call ",
        call_end="</call>",
        separator=">",
        syntax=ArgumentSyntax.TAGGED,
        key_start="<",
        key_end=">",
        value_end="</>",
    )
)


assert TAGGED_FORM.tools is not None
TYPED_FORM = replace(TAGGED_FORM.tools, key_end='" ', text_mark='s">', json_mark='j">')


@pytest.mark.parametrize("form", [FORM, NAMED_FORM, TAGGED_FORM])
def test_a_tool_that_takes_a_text_holds_it_to_its_grammar(model: LlamaModel, form: ReplyFormat) -> None:
    tool = Tool("patch", "", TEXT, strict=True, lark='start: line+\nline: "+" /(.*)/ LF\n%import common.LF')
    assert form.tools is not None
    for text, is_right in (('+a "b"\\\n+\n', True), ("+a", False), ("a\n", False)):
        guide, warnings = GuideFactory(model.vocab).guide(request(tool), form)
        assert guide is not None
        assert not warnings
        call = written((ToolCall("", "patch", json.dumps({"input": text})),), form.tools)
        # This tokenizer puts a space before a text.
        tokens = model.vocab.tokenize(f"\n{call}", add_special=False, parse_special=False)
        tokens = tokens[[model.vocab.token_bytes(token, special=False) for token in tokens].index(b"\n") + 1 :]
        n_taken = 0
        while n_taken < len(tokens) and not guide.is_over and guide.allows(tokens[n_taken]):
            guide.accept(tokens[n_taken])
            n_taken += 1
        may_end = guide.is_over or guide.allows(model.vocab.end_tokens()[0])
        is_whole = n_taken == len(tokens) and may_end
        assert is_whole == is_right, (text, model.vocab.detokenize(tokens[:n_taken]))


def test_a_grammar_of_a_text_that_is_none_is_refused_and_one_that_cannot_be_escaped_is_left_out(
    model: LlamaModel,
) -> None:
    with pytest.raises(BadRequest, match=r"^tools: the grammar of `patch`: ") as caught:
        GuideFactory(model.vocab).guide(request(Tool("patch", "", TEXT, strict=True, lark="start: x")), FORM)
    assert caught.value.param == "tools"
    tool = Tool("p", "", TEXT, strict=True, lark='start: %json {"type":"object"}')
    guide, warnings = GuideFactory(model.vocab).guide(request(tool), FORM)
    assert guide is not None
    assert warnings == ("tools: `p`: the grammar of its text is not enforced: `%json` is not supported",)


def test_tools_that_are_too_large_together_lose_the_largest_schemas(model: LlamaModel) -> None:
    tools = [large_tool(index) for index in range(16)]
    guide, warnings = GuideFactory(model.vocab).guide(request(Tool("small", "", SET), *tools), FORM)
    assert guide is not None
    assert warnings[0] == "tools: `small`: `uniqueItems` at `#/properties/tags` is not enforced"
    assert 1 < len(warnings) < 17
    assert all("too large together" in warning for warning in warnings[1:])
    with pytest.raises(BadRequest):
        GuideFactory(model.vocab).guide(request(*(large_tool(index, strict=True) for index in range(16))), FORM)


def test_how_busy_the_machine_is_decides_nothing_about_small_schemas(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "_LOOKING_S", -1.0)  # as if the first look had taken all the time there is
    small = [Tool(f"small_{index}", parameters='{"type":"object","properties":{}}') for index in range(3)]
    _, warnings = GuideFactory(model.vocab).guide(request(*small), FORM)
    assert warnings == ()
    _, warnings = GuideFactory(model.vocab).guide(request(*small, large_tool(0)), FORM)
    assert [text.partition(":")[0] for text in warnings] == ["tools"]


def test_warnings_have_an_end(model: LlamaModel) -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"not": {"type": "null"}} for i in range(50)}}
    _, warnings = GuideFactory(model.vocab).guide(request(Tool("f", "", json.dumps(schema))), FORM)
    assert len(warnings) == 17
    assert warnings[-1] == "and 34 more"


def test_what_bare_texts_cannot_be_held_to_is_told_and_refused_where_the_caller_insists(model: LlamaModel) -> None:
    rules = GuideFactory(model.vocab)
    tool = Tool("f", "", '{"type":"object","properties":{"day":{"type":"string","format":"date"}}}')
    assert rules.guide(request(tool), FORM)[1] == ()
    guide, warnings = rules.guide(request(tool), TAGGED_FORM)
    assert guide is not None
    assert warnings == ("tools: `f`: `format` at `#/properties/day` is not enforced",)
    with pytest.raises(BadRequest, match="`format` at `#/properties/day` cannot be enforced"):
        rules.guide(request(replace(tool, strict=True)), TAGGED_FORM)


@pytest.mark.parametrize("tools", [TAGGED_FORM.tools, TYPED_FORM, pythonic.FORM, gemma.FORM])
@pytest.mark.parametrize(
    ("part", "value"),
    [
        ({"type": ["string", "null"], "enum": ["a", "b"]}, "b"), ({"type": ["string", "null"], "const": "a"}, "a"),
        ({"type": ["boolean", "string"], "enum": ["a"]}, "a"), ({"type": ["array", "null"], "enum": [None]}, None),
        ({"type": ["number", "string"], "enum": [1]}, 1),
        ({"type": ["string", "null"], "enum": ["a", None]}, None), ({"enum": ["a", 2.5, [1]]}, [1]),
    ],
)  # fmt: skip
def test_types_that_no_listed_value_has_are_no_fault_of_a_schema(
    model: LlamaModel, tools: ToolFormat, part: dict[str, Any], value: object
) -> None:
    schema = {"type": "object", "properties": {"x": part}, "required": ["x"], "additionalProperties": False}
    tool = Tool("f", "", json.dumps(schema), strict=True)
    guide, warnings = GuideFactory(model.vocab).guide(request(tool), ReplyFormat(tools=tools))
    assert guide is not None
    assert not warnings
    lark = tool_lark((tool,), ToolChoice(required=True), tools, prepare=lambda _: schema)
    walker = Walker()
    assert walker.takes(lark, written((ToolCall("", "f", json.dumps({"x": value})),), tools))
    assert not walker.takes(lark, written((ToolCall("", "f", json.dumps({"x": "other"})),), tools))


@pytest.mark.parametrize("tools", [TAGGED_FORM.tools, TYPED_FORM, pythonic.FORM, gemma.FORM])
def test_choices_beside_a_type_are_enforced(model: LlamaModel, tools: ToolFormat) -> None:
    """Gemma's calls had any string, and no warning."""
    part = {"type": "string", "oneOf": [{"const": "a", "title": "A"}, {"const": "b", "title": "B"}]}
    schema: dict[str, Any] = {"type": "object", "properties": {"x": part}, "required": ["x"]}
    tool = Tool("f", "", json.dumps(schema), strict=True)
    guide, warnings = GuideFactory(model.vocab).guide(request(tool), ReplyFormat(tools=tools))
    assert guide is not None
    assert not warnings
    simplify(schema)
    lark = tool_lark((tool,), ToolChoice(required=True), tools, prepare=lambda _: schema)
    walker = Walker()
    assert walker.takes(lark, written((ToolCall("", "f", '{"x": "b"}'),), tools))
    assert not walker.takes(lark, written((ToolCall("", "f", '{"x": "c"}'),), tools))


def test_a_name_that_gemma_cannot_write_is_told_and_refused_where_the_caller_insists(model: LlamaModel) -> None:
    form = ReplyFormat(tools=gemma.FORM)
    tool = Tool(
        "f", "", '{"type": "object", "properties": {"a<|\\"|>b": {"type": "string"}, "a:b": {"type": "string"}}}'
    )
    guide, warnings = GuideFactory(model.vocab).guide(request(tool), form)
    assert guide is not None
    assert warnings == ('tools: `f`: the argument `a<|"|>b` at `#` is not enforced',)
    with pytest.raises(BadRequest, match="`f`: the argument `a<"):
        GuideFactory(model.vocab).guide(request(replace(tool, strict=True)), form)


IMPOSSIBLE: tuple[dict[str, Any], ...] = (
    *({"anyOf": []}, {"enum": []}, {"oneOf": []}, {"type": []}, {"not": {}}, {"anyOf": [{"enum": []}]}),
    *({"type": "integer", "minimum": 3, "maximum": 2}, {"type": "string", "minLength": 3, "maxLength": 2}),
    {"type": "array", "minItems": 3, "maxItems": 2},
    *({"type": "string", "enum": [1]}, {"type": "string", "const": 1}, {"type": ["string", "null"], "enum": [1, True]}),
)


def _given(schema: dict[str, Any], _tool: Tool) -> dict[str, Any]:
    return schema


@pytest.mark.parametrize("tools", [GENERIC, TAGGED_FORM.tools, gemma.FORM, pythonic.FORM])
def test_an_argument_that_can_have_no_value_is_left_out(model: LlamaModel, tools: ToolFormat) -> None:
    rules = GuideFactory(model.vocab)
    for part in IMPOSSIBLE:
        inner = {"type": "object", "properties": {"z": part, "y": {"type": "integer"}}}
        arguments = {"x": part, "y": {"enum": [1, 2]}, "list": {"type": "array", "items": part}, "inner": inner}
        schema: dict[str, Any] = {"type": "object", "properties": arguments, "required": ["y"]}
        tool = Tool("f", "", json.dumps(schema), strict=True)
        guide, warnings = rules.guide(request(tool), ReplyFormat(tools=tools))
        assert guide is not None
        assert not warnings
        schema = rules._loaded().schema(tool.parameters, strict=True)[0]
        schema = rules._loaded().without_impossible(schema, SearchBudget())
        assert schema["properties"]["x"] is schema["properties"]["list"]["items"] is False
        lark = tool_lark((tool,), ToolChoice(required=True), tools, prepare=partial(_given, schema))
        walker = Walker()
        for given, is_right in (({"y": 1}, True), ({"y": 1, "x": 1}, False), ({"y": 3}, False)):
            assert walker.takes(lark, written((ToolCall("", "f", json.dumps(given)),), tools)) == is_right


@pytest.mark.parametrize("tools", [GENERIC, TAGGED_FORM.tools, gemma.FORM, pythonic.FORM])
@pytest.mark.parametrize("part", [{"type": "string", "enum": [1]}, {"type": ["string", "null"], "const": 1}])
def test_a_text_whose_listed_values_are_none_is_left_out_or_refused_where_it_is_required(
    model: LlamaModel, tools: ToolFormat, part: dict[str, Any]
) -> None:
    schema = {"type": "object", "properties": {"x": part}, "additionalProperties": False}
    tool, form, factory = (
        Tool("f", "", json.dumps(schema), strict=True),
        ReplyFormat(tools=tools),
        GuideFactory(model.vocab),
    )
    lark, warnings = factory._lark(request(tool), form, (tool,), {tool}, rules._Looks(), list, find_impossible=False)
    assert not warnings
    for given, is_right in (({}, True), ({"x": ""}, False), ({"x": "1"}, False), ({"x": 1}, False)):
        assert Walker().takes(lark, written((ToolCall("", "f", json.dumps(given)),), tools)) == is_right
    needed = replace(tool, parameters=json.dumps({**schema, "required": ["x"]}))
    with pytest.raises(BadRequest, match=r"`f`: `(enum|const)` at `#/properties/x` cannot be enforced"):
        factory.guide(request(needed), form)


def tool_with_an_impossible_argument(index: int, n_arguments: int, *, strict: bool = False) -> Tool:
    arguments: dict[str, Any] = {f"f{index}_p{i}": {} for i in range(n_arguments)} | {"z": {"enum": []}}
    return Tool(f"f{index}", "", json.dumps({"type": "object", "properties": arguments}), strict=strict)


def test_all_tools_of_a_request_share_what_may_be_spent_on_finding_impossible_arguments(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_most = 15_000  # what one of the tools has, and less than two
    monkeypatch.setattr(enforceable_schema, "_SEARCHED_CHARACTERS", n_most)
    monkeypatch.setattr(enforceable_schema, "_SEARCHING_S", 60.0)
    factory = GuideFactory(model.vocab)
    asked: list[int] = []

    def is_impossible(schema: Schema) -> bool:
        asked.append(len(json.dumps(schema)))
        return schema.get("enum") == []

    monkeypatch.setattr(factory._loaded(), "_is_impossible", is_impossible)
    form = ReplyFormat(tools=pythonic.FORM)
    tools = [tool_with_an_impossible_argument(index, 100) for index in range(8)]
    pauses: list[None] = []
    guide, warnings = factory.guide(request(*tools), form, lambda: pauses.append(None))
    assert guide is not None
    assert [warning.split("`")[1] for warning in warnings] == [f"f{index}" for index in range(1, 8)]
    assert n_most <= sum(asked) <= n_most + max(asked)
    assert len(pauses) >= len(tools)
    with pytest.raises(BadRequest):
        factory.guide(request(*(replace(tool, strict=True) for tool in tools)), form)


def test_a_schema_is_searched_for_impossible_arguments_once(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = GuideFactory(model.vocab)
    asked: list[str] = []

    def is_impossible(schema: Schema) -> bool:
        asked.append(json.dumps(schema))
        return schema.get("maximum") == 2

    monkeypatch.setattr(factory._loaded(), "_is_impossible", is_impossible)
    first = tool_with_an_impossible_argument(0, 3)
    arguments = {"x": {"type": "integer", "minimum": 3, "maximum": 2}}
    second = Tool("g", "", json.dumps({"type": "object", "properties": arguments}), strict=True)
    guide, warnings = factory.guide(request(first, replace(first, name="same"), second), ReplyFormat(tools=gemma.FORM))
    assert guide is not None
    assert len(asked) == 5, warnings  # `z` is no part of the second


def test_impossible_arguments_that_are_not_looked_for_are_told_or_refused(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enforceable_schema, "_SEARCHED_CHARACTERS", 0)
    tool = tool_with_an_impossible_argument(0, 3)
    for form in (TAGGED_FORM, ReplyFormat(tools=gemma.FORM), ReplyFormat(tools=pythonic.FORM)):
        guide, warnings = GuideFactory(model.vocab).guide(request(tool), form)
        assert guide is not None
        lost = "the schema, which is too large to find the arguments that can have no value,"
        assert warnings == (f"tools: `f0`: {lost} is not enforced",)
        with pytest.raises(BadRequest, match=f"`f0`: {lost} cannot be enforced"):
            GuideFactory(model.vocab).guide(request(replace(tool, strict=True)), form)


def test_what_ends_the_preparation_is_raised_between_tools(model: LlamaModel) -> None:
    n_left = [2]

    def pause() -> None:
        n_left[0] -= 1
        if not n_left[0]:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        GuideFactory(model.vocab).guide(request(Tool("f", "", SET), Tool("g", "", SET)), FORM, pause)


@pytest.mark.parametrize("form", [TAGGED_FORM, ReplyFormat(tools=pythonic.FORM)])
@pytest.mark.parametrize("are_alike", [True, False])
def test_definitions_are_written_for_the_arguments_that_need_them_and_bounded(
    model: LlamaModel, form: ReplyFormat, are_alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []

    def counted(part: Schema, root: Schema) -> Schema:
        lengths.append(len(json.dumps(part)))
        return standalone(part, root)

    monkeypatch.setattr("shimmy.engine.constrain.tool_grammar.standalone", counted)
    definitions: dict[str, dict[str, Any]] = {
        f"d{i}": {"type": "object", "properties": {f"p{j}": {"type": "string", "maxLength": j + 1} for j in range(20)}}
        for i in range(100)
    }
    for i, definition in enumerate(definitions.values()):
        definition["properties"]["next"] = {"$ref": f"#/$defs/d{(i + 1) % 100}"}
        definition["description"] = "" if are_alike else f"The {i}th of them."
    arguments = {f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i}"}} for i in range(64)}
    arguments |= {f"b{i}": arguments["a0"] for i in range(64)}
    tool = Tool("f", "", json.dumps({"type": "object", "properties": arguments, "$defs": definitions}))
    guide, warnings = GuideFactory(model.vocab).guide(request(tool), form)
    assert guide is not None
    too_large = "the tools are too large together: more than 524288 characters of grammar"
    if are_alike:
        assert not warnings
        assert len(lengths) <= 65  # the rest of them is known
        return
    assert len(lengths) < 10
    assert warnings == ("tools: `f`: the schema is not enforced, they are too large together",)
    with pytest.raises(BadRequest, match=too_large):
        GuideFactory(model.vocab).guide(request(replace(tool, strict=True)), form)


def test_names_in_warnings_are_no_lines_and_no_commands_for_a_terminal(
    model: LlamaModel, caplog: pytest.LogCaptureFixture
) -> None:
    forged = {name: {"type": "string", "format": "date"} for name in ("\x1b]0;x\x07", "\n12:00:00 ERROR x", "y" * 999)}
    tool = Tool("f", "", json.dumps({"type": "object", "properties": forged}))
    with caplog.at_level(logging.WARNING):
        _, warnings = GuideFactory(model.vocab).guide(request(tool), TAGGED_FORM)
    assert len(warnings) == 3
    for text in (*warnings, *(record.getMessage() for record in caplog.records)):
        assert text.isprintable()
        assert len(text) <= 201
    assert any(r"\x1b]0;x\x07" in text for text in warnings)
    with pytest.raises(BadRequest) as refused:
        GuideFactory(model.vocab).guide(request(replace(tool, strict=True)), TAGGED_FORM)
    assert refused.value.message.isprintable()
    assert r"\n12:00:00 ERROR x" in refused.value.message


CHANNELS = ReplyFormat(harmony.THINKING, channels=Channels.HARMONY)
ANSWER = '{"a":1}'
FINAL = f"<|channel|>final<|message|>{ANSWER}"
THOUGHT = "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("form", "reply", "is_right"),
    [
        (CHANNELS, FINAL, True),
        (CHANNELS, THOUGHT + FINAL, True),
        (CHANNELS, THOUGHT + FINAL.replace("1", "x"), False),
        (CHANNELS, ANSWER, False),
        (replace(CHANNELS, is_thinking=True), f"Think.<|end|><|start|>assistant{FINAL}", True),
        (replace(CHANNELS, is_thinking=True), f"Think.<|end|>{FINAL}", False),
    ],
)
def test_a_schema_holds_for_the_final_message_where_replies_are_in_channels(
    model: LlamaModel, form: ReplyFormat, reply: str, is_right: bool
) -> None:
    asked = request(grammar=Grammar(GrammarKind.LARK, 'start: "{" "\\"a\\":" /[0-9]/ "}"'))
    guide, _ = GuideFactory(model.vocab).guide(asked, form)
    assert guide is not None
    tokens = model.vocab.tokenize(f"\n{reply}", add_special=False, parse_special=False)
    tokens = tokens[[model.vocab.token_bytes(token, special=False) for token in tokens].index(b"\n") + 1 :]
    for token in tokens:
        if not guide.allows(token):
            assert not is_right
            return
        guide.accept(token)
    assert is_right
