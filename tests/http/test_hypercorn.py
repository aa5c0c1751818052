"""The names of Hypercorn that are overridden, called or read: a release that renames one must not go unnoticed."""

import inspect
from collections.abc import Callable
from dataclasses import fields

import h11
import pytest
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from shimmy.http.connection import Connection, Shared
from shimmy.http.http1 import Http1

PROTOCOL = ("self", "app", "config", "context", "task_group")
ENDS = ("client", "server", "send")


@pytest.mark.parametrize(
    ("ours", "theirs", "overridden"),
    [
        (Http1, H11Protocol, {"handle", "stream_send", "_handle_events", "_create_stream"}),
        (Connection, TCPServer, {"run", "_read_data", "protocol_send"}),
    ],
)
def test_what_is_overridden_is_there(ours: type, theirs: type, overridden: set[str]) -> None:
    own = {name for name in vars(ours) if not name.startswith("__") and callable(vars(ours)[name])}
    assert own & vars(theirs).keys() == overridden


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (H11Protocol.__init__, (*PROTOCOL, "connection_state", "ssl", *ENDS)),
        (H11Protocol.handle, ("self", "event")),
        (H11Protocol.stream_send, ("self", "event")),
        (H11Protocol._handle_events, ("self",)),
        (H11Protocol._create_stream, ("self", "request")),
        (H11Protocol._send_h11_event, ("self", "event")),
        (H11Protocol._close_stream, ("self",)),
        (HTTPStream.__init__, (*PROTOCOL, "ssl", *ENDS, "stream_id")),
        (HTTPStream.handle, ("self", "event")),
        (TCPServer.__init__, ("self", "app", "loop", "config", "context", "state", "reader", "writer")),
        (TCPServer.run, ("self",)),
        (TCPServer.protocol_send, ("self", "event")),
        (TCPServer._read_data, ("self",)),
        (TCPServer._close, ("self",)),
        (TaskGroup.__init__, ("self", "loop")),
        (TaskGroup.spawn, ("self", "func", "args")),
        (TaskGroup.spawn_app, ("self", "app", "config", "scope", "send")),
        (WorkerContext.__init__, ("self", "max_requests")),
        (Config.response_headers, ("self", "protocol")),
        (parse_socket_addr, ("family", "address")),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_what_is_called_or_overridden_takes_what_it_did(
    function: Callable[..., object], parameters: tuple[str, ...]
) -> None:
    assert tuple(inspect.signature(function).parameters) == parameters


def test_what_takes_the_place_of_their_task_group_takes_the_same() -> None:
    theirs = inspect.signature(TaskGroup.spawn_app).parameters
    ours = inspect.signature(Connection.spawn_app).parameters
    assert [name.lstrip("_") for name in ours] == [*theirs]


@pytest.mark.parametrize(
    ("event", "names"),
    [
        (RawData, {"data", "address"}),
        (Closed, set()),
        (Updated, {"idle"}),
        (Body, {"stream_id", "data"}),
        (EndBody, {"stream_id"}),
        (Request, {"stream_id", "headers", "http_version", "method", "raw_path", "state"}),
    ],
)
def test_an_event_has_the_fields_it_had(event: type, names: set[str]) -> None:
    assert {field.name for field in fields(event)} == names


def test_the_attributes_that_are_read_or_set_are_there() -> None:
    assert isinstance(MAX_RECV, int)
    assert isinstance(STREAM_ID, int)
    shared = Shared()
    assert vars(Config).keys() >= {"include_server_header", "keep_alive_max_requests"}
    assert b"server" not in dict(shared.config.response_headers("h11"))
    assert inspect.iscoroutinefunction(shared.context.terminated.set)

    async def send(_event: object) -> None: ...

    protocol = H11Protocol(send, shared.config, shared.context, None, ConnectionState({}), False, None, None, send)  # type: ignore[arg-type]
    assert isinstance(protocol.connection, h11.Connection)
    assert protocol.stream is None
    assert protocol.keep_alive_requests == 0
    assert inspect.iscoroutinefunction(protocol.can_read.set)
    assert {"send", "config", "context", "task_group", "connection_state", "client", "server", "ssl", "app"} <= {
        *vars(protocol)
    }
