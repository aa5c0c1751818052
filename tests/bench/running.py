"""A server's process: started, waited for until it is alive, started again, ended. Knows no particular server."""

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tools.steps import BuildError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
POLL_INTERVAL_S = 0.002


class RunningServer:
    """One that answered its health request `start_s` after its process was asked for."""

    def __init__(self, name: str, command: Sequence[str | Path], port: int, health_path: str) -> None:
        """Starts it; raises BuildError where it does not become alive."""
        self._name = name
        self._command = command
        self._health_path = health_path
        self.port = port
        self._start()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def restart(self) -> None:
        self.stop()
        self._start()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        with tempfile.TemporaryFile() as log:
            started_at_s = time.perf_counter()
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            while not _is_alive(self.port, self._health_path):
                if self._process.poll() is not None or time.perf_counter() - started_at_s > START_TIMEOUT_S:
                    self.stop()
                    log.seek(0)
                    raise BuildError(f"`{self._name}` did not start:\n{log.read()[-2000:].decode(errors='replace')}")
                time.sleep(POLL_INTERVAL_S)
            self.start_s = time.perf_counter() - started_at_s


@contextmanager
def started(name: str, command: Sequence[str | Path], port: int, health_path: str) -> Iterator[RunningServer]:
    """The server for the length of the block."""
    server = RunningServer(name, command, port, health_path)
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_alive(port: int, path: str) -> bool:
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(request.encode())
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
