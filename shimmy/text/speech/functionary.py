"""Replies of Functionary 3.2: messages, each behind `>>>`, its receiver and a line break. What goes to `all` is text.

Recognises its templates and has the format of calls, whose receivers are functions. The prompt ends with the first
`>>>`, so a reply begins with a receiver. Knows no tokens.
"""

from shimmy.messages.reply import ToolFormat

_MARK = ">>>"
FORM = ToolFormat(call_start=_MARK, separator="\n")
_TO_ALL = "all\n"


def is_taught(template: str) -> bool:
    """Whether a template writes calls in this way."""
    return f"{_MARK}${{recipient}}" in template and f"{_MARK}all" in template


def opening(template: str, prompt: str) -> str:
    """What a reply to a rendered prompt begins with where it is text; empty for other families."""
    return _TO_ALL if is_taught(template) and prompt.endswith(_MARK) else ""
