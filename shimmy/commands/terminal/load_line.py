"""How far loads of models are, in one line for a person.

Knows events and statuses of models; nothing of where the line stands.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from shimmy.commands.terminal.amounts import size
from shimmy.commands.terminal.screen_text import safe_line

if TYPE_CHECKING:
    from shimmy.model_events import ModelEvents


def status_line(model: str, status: Mapping[str, Any]) -> str:
    """Of a model that loads, by its status as the server tells it."""
    if "converted_percent" in status:
        return _line("converting", model, status["converted_percent"])
    if "read_percent" in status:
        return _line("loading", model, status["read_percent"], status["size_bytes"])
    if position := status.get("load_position", 0):
        place = "the next" if position == 1 else f"number {position} in the queue"
        return f"loading {safe_line(model)}, which waits for memory: {place}"
    return f"loading {safe_line(model)}"


def _line(verb: str, model: str, percent: int, total_bytes: int | None = None) -> str:
    amount = f" of {size(total_bytes)}" if total_bytes else ""
    return f"{verb} {safe_line(model)}: {percent} %{amount}"


async def show_loads(events: "ModelEvents", show: Callable[[str], None]) -> None:
    """Until cancelled, call `show` with one line about all loads that take a while, and with "" when there is none."""
    lines: dict[str, str] = {}
    listener = events.listen()
    try:
        async for event in listener:
            if event.kind == "converting":
                lines[event.model] = _line("converting", event.model, int(str(event.details["percent"])))
            elif event.kind == "reading":
                percent, total = (int(str(event.details[name])) for name in ("percent", "total_bytes"))
                lines[event.model] = _line("loading", event.model, percent, total)
            elif lines.pop(event.model, None) is None:
                continue
            show("; ".join(lines.values()))
    finally:
        events.leave(listener)
        show("")
