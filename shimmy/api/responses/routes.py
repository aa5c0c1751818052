"""The routes of OpenAI's Responses: creating, reading and deleting them, their input, and the count of its tokens.

The store belongs to the application. A response is stored once it is over; one whose client left is not.
"""

from typing import TYPE_CHECKING

from shimmy.api.aside import aside
from shimmy.api.body import decode
from shimmy.api.client_gone import unless_gone
from shimmy.api.event_stream import EventStream
from shimmy.api.http_exchange import encode_large
from shimmy.api.request_fields.field_kinds import Integer, Json, NotServed, OneOf, Record, read_query, refuse
from shimmy.api.request_fields.job import model_defaults
from shimmy.api.responses.items import Item, ItemId
from shimmy.api.responses.parse import History, ResponseRequest, counted_request, previous_response_id, response_request
from shimmy.api.responses.response import Response, ResponseEvents
from shimmy.api.responses.store import ResponseStore, StoredResponse
from shimmy.errors import (
    BadRequest,
    Internal,
    NotFound,
    PayloadTooLarge,
    PreviousResponseNotFound,
)
from shimmy.generation import generate
from shimmy.messages.event import Finished, Piece

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from shimmy.api.http_exchange import Exchange
    from shimmy.generation import Generation
    from shimmy.messages.request import GenerateRequest

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
        return response_request(body, exchange.services.config, model_defaults(body, exchange.services), history)

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
        return counted_request(body, exchange.services.config, model_defaults(body, exchange.services), history)

    request = await exchange.read(meaning, _has_history)
    generation = generate(exchange.services, request)
    try:
        accepted = await unless_gone(exchange, generation.accepted())
    finally:
        await generation.aclose()
    await exchange.reply({"object": "response.input_tokens", "input_tokens": accepted.n_prompt})


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
