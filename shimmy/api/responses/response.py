"""One response of OpenAI's as it comes about: its object, and the numbered events of its stream.

Knows pieces of a reply and the request's echoed fields; nothing of connections or routes.
"""

import time
from codecs import utf_8_decode
from collections.abc import Iterable, Sequence

from shimmy.api.aside import is_large
from shimmy.api.http_exchange import encode, encode_large, error_fields, error_message
from shimmy.api.request_fields.field_kinds import Json
from shimmy.api.request_fields.reasoning import n_reasoning
from shimmy.api.responses.items import new_id
from shimmy.api.responses.output import Event, ResponseOutput
from shimmy.api.responses.parse import ResponseRequest
from shimmy.api.responses.store import ResponseStore, StoredResponse
from shimmy.errors import (
    ContextExceeded,
    ShimmyError,
)
from shimmy.messages.event import Accepted, Echo, Finished, FinishReason, JobProgress, Piece, TokenLogprob, Usage
from shimmy.messages.reply import Delta, ReplyFormat
from shimmy.text.reply_parser import ReplyParser


class Response:
    """A response as it comes about."""

    def __init__(self, request: ResponseRequest, model_name: str) -> None:
        self.id = new_id("resp")
        self._request = request
        self._head: Json = {"id": self.id, "object": "response", "created_at": int(time.time()), "model": model_name}
        self._output = ResponseOutput(
            seals_reasoning=request.seals_reasoning,
            summarizes_reasoning=request.summarizes_reasoning,
            callees=request.callees,
        )
        self._parser = ReplyParser(ReplyFormat())  # until the job is accepted
        self._logprobs: list[TokenLogprob] = []  # of text that the parser still holds back
        self._n_reasoning = 0
        self._n_characters = len(request.echoed)
        self._n_logprobs = 0
        self._status: Json = {"status": "in_progress", "error": None, "incomplete_details": None, "completed_at": None}
        self._usage: Json | None = None
        self._warnings: Json = {}

    def begin(self, accepted: Accepted) -> None:
        self._parser = ReplyParser(accepted.format)
        if warnings := (*self._request.warnings, *accepted.warnings):
            self._warnings = {"warnings": warnings}

    def read(self, piece: Piece) -> list[Event]:
        delta = self._parser.feed(piece.text)
        self._n_reasoning += n_reasoning(delta, piece)
        self._logprobs += piece.logprobs
        self._n_characters += len(piece.text)
        self._n_logprobs += len(piece.logprobs)
        return self._say(delta)

    def finish(self, finished: Finished) -> list[Event]:
        """The last events but the one that the response is over."""
        is_complete = finished.reason is FinishReason.STOP
        events = self._say(self._parser.flush())
        events += self._output.close(is_complete=is_complete)
        self._usage = _usage(finished.usage, self._n_reasoning)
        if is_complete:
            self._status |= {"status": "completed", "completed_at": int(time.time())}
        else:
            self._status |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        return events

    def fail(self, error: ShimmyError) -> list[Event]:
        """The last events of a response that `error` ended."""
        code = error.code if isinstance(error, ContextExceeded) else "server_error"  # agents look for the former
        self._status |= {"status": "failed", "error": {"code": code, "message": error_message(error)}}
        return [*self._output.abandon()]

    @property
    def is_large(self) -> bool:
        """Whether its text takes more than a few milliseconds to encode."""
        return is_large(self._n_characters, self._n_logprobs)

    @property
    def status(self) -> str:
        return str(self._status["status"])

    def text(self) -> bytes:
        """OpenAI's response object as JSON text, which ends with its output."""
        return self._text(encode_large(self._output.items))

    def _text(self, output: bytes) -> bytes:
        head = encode({**self._head, **self._status, "usage": self._usage, **self._warnings})
        return b'%b,%b,"output":%b}' % (head[:-1], self._request.echoed, output)

    def remembered(self, store: ResponseStore) -> bytes:
        """The same, kept in `store` if the request wants that."""
        output = encode_large(self._output.items)
        text = self._text(output)
        if self._request.store:
            stored = StoredResponse(
                id=self.id,
                response=text,
                output=slice(len(text) - 1 - len(output), len(text) - 1),
                input_items=self._request.input_items,
                item_ids=(*self._request.made_ids, *(item["id"] for item in self._output.items)),
                previous_id=self._request.previous_id,
            )
            store.put(stored)
        return text

    def _say(self, delta: Delta) -> list[Event]:
        logprobs: Sequence[TokenLogprob] = ()
        if delta and self._logprobs:
            logprobs, self._logprobs = _without_rest(self._logprobs, delta.content), []
            if delta.reasoning or not self._output.is_speaking:
                logprobs = _last_of(logprobs, delta.content)
        return [*self._output.feed(delta, logprobs)]


