"""The parser of replies says the same however a text is cut, and loses nothing of what it does not understand."""

# ruff: noqa: RUF001 -- DeepSeek's marks are written with letters that look like others

import json
import random
import re
from dataclasses import dataclass, replace
from time import thread_time

import pytest

from shimmy.messages.reply import ArgumentSyntax, Beside, Channels, Delta, ReplyFormat, ToolFormat
from shimmy.messages.request import ToolCall
from shimmy.text.reply_parser import Reply, ReplyParser
from shimmy.text.speech import gemma, harmony, pythonic

# The forms of models in use, as their chat templates write them.
HERMES = ToolFormat(call_start="<tool_call>\n", call_end="\n</tool_call>", between="\n")
LLAMA = ToolFormat(arguments_key="parameters")
NEMO = ToolFormat(section_start="[TOOL_CALLS][", between=", ", section_end="]", id_key="id")
MISTRAL = ToolFormat(call_start="[TOOL_CALLS]", separator="[ARGS]")
MISTRAL_SMALL = replace(MISTRAL, id_key="[CALL_ID]")
PHI = ToolFormat(section_start="<|tool_call|>[", between=",", section_end="]<|/tool_call|>")
GRANITE = ToolFormat(section_start="<|tool_call|>[", between=", ", section_end="]")
FUNCTION_TAG = ToolFormat(call_start="<function=", separator=">", call_end="</function>")
DEEPSEEK = ToolFormat(
    section_start="<｜tool▁calls▁begin｜>",
    call_start="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    separator="\n```json\n",
    call_end="\n```<｜tool▁call▁end｜>",
    between="\n",
    section_end="<｜tool▁calls▁end｜>",
)
DEEPSEEK_V3_1 = replace(
    DEEPSEEK,
    call_start="<｜tool▁call▁begin｜>",
    separator="<｜tool▁sep｜>",
    call_end="<｜tool▁call▁end｜>",
    between="",
)
WRAPPED = ToolFormat(
    section_start='{"tool_calls": [', between=", ", section_end="]}", name_key="tool", arguments_key="input"
)
APERTUS = ToolFormat("<|tools_prefix|>[", '{"', "}", ", ", "]<|tools_suffix|>", separator='": ')
NAME_AND_LINE = ToolFormat(section_start="<calls>", separator="\n", between=";", section_end="</calls>")
BARE_ARRAY = ToolFormat(section_start="[", between=", ", section_end="]")
BARE_NAME = ToolFormat(separator=": ")
FORMATS = {
    "hermes": HERMES, "llama": LLAMA, "nemo": NEMO, "mistral": MISTRAL, "mistral_small": MISTRAL_SMALL, "phi": PHI,
    "granite": GRANITE, "function_tag": FUNCTION_TAG, "deepseek": DEEPSEEK, "deepseek_v3_1": DEEPSEEK_V3_1,
    "apertus": APERTUS, "wrapped": WRAPPED, "name_and_line": NAME_AND_LINE, "bare_array": BARE_ARRAY,
    "bare_name": BARE_NAME,
}  # fmt: skip
THINK = ("<think>\n", "\n</think>\n\n")

ARGUMENTS = (
    "{}",
    '{"city": "Köln"}',
    '{ "a" : [1, {"b": "}"}, "]"], "c": {"d": {"e": null}} }',
    r'{"text": "a \"quoted\" } \\", "more": "\u00e9 🦀 <tool_call> {[("}',
    '{\n  "lines": "one\\ntwo",\n  "n": -1.5e3\n}',
    r'{"\\": "\\\\\"", "": ""}',
)

Whole = tuple[str, str, tuple[tuple[str, str], ...]]  # content, reasoning, and the name and arguments of each call


def join(deltas: list[Delta]) -> Reply:
    reply = Reply()
    for delta in deltas:
        reply.add(delta)
    return reply


