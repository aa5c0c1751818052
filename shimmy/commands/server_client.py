"""A running server as the command line talks to it: one request, one JSON answer. Knows HTTP/1.1 and no route."""

import json
import socket
from typing import Any

import h11

from shimmy.errors import from_code
from shimmy.option_kinds import DEFAULT_PORT, Bind

_CONNECT_TIMEOUT_S = 5.0
_READ_BYTES = 1 << 16
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where a server listens, and where it is reached


class NoServer(Exception):
    """No Shimmy server answers at the address."""


def ask(address: Bind, key: str | None, method: str, path: str, body: bytes = b"") -> Any:
    """The JSON that the server at `address` answers; raises what it answers instead, or NoServer."""
    host, port = _EVERYWHERE.get(address.host, address.host), address.port or DEFAULT_PORT
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    where = f"http://{authority}"
    headers = [("Host", authority), ("Connection", "close"), ("Content-Length", str(len(body)))]
    if key is not None:
        headers.append(("Authorization", f"Bearer {key}"))
    try:
        with socket.create_connection((host, port), _CONNECT_TIMEOUT_S) as connection:
            connection.settimeout(None)  # a model may take minutes to load
            status, text = _exchange(connection, h11.Request(method=method, target=path, headers=headers), body)
        answer = json.loads(text)
        if status == 200:
            return answer
        error = answer["error"]
        failure = from_code(str(error["code"]), str(error["message"]))
    except OSError as exc:
        reason = exc.strerror or exc
        raise NoServer(
            f"no server answers on {where} ({reason}); start one, or name its address with --server"
        ) from exc
    except (h11.ProtocolError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise NoServer(f"what answers on {where} is no Shimmy server") from exc
    raise failure


def _exchange(connection: socket.socket, request: h11.Request, content: bytes) -> tuple[int, bytes]:
    """Status and body of the reply."""
    client = h11.Connection(h11.CLIENT)
    for part in (request, h11.Data(data=content), h11.EndOfMessage()):
        connection.sendall(client.send(part) or b"")
    status, body = 0, bytearray()
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(connection.recv(_READ_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif not isinstance(event, h11.InformationalResponse):
            return status, bytes(body)
