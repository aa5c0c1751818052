"""What the system lends a server: sockets that listen on an address, and descriptors. Knows no HTTP."""

import contextlib
import errno
import resource
import socket
from typing import Any

from shimmy.option_kinds import DEFAULT_PORT, LAST_AUTO_PORT, Bind

_BACKLOG = 1024
_TRIES = 20  # for a port that is free on all addresses of a name
# This machine has no such address, or no such kind of address at all.
_NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}
_MANY_FILES = 1 << 20

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]


class BindError(Exception):
    """Nothing can listen on the address; the message says which one and why."""


def listen(bind: Bind) -> list[socket.socket]:
    """Listening sockets on `bind`, of one port: one for each address that a name has here. Raises BindError."""
    ports = range(DEFAULT_PORT, LAST_AUTO_PORT + 1) if bind.port is None else (bind.port,)
    try:
        addresses = _addresses(bind.host)
    except (OSError, UnicodeError) as exc:
        raise BindError(f"cannot listen on {bind.host}, which is no address or name that is known here: {exc}") from exc
    reason: OSError | None = None
    for port in ports:
        try:
            return _listen_on(addresses, port)
        except OSError as exc:
            reason = exc
    tried = f"port {ports[0]}" if len(ports) == 1 else f"a port from {ports[0]} to {ports[-1]}"
    told = reason.strerror if reason is not None and reason.strerror else str(reason)
    if reason is not None and reason.errno == errno.EADDRINUSE:
        told = f"{told}; end what listens there, or choose another with `--bind HOST:PORT` (port 0: one that is free)"
    raise BindError(f"cannot listen on {bind.host}, {tried}: {told}") from reason


def _addresses(host: str) -> list[_Address]:
    """All that `host` stands for; raises OSError, or UnicodeError for what can be no name."""
    with contextlib.suppress(OSError):
        socket.inet_pton(socket.AF_INET, host)
        return [(socket.AF_INET, (host, 0))]
    # Bytes, as text would bring in the rules of international names.
    name = host.encode() if host.isascii() else host
    found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _listen_on(addresses: list[_Address], port: int) -> list[socket.socket]:
    for n_tries_left in reversed(range(_TRIES)):
        listeners: list[socket.socket] = []
        reason = OSError(errno.EADDRNOTAVAIL, "no such address here")
        try:
            for address in addresses:
                try:
                    listeners.append(_listener(address, _port_of(listeners) or port, is_alone=len(addresses) == 1))
                except OSError as exc:
                    if exc.errno not in _NOT_HERE:
                        raise
                    reason = exc
        except OSError as exc:
            has_bad_luck = exc.errno == errno.EADDRINUSE and port == 0 and listeners and n_tries_left
            for listener in listeners:
                listener.close()
            if not has_bad_luck:
                raise
            continue
        if listeners:
            return listeners
        raise reason
    raise AssertionError("the last try ends above")


def _port_of(listeners: list[socket.socket]) -> int:
    return listeners[0].getsockname()[1] if listeners else 0


def _listener(address: _Address, port: int, *, is_alone: bool) -> socket.socket:
    family, (host, _, *others) = address
    # Named as TCP's, so that asyncio sends each write at once (TCP_NODELAY): the body of a reply would wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and not is_alone:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        listener.bind((host, port, *others))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def raise_descriptor_limit() -> int:
    """Take as many descriptors as we may, for us and our workers; returns how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY_FILES if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft if soft != resource.RLIM_INFINITY else _MANY_FILES
    with contextlib.suppress(OSError, ValueError):  # a container may forbid it
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft
