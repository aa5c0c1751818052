"""From the text of a job to content, reasoning and tool calls. Knows what a ReplyFormat means; knows nothing of tokens,
templates or dialects.

The last of three steps, in both processes. In the worker, `engine.chat.tool_format` and `engine.chat.thinking` find a
model's format in its chat template, and `engine.constrain.tool_grammar` and `thinking_budget` force the reply into it.
However the same text is cut, the deltas together are the same. No text is an error: what lacks the form is content.
"""

from os import urandom
from typing import TYPE_CHECKING

from shimmy.messages.reply import Beside, Channels, Delta, ReplyFormat, ToolCallDelta
from shimmy.messages.request import ToolCall
from shimmy.text.call_reader import CallReader
from shimmy.text.incremental_reader import SPACE, IncrementalReader, Reading, Unexpected
from shimmy.text.string_matcher import MarkRemover, StopFilter, StringMatcher

if TYPE_CHECKING:
    from shimmy.text.channel_reader import ChannelListener, ChannelReader

# Text is read in slices, because each step of a reader may copy what it has not read yet.
_SLICE_CHARACTERS = 4096


class ReplyParser:
    """Reads the text of one job piece by piece; `flush` once at its end, and nothing behind it.

    Reasoning stands at the beginning of a reply and nowhere else, as in llama-server, and white space directly behind
    its marks is dropped. Without `split_reasoning` it is content, marks and all; there are no calls inside of it.

    Where the format has stop strings, the first that is complete in the content ends the reply.

    The arguments of a call are passed on as they come, as the model wrote them. What was read of a call before its name
    and the beginning of its arguments are known is kept, and becomes content where the form is broken; where the text
    ends there, the call was cut, and what was kept is dropped. White space around calls is dropped, also where it is
    all that stands between the marks of an answer in front of them.
    """

    __slots__ = (
        *("_answer_marks", "_blank", "_call_reader", "_calls", "_channels", "_content", "_format", "_is_in_reasoning"),
        *("_ids", "_is_plain", "_reader", "_reading", "_reasoning", "_says_more", "_splits_reasoning", "_stops"),
    )

    def __init__(self, format: ReplyFormat, *, split_reasoning: bool = True) -> None:  # noqa: A002
        self._format = format
        self._splits_reasoning = split_reasoning
        self._is_plain = not format.channels and (
            (format.tools is None and format.answer is None and not format.opening)
            and (format.thinking is None or not (split_reasoning or format.stop))
        )
        self._answer_marks = MarkRemover(*(format.answer or ()))
        self._channels: ChannelReader | None = None
        self._stops = StopFilter(format.stop)
        self._is_in_reasoning = False
        self._says_more = format.tools is None  # than white space, in its content
        self._blank: list[str] = []  # with which the content may begin, if no call follows
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._call_reader: CallReader | None = None  # that waits for the next piece
        self._reader = IncrementalReader()
        self._reading = self._read()
        self._ids: set[str] = set()  # of the calls

    @property
    def has_calls(self) -> bool:
        """Whether a call was begun."""
        return bool(self._ids)

    @property
    def is_in_call(self) -> bool:
        """Whether what was fed ends within the marks of a call, or may: then what is held back is no content."""
        if self._channels is not None:
            return self._channels.is_in_call
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
                    self._blank.clear()
                    self._answer_marks.flush()
                    self._reader.ahead = ""
                self._reader.is_last = True
                next(self._reading, None)
            self._flush_content(is_beside_call=self.has_calls)
        return self._delta()

    def _delta(self) -> Delta:
        delta = Delta("".join(self._content), "".join(self._reasoning), tuple(self._calls))
        self._content.clear()
        self._reasoning.clear()
        self._calls.clear()
        return delta

    def _read(self) -> Reading[None]:
        if self._format.channels:
            yield from self._read_channels()
            return
        if self._format.thinking is not None:
            yield from self._read_reasoning(*map(str.strip, self._format.thinking))
        is_text = not self._format.opening or (yield from self._reader.expect(self._format.opening))
        if self._format.opening and is_text:
            self._reader.unsaid.clear()
        if self._format.tools is not None:
            yield from self._read_calls(is_begun=not is_text)
        else:
            yield from self._reader.until(StringMatcher(), self._say_content)
        if not (self.has_calls and self._reader.has_only_space()):
            self._say_unsaid()

    def _read_channels(self) -> Reading[None]:
        from shimmy.text.channel_reader import ChannelListener  # few families of models write in this way

        def enter(is_reasoning: bool) -> None:
            self._is_in_reasoning = is_reasoning

        splits = self._splits_reasoning
        listener = ChannelListener(
            content=self._add_content,
            reasoning=self._say_reasoning if splits else self._add_content,
            marks=None if splits else self._add_content,
            begin_call=self._begin_call,
            arguments=self._say_arguments,
            enter=enter,
        )
        self._channels = self._channel_reader(listener)
        yield from self._channels.read()

    def _channel_reader(self, listener: "ChannelListener") -> "ChannelReader":
        has_tools, is_thinking = self._format.tools is not None, self._format.is_thinking
        if self._format.channels is Channels.HARMONY:
            from shimmy.text.speech.harmony import HarmonyReader

            return HarmonyReader(self._reader, listener, has_tools=has_tools, is_thinking=is_thinking)
        from shimmy.text.speech.muse import MuseReader

        types = self._format.argument_types
        return MuseReader(self._reader, listener, has_tools=has_tools, is_thinking=is_thinking, argument_types=types)

    def _read_reasoning(self, start: str, end: str) -> Reading[None]:
        reader = self._reader
        self._is_in_reasoning = self._format.is_thinking
        yield from reader.space()
        # A model whose prompt began its reasoning may write the mark once more.
        if not (yield from reader.expect(start)) and not self._format.is_thinking:
            if (yield from reader.expect(end)):  # so MiniMax M3 begins a reply without a thought
                yield from reader.space()
                self._drop_marks()
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

    def _read_calls(self, *, is_begun: bool) -> Reading[None]:
        """Text with calls in it: where the form of a call is broken, text goes on behind what was read.

        `is_begun`: the mark of the first call was in the prompt.
        """
        reader = self._reader
        calls = CallReader(reader, self._format, self._begin_call, self._say_arguments)
        may_begin = calls.is_bare or is_begun  # the first text decides whether the whole reply is calls
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
        self._flush_content(is_beside_call=True)  # no stop string goes on behind a call
        if not call_id or not call_id.isprintable() or call_id in self._ids:
            call_id = f"call_{urandom(12).hex()}"  # as long as OpenAI's
        self._calls.append(ToolCallDelta(len(self._ids), id=call_id, name=name))
        self._ids.add(call_id)

    def _say_arguments(self, text: str) -> None:
        if text and self._stops.matched is None:
            self._calls.append(ToolCallDelta(len(self._ids) - 1, text))

    def _say_reasoning(self, text: str) -> None:
        self._reasoning.append(text)

    def _say_content(self, text: str) -> None:
        if text:
            self._say_unsaid()
            self._add_content(text)

    def _say_unsaid(self) -> None:
        self._add_content("".join(self._reader.unsaid))
        self._reader.unsaid.clear()

    def _add_content(self, text: str) -> None:
        """Stop strings count in the answer alone: not in reasoning, though that be told as content."""
        if self._is_in_reasoning:
            self._content.append(text)
        else:
            self._say_answer(self._answer_marks.feed(text))

    def _say_answer(self, text: str) -> None:
        if not self._says_more:
            self._blank.append(text)
            if not text.strip(SPACE):
                return
            text, self._says_more = "".join(self._blank), True
            self._blank.clear()
        self._content.append(self._stops.feed(text))

    def _flush_content(self, *, is_beside_call: bool) -> None:
        self._say_answer(self._answer_marks.flush())
        if not is_beside_call:
            self._content.append(self._stops.feed("".join(self._blank)))
        self._blank.clear()
        self._content.append(self._stops.flush())


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
