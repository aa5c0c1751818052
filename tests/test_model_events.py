"""Everybody who listens hears everything from then on, or is told that it has not."""

import asyncio

from shimmy.model_events import MAX_UNREAD, Listener, ModelEvents
from tests.fakes import on_loop


async def kinds(listener: Listener) -> list[str]:
    return [event.kind async for event in listener]


@on_loop
async def test_each_listener_hears_what_comes_after_it_began_to_listen() -> None:
    events = ModelEvents()
    events.publish("unheard", "tiny")
    first = events.listen()
    events.publish("loading", "tiny")
    second = events.listen()
    events.publish("loaded", "tiny", load_s=1.5)
    events.leave(second)
    events.publish("failed", "other", reason="no")
    second.end()
    events.close()
    assert await kinds(first) == ["loading", "loaded", "failed"]
    (event,) = [event async for event in second]
    assert (event.kind, event.model, event.details) == ("loaded", "tiny", {"load_s": 1.5})


@on_loop
async def test_one_that_waits_is_woken() -> None:
    events = ModelEvents()
    listener = events.listen()
    waiting = asyncio.ensure_future(anext(listener))
    await asyncio.sleep(0)
    events.publish("loaded", "tiny")
    assert (await waiting).kind == "loaded"


@on_loop
async def test_one_that_does_not_listen_is_cut_off_and_costs_no_more_memory() -> None:
    events = ModelEvents()
    listener = events.listen()
    for number in range(MAX_UNREAD + 10):
        events.publish("loading", str(number))
    heard = [event.model async for event in listener]
    assert heard == [str(number) for number in range(MAX_UNREAD)], "and then it is over: some were missed"