def parse(pieces: list[str], form: ReplyFormat, *, split_reasoning: bool = True) -> Whole:
    """The whole reply; every delta is checked on the way, ids too."""
    parser = ReplyParser(form, split_reasoning=split_reasoning)
    reply = join([*map(parser.feed, pieces), parser.flush()])
    assert parser.has_calls == bool(reply.calls)
    assert all(call.id for call in reply.calls)
    return reply.content, reply.reasoning, tuple((call.name, call.arguments) for call in reply.calls)


def parse_everywhere(text: str, form: ReplyFormat, *, split_reasoning: bool = True) -> Whole:
    """The same for the text at once, cut at every place, cut at two places, and cut into characters."""
    whole = parse([text], form, split_reasoning=split_reasoning)
    assert parse(list(text), form, split_reasoning=split_reasoning) == whole
    for cut in range(len(text) + 1):
        assert parse([text[:cut], text[cut:]], form, split_reasoning=split_reasoning) == whole, text[:cut]
    dice = random.Random(text)
    for _ in range(40):
        cuts = sorted(dice.choices(range(len(text) + 1), k=dice.randrange(2, 8)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert parse(pieces, form, split_reasoning=split_reasoning) == whole, pieces
    return whole


def write(form: ToolFormat, *calls: tuple[str, str]) -> str:
    """What a model writes that calls these functions with these arguments."""
    return form.section_start + form.between.join(write_call(form, *call) for call in calls) + form.section_end


def write_call(form: ToolFormat, name: str, arguments: str) -> str:
    if form.separator is not None:
        call_id = f"{form.id_key}abcdef123" if form.id_key else ""
        body = name + call_id + form.separator + arguments
    else:
        call_id = f', "{form.id_key}": "abcdef123"' if form.id_key else ""
        body = f'{{"{form.name_key}": "{name}", "{form.arguments_key}": {arguments}{call_id}}}'
    return form.call_start + body + form.call_end


@pytest.fixture(params=FORMATS)
def tools(request: pytest.FixtureRequest) -> ToolFormat:
    return FORMATS[request.param]


# -- every form of calls


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_a_call_is_read_in_every_form(tools: ToolFormat, arguments: str) -> None:
    text = write(tools, ("get_weather", arguments))
    assert parse_everywhere(text, ReplyFormat(tools=tools)) == ("", "", (("get_weather", arguments),))


def test_several_calls_have_indices_of_their_own(tools: ToolFormat) -> None:
    calls = (("one", ARGUMENTS[2]), ("two", ARGUMENTS[3]), ("three", "{}"))
    if tools is BARE_NAME:  # nothing tells where the next name begins
        return
    assert parse_everywhere(write(tools, *calls), ReplyFormat(tools=tools)) == ("", "", calls)


def test_white_space_around_calls_is_dropped(tools: ToolFormat) -> None:
    text = f" \n{write(tools, ('now', '{}'))}\n \t\n"
    assert parse_everywhere(text, ReplyFormat(tools=tools)) == ("", "", (("now", "{}"),))


def test_text_in_front_of_calls_and_behind_them_is_content() -> None:
    text = f"Let me see.\n{write(HERMES, ('now', '{}'), ('then', '{}'))}\nThat is all."
    expected = ("Let me see.\n\nThat is all.", "", (("now", "{}"), ("then", "{}")))
    assert parse_everywhere(text, ReplyFormat(tools=HERMES)) == expected


def test_calls_after_reasoning_are_read_in_every_form(tools: ToolFormat) -> None:
    inside = write(tools, ("never", "{}"))
    text = f"<think>\nHm, {inside}?\n</think>\n\n{write(tools, ('now', '{}'))}"
    expected = ("", f"Hm, {inside}?\n", (("now", "{}"),))
    assert parse_everywhere(text, ReplyFormat(THINK, tools=tools)) == expected
    assert parse_everywhere(text.removeprefix("<think>"), ReplyFormat(THINK, True, tools)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "Just text, with < and [ and { in it.",
        '{"answer": {"name": "x", "arguments": {}}}',
        "[1, 2, 3]",
        "<think",
        "```json\n{}\n```",
        "[TOOL_CALL",
        "a <b> c </tool_call> ]",
    ],
)
def test_text_without_calls_is_content(tools: ToolFormat, text: str) -> None:
    assert parse_everywhere(text, ReplyFormat(tools=tools)) == (text, "", ())
    assert parse_everywhere(text, ReplyFormat()) == (text, "", ())


# -- objects


@pytest.mark.parametrize(
    "body",
    [
        '{"name":"f","arguments":{"a":1}}',
        '\n\t{ "name" : "f" ,\n"arguments" : {"a":1} }\n',
        '{"arguments": {"a":1}, "name": "f"}',
        '{"type": "function", "x": [1, "]", {}], "arguments": {"a":1}, "y": -2.5, "z": null, "name": "f", "w": true}',
        r'{"name": "\u0066", "arguments": {"a":1}, "arguments": {"b":2}, "name": "g"}',
        '{"name": "f", "arguments": {"a":1}',  # the last brace is forgotten
    ],
)
def test_an_object_may_have_its_keys_in_any_order_and_others_beside_them(body: str) -> None:
    text = f"<tool_call>{body}</tool_call>"
    assert parse_everywhere(text, ReplyFormat(tools=HERMES)) == ("", "", (("f", '{"a":1}'),))


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "parameters": {"a": 1}}',
        '<|python_tag|>{"name": "f", "parameters": {"a": 1}}',
        '\n<|python_tag|> {"type": "function", "name": "f", "parameters": {"a": 1}}\n',
        '{"parameters": {"a": 1}, "name": "f"}',
    ],
)
def test_a_reply_that_is_an_object_is_a_call_where_nothing_marks_them(text: str) -> None:
    assert parse_everywhere(text, ReplyFormat(tools=LLAMA)) == ("", "", (("f", '{"a": 1}'),))


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "born": 1815}',
        '{"name": "Ada"}',
        '{"parameters": {"a": 1}}',
        'Like {"name": "f", "parameters": {}}.',
        '<|python_tag|>search.call(query="x")',
        '{"id": 1, "name": "f", "parameters": {}}',
    ],
)
def test_a_reply_that_is_no_call_is_content_where_nothing_marks_them(text: str) -> None:
    assert parse_everywhere(text, ReplyFormat(tools=LLAMA)) == (text, "", ())


