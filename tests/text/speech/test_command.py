"""Answers of Command between their marks: however a reply is cut, the marks are no part of the content."""

import pytest

from shimmy.messages.reply import ReplyFormat, ToolFormat
from shimmy.text.reply_parser import Reply
from shimmy.text.speech.command import answer_marks
from tests.real_templates import real_templates
from tests.text.speech.whole_and_cut import replies

MARKS = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
TOOLS = ToolFormat(
    section_start="<|START_ACTION|>[",
    call_start="\n    ",
    between=",",
    section_end="\n]<|END_ACTION|>",
    name_key="tool_name",
    arguments_key="parameters",
    number_key="tool_call_id",
)
CALLS = (
    '<|START_ACTION|>[\n    {"tool_call_id": "4", "tool_name": "f", "parameters": {"a": 1}},'
    '\n    {"tool_call_id": "5", "tool_name": "g", "parameters": {}}\n]<|END_ACTION|>'
)


def read(text: str, form: ReplyFormat) -> Reply:
    found = replies(text, form)
    assert len({(each.content, each.reasoning, tuple(call.name for call in each.calls)) for each in found}) == 1
    return found[0]


def test_the_marks_of_real_templates() -> None:
    found = {name: answer_marks(source) for name, source in real_templates().items()}
    assert {name: marks for name, marks in found.items() if marks} == {
        "CohereForAI-c4ai-command-r7b-12-2024-tool_use": MARKS,
        "Cohere2MoE": ("<|START_TEXT|>", "<|END_TEXT|>"),
    }


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("thinking", [None, ("<|START_THINKING|>", "<|END_THINKING|>")])
def test_marks_around_an_answer_are_no_part_of_it(tools: ToolFormat | None, thinking: tuple[str, str] | None) -> None:
    form = ReplyFormat(thinking, tools=tools, answer=MARKS)
    for text, expected in (
        ("<|START_RESPONSE|>Hi <|there.<|END_RESPONSE|>", "Hi <|there."),
        ("Hi.", "Hi."),
        ("Hi.<|END_RESPONSE|>", "Hi."),
        ("<|START_RESPONSE|>Hi.<|END_RESP", "Hi.<|END_RESP"),
        ("<|START_RESPONSE|><|END_RESPONSE|>", ""),
    ):
        assert read(text, form).content == expected
    assert read("<|START_RESPONSE|>One STOP two", form.with_stop(("STOP",))).content == "One "


def test_calls_behind_reasoning_and_text_have_ids_of_ours_and_their_numbers_are_dropped() -> None:
    form = ReplyFormat(("<|START_THINKING|>", "<|END_THINKING|>"), tools=TOOLS, answer=MARKS)
    reply = read(f"<|START_THINKING|>Well.<|END_THINKING|><|START_RESPONSE|>Wait.{CALLS}", form)
    assert (reply.reasoning, reply.content) == ("Well.", "Wait.")
    assert [(call.name, call.arguments) for call in reply.calls] == [("f", '{"a": 1}'), ("g", "{}")]
    assert all(call.id.startswith("call_") for call in reply.calls)
