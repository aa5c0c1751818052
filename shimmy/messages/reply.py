"""How the text of a job is to be read, and what reading it gives: content, reasoning and tool calls."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

# Llama 3.1 and later may write this token before a call that otherwise has no mark at all. Their templates tell of it
# only beside tools that are built in. https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/
PYTHON_TAG = "<|python_tag|>"


class ArgumentSyntax(StrEnum):
    """How the arguments behind a bare name are written; `shimmy/text/speech/` has a file for each but JSON."""

    JSON = "json"
    TAGGED = "tagged"  # one after the other, as bare texts between marks
    GEMMA = "gemma"  # as an object with bare keys and marks around strings
    PYTHON = "python"  # as the arguments of a call in Python
    ELEMENTS = "elements"  # as elements with a mark in front of each tag, which may have elements inside
    HARMONY = "harmony"  # as JSON in a message of its own, whose header has the name


class Channels(StrEnum):
    """How replies are written that are messages with headers; `shimmy/text/speech/` has a file for each."""

    HARMONY = "harmony"  # gpt-oss
    MUSE = "muse"  # Muse Glimmer


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes tool calls: `section_start`, calls joined by `between`, `section_end`.

    A call is `call_start`, its body and `call_end`. The body is a JSON object with a name and arguments under the keys
    given here, or, where there is a `separator`, the bare name, the separator and the arguments in their `syntax`.
    Where nothing at all stands between two calls, neither `call_start` nor `between`, a reply has one call at most.
    """

    section_start: str = ""
    call_start: str = ""
    call_end: str = ""
    between: str = ""
    section_end: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    # Of an id that the model writes itself, behind the arguments; empty where it writes none. Beside a bare name there
    # are no keys: there it is what stands between the name and the id, which the separator follows.
    id_key: str = ""
    id_end: str = ""  # Solar Open: the model writes an id in front of a bare name, and this behind it
    id_prefix: str = ""  # Kimi: the id is this, the name, `id_key` and the number that the model writes behind it
    # Command: of the number of the call in the conversation, in front of the name. Callers see other ids. Kimi K3: what
    # stands between a bare name and the number of the call in the reply.
    number_key: str = ""
    name_again: str = ""  # Muse Glimmer: what stands between a bare name and the same name
    separator: str | None = None
    syntax: ArgumentSyntax = ArgumentSyntax.JSON
    # Of a tagged argument: `key_start`, its name, `key_end`, its value, `value_end`. Where the model says whether the
    # value is a text or JSON, one of two marks stands in front of the value.
    key_start: str = ""
    key_end: str = ""
    value_end: str = ""
    text_mark: str = ""
    json_mark: str = ""
    type_end: str = ""  # Kimi K3: instead, the name of the value's type and this
    # MiniCPM: what stands around a text with a line break or a character of XML in it, in front of `value_end`.
    quote_start: str = ""
    quote_end: str = ""


class Beside(StrEnum):
    """What a reply may hold beside reasoning and calls."""

    TEXT = "text"  # which never begins as a call does
    ANSWER = "answer"  # what another grammar takes, and what may begin like a call that no mark announces
    NOTHING = "nothing"  # a call is required


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How the text of a job is to be read."""

    thinking: tuple[str, str] | None = None  # what begins and what ends reasoning
    is_thinking: bool = False  # the prompt has begun it already
    tools: ToolFormat | None = None  # None: what looks like a call is text
    beside: Beside = Beside.TEXT  # calls; without `tools` it says nothing
    stop: tuple[str, ...] = ()  # ends the content; a worker that can say nothing else has ended the text there itself
    # What may stand in front of content and behind it, and is no part of it; further marks end a whole reply.
    answer: tuple[str, ...] | None = None
    # What a reply begins with that is text, and no part of it: one that begins otherwise is a call without its mark,
    # which the prompt has written.
    opening: str = ""
    channels: Channels | None = None  # the reply is messages, and `thinking` the marks of one of them
    # Where the syntax leaves names or types open: the JSON types of arguments, by the names of tool and argument.
    argument_types: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict, compare=False)
    # Where it leaves them open inside of arguments, too: the schemas of arguments, by the names of tools.
    argument_schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)

    def with_stop(self, stop: tuple[str, ...]) -> "ReplyFormat":
        """The same for a job with these stop strings: they count in the content, not in reasoning nor in calls."""
        is_plain = self.thinking is None and self.tools is None and self.answer is None and not self.opening
        return self if is_plain else replace(self, stop=stop)


TEXT_ONLY = ReplyFormat()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """Part of the call number `index` of a reply; `id` and `name` are in its first part only."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What a piece of a reply adds to it, as its ReplyFormat reads it."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)
