"""Reads calls of one ToolFormat from text that comes in pieces. Knows their marks and names; no tokens, no replies.

`text.reply_parser` has what stands around calls; `text.speech` has the ways of writing arguments that are no JSON.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from shimmy.messages.reply import PYTHON_TAG, ArgumentSyntax, ReplyFormat
from shimmy.text.incremental_reader import SPACE, IncrementalReader, Reading, Say, Unexpected
from shimmy.text.string_matcher import StringMatcher

# What a function may be called, and more than OpenAI allows; it keeps what only looks like a call from being one.
_NAME = re.compile(r"[\w.:/-]+")
# A bare name ends within this many characters: without its separator the text is none.
_NAME_CHARACTERS = 256


class CallReader:
    """Reads calls of one ToolFormat. Raises Unexpected with all that belongs to no call in `reader.unsaid`.

    `begin(name, id)` and `say(arguments)` are told of the calls. White space around marks of the format is optional.
    """

    def __init__(
        self,
        reader: IncrementalReader,
        form: ReplyFormat,
        begin: Callable[[str, str | None], None],
        say: Say,
    ) -> None:
        """`form` is that of a reply with tools."""
        assert form.tools is not None
        tools = form.tools
        self._argument_types = form.argument_types
        self._argument_schemas = form.argument_schemas
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
        short_start, self._short_end = "", ""
        if tools.syntax is ArgumentSyntax.TAGGED:
            from shimmy.text.speech.tagged import short_start as start_of

            short_start, self._short_end = start_of(tools), self._call_end.partition("\n")[0]
        self.marks = StringMatcher(section_start or self._call_start or PYTHON_TAG, short_start)
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
            if not (yield from self._drop(self._call_end)):
                yield from self._drop(self._short_end)
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
        call_id: str | None = None
        if self._tools.id_end and self._tools.id_end in name:
            call_id, _, name = name.partition(self._tools.id_end)
        if self._tools.number_key:
            name = name.partition(self._tools.number_key)[0]
        read = yield from self._arguments_of(name.strip())
        if self._tools.id_key:
            name, key, call_id = name.partition(self._tools.id_key)
            head = f"{self._tools.id_prefix}{name.strip()}{key}" if self._tools.id_prefix else ""
            self._begin(name.strip(), head + call_id.strip())
        else:
            self._begin(name.strip(), call_id and call_id.strip())
        yield from read(self._say)

    def _arguments_of(self, name: str) -> Reading[Callable[[Say], Reading[None]]]:
        """What reads the arguments that come next; raises Unexpected where none come."""
        if self._tools.syntax is ArgumentSyntax.TAGGED:
            from shimmy.text.speech.tagged import TaggedReader  # few models write in this way

            arguments = TaggedReader(self._reader, self._tools, self._argument_types.get(name, {}))
            yield from arguments.require_arguments()
            return arguments.read
        if self._tools.syntax is ArgumentSyntax.ELEMENTS:
            from shimmy.text.speech.minimax import ElementReader

            elements = ElementReader(self._reader, self._argument_schemas.get(name, {}))
            yield from elements.require_arguments()
            return elements.read
        if self._tools.syntax is ArgumentSyntax.GEMMA:
            from shimmy.text.speech.gemma import GemmaReader

            return GemmaReader(self._reader).read
        if self._tools.syntax is ArgumentSyntax.PYTHON:
            from shimmy.text.speech.pythonic import PythonReader

            return PythonReader(self._reader, self._argument_types.get(name, {})).read
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