def test_an_answer_in_json_is_not_held_back_where_nothing_marks_calls() -> None:
    parser = ReplyParser(ReplyFormat(tools=LLAMA))
    assert parser.feed('{"answer": [1') == Delta('{"answer": [1')
    assert parser.feed(", 2") == Delta(", 2")


def test_a_call_without_arguments_has_none() -> None:
    text = '<tool_call>{"name": "now"}</tool_call>'
    assert parse_everywhere(text, ReplyFormat(tools=HERMES)) == ("", "", (("now", "{}"),))


@pytest.mark.parametrize("start", ["[TOOL_CALLS][", "[TOOL_CALLS] [\n", "[TOOL_CALLS]"])
def test_the_bracket_of_an_array_may_stand_apart(start: str) -> None:
    text = f'{start}{{"name": "f", "arguments": {{}}}}]'
    assert parse_everywhere(text, ReplyFormat(tools=NEMO)) == ("", "", (("f", "{}"),))


def test_a_call_outside_of_a_section_is_content() -> None:
    text = write_call(APERTUS, "f", '{"a": 1}')
    assert parse_everywhere(text, ReplyFormat(tools=APERTUS)) == (text, "", ())


# -- ids


def ids(text: str, tools: ToolFormat) -> list[str]:
    parser = ReplyParser(ReplyFormat(tools=tools))
    return [call.id for call in join([parser.feed(text), parser.flush()]).calls]


def test_calls_have_random_ids() -> None:
    first, second = ids(write(HERMES, ("f", "{}"), ("f", "{}")), HERMES)
    assert first != second
    assert re.fullmatch(r"call_[0-9a-z]{24}", first)


def test_the_models_own_id_is_kept_when_it_comes_before_the_arguments() -> None:
    assert ids('[TOOL_CALLS][{"id": "abcdef123", "name": "f", "arguments": {}}]', NEMO) == ["abcdef123"]
    assert ids('[TOOL_CALLS][{"arguments": {}, "id": "abcdef123", "name": "f"}]', NEMO) == ["abcdef123"]
    assert ids(write(MISTRAL_SMALL, ("f", "{}")), MISTRAL_SMALL) == ["abcdef123"]


