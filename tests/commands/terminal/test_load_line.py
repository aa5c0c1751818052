"""The line about loads that take a while."""

import asyncio

from shimmy.commands.terminal.load_line import show_loads, status_line
from shimmy.model_events import ModelEvents
from tests.fakes import on_loop


def test_the_status_of_a_model_says_how_far_its_load_is() -> None:
    assert status_line("tiny", {"state": "loading"}) == "loading tiny"
    waits = "loading tiny, which waits for memory: "
    assert status_line("tiny", {"state": "loading", "load_position": 1}) == waits + "the next"
    assert status_line("tiny", {"state": "loading", "load_position": 3}) == waits + "number 3 in the queue"
    assert status_line("tiny", {"converted_percent": 7}) == "converting tiny: 7 %"
    assert status_line("ti\nny\x1b", {"read_percent": 42, "size_bytes": 7_400_000_000}).startswith("loading ti ny")
    assert status_line("tiny", {"read_percent": 42, "size_bytes": 7_400_000_000}) == "loading tiny: 42 % of 7.4 GB"


@on_loop
async def test_the_line_follows_all_loads_and_goes_with_the_last_one() -> None:
    events, shown = ModelEvents(), list[str]()
    showing = asyncio.create_task(show_loads(events, shown.append))
    await asyncio.sleep(0)
    events.publish("loading", "a")
    events.publish("converting", "a", percent=50)
    events.publish("reading", "b", percent=1, completed_bytes=1, total_bytes=100_000_000)
    events.publish("reading", "a", percent=99, completed_bytes=1, total_bytes=2_000_000_000)
    events.publish("added", "c")
    events.publish("failed", "b", reason="no")
    events.publish("loaded", "a", load_s=1)
    events.publish("reading", "b", percent=2, completed_bytes=2, total_bytes=100_000_000)
    for _ in range(3):
        await asyncio.sleep(0)
    assert shown == [
        "converting a: 50 %",
        "converting a: 50 %; loading b: 1 % of 100 MB",
        "loading a: 99 % of 2.0 GB; loading b: 1 % of 100 MB",
        "loading a: 99 % of 2.0 GB",
        "",
        "loading b: 2 % of 100 MB",
    ]
    events.close()
    await showing
    assert shown[-1] == ""
