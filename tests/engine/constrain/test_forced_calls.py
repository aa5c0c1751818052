"""Calls that are forced in the own way of each family of models: drawn from the grammar, cut anywhere, read back."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from shimmy.engine.chat import detect_tool_format
from shimmy.engine.chat.detect_tool_format import may_be_several, recognise
from shimmy.engine.chat.template import ChatTemplate
from shimmy.engine.constrain import tool_grammar
from shimmy.engine.constrain.json_schema import STYLE
from shimmy.messages.reply import ArgumentSyntax, Channels, ReplyFormat, ToolFormat
from shimmy.messages.request import Tool, ToolCall, ToolChoice
from shimmy.text.reply_parser import Reply, ReplyParser
from shimmy.text.speech import gemma, minimax, muse
from shimmy.text.speech.argument_types import argument_schemas, argument_types
from tests.engine.constrain.walker import Walker
from tests.real_templates import real_templates

N_CALLS = 100  # of each family, with control tokens and as many without

TOOLS = (
    Tool(
        "write_file",
        "Writes a file.",
        json.dumps({
            "type": "object",
            "properties": {
                "path": {"type": "string", "minLength": 1, "maxLength": 12},
                "content": {"type": "string"},
                "mode": {"enum": ["append", "replace"]},
                "day": {"type": "string", "pattern": r"^\d{1,4}-[a-z/]+$", "maxLength": 9},
                "n": {"type": "integer", "minimum": 0, "maximum": 999},
                "ratio": {"type": ["number", "null"]},
                "force": {"type": "boolean"},
                "note": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}]},
                "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
                "where": {
                    "type": "object",
                    "properties": {"line": {"enum": [1, 2]}, "s": {"type": "string", "maxLength": 4}},
                    "required": ["line"],
                    "additionalProperties": False,
                },
            },
            "required": ["path", "content", "n"],
            "additionalProperties": False,
            "$defs": {"tag": {"type": "string", "maxLength": 3}},
        }),
    ),
    Tool("now", "The time.", '{"type": "object", "properties": {}, "additionalProperties": false}'),
)  # fmt: skip
SCHEMAS = {tool.name: json.loads(tool.parameters) for tool in TOOLS}
AWKWARD = {
    "path": "3",
    "content": 'null\n</param> "quoted" \\n <tool_call> {"a": 1}\n\ttrue',
    "n": 7,
    "ratio": None,
    "force": True,
    "note": "é — 😀",
    "tags": ["a", "<b>"],
    "where": {"line": 1, "s": '"'},
}
CALLS = (
    ToolCall("000000001", "write_file", json.dumps(AWKWARD, ensure_ascii=False)),
    ToolCall("000000002", "now", "{}"),
    ToolCall("000000003", "write_file", '{"path": "", "content": "", "n": 0}'),
)

TAGGED = (
    *("Qwen3-Coder", "Qwen3.5-4B", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "StepFun3.5-Flash", "ByteDance-Seed-OSS"),
    *("GLM-4.6", "GLM-4.7-Flash", "inclusionai-ling-3.0-flash", "Spark2.5", "poolside-Laguna-S-2.1"),
    *("MiniMax-M2", "deepseek-ai-DeepSeek-V3.2", "deepseek-ai-DeepSeek-V4", "openbmb-MiniCPM5-1B"),
)
KIMI = ("moonshotai-Kimi-K2", "Kimi-K2-Thinking")
KIMI_K3 = "Kimi-K3"
LFM = "LFM2.5-8B-A1B"
GEMMA = "google-gemma-4-31B-it"
HARMONY = "openai-gpt-oss-120b"
COMMAND = ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "Cohere2MoE")
OWN = (
    *(*COMMAND, "Qwen-Qwen3-0.6B", "mistralai-Ministral-3-14B-Reasoning-2512", "deepseek-ai-DeepSeek-V3.1"),
    *("Mistral-Small-3.2-24B-Instruct-2506", "mistralai-Mistral-Nemo-Instruct-2407", "ibm-granite-granite-4.0"),
)
FUNCTIONARY = "meetkai-functionary-medium-v3.2"
SOLAR = "upstage-Solar-Open-100B"
MINIMAX = "MiniMax-M3"
MUSE = "muse-glimmer"
# Ling 2 writes calls as Qwen 3 does, GLM 5 as GLM 4.7.
FAMILIES = (*TAGGED, *KIMI, KIMI_K3, LFM, GEMMA, HARMONY, FUNCTIONARY, SOLAR, MINIMAX, MUSE, *OWN)


@cache
def form_of(family: str) -> ToolFormat:
    found = recognise(ChatTemplate(real_templates()[family], bos="<s>", eos="</s>"))
    assert found.shows_calls
    return found.format


def prepared(tool: Tool) -> dict[str, Any]:
    return {**json.loads(tool.parameters), "x-guidance": STYLE}


tool_lark = partial(tool_grammar.tool_lark, TOOLS, prepare=prepared)


def written(calls: Sequence[ToolCall], form: ToolFormat) -> str:
    """As the template writes the calls, with ids as long as those that its model writes."""
    by_model = [replace(call, id=f"0{call.id}") if form.id_end else call for call in calls]
    return detect_tool_format.written(by_model, form)


def marks_of(form: ToolFormat) -> tuple[str, ...]:
    """The marks that are control tokens where a vocabulary has them."""
    if form.syntax is ArgumentSyntax.HARMONY:
        return "<|end|>", "<|call|>"  # llama.cpp shows the others
    if form.name_again:
        return muse.MARKS
    if form.type_end:
        return "<|open|>", "<|close|>", "<|sep|>"
    if form.id_prefix:
        return form.section_start, "<|tool_call_begin|>", form.separator or "", form.call_end, form.section_end
    text = f"{form.section_start}{form.call_start}{form.call_end}{form.section_end}{form.key_end}{form.value_end}"
    return tuple(dict.fromkeys(tool_grammar._MARK.findall(text)))


def channels_of(form: ToolFormat) -> Channels | None:
    if form.syntax is ArgumentSyntax.HARMONY:
        return Channels.HARMONY
    return Channels.MUSE if form.name_again else None


def exits(form: ToolFormat) -> tuple[str, ...]:
    return (
        form.value_end,
        form.text_mark,
        f"{form.quote_end}{form.value_end}",
        '"',
        "]",
        "}",
        form.call_end,
        form.section_end,
        "<|end|>",
        muse.THINKING[1],
        minimax.CLOSES,
        form.type_end,
    )


CUTS = (1, 1, 2, 3, 7, 30)


def read(
    text: str,
    form: ToolFormat,
    seed: int | None = None,
    tools: Sequence[Tool] = TOOLS,
    sizes: Sequence[int] = CUTS,
) -> Reply:
    """The reply, read from pieces of these `sizes` that `seed` draws; from one piece without."""
    known = ReplyFormat(argument_types=argument_types(tools), argument_schemas=argument_schemas(tools))
    parser = ReplyParser(replace(known, tools=form, channels=channels_of(form)))
    reply, drawn = Reply(), random.Random(seed)
    while text:
        n = len(text) if seed is None else drawn.choice(sizes)
        reply.add(parser.feed(text[:n]))
        text = text[n:]
    reply.add(parser.flush())
    return reply


def said(reply: Reply) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in reply.calls]


def meant(call: ToolCall, form: ToolFormat) -> object:
    """The arguments as the family's template writes them: that of MiniMax M3 leaves out what is null."""
    arguments = json.loads(call.arguments)
    if form.syntax is not ArgumentSyntax.ELEMENTS:
        return arguments
    return {key: value for key, value in arguments.items() if value is not None}