@pytest.mark.parametrize("own", ['""', "7", r'"\ud800"', "null", r'"a\nb"'])
def test_an_id_that_is_none_is_replaced(own: str) -> None:
    (found,) = ids(f'[TOOL_CALLS][{{"id": {own}, "name": "f", "arguments": {{}}}}]', NEMO)
    assert found.startswith("call_")


def test_an_id_that_comes_twice_is_replaced_as_a_result_names_one_call() -> None:
    first, second = ids(write(MISTRAL_SMALL, ("f", "{}"), ("f", "{}")), MISTRAL_SMALL)
    assert first == "abcdef123"
    assert second.startswith("call_")


# -- what is told, and when


def test_a_call_is_told_as_soon_as_its_arguments_begin_and_they_as_they_come() -> None:
    parser = ReplyParser(ReplyFormat(tools=HERMES))
    for piece in ("<tool", "_call>", "\n", '{"name": "get', '_weather", ', '"arguments"', ": "):
        assert not parser.feed(piece)
        assert not parser.has_calls
    begun, arguments = parser.feed('{"ci').calls
    assert parser.has_calls is True
    assert (begun.index, begun.name, begun.arguments) == (0, "get_weather", "")
    assert begun.id is not None
    assert (arguments.index, arguments.name, arguments.id, arguments.arguments) == (0, None, None, '{"ci')
    assert [call.arguments for call in parser.feed('ty": "}').calls] == ['ty": "}']
    assert [call.arguments for call in parser.feed('"}').calls] == ['"}']
    assert not parser.feed("}\n</tool_call>")
    (second, _) = parser.feed('<tool_call>{"name": "now", "arguments": {}}').calls
    assert second.index == 1
    assert not parser.flush()


def test_arguments_in_front_of_the_name_are_held_until_it_is_known() -> None:
    parser = ReplyParser(ReplyFormat(tools=HERMES))
    assert not parser.feed('<tool_call>{"arguments": {"a": 1}, "na')
    begun, arguments = parser.feed('me": "f"').calls
    assert begun.name == "f"
    assert arguments.arguments == '{"a": 1}'


def test_only_what_may_become_a_mark_is_held_back() -> None:
    parser = ReplyParser(ReplyFormat(THINK, tools=HERMES))
    assert parser.feed("<thin") == Delta()
    assert parser.feed("k>\n") == Delta()
    assert parser.feed("so </th") == Delta(reasoning="so ")
    assert parser.feed("at") == Delta(reasoning="</that")
    assert parser.feed("</think>\n") == Delta()
    assert parser.feed("a <tool_") == Delta("a ")
    assert parser.feed("kit>") == Delta("<tool_kit>")


# -- what does not parse


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "f", "arguments": "text"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        r'<tool_call>{"name": "\ud800", "arguments": {}}</tool_call>',
        r'<tool_call>{"name": "\x", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "a\nb", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
        "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>[]</tool_call> and more",
        "<tool_call>call me</tool_call>",
        '<tool_call>{"name": "f" "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", , "arguments": {}}</tool_call>',
        "<tool_call>{name: f}</tool_call>\n\n",
    ],
)
def test_a_broken_call_is_content(text: str) -> None:
    assert parse_everywhere(text, ReplyFormat(tools=HERMES)) == (text, "", ())


@pytest.mark.parametrize(
    "text",
    [
        "<function=f>[1]</function>",
        "<function=>{}</function>",
        "<function=f\n>x",
        "<function=a\nb>{}</function>",
        "<function=" + "f" * 300 + ">{}</function>",
    ],
)
def test_a_broken_name_is_content(text: str) -> None:
    assert parse_everywhere(text, ReplyFormat(tools=FUNCTION_TAG)) == (text, "", ())


