"""From the text of a job to content, reasoning and tool calls. Knows what a ReplyFormat means; knows nothing of tokens,
templates or dialects.

The last of three steps, in both processes. In the worker, `engine.chat.tool_format` and `engine.chat.thinking` find a
model's format in its chat template, and `engine.constrain.tool_grammar` and `thinking_budget` force the reply into it.
However the same text is cut, the deltas together are the same. No text is an error: what lacks the form is content.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import urandom
from types import MappingProxyType

from shimmy.messages.reply import (
    PYTHON_TAG,
    ArgumentSyntax,
    Beside,
    Delta,
    ReplyFormat,
    ToolCallDelta,
    ToolFormat,
)
from shimmy.messages.request import ToolCall
from shimmy.text.incremental_reader import SPACE, IncrementalReader, Reading, Say, Unexpected
from shimmy.text.string_matcher import StopFilter, StringMatcher

# What a function may be called, and more than OpenAI allows; it keeps what only looks like a call from being one.
_NAME = re.compile(r"[\w.:/-]+")
# A bare name ends within this many characters: without its separator the text is none.
_NAME_CHARACTERS = 256
# Text is read in slices, because each step of a reader may copy what it has not read yet.
_SLICE_CHARACTERS = 4096


class ReplyParser:
    """Reads the text of one job piece by piece; `flush` once at its end, and nothing behind it.

    Reasoning stands at the beginning of a reply and nowhere else, as in llama-server, and white space directly behind
    its marks is dropped. Without `split_reasoning` it is content, marks and all; there are no calls inside of it.

    Where the format has stop strings, the first that is complete in the content ends the reply.

    The arguments of a call are passed on as they come, as the model wrote them. What was read of a call before its name
    and the beginning of its arguments are known is kept, and becomes content where the form is broken; where the text
    ends there, the call was cut, and what was kept is dropped. White space around calls is dropped.
    """

    __slots__ = (
        *("_call_reader", "_calls", "_content", "_format", "_is_in_reasoning", "_is_plain", "_n_calls"),
        *("_reader", "_reading", "_reasoning", "_splits_reasoning", "_stops"),
    )

    def __init__(self, format: ReplyFormat, *, split_reasoning: bool = True) -> None:  # noqa: A002
        self._format = format
        self._splits_reasoning = split_reasoning
        self._is_plain = format.tools is None and (format.thinking is None or not (split_reasoning or format.stop))
        self._stops = StopFilter(format.stop)
        self._is_in_reasoning = False
        self._content = self._reasoning = ""
        self._calls: list[ToolCallDelta] = []
        self._call_reader: _CallReader | None = None  # that waits for the next piece
        self._reader = IncrementalReader()
        self._reading = self._read()
        self._n_calls = 0

    @property
    def has_calls(self) -> bool:
        """Whether a call was begun."""
        return self._n_calls > 0

    @property
    def is_in_call(self) -> bool:
        """Whether what was fed ends within the marks of a call, or may: then what is held back is no content."""
        if self._format.beside is Beside.NOTHING and not self._is_plain:
            return not self._is_in_reasoning
        calls = self._call_reader
        if calls is None or not calls.is_bare:
            return calls is not None
        if self.has_calls and not calls.begins_with_name:
            return True
        # Without a mark, what has begun like a call may be the beginning of an answer in JSON.
        return not self._reader.has_only_space() and (self.has_calls or self._format.beside is Beside.TEXT)

    @property
    def stopped_by(self) -> str | None:
        """The stop string that has ended the content; nothing is said any more then."""
        return self._stops.matched

    def feed(self, text: str) -> Delta:
        if self._is_plain:
            return Delta(text)
        for start in range(0, len(text), _SLICE_CHARACTERS):
            if self._stops.matched is not None:
                break
            self._reader.ahead += text[start : start + _SLICE_CHARACTERS]
            next(self._reading)
        return self._delta()

    def flush(self) -> Delta:
        """What was held back, now that nothing comes any more."""
        if not self._is_plain:
            if self._stops.matched is None:
                if self.is_in_call:
                    self._reader.unsaid.clear()
                    self._reader.ahead = ""
                self._reader.is_last = True
                next(self._reading, None)
            self._content += self._stops.flush()
        return self._delta()

    def _delta(self) -> Delta:
        delta = Delta(self._content, self._reasoning, tuple(self._calls))
        self._content = self._reasoning = ""
        self._calls.clear()
        return delta

    def _read(self) -> Reading[None]:
        if self._format.thinking is not None:
            yield from self._read_reasoning(*map(str.strip, self._format.thinking))
        if self._format.tools is not None:
            yield from self._read_calls(self._format.tools)
        else:
            yield from self._reader.until(StringMatcher(), self._say_content)
        if not (self.has_calls and self._reader.has_only_space()):
            self._say_unsaid()

    def _read_reasoning(self, start: str, end: str) -> Reading[None]:
        reader = self._reader
        self._is_in_reasoning = self._format.is_thinking
        yield from reader.space()
        # A model whose prompt began its reasoning may write the mark once more.
        if not (yield from reader.expect(start)) and not self._format.is_thinking:
            return
        self._is_in_reasoning = True
        yield from reader.space()
        self._drop_marks()
        yield from reader.until(
            StringMatcher(end), self._say_reasoning if self._splits_reasoning else self._say_content
        )
        yield from reader.space()
        self._drop_marks()
        self._is_in_reasoning = False

    def _drop_marks(self) -> None:
        """A mark of reasoning, and the white space behind it, is nobody's unless reasoning is content."""
        if not self._splits_reasoning:
            self._say_unsaid()
        self._reader.unsaid.clear()

    def _read_calls(self, tools: ToolFormat) -> Reading[None]:
        """Text with calls in it: where the form of a call is broken, text goes on behind what was read."""
        reader = self._reader
        calls = _CallReader(reader, tools, self._begin_call, self._say_arguments, self._format.argument_types)
        may_begin = calls.is_bare  # the first text decides whether the whole reply is calls
        while True:
            yield from reader.space()
            if not may_begin and not (yield from reader.until(calls.marks, self._say_content)):
                return
            may_begin = False
            self._call_reader = calls
            try:
                yield from calls.read()
            except Unexpected:
                if not reader.has_only_space():
                    self._say_unsaid()
            self._call_reader = None

    def _begin_call(self, name: str, call_id: str | None) -> None:
        if self._stops.matched is not None:
            return
        self._content += self._stops.flush()  # no stop string goes on behind a call
        if not call_id or not call_id.isprintable():
            call_id = f"call_{urandom(12).hex()}"  # as long as OpenAI's
        self._calls.append(ToolCallDelta(self._n_calls, id=call_id, name=name))
        self._n_calls += 1

    def _say_arguments(self, text: str) -> None:
        if text and self._stops.matched is None:
            self._calls.append(ToolCallDelta(self._n_calls - 1, text))

    def _say_reasoning(self, text: str) -> None:
        self._reasoning += text

    def _say_content(self, text: str) -> None:
        if text:
            self._say_unsaid()
            self._add_content(text)

    def _say_unsaid(self) -> None:
        self._add_content("".join(self._reader.unsaid))
        self._reader.unsaid.clear()

    def _add_content(self, text: str) -> None:
        """Stop strings count in the answer alone: not in reasoning, though that be told as content."""
        self._content += text if self._is_in_reasoning else self._stops.feed(text)


