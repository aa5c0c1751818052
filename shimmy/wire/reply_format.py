"""How a reply is to be read, as the worker that has seen the template writes it and its parent reads it.

Knows the fields of a ReplyFormat; what the parent knows itself, its own stop strings and tools, is not sent.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shimmy.messages.reply import ArgumentSyntax, Beside, Channels, ReplyFormat, ToolFormat
from shimmy.wire import values

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_MARKS = 4  # around an answer


def format_to_wire(form: ReplyFormat) -> dict[str, Any]:
    fields = asdict(form)
    del fields["stop"], fields["argument_types"], fields["argument_schemas"]  # its parent knows
    return fields


def read_format(fields: object) -> ReplyFormat:
    """Raises ValueError, KeyError or TypeError for what is no format."""
    known = values.members(fields)
    thinking, is_thinking, tools = known.pop("thinking"), known.pop("is_thinking"), known.pop("tools")
    beside, channels = Beside(values.text(known.pop("beside"))), known.pop("channels")
    answer, opening = _read_marks(known.pop("answer")), values.mark(known.pop("opening"))
    if known:
        raise ValueError("format")
    marks: dict[object, Callable[[Any], object]] = {str: values.mark, ArgumentSyntax: ArgumentSyntax}
    marks[str | None] = values.optional(values.mark)
    form = None if tools is None else values.made(ToolFormat, tools, marks)
    is_thinking = values.truth(is_thinking)
    return ReplyFormat(
        _read_pair(thinking),
        is_thinking,
        form,
        beside,
        answer=answer,
        opening=opening,
        channels=None if channels is None else Channels(channels),
    )


def _read_marks(marks: object) -> tuple[str, ...] | None:
    if marks is None:
        return None
    found = tuple(values.mark(mark) for mark in values.items(marks))
    if not (1 < len(found) <= _MOST_MARKS and all(map(str.strip, found))):
        raise ValueError("marks")
    return found


def _read_pair(marks: object) -> tuple[str, str] | None:
    found = _read_marks(marks)
    if found is None:
        return None
    begins, ends = found
    return begins, ends