def beginnings(tools: ToolFormat) -> list[tuple[str, str | None]]:
    """All beginnings of a reply of two calls, or of one, and what is known of the arguments of all calls in each."""
    n_calls = 1 if tools is BARE_NAME else 2
    text = write(tools, *[("get", '{"a": "}"}')] * n_calls)
    told = [Reply() for _ in range(len(text) + 1)]
    for end, reply in enumerate(told):
        parser = ReplyParser(ReplyFormat(tools=tools))
        for piece in text[:end]:
            reply.add(parser.feed(piece))
    return [
        (text[:end], "".join(call.arguments for call in reply.calls) if reply.calls else None)
        for end, reply in enumerate(told)
    ]


@pytest.mark.parametrize("thinking", [None, THINK])
def test_where_a_call_is_required_nothing_of_one_that_is_cut_is_content(
    tools: ToolFormat, thinking: tuple[str, str] | None
) -> None:
    form = ReplyFormat(thinking, tools=tools, beside=Beside.NOTHING)
    for text, arguments in beginnings(tools):
        for before in ("", "<think>\nHm.\n</think>\n\n") if thinking else ("",):
            for pieces in ([before + text], [*before, *text]):
                content, reasoning, calls = parse(pieces, form)
                assert content == "", text
                assert reasoning == ("Hm.\n" if before else "")
                assert "".join(written for _, written in calls) == (arguments or "")
    assert parse(["<think>Hm</th"], ReplyFormat(THINK, tools=tools, beside=Beside.NOTHING))[1] == "Hm</th"
    assert parse(["</th"], ReplyFormat(THINK, True, tools, Beside.NOTHING))[1] == "</th"


def test_behind_a_finished_call_and_behind_the_mark_of_one_nothing_that_is_cut_is_content(tools: ToolFormat) -> None:
    mark = tools.section_start.strip().rstrip("[ ") or tools.call_start.strip() or "{"
    for beside in Beside:
        for text, arguments in beginnings(tools):
            is_told = arguments is not None or (
                tools is not BARE_NAME and text.startswith(mark) and (mark != "{" or beside is not Beside.ANSWER)
            )
            if not is_told or (tools is BARE_ARRAY and beside is Beside.ANSWER and arguments is None):
                continue
            form = ReplyFormat(tools=tools, beside=beside)
            for pieces in ([text], list(text)):
                assert parse(pieces, form)[0] == "", (beside, text)


def test_what_may_be_text_or_an_answer_is_content_where_it_is_cut() -> None:
    for beside in (Beside.TEXT, Beside.ANSWER):
        for text in ("<tool_", "Use <tool_", "a <"):
            assert parse_everywhere(text, ReplyFormat(tools=HERMES, beside=beside)) == (text, "", ())
    answer = '{"name": "Bob'
    assert parse_everywhere(answer, ReplyFormat(tools=LLAMA, beside=Beside.ANSWER)) == (answer, "", ())
    assert parse_everywhere(answer, ReplyFormat(tools=LLAMA)) == ("", "", ())


def test_a_call_behind_a_broken_one_is_read() -> None:
    text = '<tool_call>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert parse_everywhere(text, ReplyFormat(tools=HERMES)) == ("<tool_call>\n", "", (("f", "{}"),))
    text = "<function=" + "x" * 300 + "<function=f>{}</function>"
    expected = ("<function=" + "x" * 300, "", (("f", "{}"),))
    assert parse_everywhere(text, ReplyFormat(tools=FUNCTION_TAG)) == expected


@pytest.mark.parametrize("rest", ['{"a": [1}\n</tool_call>', '{"a": "', '{"a', "{"])
def test_arguments_that_never_end_go_on_to_the_end(rest: str) -> None:
    text = f'<tool_call>{{"name": "f", "arguments": {rest}'
    assert parse_everywhere(text, ReplyFormat(tools=HERMES)) == ("", "", (("f", rest),))


@pytest.mark.parametrize("rest", ["; and more", ', "x" "</tool_call>', ", }</tool_call>", "}</tool_x"])
def test_what_is_broken_behind_the_arguments_is_content(rest: str) -> None:
    text = f'<tool_call>{{"name": "f", "arguments": {{}}{rest}'
    content = rest.removeprefix("}")
    assert parse_everywhere(text, ReplyFormat(tools=HERMES)) == (content, "", (("f", "{}"),))