@pytest.mark.thorough
@pytest.mark.parametrize("with_special", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_calls_are_read_back_and_follow_their_schema(family: str, with_special: bool) -> None:
    form = form_of(family)
    walker = Walker(marks_of(form) if with_special else ())
    lark = tool_lark(ToolChoice(required=True), form, special=walker.id)
    for seed in range(N_CALLS):
        text = walker.reply(lark, seed, exits(form))
        reply = read(text, form)
        assert reply.calls, text
        assert not reply.content, text
        assert said(read(text, form, seed, sizes=CUTS if seed % 2 else (1,))) == said(reply)
        for call in reply.calls:
            Draft202012Validator(SCHEMAS[call.name]).validate(json.loads(call.arguments))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_template_writes_is_allowed_and_read_back(family: str) -> None:
    form, walker = form_of(family), Walker()
    for calls in (CALLS[:1], CALLS[1:2], *([CALLS] if may_be_several(form) else [])):
        text = written(calls, form)
        expected = [(call.name, meant(call, form)) for call in calls]
        for seed in (None, *range(8)):
            assert [(name, json.loads(arguments)) for name, arguments in said(read(text, form, seed))] == expected
        if all(json.loads(call.arguments).get("path", "x") for call in calls):
            assert walker.takes(tool_lark(ToolChoice(required=True), form), text)
            assert walker.takes(tool_lark(ToolChoice(), form), text)


def test_a_call_of_qwen_may_lack_its_first_mark() -> None:
    form, walker = form_of("Qwen3-Coder"), Walker()
    auto = tool_lark(ToolChoice(), form)
    call = written(CALLS[1:2], form)
    short = call.removeprefix("<tool_call>\n")
    for text in (call, f"Hm. {call}", short, f"Hm.\n{short}", "Hm."):
        assert walker.takes(auto, text)
    assert not walker.takes(auto, short.replace("now", "other"))
    assert not walker.takes(tool_lark(ToolChoice(required=True), form), short)


@pytest.mark.parametrize("answer", [("<|START_RESPONSE|>", "<|END_RESPONSE|>"), None])
def test_an_answer_may_stand_between_its_marks(answer: tuple[str, str] | None) -> None:
    form = form_of(COMMAND[0])
    around = ReplyFormat(("<|START_THINKING|>", "<|END_THINKING|>"), tools=form, answer=answer)
    walker = Walker((*marks_of(form), *(around.thinking or ()), "<|START_RESPONSE|>", "<|END_RESPONSE|>"))
    auto = tool_lark(ToolChoice(), form, special=walker.id, around=around)
    call, thought = written(CALLS[1:2], form), "<|START_THINKING|>Well.<|END_THINKING|>"
    for before in ("", thought):
        for text in ("Hi.", "", call, f"Hi.{call}"):
            assert walker.takes(auto, f"{before}{text}")
        for text in ("<|START_RESPONSE|>Hi.<|END_RESPONSE|>", "<|START_RESPONSE|>Hi.", f"<|START_RESPONSE|>Hi.{call}"):
            assert walker.takes(auto, f"{before}{text}") == (answer is not None)
        assert not walker.takes(auto, f"{before}<|START_RESPONSE|>Hi.<|END_RESPONSE|>Hi.")
    required = tool_lark(ToolChoice(required=True), form, special=walker.id, around=around)
    assert not walker.takes(required, "<|START_RESPONSE|>Hi.<|END_RESPONSE|>")


@pytest.mark.parametrize("with_special", [False, True])
def test_a_thought_may_begin_with_a_control_token_and_a_word(with_special: bool) -> None:
    """The grammar of Gemma's replies was refused where the vocabulary has this token."""
    form = form_of(GEMMA)
    around = ReplyFormat(("<|channel>thought", "<channel|>"), tools=form)
    walker = Walker(("<|channel>", "<channel|>", *marks_of(form)) if with_special else ())
    call = written(CALLS[1:2], form)
    for choice in (ToolChoice(), ToolChoice(required=True)):
        lark = tool_lark(choice, form, special=walker.id, around=around)
        for text in (call, f"<|channel>thought\nWell.<channel|>{call}"):
            assert walker.takes(lark, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_choice_by_name_takes_that_tool_once(family: str) -> None:
    form, walker = form_of(family), Walker()
    lark = tool_lark(ToolChoice(required=True, name="now"), form)
    assert walker.takes(lark, written(CALLS[1:2], form))
    assert not walker.takes(lark, written(CALLS[:1], form))
    assert not walker.takes(lark, written((CALLS[1], CALLS[1]), form))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_choice_takes_the_replies_that_it_asks_for(family: str) -> None:
    form, walker = form_of(family), Walker()
    plain = "Hm."
    if form.syntax is ArgumentSyntax.HARMONY:
        plain = f"<|channel|>final<|message|>{plain}"
    if form.name_again:
        plain = f" to=user<|message|>{plain}"
    call, two = written(CALLS[1:2], form), written((CALLS[1], CALLS[0]), form)
    auto, required = (tool_lark(ToolChoice(required=required), form) for required in (False, True))
    one_only = tool_lark(ToolChoice(required=True, parallel=False), form)
    assert walker.takes(auto, plain)
    assert not walker.takes(required, plain)
    assert all(walker.takes(lark, call) for lark in (auto, required, one_only))
    assert [walker.takes(lark, two) for lark in (auto, required, one_only)] == [*[may_be_several(form)] * 2, False]
    assert not walker.takes(auto, call.replace("now", "other"))
    assert not walker.takes(required, call.replace("now", "other"))


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reply_that_ends_anywhere_is_read_without_an_error(family: str) -> None:
    form = form_of(family)
    text = written(CALLS if may_be_several(form) else CALLS[:1], form)
    known = said(read(text, form))
    for end in range(len(text)):
        whole, cut = read(text[:end], form), read(text[:end], form, end)
        assert (said(whole), whole.content) == (said(cut), cut.content)
        for (name, arguments), (known_name, known_arguments) in zip(said(whole), known, strict=False):
            assert name == known_name
            assert known_arguments.startswith(arguments)


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_a_damaged_call_is_text_or_a_call_and_never_an_error(family: str) -> None:
    form, drawn = form_of(family), random.Random(1)
    text = written(CALLS if may_be_several(form) else CALLS[:1], form)
    for _ in range(300):
        start = drawn.randrange(len(text))
        damaged = text[:start] + drawn.choice(("", "x", "<", "}", "\n", "[")) + text[start + drawn.randrange(1, 9) :]
        whole, cut = read(damaged, form), read(damaged, form, start)
        assert (said(whole), whole.content) == (said(cut), cut.content), damaged


@pytest.mark.parametrize("with_special", [False, True])
def test_quotes_around_a_text_have_an_end_also_where_the_mark_behind_them_is_a_token(with_special: bool) -> None:
    form = form_of("openbmb-MiniCPM5-1B")
    walker = Walker(marks_of(form) if with_special else ())
    tool = Tool("f", "", '{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}')
    lark = tool_grammar.tool_lark((tool,), ToolChoice(required=True), form, prepare=prepared, special=walker.id)
    for text in ("a < b\n" * 1000, "]]> &", "a", ""):
        call = written((ToolCall("", "f", json.dumps({"a": text})),), form)
        assert walker.takes(lark, call)
        assert json.loads(read(call, form, tools=(tool,)).calls[0].arguments) == {"a": text}
        assert not walker.takes(lark, call.replace("]]></param>", "</param>")) or "<![" not in call
    custom = tool_grammar.tool_lark(
        (tool,), ToolChoice(required=True), form, prepare=prepared, special=walker.id, texts={"f": 'start: "<\\n"'}
    )
    assert walker.takes(custom, '<function name="f"><param name="input"><![CDATA[<\n]]></param></function>')


LONG = "lorem ipsum " * 250


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"maxLength": 400}, LONG[:400]),
        ({"minLength": 400}, LONG),
        ({"minLength": 1}, LONG),
        ({"maxLength": 5000}, LONG),
        ({"pattern": "^[a-z ]+$"}, LONG),
        ({"pattern": "ipsum"}, LONG),
        ({"pattern": "^.{1,5000}$"}, LONG),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["Qwen3-Coder", GEMMA])