class ResponseEvents:
    """The frames of a streamed response: one event each, numbered."""

    def __init__(self, response: Response, store: ResponseStore) -> None:
        self._response = response
        self._store = store
        self._n_events = 0
        self._is_accepted = self._has_opened = False

    @property
    def is_large(self) -> bool:
        return self._response.is_large

    def begin(self, accepted: Sequence[Accepted]) -> bytes:
        self._response.begin(accepted[0])
        self._is_accepted = True
        return b"" if self._has_opened else self._opening()

    def ping(self) -> bytes:
        """`response.in_progress` once more: some clients count only events as signs of life, not comments."""
        return self._in_progress() if self._has_opened else self._opening()

    def _opening(self) -> bytes:
        self._has_opened = True
        return self._frame("response.created", b'"response":%b' % self._response.text()) + self._in_progress()

    def _in_progress(self) -> bytes:
        return self._frame("response.in_progress", b'"response":%b' % self._response.text())

    def progress(self, index: int, progress: JobProgress) -> bytes:  # noqa: ARG002 - of Frames
        """No job of this dialect asks for it."""
        return b""

    def event(self, index: int, event: Echo | Piece) -> bytes:  # noqa: ARG002 - of Frames; there is one job
        return self._frames(self._response.read(event)) if isinstance(event, Piece) else b""

    def finished(self, index: int, finished: Finished) -> bytes:  # noqa: ARG002 - of Frames
        return self._frames(self._response.finish(finished))

    def end(self) -> bytes:
        text = self._response.remembered(self._store)
        return self._frame(f"response.{self._response.status}", b'"response":%b' % text)

    def failed(self, error: ShimmyError) -> bytes:
        """The end of a response that had begun; before that, an event in OpenAI's two forms: clients know either.

        Where pings have told of a response that never came about, both: some clients raise at the one and some at the
        other.
        """
        told = b""
        if not self._is_accepted:
            nested = error_fields(error)
            plain = {name: value for name, value in nested.items() if name != "type"}
            told = self._frames([("error", {**plain, "error": nested})])
        if not (self._is_accepted or self._has_opened):
            return told
        return told + self._frames(self._response.fail(error)) + self.end()

    def _frames(self, events: Iterable[Event]) -> bytes:
        write = encode_large if self.is_large else encode
        return b"".join([self._frame(kind, write(fields)[1:-1]) for kind, fields in events])

    def _frame(self, kind: str, fields: bytes) -> bytes:
        """`fields` are the JSON text of an object without its braces."""
        number, self._n_events = self._n_events, self._n_events + 1
        name = kind.encode()
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (name, name, number, fields)


def _without_rest(logprobs: Sequence[TokenLogprob], content: str) -> Sequence[TokenLogprob]:
    """Without the last tokens, where these are part of a character that the limit has cut: it is not in `content`."""
    data = b"".join(token.chosen.data for token in logprobs)
    n_bytes = 0 if content.endswith("\N{REPLACEMENT CHARACTER}") else len(data) - utf_8_decode(data, "replace")[1]
    n_tokens = len(logprobs)
    while n_bytes and len(logprobs[n_tokens - 1].chosen.data) <= n_bytes:
        n_tokens -= 1
        n_bytes -= len(logprobs[n_tokens].chosen.data)
    return logprobs[:n_tokens]


def _last_of(logprobs: Sequence[TokenLogprob], content: str) -> list[TokenLogprob]:
    """The last tokens that spell `content`; those before them spelled something else, such as reasoning."""
    n_bytes = len(content.encode())
    tokens: list[TokenLogprob] = []
    for token in reversed(logprobs):
        if n_bytes <= 0:
            break
        n_bytes -= len(token.chosen.data)
        tokens.append(token)
    return tokens[::-1]


def _usage(usage: Usage, n_reasoning: int) -> Json:
    return {
        "input_tokens": usage.n_prompt,
        "input_tokens_details": {
            "cached_tokens": usage.n_cached,
            "cache_write_tokens": 0,  # clients subtract it from what they pay for: storing is free here
        },
        "output_tokens": usage.n_completion,
        "output_tokens_details": {"reasoning_tokens": min(n_reasoning, usage.n_completion)},
        "total_tokens": usage.n_prompt + usage.n_completion,
    }