def test_what_is_broken_in_a_section_is_content_and_the_calls_before_it_stand() -> None:
    text = '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": 1}]'
    assert parse_everywhere(text, ReplyFormat(tools=NEMO)) == (', {"name": 1}]', "", (("f", "{}"),))


def test_no_depth_is_too_great() -> None:
    arguments = '{"a":' * 50_000 + "1" + "}" * 50_000
    text = f'<tool_call>{{"name": "f", "x": {"[" * 50_000}{"]" * 50_000}, "arguments": {arguments}}}</tool_call>'
    assert parse([text], ReplyFormat(tools=HERMES)) == ("", "", (("f", arguments),))


# -- reasoning


@pytest.mark.parametrize("form", [ReplyFormat(THINK), ReplyFormat(THINK, tools=HERMES)])
@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "Yes.", "Hm.\n"),
        (" <think>Hm.</think>Yes. \n", "Yes. \n", "Hm."),
        ("<think>\n\n</think>\n\nYes.", "Yes.", ""),
        ("<think>Hm", "", "Hm"),
        ("<think>Hm</thi", "", "Hm</thi"),
        ("<think>", "", ""),
        ("<thin", "<thin", ""),
        ("  Yes <think>no</think>", "  Yes <think>no</think>", ""),
        ("<think>a</think>b<think>c</think>d", "b<think>c</think>d", "a"),
        ("<think><think>a</think>", "", "<think>a"),
        ("Yes.", "Yes.", ""),
        (" \n", " \n", ""),
        ("", "", ""),
    ],
)
def test_text_between_the_marks_is_reasoning(form: ReplyFormat, text: str, content: str, reasoning: str) -> None:
    assert parse_everywhere(text, form) == (content, reasoning, ())
    assert parse_everywhere(text, form, split_reasoning=False) == (text, "", ())


@pytest.mark.parametrize("form", [ReplyFormat(THINK, True), ReplyFormat(THINK, True, HERMES)])
@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("\nHm.\n</think>\n\nYes.", "Yes.", "Hm.\n"),
        ("</think>Yes.", "Yes.", ""),
        ("Hm <tool_call>", "", "Hm <tool_call>"),
        ("<think>\nHm.</think>", "", "Hm."),  # the prompt has begun it, and the model begins it again
        ("<thi", "", "<thi"),
        ("", "", ""),
    ],
)
def test_reasoning_that_the_prompt_began_needs_no_mark(
    form: ReplyFormat, text: str, content: str, reasoning: str
) -> None:
    assert parse_everywhere(text, form) == (content, reasoning, ())
    assert parse_everywhere(text, form, split_reasoning=False) == (text, "", ())


def test_calls_are_found_behind_reasoning_that_is_content() -> None:
    call = write(HERMES, ("f", "{}"))
    text = f"<think>{call}</think>{call}"
    expected = (f"<think>{call}</think>", "", (("f", "{}"),))
    assert parse_everywhere(text, ReplyFormat(THINK, tools=HERMES), split_reasoning=False) == expected


# -- anything at all


@dataclass(frozen=True)
class Mutations:
    """Texts that are almost replies."""

    tools: ToolFormat
    dice: random.Random

    def text(self) -> str:
        calls = [(f"f{index}", self.dice.choice(ARGUMENTS)) for index in range(self.dice.randrange(1, 3))]
        text = self.dice.choice(("", "<think>x</think>", "Well: ")) + write(self.tools, *calls) + "\nDone."
        for _ in range(self.dice.randrange(4)):
            start, end = sorted(self.dice.choices(range(len(text) + 1), k=2))
            piece = text[start : min(end, start + 12)]
            inserted = self.dice.choice(
                ("", piece * 2, piece[::-1], '"', "\\", "{", "}", "[", "]", ",", " ", "\n", "🦀")
            )
            text = text[:start] + inserted + text[start + len(piece) :]
        return text


