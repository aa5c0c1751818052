"""The events of a streamed reply in OpenAI's form: chunks of each choice, then usage where it is wanted, and [DONE].

What stays the same in all of them is encoded once: this runs for every token.
"""

import json
from collections.abc import Callable, Sequence
from typing import Protocol

from shimmy.api.event_stream import PING
from shimmy.api.http_exchange import error_body
from shimmy.api.openai.logprobs import TextLogprobs, chat_logprobs
from shimmy.api.openai.parse import ReplyOptions
from shimmy.api.openai.reply import finish_reason, timings, usage, warned
from shimmy.api.request_fields.field_kinds import Json
from shimmy.api.request_fields.reasoning import n_reasoning
from shimmy.errors import ShimmyError
from shimmy.messages.event import Accepted, Echo, Finished, JobProgress, Piece, PromptProgress, TokenLogprob
from shimmy.messages.reply import Delta
from shimmy.text.reply_parser import ReplyParser
from shimmy.text.text_argument import TextArgument

DONE = b"data: [DONE]\n\n"

_encode = json.JSONEncoder(separators=(",", ":")).encode


class StreamChoice(Protocol):
    """One choice of a stream as JSON texts, each that of a chunk; empty where there is nothing to say.

    After the events comes `rest`, what was held back until then, and `last`, which has the finish reason.
    """

    opening: str
    n_reasoned: int  # tokens

    def event(self, event: Echo | Piece) -> str: ...

    def silence(self) -> Json:
        """A choice that says nothing, for a chunk that says something else."""

    def rest(self) -> str: ...

    def last(self, finished: Finished) -> Json: ...


class ChatChoice:
    """A choice of chat completions: its text is read for reasoning and calls."""

    def __init__(self, index: int, accepted: Accepted, options: ReplyOptions) -> None:
        self._options = options
        self._parser = ReplyParser(accepted.format, split_reasoning=options.splits_reasoning)
        self._has_logprobs = options.n_logprobs is not None
        self.n_reasoned = 0
        self._texts: dict[int, TextArgument] = {}  # of calls, by their indices
        self._index = index
        start = f'{{"index":{index},"delta":{{'
        self._head = f'{start}"content":'
        self._tail = '},"logprobs":null,"finish_reason":null}'
        opening = f'{start}"role":"assistant","content":""{self._tail}'
        # What turns out to be a call must not begin with an empty text, of which SDKs would make an empty part: where
        # there may be calls, the role waits for what is said.
        self._waiting = opening if accepted.format.tools is not None else ""
        self.opening = "" if self._waiting else opening

    def event(self, event: Echo | Piece) -> str:
        delta = self._parser.feed(event.text)
        if delta.reasoning and isinstance(event, Piece):
            self.n_reasoned += n_reasoning(delta, event)
        if self._has_logprobs or delta.calls or delta.reasoning or self._waiting:
            return self._chunk(delta, event.logprobs)
        return f"{self._head}{json.dumps(delta.content)}{self._tail}" if delta.content else ""

    def silence(self) -> Json:
        return {"index": self._index, "delta": {}, "logprobs": None, "finish_reason": None}

    def rest(self) -> str:
        return self._chunk(self._parser.flush(), ()) or self._waiting or self._unsaid_texts()

    def last(self, finished: Finished) -> Json:
        reason = finish_reason(finished, has_calls=self._parser.has_calls, options=self._options)
        return self.silence() | {"finish_reason": reason}

    def _chunk(self, delta: Delta, logprobs: Sequence[TokenLogprob]) -> str:
        if not delta and not logprobs:
            return ""
        said: Json = {"role": "assistant", "content": None} if self._waiting else {}
        self._waiting = ""
        if delta.reasoning:
            said["reasoning_content"] = delta.reasoning
        if delta.content:
            said["content"] = delta.content
        if delta.calls:
            said |= self._calls(delta)
        told = chat_logprobs(logprobs) if logprobs else None
        return _encode({"index": self._index, "delta": said, "logprobs": told, "finish_reason": None})

    def _calls(self, delta: Delta) -> Json:
        # Clients take what stands under one index in one chunk for the whole of it, so its parts are joined.
        calls: dict[int, Json] = {}
        called: dict[int, dict[str, str]] = {}
        for call in delta.calls:
            if call.name in self._options.text_tools:
                self._texts[call.index] = TextArgument()
            text = self._texts.get(call.index)
            kind, key = ("function", "arguments") if text is None else ("custom", "input")
            if call.name is not None:
                called[call.index] = {"name": call.name, key: ""}
                calls[call.index] = {"index": call.index, "id": call.id, "type": kind}
            own = called.setdefault(call.index, {key: ""})
            own[key] += call.arguments if text is None else text.feed(call.arguments)
            calls.setdefault(call.index, {"index": call.index})[kind] = own
        if self._options.is_legacy:
            return {"function_call": called[0]} if 0 in called else {}
        return {"tool_calls": list(calls.values())}

    def _unsaid_texts(self) -> str:
        """What is left of calls of tools that take a text, where that was none."""
        rest = {index: text for index, reader in self._texts.items() if (text := reader.flush())}
        calls = [{"index": index, "custom": {"input": text}} for index, text in rest.items()]
        choice = {"index": self._index, "delta": {"tool_calls": calls}, "logprobs": None, "finish_reason": None}
        return _encode(choice) if calls else ""


