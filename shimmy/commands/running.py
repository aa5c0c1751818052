"""`ps`, `load`, `unload`, `discover`: they ask a running server and show what it answers. `discover` needs none."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from shimmy.commands.console import NO_MODEL, CommandCall, hint, print_table
from shimmy.commands.server_client import NoServer, ask, server_address
from shimmy.commands.terminal.amounts import size, span
from shimmy.commands.terminal.style import Style
from shimmy.errors import NotFound
from shimmy.option_kinds import ConfigError


def ps(call: CommandCall) -> int:
    """The models that the server has loaded, or is about to."""
    entries = _ask_server(call, "GET", "/api/models")["models"]
    loaded = [entry for entry in entries if "jobs" in entry]
    _print_entries(call, loaded)
    if not loaded:
        hint("No model is loaded: the first request for a model loads it, and so does `shimmy load NAME`.")
    return 0


def discover(call: CommandCall) -> int:
    """Have the server look for models; look where it would, if there is none, or at the places that are named."""
    options = call.options
    names_server = bool(options.bind or options.url)
    if options.model_path or options.model_dirs:
        if names_server:
            raise ConfigError(
                "--model-path and --model-dirs say where to look without a server: leave --bind and --url"
            )
        return _print_entries(call, _found(call))
    try:
        entries = _ask(call, "POST", "/api/models/discover")["models"]
    except NoServer as error:
        if names_server:
            raise NotFound(str(error)) from error
        print(f"shimmy: no server on {server_address(call).url}: this is what one would find", file=sys.stderr)
        entries = _found(call)
    _print_entries(call, entries)
    if not entries:
        hint(NO_MODEL)
    return 0


def _found(call: CommandCall) -> list[dict[str, Any]]:
    """Entries as those of `/api/models`, as far as they are known without a server."""
    from shimmy.catalog.catalog import shown
    from shimmy.commands.models import find_models, model_fields

    catalog = find_models(call.config)
    served = [
        {"name": model.name, "state": "unloaded", **model_fields(model), "error": catalog.rejected_reason(model.name)}
        for model in catalog.models
    ]
    refused = [
        {"name": entry.name, "state": "unavailable", "path": shown(entry.path), "error": entry.reason}
        for entry in catalog.unavailable
    ]
    return [*served, *refused]


def load(call: CommandCall) -> int:
    body = {} if call.options.keep_alive is None else {"keep_alive": call.options.keep_alive}
    path = f"/api/models/{quote(call.options.name)}/load"
    return _print_entries(call, [_ask_server(call, "POST", path, body)])


def unload(call: CommandCall) -> int:
    return _print_entries(call, [_ask_server(call, "POST", f"/api/models/{quote(call.options.name)}/unload")])


def _ask_server(call: CommandCall, method: str, path: str, body: dict[str, str] | None = None) -> Any:
    try:
        return _ask(call, method, path, body)
    except NoServer as error:
        raise NotFound(str(error)) from error


def _ask(call: CommandCall, method: str, path: str, body: dict[str, str] | None = None) -> Any:
    keys = call.config.api_keys
    content = json.dumps(body).encode() if body else b""
    return ask(server_address(call), keys[0] if keys else None, method, path, content)


def _print_entries(call: CommandCall, entries: list[dict[str, Any]]) -> int:
    """Entries of `/api/models`."""
    if call.options.json:
        print(json.dumps(entries, indent=2))
        return 0
    head = ("NAME", "STATE", "MEMORY", "CONTEXT", "LAYERS ON", "JOBS", "IDLE", "UNLOADS", "NOTE")
    rows = [_row(entry) for entry in entries]
    spare = ("CONTEXT", "IDLE", "UNLOADS", "JOBS", "LAYERS ON", "MEMORY")
    numbers = ("MEMORY", "CONTEXT", "JOBS")
    print_table(head, rows, numbers=numbers, spare=spare, remark="NOTE", colour=_coloured)
    return 0


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    idle_s, kept_s = entry.get("idle_s"), entry.get("keep_alive_s")
    left = ""
    if "keep_alive_s" in entry and idle_s:
        left = "never" if kept_s is None else f"in {span(max(kept_s - idle_s, 0))}"
    return (
        entry["name"],
        entry["state"],
        size(entry["memory"]["total_bytes"]) if entry.get("memory") else "",
        f"{entry['n_ctx']:,}" if "n_ctx" in entry else "",
        _place(entry),
        f"{entry['jobs']:,}" if "jobs" in entry else "",
        span(idle_s) if idle_s else "",
        left,
        entry.get("error") or entry.get("device_note") or "",
    )


def _place(entry: dict[str, Any]) -> str:
    """Where the layers of a loaded model are."""
    if "device" not in entry:
        return ""
    return f"{entry['device']}: {entry['n_device_layers']} of {entry['n_layers']}" if entry["device"] else "processor"


def _coloured(style: Style, column: str, text: str) -> str:
    if column == "NOTE":
        return style.bad(text)
    if column == "STATE":
        return {"ready": style.good, "unloaded": style.dim, "unavailable": style.bad}.get(text, style.warning)(text)
    return text


COMMANDS: Mapping[str, Callable[[CommandCall], int]] = {"ps": ps, "discover": discover, "load": load, "unload": unload}