@pytest.mark.thorough
@pytest.mark.parametrize("split_reasoning", [True, False])
def test_mutated_replies_are_read_alike_however_they_are_cut(tools: ToolFormat, split_reasoning: bool) -> None:
    dice = random.Random(7)
    form = ReplyFormat(THINK, tools=tools)
    for _ in range(60):
        text = Mutations(tools, dice).text()
        whole = parse([text], form, split_reasoning=split_reasoning)
        assert parse(list(text), form, split_reasoning=split_reasoning) == whole, text
        for _ in range(10):
            cut = dice.randrange(len(text) + 1)
            assert parse([text[:cut], text[cut:]], form, split_reasoning=split_reasoning) == whole, text
        if not ends_in_call(text, form, split_reasoning=split_reasoning):
            assert_nothing_is_lost(text, whole)


def ends_in_call(text: str, form: ReplyFormat, *, split_reasoning: bool) -> bool:
    parser = ReplyParser(form, split_reasoning=split_reasoning)
    parser.feed(text)
    return parser.is_in_call


def assert_nothing_is_lost(text: str, whole: Whole) -> None:
    """All that is said stands in the text; and all of the text that is neither markup nor white space is said."""
    content, reasoning, calls = whole
    said = content + reasoning + "".join(name + arguments for name, arguments in calls)
    assert all(arguments in text or arguments == "{}" for _, arguments in calls)
    if not calls:
        marked = (content, f"<think>{reasoning}</think>{content}", f"<think>{reasoning}")
        assert "".join(text.split()) in {"".join(candidate.split()) for candidate in marked}
    for word in ("Done.", "Well:", "🦀"):
        assert said.count(word) == text.count(word)


def test_text_of_nothing_but_marks_is_read_alike_however_it_is_cut(tools: ToolFormat) -> None:
    dice = random.Random(11)
    parts = [
        "<think>",
        "</think>",
        "<|python_tag|>",
        '{"name": "f", ',
        '"arguments": ',
        '"parameters": ',
        "{}",
        '"x": ',
    ]
    parts += [tools.section_start, tools.call_start, tools.call_end, tools.between, tools.section_end]
    parts += [tools.separator or ",", "}", "]", "{", " ", "f", '"', "\\"]
    form = ReplyFormat(THINK, tools=tools)
    for _ in range(400):
        text = "".join(dice.choices(parts, k=dice.randrange(1, 12)))
        whole = parse([text], form)
        assert parse(list(text), form) == whole, text
        cut = dice.randrange(len(text) + 1)
        assert parse([text[:cut], text[cut:]], form) == whole, text


def test_a_long_text_at_once_is_read_like_its_pieces() -> None:
    calls = tuple((f"f{index}", json.dumps({"n": index, "text": "x" * (index % 50)})) for index in range(500))
    text = write(PHI, *calls)
    assert parse([text], ReplyFormat(tools=PHI)) == ("", "", calls)
    assert parse([text[i : i + 7] for i in range(0, len(text), 7)], ReplyFormat(tools=PHI)) == ("", "", calls)


# -- deltas together


def test_a_reply_is_put_together_from_its_deltas() -> None:
    parser = ReplyParser(ReplyFormat(THINK, tools=MISTRAL_SMALL))
    text = f"<think>Hm.</think>Well. {write(MISTRAL_SMALL, ('f', '{}'))}"
    reply = join([*map(parser.feed, text), parser.flush()])
    assert (reply.content, reply.reasoning) == ("Well. ", "Hm.")
    assert reply.calls == (ToolCall("abcdef123", "f", "{}"),)


# -- stop strings


