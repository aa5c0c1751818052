"""What is behind stderr: a pipe that nothing reads, a full disk, nothing at all. The server serves all the same."""

import fcntl
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.e2e.harness import CHAT, HOST, PROGRAM, Reply, chat_body, environment
from tests.e2e.processes import DEADLINE_S, wait_for


def free_port() -> int:
    with closing(socket.create_server((HOST, 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


class Served:
    """A server whose address is known without its log."""

    def __init__(self, port: int) -> None:
        self.port = port

    def request(self, method: str, path: str, body: str | None = None) -> Reply:
        with closing(HTTPConnection(HOST, self.port, timeout=DEADLINE_S)) as connection:
            connection.request(method, path, body)
            return Reply.read(connection.getresponse())

    def is_alive(self) -> bool:
        with suppress(OSError):
            return self.request("GET", "/health").status == 200
        return False


@contextmanager
def serving_with(
    folder: Path, models: Path, stderr: int | None, *arguments: str, close_stderr: bool = False
) -> Iterator[Served]:
    port = free_port()
    command: Sequence[str] = [*PROGRAM, "serve", "--bind", f"{HOST}:{port}", "--model-path", str(models), *arguments]
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command] if close_stderr else command
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, cwd=folder, env=environment(folder)
    )
    try:
        server = Served(port)
        wait_for("/health", server.is_alive)
        yield server
        process.terminate()
        assert process.wait(DEADLINE_S) == 0  # nor does the end wait for a reader
    finally:
        process.kill()
        process.wait()


def chat(server: Served, prompt: str) -> None:
    reply = server.request("POST", CHAT, json.dumps(chat_body(prompt, max_tokens=4)))
    assert reply.status == 200, reply.body


def test_a_pipe_that_nothing_reads_stops_nothing(tmp_path: Path, models: Path) -> None:
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(read_end, "rb", 0) as reader:
        with serving_with(tmp_path, models, write_end, "--log-level", "debug", "--threads", "1") as server:
            os.close(write_end)
            for number in range(25):
                chat(server, f"hello {number}")
                assert server.request("POST", "/api/models/alpha/unload").status == 200
                assert server.is_alive()
            for _ in range(3):
                assert server.request("GET", "/v1/models/" + "x" * 200).status == 404
            metrics = server.request("GET", "/metrics").body.decode()
            assert re.search(r"^shimmy_log_lines_dropped_total \d+$", metrics, re.MULTILINE)
        assert b"Shimmy" in reader.read(4096)


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_disk_that_is_full_stops_nothing(tmp_path: Path, models: Path, style: str) -> None:
    arguments = ("--log-format", style, "--threads", "1")
    with Path("/dev/full").open("wb") as full, serving_with(tmp_path, models, full.fileno(), *arguments) as server:
        chat(server, "hello")
        metrics = server.request("GET", "/metrics").body.decode()
        dropped = re.search(r"^shimmy_log_lines_dropped_total (\d+)$", metrics, re.MULTILINE)
        assert dropped
        assert int(dropped[1]) > 0


def test_stderr_may_be_closed(tmp_path: Path, models: Path) -> None:
    with serving_with(tmp_path, models, None, "--threads", "1", close_stderr=True) as server:
        chat(server, "hello")
        with socket.create_connection((HOST, server.port)) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
        chat(server, "hello again")
