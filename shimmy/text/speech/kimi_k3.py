"""Replies of Kimi K3: sections for a thought, an answer and calls, and tagged arguments whose types are said.

Recognises its template and has the marks and the format, which `tagged` writes, forces and reads: the index of a call
and the answer in front of calls, which may be empty, keep it from being read off the template.
"""

from shimmy.messages.reply import ArgumentSyntax, ToolFormat

THINKING = ("<|open|>think<|sep|>", "<|close|>think<|sep|>")
ANSWER = ("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>")
FORM = ToolFormat(
    section_start="<|open|>tools<|sep|>",
    call_start='<|open|>call tool="',
    call_end="<|close|>call<|sep|>",
    section_end="<|close|>tools<|sep|>",
    number_key='" index="',
    separator='"<|sep|>',
    syntax=ArgumentSyntax.TAGGED,
    key_start='<|open|>argument key="',
    key_end='" type="',
    type_end='"<|sep|>',
    value_end="<|close|>argument<|sep|>",
)


def is_taught(template: str) -> bool:
    """Whether a template writes sections of this form."""
    return all(mark in template for mark in ("<|open|>", "<|sep|>", "<|close|>", "('index', loop.index)"))
