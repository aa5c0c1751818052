"""`ps`, `load`, `unload`, `discover`: they ask a running server and show what it answers."""

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from shimmy.commands.console import CommandCall, print_table
from shimmy.commands.server_client import NoServer, ask, server_address
from shimmy.errors import NotFound


def ps(call: CommandCall) -> int:
    """The models that the server has loaded, or is about to."""
    entries = _ask_server(call, "GET", "/api/models")["models"]
    return _print_entries(call, [entry for entry in entries if "jobs" in entry])


def discover(call: CommandCall) -> int:
    return _print_entries(call, _ask_server(call, "POST", "/api/models/discover")["models"])


def load(call: CommandCall) -> int:
    body = {} if call.options.keep_alive is None else {"keep_alive": call.options.keep_alive}
    path = f"/api/models/{quote(call.options.name)}/load"
    return _print_entries(call, [_ask_server(call, "POST", path, body)])


def unload(call: CommandCall) -> int:
    return _print_entries(call, [_ask_server(call, "POST", f"/api/models/{quote(call.options.name)}/unload")])


def _ask_server(call: CommandCall, method: str, path: str, body: dict[str, str] | None = None) -> Any:
    keys = call.config.api_keys
    content = json.dumps(body).encode() if body else b""
    try:
        return ask(server_address(call), keys[0] if keys else None, method, path, content)
    except NoServer as error:
        raise NotFound(str(error)) from error


def _print_entries(call: CommandCall, entries: list[dict[str, Any]]) -> int:
    """Entries of `/api/models`."""
    if call.options.json:
        print(json.dumps(entries, indent=2))
        return 0
    rows: list[tuple[str, ...]] = [("NAME", "STATE", "MEMORY", "CONTEXT", "JOBS", "IDLE", "NOTE")]
    for entry in entries:
        idle_s = entry.get("idle_s")
        cells = (
            entry["name"],
            entry["state"],
            f"{entry['memory']['total_bytes'] / 1e6:.0f} MB" if entry.get("memory") else "",
            entry.get("n_ctx", ""),
            entry.get("jobs", ""),
            "" if idle_s is None else f"{idle_s:.0f} s",
            entry.get("error") or "",
        )
        rows.append(tuple(map(str, cells)))
    print_table(rows)
    return 0


COMMANDS: Mapping[str, Callable[[CommandCall], int]] = {"ps": ps, "discover": discover, "load": load, "unload": unload}
