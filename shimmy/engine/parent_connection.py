"""The worker's end of the socket to its parent: whole frames in and out. Knows nothing of what they say."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from shimmy.wire import codec, frames

_READ_BYTES = 1 << 16


class ParentConnection:
    """Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._reader = frames.FrameReader()

    def send(self, message: frames.Frame) -> None:
        self.send_frame(frames.frame(message))

    def send_frame(self, data: bytes) -> None:
        """Send an encoded frame; a parent that has gone is no error here."""
        with self._lock, contextlib.suppress(OSError):  # `received` sees the end of the connection, which ends us
            self._socket.sendall(data)

    def received(self) -> Iterator[frames.Frame]:
        """The parent's frames, until it closes its end. Raises OSError, and ProtocolError for what is no frame."""
        while data := self._socket.recv(_READ_BYTES):
            for message in self._reader.feed(data):
                yield from codec.one_by_one(message)

    @property
    def n_bytes(self) -> int:
        """The size of the last received frame."""
        return self._reader.n_bytes
