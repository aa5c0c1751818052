"""The server under a service manager such as systemd: it serves the socket that it is given, and says how far it is."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.e2e.harness import CHAT, FROZEN_FILE, HOST, PROGRAM, chat_body, environment
from tests.e2e.processes import DEADLINE_S, command_line, session, wait_for

# What systemd does between fork and exec: the sockets are descriptors from 3 on, and the variable names the process.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def activated(
    folder: Path, given: socket.socket, *arguments: str | Path, manager: str = ""
) -> Iterator["subprocess.Popen[str]"]:
    settings = environment(folder) | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
    with subprocess.Popen(
        [sys.executable, "-c", ACTIVATE, str(given.fileno()), *PROGRAM, "serve", "--threads", "1", *arguments],
        env=settings | {"NOTIFY_SOCKET": manager}, pass_fds=(given.fileno(),), text=True,
        cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as created:
        yield created


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What listens for the state of the service."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(DEADLINE_S)
        yield receiver


def ask(port: int, method: str, path: str, body: object = None, host: str = "") -> tuple[int, bytes]:
    with closing(HTTPConnection(HOST, port, timeout=DEADLINE_S)) as connection:
        connection.request(method, path, json.dumps(body), {"Host": host} if host else {})
        response = connection.getresponse()
        return response.status, response.read()


def inherited_sockets(pid: int, given: socket.socket) -> list[str]:
    """The descriptors of a process that are this socket."""
    there = [path for path in Path(f"/proc/{pid}/fd").iterdir() if path.exists()]
    inode = Path(f"/proc/self/fd/{given.fileno()}").readlink()
    return [path.name for path in there if path.readlink() == inode]


def test_serves_the_socket_that_it_is_given(
    tmp_path: Path, models: Path, listener: socket.socket, manager: socket.socket
) -> None:
    port = listener.getsockname()[1]
    with activated(tmp_path, listener, "--model-path", models, manager=str(tmp_path / "notify")) as process:
        # The first request waits in the socket's queue: a client need not know whether the server has started.
        status, reply = ask(port, "POST", CHAT, chat_body("hello world", max_tokens=4))
        assert status == 200, reply
        assert manager.recv(100) == b"READY=1"
        assert ask(port, "GET", "/health", host="evil.example")[0] == 403, "the socket is a loopback address"
        workers = wait_for("a worker", lambda: [pid for pid in session(process.pid) if b"worker" in command_line(pid)])
        assert [inherited_sockets(pid, listener) for pid in workers] == [[] for _ in workers]
        process.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        assert process.wait(DEADLINE_S) == 0
        assert session(process.pid) == []


def test_a_socket_that_leads_off_this_machine_may_have_any_name(tmp_path: Path, models: Path) -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as everywhere,
        activated(tmp_path, everywhere, "--model-path", models),
    ):
        assert ask(everywhere.getsockname()[1], "GET", "/health", host="box.example")[0] == 200


def test_refuses_what_is_no_socket_to_listen_on(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as given, activated(tmp_path, given) as process:
        assert process.wait(DEADLINE_S) == 3
        assert process.stderr is not None
        assert "descriptor 3, of a service manager, is no TCP socket that listens" in process.stderr.read()


@pytest.mark.skipif(FROZEN_FILE is not None, reason="PyInstaller's outer process passes all sockets on to its child")
def test_sockets_of_another_process_are_not_taken(tmp_path: Path, models: Path, listener: socket.socket) -> None:
    arguments: list[str | Path] = ["--model-path", models, "--bind", f"{HOST}:0", "--threads", "1"]
    with subprocess.Popen(
        [*PROGRAM, "serve", *arguments],
        env=environment(tmp_path) | {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, cwd=tmp_path, text=True,
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "Shimmy" in line
        assert f":{listener.getsockname()[1]}/" not in line
        process.terminate()
