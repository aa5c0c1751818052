"""What a service manager such as systemd hands to a server, and what it wants to hear from it.

The protocols are those of sd_listen_fds(3) and sd_notify(3): variables of the environment, descriptors from 3 on, and
datagrams. Knows no unit and no HTTP.
"""

import contextlib
import os
import socket

from shimmy.http.listening import BindError

_FIRST_DESCRIPTOR = 3
_SOCKET_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")


def inherited_listeners() -> list[socket.socket]:
    """The listening TCP sockets that were opened for this process; empty where there are none. Raises BindError.

    Their variables leave the environment, so that no child takes the sockets for its own. (PyInstaller's outer process
    was started by the service manager, and writes the id of its child into LISTEN_PID.)
    """
    values = [os.environ.pop(name, "") for name in _SOCKET_VARIABLES]
    pid, n_sockets = values[0], values[2]
    if not (pid.isdecimal() and n_sockets.isdecimal()) or int(pid) != os.getpid():
        return []
    return [_listener(descriptor) for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(n_sockets))]


def _listener(descriptor: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError as exc:
        raise BindError(f"descriptor {descriptor}, of a service manager, is no socket: {exc}") from exc
    is_tcp = listener.family in {socket.AF_INET, socket.AF_INET6} and listener.type == socket.SOCK_STREAM
    if not is_tcp or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()
        raise BindError(f"descriptor {descriptor}, of a service manager, is no TCP socket that listens")
    listener.set_inheritable(False)
    return listener


def notify(state: str) -> None:
    """Tell the service manager, if there is one that listens, that the server is `READY=1` or `STOPPING=1`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)
