"""Calls of Kimi K2: the id of a call has its name and number, `functions.NAME:0`, and the arguments are JSON.

Recognises its templates, has the format, and gives calls of other servers such ids. Newer templates show the id that
comes with a call and older ones number by themselves, so only ids of this form are right with both.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from shimmy.messages.reply import ToolFormat
from shimmy.messages.request import Message

FORM = ToolFormat(
    section_start="<|tool_calls_section_begin|>",
    call_start="<|tool_call_begin|>functions.",
    call_end="<|tool_call_end|>",
    section_end="<|tool_calls_section_end|>",
    id_key=":",
    id_prefix="functions.",
    separator="<|tool_call_argument_begin|>",
)
_ID = re.compile(r"functions\.[\w.:/-]+:[0-9]+")


def is_taught(template: str) -> bool:
    """Whether a template writes calls in this way."""
    return "<|tool_call_argument_begin|>" in template and "<|tool_calls_section_begin|>" in template


def with_ids(turns: Sequence[Message]) -> Iterator[Message]:
    """The same with an id of this form for each call; calls are numbered through the whole conversation."""
    n_calls, names = 0, {}
    for turn in turns:
        calls = []
        for call in turn.tool_calls:
            names[call.id] = call.id if _ID.fullmatch(call.id) else f"functions.{call.name}:{n_calls}"
            calls.append(replace(call, id=names[call.id]))
            n_calls += 1
        result_of = turn.tool_call_id
        yield replace(turn, tool_calls=tuple(calls), tool_call_id=result_of and names.get(result_of, result_of))