class Reply:
    """A whole reply, put together from its deltas."""

    __slots__ = ("_calls", "_content", "_reasoning")

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []

    def add(self, delta: Delta) -> None:
        self._content.append(delta.content)
        self._reasoning.append(delta.reasoning)
        for call in delta.calls:
            if call.name is not None:
                self._calls.append((call.id or "", call.name, []))
            self._calls[call.index][2].append(call.arguments)

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(ToolCall(call_id, name, "".join(arguments)) for call_id, name, arguments in self._calls)


class _CallReader:
    """Reads calls of one ToolFormat. Raises Unexpected with all that belongs to no call in `reader.unsaid`.

    `begin(name, id)` and `say(arguments)` are told of the calls. White space around marks of the format is optional.
    """

    def __init__(
        self,
        reader: IncrementalReader,
        tools: ToolFormat,
        begin: Callable[[str, str | None], None],
        say: Say,
        argument_types: Mapping[str, Mapping[str, frozenset[str]]] = MappingProxyType({}),
    ) -> None:
        self._argument_types = argument_types
        self._reader = reader
        self._tools = tools
        self._begin_call = begin
        self._say = say
        self._call_start, self._call_end, self._between, self._section_end = (
            text.strip() for text in (tools.call_start, tools.call_end, tools.between, tools.section_end)
        )
        # Models write white space in front of the bracket of an array, whatever the template does.
        section_start = tools.section_start.strip().rstrip(f"[{SPACE}")
        self._bracket = tools.section_start.strip()[len(section_start) :].strip()
        self._separator: re.Pattern[str] | None = None
        if tools.separator is not None:
            key_start, call_end = re.escape(tools.key_start.strip()), re.escape(self._call_end)
            behind_name = rf"(?=\s|{key_start}|{call_end})" if key_start else r"(?=[\s{])"
            self._separator = re.compile(re.escape(tools.separator.strip()) or behind_name)
        self.is_bare = not (section_start or self._call_start)
        self.begins_with_name = self._separator is not None
        # Inside of a section the start of a call may be short, so nothing but the section's announces calls then.
        self._is_opened_by_call = bool(self._call_start) and not section_start
        self.marks = StringMatcher(section_start or self._call_start or PYTHON_TAG)
        # Of an object that no mark announced; with other keys it is an answer in JSON, which need not be held back.
        self._first_keys = {tools.name_key, tools.arguments_key, tools.id_key, "type"}

    def read(self) -> Reading[None]:
        """Read the calls behind a mark, to the end of their section or to what is no call."""
        reader = self._reader
        if not self._is_opened_by_call:
            yield from reader.space()
            yield from reader.expect(self._bracket)
            yield from reader.require(self._call_start)
        while True:
            yield from (self._read_object() if self._separator is None else self._read_named(self._separator))
            yield from self._drop(self._call_end)
            if self._section_end and (yield from self._drop(self._section_end)):
                return
            yield from reader.space()
            yield from reader.expect(self._between)
            yield from reader.space()
            if self._call_start:
                if not (yield from reader.expect(self._call_start)):
                    return
            elif (yield from reader.peek()) != "{" and (self._separator is None or not reader.ahead):
                return

    def _drop(self, mark: str) -> Reading[bool]:
        """Read a mark that says nothing to anybody, if it comes next."""
        yield from self._reader.space()
        is_next = yield from self._reader.expect(mark)
        if is_next:
            self._reader.unsaid.clear()
        return is_next

    def _begin(self, name: str | None, call_id: str | None) -> None:
        if not name or not _NAME.fullmatch(name):
            raise Unexpected
        self._begin_call(name, call_id)
        self._reader.unsaid.clear()

    def _read_named(self, separator: re.Pattern[str]) -> Reading[None]:
        """The name, with the id behind it where the model writes one, the separator and the arguments."""
        reader = self._reader
        yield from reader.space()
        name = yield from reader.before(separator, _NAME_CHARACTERS)
        yield from reader.space()
        read = yield from self._arguments_of(name.strip())
        if self._tools.id_key:
            name, _, call_id = name.partition(self._tools.id_key)
            self._begin(name.strip(), call_id.strip())
        else:
            self._begin(name.strip(), None)
        yield from read(self._say)

    def _arguments_of(self, name: str) -> Reading[Callable[[Say], Reading[None]]]:
        """What reads the arguments that come next; raises Unexpected where none come."""
        if self._tools.syntax is ArgumentSyntax.TAGGED:
            from shimmy.text.speech.tagged import TaggedReader  # few models write in this way

            arguments = TaggedReader(self._reader, self._tools, self._argument_types.get(name, {}))
            yield from arguments.require_arguments()
            return arguments.read
        if (yield from self._reader.peek()) != "{":
            raise Unexpected
        return self._reader.value

    def _read_object(self) -> Reading[None]:
        """An object with the name and the arguments; once these are said, the last brace may be forgotten."""
        reader = self._reader
        call = _CallObject()
        yield from reader.require("{")
        while True:
            key = yield from reader.string()
            if self.is_bare and not call.n_members and key not in self._first_keys:
                raise Unexpected
            yield from reader.require(":")
            yield from reader.space()
            yield from self._read_member(key, call)
            call.n_members += 1
            yield from reader.space()
            if not (yield from reader.expect(",")):
                break
        is_whole = yield from reader.expect("}")
        if call.is_said and (is_whole or reader.has_only_space()):
            reader.unsaid.clear()
            return
        if call.is_said or self.is_bare or not is_whole or call.arguments:
            raise Unexpected
        self._begin(call.name, call.id)
        self._say("{}")  # what a model means that leaves out the arguments where there are none

    def _read_member(self, key: str, call: "_CallObject") -> Reading[None]:
        reader, tools = self._reader, self._tools
        first = yield from reader.peek()
        if key == tools.name_key and call.name is None:
            call.name = yield from reader.string()
            if call.arguments:
                self._begin(call.name, call.id)
                call.is_said = True
                self._say("".join(call.arguments))
        elif key == tools.id_key and first == '"':
            call.id = yield from reader.string()
        elif key != tools.arguments_key or call.is_said or call.arguments:
            yield from reader.value(reader.unsaid.append)
        elif first != "{":
            raise Unexpected
        elif call.name is None:
            start = len(reader.unsaid)
            yield from reader.value(reader.unsaid.append)
            call.arguments = reader.unsaid[start:]
        else:
            self._begin(call.name, call.id)
            call.is_said = True
            yield from reader.value(self._say)


@dataclass(slots=True)
class _CallObject:
    """What was read of the object that is a call."""

    n_members: int = 0
    name: str | None = None
    id: str | None = None
    arguments: list[str] = field(default_factory=list)  # parts of those that came before the name
    is_said: bool = False
