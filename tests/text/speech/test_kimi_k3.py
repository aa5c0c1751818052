"""Replies of Kimi K3: a thought, an answer and calls in sections, forced and read back; what is read of odd ones."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from shimmy.engine.chat.render import Chat
from shimmy.engine.chat.template import ChatTemplate
from shimmy.engine.constrain.tool_grammar import answer_lark, tool_lark
from shimmy.messages.reply import Beside, ReplyFormat
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall, ToolChoice
from shimmy.text.reply_parser import Reply, ReplyParser
from shimmy.text.speech.kimi_k3 import ANSWER, FORM, THINKING
from tests.engine.constrain.walker import Walker
from tests.real_templates import real_templates
from tests.text.speech.whole_and_cut import replies

TOOL = Tool("f", "", '{"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}')
CALL = (
    '<|open|>call tool="f" index="1"<|sep|><|open|>argument key="a" type="string"<|sep|>3<|close|>argument<|sep|>'
    '<|open|>argument key="n" type="number"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|>'
)
CALLS = f"<|open|>tools<|sep|>{CALL}<|close|>tools<|sep|>"
END = "<|close|>message<|sep|>"
NO_ANSWER = "<|open|>response<|sep|><|close|>response<|sep|>"
ANSWERED = "<|open|>response<|sep|>Hi.<|close|>response<|sep|>"
THOUGHT = "<|open|>think<|sep|>Well.<|close|>think<|sep|>"
WALKERS: dict[str, Callable[[], Walker]] = {
    "tokens": lambda: Walker(["<|open|>", "<|close|>", "<|sep|>"]),
    "text": Walker,
}


def read(text: str, form: ReplyFormat) -> tuple[str, str, list[tuple[str, object]]]:
    results = []
    for size in (1, 3, len(text)):
        parser, reply = ReplyParser(form), Reply()
        for start in range(0, len(text), size):
            reply.add(parser.feed(text[start : start + size]))
        reply.add(parser.flush())
        calls = [(call.name, json.loads(call.arguments)) for call in reply.calls]
        results.append((reply.content, reply.reasoning, calls))
    assert results[0] == results[1] == results[2]
    return results[0]


def form_of(*, is_thinking: bool, tools: bool = True) -> ReplyFormat:
    return ReplyFormat(THINKING, is_thinking, FORM if tools else None, answer=ANSWER)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"{ANSWERED}{END}", "Hi.", []),
        (f"{ANSWERED}{CALLS}{END}", "Hi.", [("f", {"a": "3", "n": 3})]),
        (f"{NO_ANSWER}{CALLS}{END}", "", [("f", {"a": "3", "n": 3})]),
        (f"{NO_ANSWER}<|open|>tools<|sep|>{CALL}{CALL}<|close|>tools<|sep|>", "", [("f", {"a": "3", "n": 3})] * 2),
        (CALLS, "", [("f", {"a": "3", "n": 3})]),
        (CALLS.replace(' index="1"', ""), "", [("f", {"a": "3", "n": 3})]),
        ("Hi.", "Hi.", []),
        (f"{NO_ANSWER}{END}", "", []),
        (f"{NO_ANSWER}<|open|>tools<|sep|>Hm.", "<|open|>tools<|sep|>Hm.", []),
        (f"{ANSWERED.replace('Hi.', ' ')}{END}", " ", []),
        (f"\n{ANSWERED.replace('Hi.', ' ')}\n{CALLS}\n{END}", "", [("f", {"a": "3", "n": 3})]),
        (f"{ANSWERED}\n{CALLS}{END}", "Hi.\n", [("f", {"a": "3", "n": 3})]),
    ],
)
def test_a_reply_is_read(text: str, content: str, calls: list[tuple[str, object]]) -> None:
    assert read(text, form_of(is_thinking=False)) == (content, "", calls)
    assert read(f"{THOUGHT}{text}", form_of(is_thinking=False)) == (content, "Well.", calls)
    begun = THOUGHT.removeprefix(THINKING[0])
    assert read(f"{begun}{text}", form_of(is_thinking=True)) == (content, "Well.", calls)
    if not calls:
        assert read(text, form_of(is_thinking=False, tools=False)) == (content, "", [])


def test_blanks_in_front_of_a_call_that_is_cut_are_no_content() -> None:
    assert read(f"{ANSWERED.replace('Hi.', ' ')}{CALLS[:40]}", form_of(is_thinking=False)) == ("", "", [])


def test_half_a_mark_in_front_of_a_call_that_is_required_is_no_content() -> None:
    form = replace(form_of(is_thinking=False), beside=Beside.NOTHING)
    text = f"{NO_ANSWER}{CALLS}"
    for n_characters in range(1, len(text)):
        (reply,) = replies(text[:n_characters], form, ())
        assert reply.content == "", text[:n_characters]


def test_a_type_that_is_none_is_no_text_and_a_name_may_have_quotes() -> None:
    call = CALLS.replace('"string"', '"number"').replace('key="a"', 'key="&quot;&amp;amp;"')
    assert read(call, form_of(is_thinking=False))[2] == [("f", {'"&amp;': 3, "n": 3})]


@pytest.mark.parametrize("vocabulary", WALKERS)
@pytest.mark.parametrize("is_thinking", [False, True])
def test_the_grammar_has_sections_in_their_order(vocabulary: str, is_thinking: bool) -> None:
    walker, around = WALKERS[vocabulary](), form_of(is_thinking=is_thinking)

    def lark(choice: ToolChoice) -> str:
        return tool_lark(
            [TOOL], choice, FORM, prepare=lambda tool: json.loads(tool.parameters), special=walker.id, around=around
        )

    for thought in ("", *(() if is_thinking else (THOUGHT,))):
        for text in (CALLS, f"{NO_ANSWER}{CALLS}", f"{NO_ANSWER}{CALLS}{END}"):
            assert walker.takes(lark(ToolChoice()), f"{thought}{text}")
            assert walker.takes(lark(ToolChoice(required=True)), f"{thought}{text}")
        for text in (ANSWERED, f"{ANSWERED}{END}", "Hi.", f"{ANSWERED}{CALLS}"):
            assert walker.takes(lark(ToolChoice()), f"{thought}{text}")
            assert not walker.takes(lark(ToolChoice(required=True)), f"{thought}{text}")
    for wrong in (CALLS.replace('"f"', '"g"'), CALLS.replace('"number"<|sep|>3', '"number"<|sep|>x')):
        assert not walker.takes(lark(ToolChoice()), wrong)


def test_a_schema_holds_for_what_the_answers_section_has() -> None:
    walker = WALKERS["tokens"]()
    lark = f'start: answer_head "{{}}"\n{answer_lark(walker.id, form_of(is_thinking=True))}'
    assert walker.takes(lark, "<|open|>response<|sep|>{}")
    assert walker.takes(lark, "{}")
    assert answer_lark(WALKERS["text"]().id, form_of(is_thinking=True)) == ""


def test_a_prompt_begins_a_thought_and_is_answered_in_this_form() -> None:
    chat = Chat(ChatTemplate(real_templates()["Kimi-K3"], bos="", eos=""))
    call = ToolCall("call_1", "f", '{"a": "3", "n": 3}')
    said = Message("assistant", None, tool_calls=(call,), reasoning_content="Well.")
    turns = (Message("user", "Hi."), said, Message("tool", "7", tool_call_id="call_1"))
    text, form = chat.render(ChatPrompt(turns, tools=(TOOL,)))
    assert f"{THOUGHT}{NO_ANSWER}{CALLS}{END}" in text
    assert text.endswith(THINKING[0])
    assert form == form_of(is_thinking=True)
