"""Ids of Kimi K2's calls: read from a reply, and given to calls of other servers."""

from shimmy.messages.reply import ReplyFormat
from shimmy.messages.request import Message, ToolCall
from shimmy.text.reply_parser import ReplyParser
from shimmy.text.speech.kimi import FORM, with_ids

REPLY = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:4<|tool_call_argument_begin|>{}<|tool_call_end|>"
    "<|tool_call_begin|>functions.g-h:5 <|tool_call_argument_begin|> {}<|tool_call_end|><|tool_calls_section_end|>"
)


def test_the_id_of_a_call_has_its_name_and_number() -> None:
    calls = ReplyParser(ReplyFormat(tools=FORM)).feed(REPLY).calls
    assert [(call.id, call.name) for call in calls if call.name] == [
        ("functions.f:4", "f"),
        ("functions.g-h:5", "g-h"),
    ]


def test_calls_of_other_servers_get_such_ids_and_their_results_too() -> None:
    turns = [
        Message("user", "hi"),
        Message("assistant", None, tool_calls=(ToolCall("call_x", "f"), ToolCall("functions.g:7", "g"))),
        Message("tool", "1", tool_call_id="call_x"),
        Message("tool", "2", tool_call_id="functions.g:7"),
        Message("assistant", None, tool_calls=(ToolCall("call_y", "f"),)),
        Message("tool", "3", tool_call_id="call_y"),
        Message("tool", "4", tool_call_id="of nothing"),
    ]
    seen = list(with_ids(turns))
    assert [call.id for turn in seen for call in turn.tool_calls] == ["functions.f:0", "functions.g:7", "functions.f:2"]
    assert [turn.tool_call_id for turn in seen if turn.role == "tool"] == [
        "functions.f:0",
        "functions.g:7",
        "functions.f:2",
        "of nothing",
    ]
    assert seen[0] == turns[0]
