"""A running server as the command line talks to it: where it is, one request, one JSON answer.

Knows of HTTP what one request takes, and no route. Health checks run it every few seconds, so it imports little.
"""

import contextlib
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from shimmy.commands.console import CommandCall
from shimmy.errors import ShimmyError, Unauthorized, from_code
from shimmy.option_kinds import DEFAULT_PORT, Bind, ConfigError

_CONNECT_TIMEOUT_S = 5.0
_AT_ONCE_S = 1.0
_READ_BYTES, _MAX_REPLY_BYTES = 1 << 16, 1 << 26
_PORTS = {"http": 80, "https": 443}
# How a server that listens everywhere is reached. One on `::` takes IPv4, too, and containers may have no `::1`.
_LOOPBACK = {"0.0.0.0": ("127.0.0.1",), "0": ("127.0.0.1",), "::": ("::1", "127.0.0.1")}


class NoServer(Exception):
    """No Shimmy server answers at the address, or not in time. The message says where and why."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server is asked. `hosts` are names or bare addresses, the first that takes a connection counts."""

    hosts: tuple[str, ...]
    port: int
    prefix: str = ""  # of every path, as a proxy may want one
    is_tls: bool = False

    @classmethod
    def of(cls, bind: Bind) -> "ServerAddress":
        """How a server is reached that listens on `bind`."""
        return cls(_LOOPBACK.get(bind.host, (bind.host,)), bind.port or DEFAULT_PORT)

    @classmethod
    def parse(cls, url: str) -> "ServerAddress":
        """`http[s]://HOST[:PORT][/PREFIX]`, where what has no scheme is HTTP on our own port; a base URL with `/v1`
        means its server. ValueError for anything else."""
        has_scheme = "://" in url
        parts = urlsplit(url if has_scheme else f"http://{url}")
        is_broken = not has_scheme and url.partition(":")[0].lower() in _PORTS  # `http:/host`
        if is_broken or parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"must be a URL such as http://127.0.0.1:{DEFAULT_PORT} (got {url!r})")
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        port = parts.port or (_PORTS[parts.scheme] if has_scheme else DEFAULT_PORT)
        return cls((parts.hostname,), port, prefix, is_tls=parts.scheme == "https")

    @property
    def authority(self) -> str:
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL, without a `/` at its end."""
        return f"{'https' if self.is_tls else 'http'}://{self.authority}{self.prefix}"


def server_address(call: CommandCall) -> ServerAddress:
    """The server that a command is for: the one of `--url`, or else where `serve` would listen with the same options,
    variables and configuration file."""
    if call.options.url is None:
        return ServerAddress.of(call.config.bind)
    try:
        return ServerAddress.parse(call.options.url)
    except ValueError as exc:
        raise ConfigError(f"--url: {exc}") from exc


def ask(
    address: ServerAddress,
    key: str | None,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    timeout_s: float | None = None,
) -> Any:
    """The JSON that the server at `address` answers within `timeout_s`; None waits for ever, as a load may take
    minutes. Raises the error that it answers instead, or NoServer.
    """
    # With HTTP/1.0 the reply ends with the connection, and comes in one piece.
    head = f"{method} {address.prefix}{path} HTTP/1.0\r\nHost: {address.authority}\r\nContent-Length: {len(body)}\r\n"
    if key is not None:
        head += f"Authorization: Bearer {key}\r\n"
    request = f"{head}\r\n".encode() + body
    end_s = None if timeout_s is None else monotonic() + timeout_s

    def time_left_s() -> float | None:
        return None if end_s is None else max(end_s - monotonic(), 1e-3)

    try:
        with connected(address, time_left_s() or _CONNECT_TIMEOUT_S) as connection:
            status, text = _exchange(connection, request, time_left_s)
        answer = json.loads(text)
        if status == 200:
            return answer
        error = answer["error"]
        failure = from_code(str(error["code"]), str(error["message"]))
    except OSError as exc:
        reason = exc.strerror or exc
        raise NoServer(
            f"no server answers on {address.url} ({reason}); start one, or name its address with --bind or --url"
        ) from exc
    except (ValueError, IndexError, KeyError, TypeError, RecursionError) as exc:
        raise NoServer(f"what answers on {address.url} is no Shimmy server") from exc
    if isinstance(failure, Unauthorized):
        raise Unauthorized(
            f"the server on {address.url} {'does not know the API key' if key else 'needs an API key'}: give one of "
            "its keys with --api-key or SHIMMY_API_KEY"
        )
    raise failure


def answers(address: ServerAddress) -> bool:
    """Whether a server there says that it is well, at once."""
    try:
        ask(address, None, "GET", "/health", timeout_s=_AT_ONCE_S)
    except (NoServer, ShimmyError):
        return False
    return True


def connected(address: ServerAddress, timeout_s: float) -> socket.socket:
    """A connection to the first host that takes one; raises the first host's OSError."""
    reason: OSError | None = None
    for host in address.hosts:
        try:
            # Bytes, as text would bring in the rules of international names.
            name = host.encode() if host.isascii() else host
            connection = socket.create_connection((name, address.port), min(timeout_s, _CONNECT_TIMEOUT_S))  # type: ignore[arg-type]
            return _with_tls(connection, host) if address.is_tls else connection
        except UnicodeError:
            reason = reason or OSError("it can be no name")
        except OSError as exc:
            reason = reason or exc
    assert reason is not None
    raise reason


def _with_tls(connection: socket.socket, host: str) -> socket.socket:
    """Verified by the system's certificates, or those that SSL_CERT_FILE and SSL_CERT_DIR name. Raises OSError, and
    PullFailed where there are none."""
    from shimmy.hub.transfer import certificates

    with contextlib.ExitStack() as stack:
        stack.enter_context(connection)
        context = certificates.context(os.environ.get("SSL_CERT_FILE", ""), os.environ.get("SSL_CERT_DIR", ""))
        wrapped = context.wrap_socket(connection, server_hostname=host)
        stack.pop_all()
    return wrapped


def _exchange(connection: socket.socket, request: bytes, time_left_s: Callable[[], float | None]) -> tuple[int, bytes]:
    """Status and body of the reply; raises ValueError or IndexError where it is none."""
    connection.settimeout(time_left_s())
    connection.sendall(request)
    reply = bytearray()
    while piece := connection.recv(_READ_BYTES):
        reply += piece
        if len(reply) > _MAX_REPLY_BYTES:
            raise ValueError("a reply without an end")
        connection.settimeout(time_left_s())
    head, _, body = bytes(reply).partition(b"\r\n\r\n")
    return int(head.split(maxsplit=2)[1]), body