def cut_everywhere(text: str, form: ReplyFormat, *, split_reasoning: bool = True) -> tuple[str, str, int, str | None]:
    """Content, reasoning, the number of calls and what stopped it, the same however the text is cut."""

    def read(pieces: list[str]) -> tuple[str, str, int, str | None]:
        parser = ReplyParser(form, split_reasoning=split_reasoning)
        reply = join([*map(parser.feed, pieces), parser.flush()])
        return reply.content, reply.reasoning, len(reply.calls), parser.stopped_by

    whole = read([text])
    assert read(list(text)) == whole
    for cut in range(len(text) + 1):
        assert read([text[:cut], text[cut:]]) == whole
    return whole


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "STOP"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nI STOP here\n</think>\n\nYes STOP no", ("Yes ", "I STOP here\n", 0, "STOP")),
        ("<think>\nI STOP here\n</think>\n\nYes", ("Yes", "I STOP here\n", 0, None)),
        ("<think>\nI ST\n</think>\n\nOP", ("OP", "I ST\n", 0, None)),
        ("<think>\nSTOP", ("", "STOP", 0, None)),
        ("Yes STOP no", ("Yes ", "", 0, "STOP")),
        ("STOP", ("", "", 0, "STOP")),
        ("Yes STO", ("Yes STO", "", 0, None)),
        ("Yes STOSTOP\n", ("Yes STO", "", 0, "STOP")),
        (f"Well\n{CALL}", ("Well\n", "", 1, None)),
        (f"{CALL}\nSTOP", ("\n", "", 1, "STOP")),
        (f"We STOP\n{CALL}", ("We ", "", 0, "STOP")),
        (f"ST{CALL}OP", ("STOP", "", 1, None)),
        ("<tool_call>STOP it", ("<tool_call>", "", 0, "STOP")),
        ("a<tool_ca STOP", ("a<tool_ca ", "", 0, "STOP")),
    ],
)
def test_stop_strings_end_the_content_alone(text: str, expected: tuple[str, str, int, str | None]) -> None:
    form = ReplyFormat(THINK, tools=HERMES).with_stop(("STOP", "never"))
    assert cut_everywhere(text, form) == expected


def test_reasoning_that_is_told_as_content_is_no_place_to_stop() -> None:
    for tools in (None, HERMES):
        form = ReplyFormat(THINK, tools=tools).with_stop(("STOP",))
        told = cut_everywhere("<think>\nI STOP here\n</think>\n\nYes STOP no", form, split_reasoning=False)
        assert told == ("<think>\nI STOP here\n</think>\n\nYes ", "", 0, "STOP")
    begun = ReplyFormat(THINK, is_thinking=True).with_stop(("STOP",))
    assert cut_everywhere("I STOP here\n</think>\n\nYes STOP", begun) == ("Yes ", "I STOP here\n", 0, "STOP")


def test_a_reply_that_is_all_content_is_ended_by_the_worker() -> None:
    assert ReplyFormat().with_stop(("STOP",)) == ReplyFormat()


TAGGED = ToolFormat(
    call_start="<tool_call>\n<function=",
    call_end="\n</function>\n</tool_call>",
    separator=">",
    syntax=ArgumentSyntax.TAGGED,
    key_start="\n<parameter=",
    key_end=">\n",
    value_end="\n</parameter>",
)
OTHERS = {"tagged": TAGGED, "gemma": gemma.FORM, "pythonic": pythonic.FORM}
ALL_FORMS = {
    **{name: ReplyFormat(thinking=THINK, tools=tools) for name, tools in (FORMATS | OTHERS).items()},
    "channels": ReplyFormat(harmony.THINKING, tools=harmony.FORM, channels=Channels.HARMONY),
}


@pytest.mark.parametrize("mark", ["<tool_call>", "<", "[", "{", "<|channel|>", "[TOOL_CALLS]", "<think>"])
@pytest.mark.parametrize("form", ["hermes", "llama", "mistral", "granite", "tagged", "gemma", "pythonic", "channels"])
def test_a_reply_of_nothing_but_marks_takes_no_more_time_for_each_of_them(form: str, mark: str) -> None:
    def cost_s(n_marks: int) -> float:
        parser = ReplyParser(ALL_FORMS[form])
        begun_s = thread_time()
        parser.feed(mark * n_marks)
        parser.flush()
        return thread_time() - begun_s

    n_few = 10_000 // len(mark)
    times = 128 if (form, mark) == ("hermes", "<tool_call>") else 16  # the square of little is little
    few_s = max(min(cost_s(n_few) for _ in range(3)), 0.002)
    assert cost_s(times * n_few) < 10 * times * few_s