class TextChoice:
    """A choice of completions: text as it comes, the prompt before it where that is wanted."""

    opening = ""
    n_reasoned = 0

    def __init__(self, index: int, accepted: Accepted, options: ReplyOptions) -> None:  # noqa: ARG002 - as a ChatChoice
        self._logprobs = None if options.n_logprobs is None else TextLogprobs()
        self._index = index
        self._head = f'{{"index":{index},"text":'
        self._tail = ',"finish_reason":null}'

    def event(self, event: Echo | Piece) -> str:
        told = "null"
        if self._logprobs is not None and (event.logprobs or isinstance(event, Echo)):
            told = _encode(self._logprobs.part(event))
        elif not event.text:
            return ""
        return f'{self._head}{json.dumps(event.text)},"logprobs":{told}{self._tail}'

    def silence(self) -> Json:
        return {"index": self._index, "text": "", "logprobs": None, "finish_reason": None}

    def rest(self) -> str:
        return ""

    def last(self, finished: Finished) -> Json:
        return self.silence() | {"finish_reason": finished.reason}


class Chunks:
    """Frames of a streamed reply."""

    is_large = False

    def __init__(
        self, envelope: Json, options: ReplyOptions, choice: Callable[[int, Accepted, ReplyOptions], StreamChoice]
    ) -> None:
        self._envelope = envelope
        self._options = options
        self._make_choice = choice
        self._choices: list[StreamChoice] = []
        self._ended: dict[int, Finished] = {}
        self._warnings: list[str] = []
        self._before = f'data: {_encode(envelope)[:-1]},"choices":['
        # Where usage is asked for, OpenAI sends null in every chunk but the one that has it.
        self._after = '],"usage":null}\n\n' if options.include_usage else "]}\n\n"

    def begin(self, accepted: Sequence[Accepted]) -> bytes:
        self._choices = [self._make_choice(index, each, self._options) for index, each in enumerate(accepted)]
        self._warnings = warned(accepted[0], self._options)
        return b"".join([self._frame(choice.opening) for choice in self._choices])

    def progress(self, index: int, progress: JobProgress) -> bytes:
        """A chunk of its own, whose choice says nothing."""
        chunk = self._envelope | {"choices": [self._choices[index].silence()], **_progress(progress)}
        return _event(chunk | {"usage": None} if self._options.include_usage else chunk)

    def event(self, index: int, event: Echo | Piece) -> bytes:
        return self._frame(self._choices[index].event(event))

    def finished(self, index: int, finished: Finished) -> bytes:
        """What was held back, and the finish reason; timings are in the last chunk of a reply with one choice.

        Warnings are in the last chunk of the first choice.
        """
        self._ended[index] = finished
        choice = self._choices[index]
        rest, chunk = self._frame(choice.rest()), self._envelope | {"choices": [choice.last(finished)]}
        if self._warnings and not index:
            chunk["warnings"] = self._warnings
        return rest + _event(chunk | {"usage": None} if self._options.include_usage else self._timed(chunk))

    def end(self) -> bytes:
        if not self._options.include_usage:
            return DONE
        ended = [self._ended[index] for index in range(len(self._choices))]
        n_reasoned = sum(choice.n_reasoned for choice in self._choices)
        chunk = self._envelope | {"choices": [], "usage": usage(ended, self._options, n_reasoned)}
        return _event(self._timed(chunk)) + DONE

    def failed(self, error: ShimmyError) -> bytes:
        return b"data: %b\n\n" % error_body(error)

    def ping(self) -> bytes:
        return PING

    def _timed(self, chunk: Json) -> Json:
        return chunk | {"timings": timings(self._ended[0])} if len(self._choices) == 1 else chunk

    def _frame(self, choice: str) -> bytes:
        return f"{self._before}{choice}{self._after}".encode() if choice else b""


def _progress(progress: JobProgress) -> Json:
    """How far a prompt is read by llama-server's names; the place in the queue, 1 for the next, by one of ours."""
    if isinstance(progress, PromptProgress):
        read: Json = {"total": progress.n_prompt, "cache": progress.n_cached, "processed": progress.n_read}
        return {"prompt_progress": read | {"time_ms": round(progress.elapsed_ms)}}
    return {"queue_position": progress.n_before + 1}


def _event(chunk: Json) -> bytes:
    return f"data: {_encode(chunk)}\n\n".encode()
