"""OpenAI's Responses: replies, streams of typed events, and what the server remembers of earlier ones.

The store belongs to the application. A response is remembered once it is over; one whose client left is not.
"""

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from shimmy.api.aside import aside
from shimmy.api.body import decode
from shimmy.api.http_exchange import encode, encode_large
from shimmy.api.request_fields.kinds import Integer, Json, NotServed, OneOf, Record, read_model, read_query, refuse
from shimmy.api.request_fields.reasoning import n_reasoning
from shimmy.api.responses.items import Item, ItemId, new_id
from shimmy.api.responses.output import Event, ResponseOutput
from shimmy.api.responses.parse import History, ResponseRequest, counted_request, previous_response_id, response_request
from shimmy.api.responses.store import ResponseStore, StoredResponse
from shimmy.api.stream import EventStream, unless_gone
from shimmy.errors import (
    BadRequest,
    ContextExceeded,
    Internal,
    NotFound,
    PayloadTooLarge,
    PreviousResponseNotFound,
    ShimmyError,
)
from shimmy.generation import generate
from shimmy.messages.event import Accepted, Echo, Finished, FinishReason, Piece, TokenLogprob, Usage
from shimmy.messages.reply import Delta, ReplyFormat
from shimmy.text.reply_parser import ReplyParser

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from shimmy.api.http_exchange import Exchange
    from shimmy.generation import Generation
    from shimmy.messages.model_info import ModelDefaults
    from shimmy.messages.request import GenerateRequest

# What is made on the event loop: so many characters of text, and a token's log-probabilities count as so many.
_N_CHARACTERS_HERE, _LOGPROB_CHARACTERS = 1 << 16, 1 << 10
N_LISTED, N_LISTED_MAX = 20, 100  # items of one page, OpenAI's
# A stored response is given as it is: it is not streamed again, and nothing is added to it.
RETRIEVE_QUERY = Record(
    {
        "stream": NotServed(("false",)),
        "starting_after": NotServed(),
        "include": NotServed(),
        "include[]": NotServed(),
    }
)
ITEMS_QUERY = Record({"limit": Integer(1, N_LISTED_MAX), "order": OneOf(("asc", "desc")), "after": ItemId()})


async def create(exchange: "Exchange") -> None:
    def meaning(body: Json) -> ResponseRequest:
        history = _history(exchange, body)
        return response_request(body, exchange.services.config, _defaults(exchange, body), history)

    request = await exchange.read(meaning, _has_history)
    generation = generate(exchange.services, request.job)
    response = Response(request, generation.model.name)
    if request.stream:
        await EventStream(exchange, [generation], ResponseEvents(response, _store(exchange))).run()
        return
    try:
        await unless_gone(exchange, _collect(generation, response))
    finally:
        await generation.aclose()
    store = _store(exchange)
    reply = await aside(lambda: response.remembered(store)) if response.is_large else response.remembered(store)
    await exchange.reply_json(reply)


async def retrieve(exchange: "Exchange") -> None:
    read_query(RETRIEVE_QUERY, exchange.query)
    await exchange.reply_json(_stored(exchange).response)


async def delete(exchange: "Exchange") -> None:
    response_id = _stored(exchange).id
    _store(exchange).remove(response_id)
    await exchange.reply({"id": response_id, "object": "response", "deleted": True})


async def cancel(exchange: "Exchange") -> None:
    """What is stored is over; a response that is still on its way ends when its client leaves."""
    _stored(exchange)
    raise BadRequest("Cannot cancel a synchronous response.")


async def input_items(exchange: "Exchange") -> None:
    """All that the model was given but for instructions, a page at a time, the newest first unless asked otherwise."""
    stored, query = _stored(exchange), read_query(ITEMS_QUERY, exchange.query)
    await exchange.reply_json(await aside(lambda: _page(exchange, stored, query)))


def _page(exchange: "Exchange", stored: StoredResponse, query: "Mapping[str, Any]") -> bytes:
    n_listed = query.get("limit", N_LISTED)
    items = [*_items_before(exchange, stored.previous_id), *decode(stored.input_items)]
    if query.get("order") != "asc":
        items.reverse()
    after = query.get("after")
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            refuse("after", "the id of an item of this input", repr(after)[:40])
        items = items[ids.index(after) + 1 :]
    page = items[:n_listed]
    first_id, last_id = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    listed = {"object": "list", "data": page, "first_id": first_id, "last_id": last_id}
    return encode_large(listed | {"has_more": len(items) > n_listed})


async def input_tokens(exchange: "Exchange") -> None:
    """How many tokens the prompt has, as the worker counts them; one that is too long is refused with both numbers."""

    def meaning(body: Json) -> "GenerateRequest":
        history = _history(exchange, body)
        return counted_request(body, exchange.services.config, _defaults(exchange, body), history)

    request = await exchange.read(meaning, _has_history)
    generation = generate(exchange.services, request)
    try:
        accepted = await unless_gone(exchange, generation.accepted())
    finally:
        await generation.aclose()
    await exchange.reply({"object": "response.input_tokens", "input_tokens": accepted.n_prompt})


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
        self._logprobs: list[TokenLogprob] = []  # of text that the parser still has
        self._n_reasoning = 0
        self._n_characters = len(request.echoed)
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
        self._n_characters += len(piece.text) + _LOGPROB_CHARACTERS * len(piece.logprobs)
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
        """The same where `error` ended it."""
        code = error.code if isinstance(error, ContextExceeded) else "server_error"  # agents look for the former
        self._status |= {"status": "failed", "error": {"code": code, "message": error.message}}
        return [*self._output.abandon()]

    @property
    def is_large(self) -> bool:
        """Whether its text takes more than a few milliseconds to make."""
        return self._n_characters > _N_CHARACTERS_HERE

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
        if delta:
            logprobs, self._logprobs = self._logprobs, []
            if delta.reasoning or not self._output.is_speaking:
                logprobs = _last_of(logprobs, delta.content)
        return [*self._output.feed(delta, logprobs)]


