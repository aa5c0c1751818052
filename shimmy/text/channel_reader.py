"""Replies that are messages with headers: what is read of all of them alike. `speech` has their headers.

Knows who is told of the parts of a reply; no marks and no tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from shimmy.text.incremental_reader import IncrementalReader, Reading, Say
from shimmy.text.string_matcher import StringMatcher


@dataclass(frozen=True, slots=True)
class ChannelListener:
    """Who is told of the parts of a reply; `marks` of what is around reasoning, None where that is dropped."""

    content: Say
    reasoning: Say
    marks: Say | None
    begin_call: Callable[[str, str | None], None]
    arguments: Say
    enter: Callable[[bool], None]  # whether what comes is reasoning


class ChannelReader(ABC):
    """Reads a whole reply, from within its first header on. Where there are no tools, calls are content."""

    openings: tuple[str, ...]  # with which a reply, or what follows a message, begins where it has a header
    heads: tuple[str, ...]  # with which the next message begins where the end of one is missing
    ends: StringMatcher  # of a message
    ends_of_reasoning: StringMatcher

    def __init__(
        self, reader: IncrementalReader, listener: ChannelListener, *, has_tools: bool, is_thinking: bool
    ) -> None:
        self._reader = reader
        self._listener = listener
        self._has_tools = has_tools
        self._is_thinking = is_thinking
        self._said: set[str] = set()  # kinds of parts that there were already
        self.is_in_call = False

    def read(self) -> Reading[None]:
        reader, more = self._reader, True
        if self._is_thinking:
            more = yield from self._read_reasoning("")
        while more:
            if not (yield from reader.peek()):
                return
            if not (yield from self._comes_header()):
                more = yield from self._read_body(self._spaced("content", self._listener.content))
                continue
            more = yield from self._read_message()

    @abstractmethod
    def _read_message(self) -> Reading[bool]:
        """Read a header and its body; returns whether the end was there, behind which another message may come."""

    def _comes_header(self) -> Reading[bool]:
        reader = self._reader
        while not reader.is_last and any(
            len(reader.ahead) < len(mark) and mark.startswith(reader.ahead) for mark in self.openings
        ):
            yield
        # What is cut here was to be a header.
        return reader.ahead.startswith(self.openings) or any(mark.startswith(reader.ahead) for mark in self.openings)

    def _behind_arguments(self) -> Say:
        """What goes on where the message of a call should end: content, unless it is white space or a cut mark."""
        held: str | None = ""  # the white space in front of it

        def said(text: str) -> None:
            nonlocal held
            if held is None:
                self._listener.content(text)
                return
            held += text
            is_cut = self._reader.is_last and self.ends.start_of_unfinished(held.lstrip()) == 0
            if held.strip() and not is_cut:
                self._listener.content(held)
                held = None

        return said

    def _read_reasoning(self, raw: str) -> Reading[bool]:
        self._listener.enter(True)
        marks = self._listener.marks
        if marks is not None:
            marks(raw)
        say = self._spaced("reasoning", self._listener.reasoning)
        has_end = yield from self._read_body(say, marks, ends=self.ends_of_reasoning)
        self._listener.enter(False)
        return has_end

    def _read_body(self, say: Say, say_end: Say | None = None, ends: StringMatcher | None = None) -> Reading[bool]:
        """Say a body; returns whether its end was there, behind which another message may come."""
        reader = self._reader
        mark = yield from reader.until(ends or self.ends, say)
        reader.unsaid.clear()
        if mark.startswith(self.heads):  # the next message begins there
            reader.ahead = mark + reader.ahead
        elif mark and say_end is not None:
            say_end(mark)
        return bool(mark)

    def _spaced(self, kind: str, say: Say) -> Say:
        """`say`, with an empty line in front of a further part of this kind."""

        gap = "\n\n" if kind in self._said else ""

        def said(text: str) -> None:
            nonlocal gap
            if text:
                say(gap + text)
                gap = ""
                self._said.add(kind)

        return said