def test_a_long_text_is_followed_to_its_end(family: str, schema: dict[str, Any], text: str) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string", **schema}}, "required": ["a"]}
    tools, form, walker = [Tool("f", "", json.dumps(parameters))], form_of(family), Walker()
    lark = tool_grammar.tool_lark(tools, ToolChoice(required=True), form, prepare=prepared)
    assert walker.takes(lark, written([ToolCall("", "f", json.dumps({"a": text}))], form))


N_RECURSIVE = 5


def test_a_schema_that_leads_back_to_itself_holds_at_any_depth_in_the_calls_of_gemma() -> None:
    again = {f"p{n}": {"$ref": "#/$defs/node"} for n in range(N_RECURSIVE)}
    node = {"type": "object", "properties": {**again, "n": {"type": "integer"}}, "additionalProperties": False}
    parameters = {"type": "object", "properties": {"a": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}}
    form, walker = form_of(GEMMA), Walker()
    tools = [Tool("f", "", json.dumps(parameters))]
    lark = tool_grammar.tool_lark(tools, ToolChoice(required=True), form, prepare=prepared)
    assert len(lark.splitlines()) < 100
    assert not gemma.unenforced(parameters)
    for leaf, is_right in ((1, True), ("text", False)):
        value: object = {"n": leaf}
        for n in range(12):
            value = {f"p{n % N_RECURSIVE}": value}
        assert walker.takes(lark, written([ToolCall("", "f", json.dumps({"a": value}))], form)) == is_right


