"""The output items of OpenAI's Responses, made from a model's reply, and the events of a stream while they grow.

Knows the shapes of items, and the order of their events; nothing of responses, requests or connections.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from shimmy.api.logprobs import token_logprob
from shimmy.api.request_fields.field_kinds import Json
from shimmy.api.request_fields.tool_kinds import Callee
from shimmy.api.responses.items import Item, new_id, sealed
from shimmy.messages.event import TokenLogprob
from shimmy.messages.reply import Delta, ToolCallDelta
from shimmy.text.text_argument import TextArgument

Event = tuple[str, Json]  # its type, and its fields but for the type and the number


class ResponseOutput:
    """Fed with what each piece of a reply adds, and closed once. The items do not depend on how the reply is cut.

    An item ends where another kind begins, so text after a call is a message of its own.
    """

    def __init__(
        self,
        *,
        seals_reasoning: bool = False,
        summarizes_reasoning: bool = False,
        callees: Mapping[str, Callee] | None = None,
    ) -> None:
        """A summary is a copy of the reasoning, for clients that show only summaries.

        `callees` are the tools that are not plain functions, by the names that the model uses.
        """
        self._callees = callees or {}
        self.items: list[Item] = []  # each in its final form once it is done
        self._seals_reasoning = seals_reasoning
        self._reasoning_kind = _SummarizedReasoning if summarizes_reasoning else _Reasoning
        self._open: _TextItem | _CallItem | None = None

    @property
    def is_speaking(self) -> bool:
        """Whether further text belongs to the message that is open."""
        return isinstance(self._open, _Message)

    def feed(self, delta: Delta, logprobs: Sequence[TokenLogprob] = ()) -> Iterator[Event]:
        """The events of `delta`; `logprobs` are those of its content. Iterate to the end before the next call."""
        if delta.reasoning:
            yield from self._text(self._reasoning_kind, delta.reasoning)
        if delta.content:
            yield from self._text(_Message, delta.content, [token_logprob(token) for token in logprobs])
        for call in delta.calls:
            yield from self._call(call)

    def close(self, *, is_complete: bool) -> Iterator[Event]:
        """The events of the end. There is at least one item: an empty message where the model wrote nothing."""
        if not self.items and self._open is None:
            yield from self._text(_Message, "")
        yield from self._close("completed" if is_complete else "incomplete")

    def abandon(self) -> Iterator[Event]:
        """The events of an end by an error: what was written stays."""
        yield from self._close("incomplete")

    def _text(self, kind: "type[_TextItem]", text: str, logprobs: Sequence[Json] = ()) -> Iterator[Event]:
        if not isinstance(self._open, kind):
            yield from self._close()
            self._open = kind(len(self.items))
            yield from self._open.begin()
        yield from self._open.add(text, logprobs)

    def _call(self, delta: ToolCallDelta) -> Iterator[Event]:
        if not isinstance(self._open, _CallItem) or self._open.call_index != delta.index:
            yield from self._close()
            self._open = self._call_item(delta)
            yield from self._open.begin()
        if delta.arguments:
            yield from self._open.add(delta.arguments)

    def _call_item(self, delta: ToolCallDelta) -> "_CallItem":
        callee = self._callees.get(delta.name or "")
        kind = _TextCallItem if callee is not None and callee.is_custom else _CallItem
        return kind(len(self.items), delta, callee)

    def _close(self, status: str = "completed") -> Iterator[Event]:
        if self._open is None:
            return
        item, self._open = self._open, None
        yield from item.end(status)
        if self._seals_reasoning and isinstance(item, _Reasoning):
            item.item["encrypted_content"] = sealed(item.text)
        self.items.append(item.item)
        yield "response.output_item.done", {"output_index": item.index, "item": item.item}


class _TextItem(ABC):
    """An item with one text part: what a message and reasoning have in common."""

    kind: str  # of its part, and in the names of its events
    prefix: str

    def __init__(self, index: int) -> None:
        self.index = index
        self.item: Item = {"id": new_id(self.prefix), **self._head(), "status": "in_progress", "content": []}
        self._texts: list[str] = []
        self._logprobs: list[Json] = []
        self._place: Json = {"item_id": self.item["id"], "output_index": index, "content_index": 0}

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def begin(self) -> Iterator[Event]:
        yield "response.output_item.added", {"output_index": self.index, "item": dict(self.item)}
        yield "response.content_part.added", {**self._place, "part": self._part()}

    def add(self, text: str, logprobs: Sequence[Json]) -> Iterator[Event]:
        if text:
            self._texts.append(text)
            self._logprobs += logprobs
            yield f"response.{self.kind}.delta", {**self._place, "delta": text, **self._beside(logprobs)}

    def end(self, status: str) -> Iterator[Event]:
        part = self._part()
        yield f"response.{self.kind}.done", {**self._place, "text": self.text, **self._beside(self._logprobs)}
        yield "response.content_part.done", {**self._place, "part": part}
        self.item |= {"status": status, "content": [part]}

    def _part(self) -> Item:
        return {"type": self.kind, "text": self.text}

    def _beside(self, _logprobs: Sequence[Json]) -> Json:
        """Further fields of an event with a text."""
        return {}

    @abstractmethod
    def _head(self) -> Item:
        """What an item of this kind begins with."""


class _Message(_TextItem):
    kind = "output_text"
    prefix = "msg"

    def _head(self) -> Item:
        return {"type": "message", "role": "assistant"}

    def _part(self) -> Item:
        return {**super()._part(), "annotations": [], "logprobs": [*self._logprobs]}

    def _beside(self, logprobs: Sequence[Json]) -> Json:
        return {"logprobs": [*logprobs]}


class _Reasoning(_TextItem):
    kind = "reasoning_text"
    prefix = "rs"

    def _head(self) -> Item:
        return {"type": "reasoning", "summary": []}


class _SummarizedReasoning(_Reasoning):
    """The same, with a summary of one part that repeats all of it."""

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        yield "response.reasoning_summary_part.added", {**self._summary_place(), "part": _summary("")}

    def add(self, text: str, logprobs: Sequence[Json]) -> Iterator[Event]:
        yield from super().add(text, logprobs)
        if text:
            yield "response.reasoning_summary_text.delta", {**self._summary_place(), "delta": text}

    def end(self, status: str) -> Iterator[Event]:
        yield from super().end(status)
        part = _summary(self.text)
        yield "response.reasoning_summary_text.done", {**self._summary_place(), "text": self.text}
        yield "response.reasoning_summary_part.done", {**self._summary_place(), "part": part}
        self.item["summary"] = [part]

    def _summary_place(self) -> Json:
        return {"item_id": self.item["id"], "output_index": self.index, "summary_index": 0}


def _summary(text: str) -> Item:
    return {"type": "summary_text", "text": text}


class _CallItem:
    """A call of a function."""

    kind, prefix, argument, event = "function_call", "fc", "arguments", "function_call_arguments"

    def __init__(self, index: int, first: ToolCallDelta, callee: Callee | None) -> None:
        self.index = index
        self.call_index = first.index
        self.item: Item = {
            "id": new_id(self.prefix),
            "type": self.kind,
            "status": "in_progress",
            "call_id": first.id or new_id("call"),
            "name": (first.name or "") if callee is None else callee.name,
            self.argument: "",
        }
        if callee is not None and callee.namespace is not None:
            self.item["namespace"] = callee.namespace
        self._arguments: list[str] = []
        self._place: Json = {"item_id": self.item["id"], "output_index": index}

    def begin(self) -> Iterator[Event]:
        yield "response.output_item.added", {"output_index": self.index, "item": dict(self.item)}

    def add(self, arguments: str) -> Iterator[Event]:
        self._arguments.append(arguments)
        yield f"response.{self.event}.delta", {**self._place, "delta": arguments}

    def end(self, status: str) -> Iterator[Event]:
        self.item |= {"status": status, self.argument: "".join(self._arguments)}
        yield f"response.{self.event}.done", {**self._place, **self._done()}

    def _done(self) -> Json:
        return {"name": self.item["name"], self.argument: self.item[self.argument]}


class _TextCallItem(_CallItem):
    """A call of a tool that takes a text."""

    kind, prefix, argument, event = "custom_tool_call", "ctc", "input", "custom_tool_call_input"

    def __init__(self, index: int, first: ToolCallDelta, callee: Callee | None) -> None:
        super().__init__(index, first, callee)
        self._reader = TextArgument()

    def add(self, arguments: str) -> Iterator[Event]:
        if text := self._reader.feed(arguments):
            yield from super().add(text)

    def end(self, status: str) -> Iterator[Event]:
        if text := self._reader.flush():
            yield from super().add(text)
        yield from super().end(status)

    def _done(self) -> Json:
        return {self.argument: self.item[self.argument]}
