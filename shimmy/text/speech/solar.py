"""Replies of Solar Open: a thought and what follows it are messages, and a call has its id in front of its name.

Recognises its templates, has the marks and the format, and gives calls of other servers such ids. Knows no tokens.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256

from shimmy.messages.reply import ToolFormat
from shimmy.messages.request import Message

FORM = ToolFormat(
    section_start="<|tool_calls|>",
    call_start="<|tool_call:begin|>",
    call_end="<|tool_call:end|>",
    section_end="<|calls|>",
    id_end="<|tool_call:name|>",
    separator="<|tool_call:args|>",
)
# The prompt has begun the first message; a thought is one, and begins the next one at its end.
THINKING = ("<|think|>", "<|end|><|begin|>assistant")
ANSWER = ("<|content|>", "<|end|>")
_ID_CHARACTERS = 10
_ID = re.compile(rf"[a-z0-9]{{{_ID_CHARACTERS}}}")


def is_taught(template: str) -> bool:
    """Whether a template writes calls in this way."""
    return all(mark in template for mark in (FORM.id_end, FORM.section_start, "<|begin|>assistant<|think|>"))


def with_ids(turns: Sequence[Message]) -> Iterator[Message]:
    """The same with ids as the template asks for, each made from the one that was there."""
    for turn in turns:
        calls = tuple(replace(call, id=_short(call.id)) for call in turn.tool_calls)
        yield replace(turn, tool_calls=calls, tool_call_id=turn.tool_call_id and _short(turn.tool_call_id))


def _short(call_id: str) -> str:
    if _ID.fullmatch(call_id):
        return call_id
    return sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_CHARACTERS]