def test_a_choice_that_leads_back_to_itself_holds_in_the_calls_of_gemma() -> None:
    ring = {"anyOf": [{"$ref": "#/$defs/ring"}, {"$ref": "#/$defs/ring"}, {"type": "integer"}]}
    parameters = {"type": "object", "properties": {"a": {"$ref": "#/$defs/ring"}}, "$defs": {"ring": ring}}
    tools = [Tool("f", "", json.dumps(parameters))]
    form, walker = form_of(GEMMA), Walker()
    lark = tool_grammar.tool_lark(tools, ToolChoice(required=True), form, prepare=prepared)
    assert walker.takes(lark, written([ToolCall("", "f", '{"a": 1}')], form))
    assert not walker.takes(lark, written([ToolCall("", "f", '{"a": "x"}')], form))


@pytest.mark.parametrize("with_special", [False, True])
@pytest.mark.parametrize(
    "family",
    [
        KIMI_K3,
        MINIMAX,
        LFM,
        "Qwen3-Coder",
        "openbmb-MiniCPM5-1B",
        "GLM-4.6",
        "MiniMax-M2",
        "deepseek-ai-DeepSeek-V3.2",
    ],
)
def test_names_with_marks_of_the_form_in_them_are_forced_and_read_back(family: str, with_special: bool) -> None:
    form = form_of(family)
    mark = form.key_end.strip() or (">" if family == MINIMAX else "=")
    names = (
        "a",
        mark,
        f"a{mark}b",
        f"b{mark}",
        " c ",
        "\td\n",
        "e\nf",
        "",
        "<eos>",
        "'\"\\",
        "),(",
        ",",
        "x" * 300,
        "é =",
    )
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 0, "maximum": 9} for name in names},
        "required": [*names],
        "additionalProperties": False,
    }
    tools = (Tool("f", "", json.dumps(schema)),)
    walker = Walker((*marks_of(form), "<eos>") if with_special else ())
    lark = tool_grammar.tool_lark(tools, ToolChoice(required=True), form, prepare=prepared, special=walker.id)
    for seed in range(4):
        text = walker.reply(lark, seed, ())
        for cut in (None, *range(4)):
            calls = read(text, form, cut, tools).calls
            assert unnumbered(written(calls, form)) == unnumbered(text.rstrip())
            for call in calls:
                given = json.loads(call.arguments)
                assert [*given] == [*names]
                Draft202012Validator(schema).validate(given)