class ResponseEvents:
    """Frames of a streamed response: one event each, numbered."""

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
        """That it is in progress, once more: some clients hear events alone, and give up where none comes."""
        return self._in_progress() if self._has_opened else self._opening()

    def _opening(self) -> bytes:
        self._has_opened = True
        return self._frame("response.created", b'"response":%b' % self._response.text()) + self._in_progress()

    def _in_progress(self) -> bytes:
        return self._frame("response.in_progress", b'"response":%b' % self._response.text())

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
            plain = {"code": error.code, "message": error.message, "param": error.param}
            told = self._frames([("error", {**plain, "error": {"type": error.type, **plain}})])
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


async def _collect(generation: "Generation", response: Response) -> None:
    response.begin(await generation.accepted())
    is_finished = False
    async for event in generation:
        if isinstance(event, Piece):
            response.read(event)
        elif isinstance(event, Finished):
            response.finish(event)
            is_finished = True
    if not is_finished:
        raise Internal("the generation ended without a reason")


def _defaults(exchange: "Exchange", body: Json) -> "ModelDefaults":
    services = exchange.services
    return services.registry.resolve(read_model(body, services.config.default_model)).defaults


def _store(exchange: "Exchange") -> ResponseStore:
    store = exchange.scope["app"].state.responses
    assert isinstance(store, ResponseStore)
    return store


def _stored(exchange: "Exchange") -> StoredResponse:
    """The response that the path names."""
    stored = _store(exchange).get(exchange.rest)
    if stored is None:
        raise NotFound(f"Response with id '{exchange.rest[:80]}' not found.")
    return stored


def _has_history(body: Json) -> bool:
    """Whether earlier responses may have to be decoded for it."""
    return body.get("previous_response_id") is not None or isinstance(body.get("input"), list)


def _history(exchange: "Exchange", body: Json) -> History:
    known = _KnownItems(_store(exchange), exchange.services.config.max_body_bytes)
    return History(_items_before(exchange, previous_response_id(body)), known.find)


class _KnownItems:
    """Finds stored items for one request, no more bytes of them, and of what they stand in, than a body may have."""

    def __init__(self, store: ResponseStore, limit_bytes: int) -> None:
        self._store = store
        self._left_bytes = limit_bytes
        self._decoded: dict[str, dict[str, Item]] = {}  # the items of a response by their ids

    def find(self, item_id: str) -> Item | None:
        """Raises PayloadTooLarge."""
        stored = self._store.get_by_item(item_id)
        if stored is None:
            return None
        if stored.id not in self._decoded:
            self._spend(len(stored.input_items) + len(stored.response))
            self._decoded[stored.id] = {item["id"]: item for item in _items(stored)}
        item = self._decoded[stored.id][item_id]
        self._spend(len(encode_large(item)))
        return item

    def _spend(self, n_bytes: int) -> None:
        self._left_bytes -= n_bytes
        if self._left_bytes < 0:
            raise PayloadTooLarge("the items that are referred to are larger than a body may be here", param="input")


def _items_before(exchange: "Exchange", response_id: str | None) -> list[Item]:
    """The input and output of a response and of those before it, the oldest first; no more than a body may have.

    Raises PreviousResponseNotFound, also where one before it is gone, and PayloadTooLarge.
    """
    store, limit_bytes = _store(exchange), exchange.services.config.max_body_bytes
    turns: list[StoredResponse] = []
    while response_id is not None:
        stored = store.get(response_id)
        if stored is None:
            raise PreviousResponseNotFound(
                f"Previous response with id '{response_id}' not found.", param="previous_response_id"
            )
        turns.append(stored)
        limit_bytes -= len(stored.response) + len(stored.input_items)
        if limit_bytes < 0:
            raise PayloadTooLarge("the conversation is larger than a body may be here", param="previous_response_id")
        response_id = stored.previous_id
    return [item for turn in reversed(turns) for item in _items(turn)]


def _items(stored: StoredResponse) -> list[Item]:
    return [*decode(stored.input_items), *decode(stored.response[stored.output])]


def _last_of(logprobs: Sequence[TokenLogprob], content: str) -> list[TokenLogprob]:
    """The last tokens, as many as `content` takes: before it stands what is no content, such as reasoning."""
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
            "cache_write_tokens": 0,  # what is kept costs nobody anything: clients subtract what was written
        },
        "output_tokens": usage.n_completion,
        "output_tokens_details": {"reasoning_tokens": min(n_reasoning, usage.n_completion)},
        "total_tokens": usage.n_prompt + usage.n_completion,
    }
