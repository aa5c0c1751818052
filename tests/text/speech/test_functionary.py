"""Replies of Functionary 3.2, which begin with their receiver: text or calls, however they are cut."""

import json
from typing import Any

import pytest

from shimmy.engine.chat.render import Chat
from shimmy.engine.chat.template import ChatTemplate
from shimmy.engine.constrain import tool_grammar
from shimmy.messages.reply import Beside, ReplyFormat, ToolFormat
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolChoice
from shimmy.text.reply_parser import Reply, ReplyParser
from shimmy.text.speech import functionary
from tests.engine.constrain.walker import Walker
from tests.real_templates import real_templates

SOURCE = real_templates()["meetkai-functionary-medium-v3.2"]
TOOLS = (Tool("f", "", '{"type": "object", "properties": {"a": {"type": "integer"}}}'), Tool("allocate", ""))


def read(text: str, form: ReplyFormat) -> tuple[str, list[tuple[str, str]]]:
    replies = []
    for size in (1, 2, 5, len(text) or 1):
        parser, reply = ReplyParser(form), Reply()
        for start in range(0, len(text), size):
            reply.add(parser.feed(text[start : start + size]))
        reply.add(parser.flush())
        replies.append((reply.content, [(call.name, call.arguments) for call in reply.calls]))
    assert all(each == replies[0] for each in replies)
    return replies[0]


CALL = 'f\n{"a": 1}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all\nHi there.", ("Hi there.", [])),
        ("all\n>>> 1 + 1\n2", (">>> 1 + 1\n2", [])),
        ("all\n", ("", [])),
        (CALL, ("", [("f", '{"a": 1}')])),
        (f"{CALL}>>>allocate\n{{}}", ("", [("f", '{"a": 1}'), ("allocate", "{}")])),
        (f"all\nI look.>>>{CALL}", ("I look.", [("f", '{"a": 1}')])),
        ('allocate\n{"b": ', ("", [("allocate", '{"b": ')])),
        ("Hi there.", ("Hi there.", [])),
        ("", ("", [])),
    ],
)
def test_a_reply_goes_to_somebody(text: str, expected: tuple[str, list[tuple[str, str]]]) -> None:
    assert read(text, ReplyFormat(tools=functionary.FORM, opening="all\n")) == expected


def test_without_tools_all_is_text_but_the_receiver() -> None:
    form = ReplyFormat(opening="all\n")
    assert read("all\nHi there.", form) == ("Hi there.", [])
    assert read(CALL, form) == (CALL, [])
    assert read("all\nOne STOP two", form.with_stop(("STOP",))) == ("One ", [])


def test_a_call_that_is_required_and_cut_is_no_text() -> None:
    form = ReplyFormat(tools=functionary.FORM, opening="all\n", beside=Beside.NOTHING)
    for end in range(3):
        assert read(CALL[:end], form) == ("", [])


def test_a_prompt_ends_where_the_receiver_comes() -> None:
    chat = Chat(ChatTemplate(SOURCE, bos="<s>", eos="</s>"))
    user = Message("user", "Hi >>>")
    for tools, form in (((), None), (TOOLS, functionary.FORM)):
        text, reply = chat.render(ChatPrompt((user,), tools=tools))
        assert text.endswith(">>>")
        assert (reply.opening, reply.tools) == ("all\n", form)
    begun = ChatPrompt((user, Message("assistant", "Well >>>")), False, continue_final_message=True)
    assert chat.render(begun)[1].opening == ""


@pytest.mark.parametrize("name", ["meetkai-functionary-medium-v3.1", "Qwen3-Coder"])
def test_others_have_no_receivers(name: str) -> None:
    chat = Chat(ChatTemplate(real_templates()[name], bos="<s>", eos="</s>"))
    assert chat.render(ChatPrompt((Message("user", "Hi."),)))[1].opening == ""


def lark(choice: ToolChoice, form: ToolFormat = functionary.FORM) -> str:
    around = ReplyFormat(tools=form, opening="all\n")

    def prepared(tool: Tool) -> dict[str, Any]:
        return json.loads(tool.parameters) if tool.parameters else {"type": "object", "properties": {}}

    return tool_grammar.tool_lark(TOOLS, choice, form, prepare=prepared, around=around)


def test_the_grammar_has_text_behind_its_receiver_alone() -> None:
    walker = Walker()
    auto, required, named = (lark(choice) for choice in (
        ToolChoice(), ToolChoice(required=True), ToolChoice(required=True, name="f"),
    ))  # fmt: skip
    for text, is_auto, is_required in (
        ("all\nHi.", True, False), ("all\n", True, False), (CALL, True, True), (f"{CALL}>>>{CALL}", True, True),
        (f"all\nI look.>>>{CALL}", True, False), ("Hi.", False, False), ("g\n{}", False, False),
        ('f\n{"a": "x"}', False, False), (f">>>{CALL}", False, False), ("allocate\n{}", True, True),
    ):  # fmt: skip
        assert walker.takes(auto, text) == is_auto, text
        assert walker.takes(required, text) == is_required, text
    assert walker.takes(named, CALL)
    assert not walker.takes(named, f"{CALL}>>>{CALL}")