def unnumbered(text: str) -> str:
    return re.sub(r' index="\d+"', "", text)  # of Kimi K3's calls


ODD_NAMES = ("a:b", '"q"', "{", "a,b}", "[x]", "", " ", "<eos>", "plain name", "é$/-", "'")


@pytest.mark.parametrize("with_special", [False, True])
def test_names_that_would_end_early_are_forced_and_read_back_in_gemmas_calls(with_special: bool) -> None:
    form = form_of(GEMMA)
    integer = {"type": "integer", "minimum": 0, "maximum": 9}
    nested: dict[str, Any] = {"type": "object", "required": [*ODD_NAMES]}
    nested["properties"] = dict.fromkeys(ODD_NAMES, integer)
    schema = {
        **nested,
        "properties": {**dict.fromkeys(ODD_NAMES, integer), "z:": nested | {"additionalProperties": False}},
    }
    schema |= {"required": [*ODD_NAMES, "z:"], "additionalProperties": False}
    tool = Tool("f", "", json.dumps(schema))
    walker = Walker((*marks_of(form), gemma.QUOTE, "<eos>") if with_special else ())
    lark = tool_grammar.tool_lark((tool,), ToolChoice(required=True), form, prepare=prepared, special=walker.id)
    for seed in range(4):
        reply = read(walker.reply(lark, seed, exits(form)), form, seed)
        assert reply.calls
        for call in reply.calls:
            Draft202012Validator(schema).validate(json.loads(call.arguments))
            (again,) = read(written((ToolCall("", "f", call.arguments),), form), form, seed).calls
            assert json.loads(again.arguments) == json.loads(call.arguments)
