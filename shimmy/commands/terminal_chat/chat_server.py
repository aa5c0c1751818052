"""Which server a chat talks to, and its model: a server that runs and has the model, otherwise one of our own."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shimmy.commands.console import CommandCall
from shimmy.commands.server_client import NoServer, ServerAddress, ask, server_address
from shimmy.commands.terminal.load_line import status_line
from shimmy.commands.terminal_chat.missing_model import fetched, name_here
from shimmy.commands.terminal_chat.own_server import SERVER_OPTIONS, OwnServer, server_arguments
from shimmy.commands.terminal_chat.reply_stream import ReplyStream
from shimmy.errors import ModelNotFound, NotFound, ShimmyError
from shimmy.option_kinds import ConfigError

_ANSWER_S = 5.0  # a server that is well answers in milliseconds
_LOOK_EVERY_S = 0.2
_READY = ("ready", "swapping")


class ChatServer:
    """`model` is the name that the server knows. `own` is a server of our own, which is started when it is needed."""

    def __init__(self, model: str, address: ServerAddress, key: str | None, own: OwnServer | None = None) -> None:
        self.model = model
        self.own = own
        self.address = address
        self._key = key

    @property
    def place(self) -> str:
        """For a person."""
        return "a server of its own" if self.own else self.address.url

    def see_to_it_that_it_runs(self) -> None:
        """Start our own, if it does not run (any more)."""
        if self.own is not None and not self.own.is_running:
            self.restart(self.own)

    def restart(self, own: OwnServer) -> None:
        self.address = own.restart()

    def reply(self, body: dict[str, Any]) -> ReplyStream:
        return ReplyStream(self.address, self._key, body)

    def status(self) -> dict[str, Any]:
        """Raises the server's error, or NoServer."""
        return _status(self.address, self._key, self.model)

    def load(self, show: Callable[[str], None]) -> None:
        """Have it load the model; `show` is told several times a second what is going on. Raises the server's error."""
        if self.status()["state"] in _READY:
            return
        failures: list[Exception] = []

        def load() -> None:
            try:
                ask(self.address, self._key, "POST", f"/api/models/{quote(self.model)}/load", json.dumps({}).encode())
            except (ShimmyError, NoServer) as exc:
                failures.append(exc)

        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        while thread.is_alive():
            show(status_line(self.model, self.status()))
            thread.join(_LOOK_EVERY_S)
        if failures:
            raise failures[0]

    def close(self) -> None:
        if self.own is not None:
            self.own.close()


def find_server(call: CommandCall) -> ChatServer:
    """The server for a call of `run`; a model that is nowhere is fetched, if the person wants that.

    Raises NotFound where there is no such model.
    """
    from shimmy.commands.models import is_place

    options, is_by_place = call.options, is_place(Path(call.options.name))
    shaping = [row.flag for row in SERVER_OPTIONS if getattr(options, row.name) is not None and row.name not in _LOGS]
    if options.bind or options.url:
        if shaping or is_by_place:
            what = shaping[0] if shaping else "a model's file"
            raise ConfigError(f"{what} is for a server of its own, and goes without --bind and --url")
        try:
            return _running(call)
        except NoServer as exc:
            raise NotFound(str(exc)) from exc
    may_run = not shaping and not is_by_place
    if may_run and (server := _running_with_model(call)) is not None:
        return server
    try:
        model, place = _on_the_disk(call)
    except ModelNotFound as missing:
        path = fetched(call, missing)
        if may_run and (server := _running_with_model(call, look_again=True)) is not None:
            return server
        model, place = _on_the_disk(call, path)
    own = OwnServer(call, server_arguments(call, place))
    return ChatServer(model, server_address(call), own.key, own)


def _running_with_model(call: CommandCall, *, look_again: bool = False) -> ChatServer | None:
    """The server that runs, if it has the model; `look_again` has it look at its folders first."""
    keys = call.config.api_keys
    try:
        if look_again:
            ask(server_address(call), keys[0] if keys else None, "POST", "/api/models/discover")
        return _running(call)
    except (NoServer, ModelNotFound):
        return None


_LOGS = ("log_level", "log_format")  # of this command as of a server


def _running(call: CommandCall) -> ChatServer:
    """The server that runs; raises NoServer, or ModelNotFound if it has no such model."""
    keys, address = call.config.api_keys, server_address(call)
    server = ChatServer(name_here(call.options.name), address, keys[0] if keys else None)
    status = server.status()
    if status["state"] == "unavailable":
        raise NotFound(f"`{server.model}` cannot be served: {status.get('error')}")
    return server


def _status(address: ServerAddress, key: str | None, model: str) -> dict[str, Any]:
    status = ask(address, key, "GET", f"/api/models/{quote(model)}/status", timeout_s=_ANSWER_S)
    if not isinstance(status, dict) or "state" not in status:
        raise NoServer(f"what answers on {address.url} is no Shimmy server")
    return status


def _on_the_disk(call: CommandCall, new: Path | None = None) -> tuple[str, Path | None]:
    """The name of the model with a server of our own, and its place if that was named. What is `new`, just fetched, may
    have another name than the one it was fetched by."""
    from shimmy.catalog.alias_file import AliasFile
    from shimmy.catalog.catalog import Registry
    from shimmy.commands.models import check_is_no_path, find_models, is_place, located

    name, path = call.options.name, Path(call.options.name)
    if is_place(path):
        return located(call.config, name)[2].name, path
    check_is_no_path(name)
    registry = Registry(call.config.aliases, call.config.default_model, AliasFile(call.config.alias_file))
    registry.publish(find_models(call.config))
    name = name_here(name)
    try:
        registry.resolve(name)
    except ModelNotFound:
        if new is None or not is_place(new):
            raise
        return located(call.config, str(new))[2].name, new
    return name, None
