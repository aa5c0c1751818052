"""`health` and how commands reach a server, against a server of the test's own that answers what it is told to."""

import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shimmy import cli
from shimmy.commands import health, server_client
from shimmy.commands.server_client import ServerAddress
from shimmy.option_kinds import DEFAULT_PORT, Bind
from tests.hub.servers import FakeFiles, self_signed, speak_tls

OK = (200, {"status": "ok"})
LOADED = (200, {"name": "tiny", "state": "ready"})


def error(status: int, code: str, message: str) -> tuple[int, dict[str, dict[str, str]]]:
    return status, {"error": {"code": code, "message": message}}


class Scripted(ThreadingHTTPServer):
    """Answers each request with the next of `replies`, and then with the last one again and again."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: list[tuple[int, object]] = [OK]
        self.requests: list[tuple[str, str | None]] = []

    @property
    def bind(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((f"{self.command} {self.path}", self.headers["Authorization"]))
        replies = self.server.replies
        status, value = replies.pop(0) if len(replies) > 1 else replies[0]
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("SHIMMY_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(health, "_TRY_EVERY_S", 0.01)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_a_server_that_answers(server: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", "--bind", server.bind]) == 0
    assert capsys.readouterr().out == f"http://{server.bind} answers\n"
    assert server.requests == [("GET /health", None)]


def test_no_server_is_one_line_and_1(free_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", "--bind", f"127.0.0.1:{free_port}"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"shimmy: no server answers on http://127.0.0.1:{free_port} (Connection refused)")


@pytest.mark.parametrize("variables", [{"SHIMMY_BIND": "{}"}, {"SHIMMY_HOST": "{host}", "SHIMMY_PORT": "{port}"}])
@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost", "0"])
def test_it_asks_where_serve_would_listen(
    server: Scripted, host: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{host}:{server.server_port}"
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(address, host=host, port=server.server_port))
    assert cli.main(["health"]) == 0


def test_the_configuration_file_counts_too(server: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "shimmy.toml"
    path.write_text(f'bind = "{server.bind}"\napi_key = ["secret"]\n')
    assert cli.main(["health", "--config", str(path)]) == 0
    assert server.requests == [("GET /health", "Bearer secret")]


def test_a_url_may_have_a_prefix_and_be_that_of_the_api(server: Scripted) -> None:
    assert cli.main(["health", "--url", f"http://{server.bind}/v1"]) == 0
    assert cli.main(["health", "--url", f"http://{server.bind}/llm/"]) == 0
    assert [request for request, _ in server.requests] == ["GET /health", "GET /llm/health"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on this machine")
def test_a_server_behind_tls_is_asked_where_its_certificate_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = self_signed(tmp_path)
    files = FakeFiles({"/llm/health": b'{"status": "ok"}'})
    speak_tls(files, certificate)
    with files.running():
        url = f"https://localhost:{files.port}/llm"
        assert cli.main(["health", "--url", url]) == 1
        assert "certificate" in capsys.readouterr().err
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert cli.main(["health", "--url", url]) == 0
        assert capsys.readouterr().out == f"{url} answers\n"
        assert cli.main(["health", "--url", url.replace("localhost", "127.0.0.1")]) == 1  # another name


def test_the_port_of_a_url_is_that_of_its_scheme() -> None:
    assert ServerAddress.parse("https://example.com/v1").url == "https://example.com:443"
    assert ServerAddress.parse("http://example.com").url == "http://example.com:80"


def test_a_url_may_lack_its_scheme() -> None:
    assert ServerAddress.parse("127.0.0.1:80/v1").url == "http://127.0.0.1:80"
    assert ServerAddress.parse("localhost").url == f"http://localhost:{DEFAULT_PORT}"
    assert ServerAddress.parse("[::1]:99").url == "http://[::1]:99"


@pytest.mark.parametrize(
    "url",
    ["ftp://example.com", "", "h:99999", "http://", "http://h:99999", "http://h/?a=b", "h?a", "http:/h", "https:h"],
)
def test_another_url_is_wrong_usage(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", "--url", url]) == 2
    assert capsys.readouterr().err.startswith("shimmy: --url: ")


@pytest.mark.parametrize(
    ("bind", "hosts", "url"),
    [
        (Bind("0.0.0.0", 80), ("127.0.0.1",), "http://127.0.0.1:80"),
        (Bind("::", 80), ("::1", "127.0.0.1"), "http://[::1]:80"),
        (Bind("fe80::1", 80), ("fe80::1",), "http://[fe80::1]:80"),
        (Bind("box", None), ("box",), "http://box:11435"),
    ],
)
def test_how_a_server_is_reached(bind: Bind, hosts: tuple[str, ...], url: str) -> None:
    address = ServerAddress.of(bind)
    assert (address.hosts, address.url) == (hosts, url)


def test_a_server_on_all_addresses_is_reached_without_the_newer_protocol(server: Scripted) -> None:
    """Nothing listens on `::1` here, as in a container that has none."""
    assert cli.main(["health", "--bind", f"[::]:{server.server_port}"]) == 0


def in_background(*arguments: str) -> tuple[threading.Thread, list[int]]:
    """The command on a thread of its own, and the list that its exit code comes into."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(arguments)))
    thread.start()
    return thread, codes


def test_it_waits_until_the_server_answers(free_port: int) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port))  # refuses every connection until it listens
        waiting, codes = in_background("health", "--bind", f"127.0.0.1:{free_port}", "--wait", "1m")
        waiting.join(0.1)
        assert codes == []
        listener.listen()
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b'HTTP/1.1 200 \r\nContent-Length: 15\r\n\r\n{"status":"ok"}')
        waiting.join()
    assert codes == [0]


def test_the_wait_has_an_end(free_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", "--bind", f"127.0.0.1:{free_port}", "--wait", "0.1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(", after 0.1 s")


def test_a_server_that_accepts_and_says_nothing_is_no_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_ANSWER_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert cli.main(["health", "--bind", f"127.0.0.1:{listener.getsockname()[1]}"]) == 1
    assert "(timed out)" in capsys.readouterr().err


@pytest.mark.parametrize("said", [b"", b"220 mail\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
def test_what_speaks_otherwise_is_no_server(said: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asking, codes = in_background("health", "--bind", f"127.0.0.1:{listener.getsockname()[1]}")
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(said)
        asking.join()
    assert codes == [1]
    assert "is no Shimmy server" in capsys.readouterr().err


def test_a_reply_without_an_end_is_given_up(
    server: Scripted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_client, "_MAX_REPLY_BYTES", 1000)
    server.replies = [(200, b"a" * 2000)]
    assert cli.main(["health", "--bind", server.bind]) == 1
    assert "is no Shimmy server" in capsys.readouterr().err


@pytest.mark.parametrize("reply", [(200, b"<html>"), (200, ["ok"]), (200, {"status": "no"}), (404, b"")])
def test_another_program_is_no_server(
    server: Scripted, reply: tuple[int, object], capsys: pytest.CaptureFixture[str]
) -> None:
    server.replies = [reply]
    assert cli.main(["health", "--bind", server.bind]) == 1
    assert capsys.readouterr().err == f"shimmy: what answers on http://{server.bind} is no Shimmy server\n"


def test_a_model_is_loaded_and_waited_for(
    server: Scripted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIMMY_API_KEY", "secret,other")
    server.replies = [OK, LOADED]
    assert cli.main(["health", "--bind", server.bind, "--model", "a b/c"]) == 0
    assert server.requests[1] == ("POST /api/models/a%20b/c/load", "Bearer secret")
    assert capsys.readouterr().out == f"http://{server.bind} answers and has loaded `a b/c`\n"


@pytest.mark.parametrize(
    "reply",
    [
        error(404, "model_not_found", "no model `tiny`; did you mean `tinny`?"),
        error(503, "model_unavailable", "`tiny` cannot be loaded: it is damaged"),
        error(503, "out_of_memory", "`tiny` takes 9 GB, there are 8"),
    ],
)
def test_what_cannot_become_better_is_told_at_once(
    server: Scripted, reply: tuple[int, object], capsys: pytest.CaptureFixture[str]
) -> None:
    server.replies = [OK, reply]
    assert cli.main(["health", "--bind", server.bind, "--model", "tiny", "--wait", "1h"]) == 1
    message = json.loads(json.dumps(reply[1]))["error"]["message"]
    assert capsys.readouterr().err == f"shimmy: {message}\n"


def test_what_may_become_better_is_tried_again(server: Scripted) -> None:
    server.replies = [
        (502, b"<html>bad gateway"), OK, error(503, "overloaded", "the queue is full"),
        OK, error(409, "model_unloaded", "unloaded meanwhile"), OK, LOADED,
    ]  # fmt: skip
    assert cli.main(["health", "--bind", server.bind, "--model", "tiny", "--wait", "1m"]) == 0
    assert len(server.requests) == 7


@pytest.mark.parametrize(("keys", "reason"), [((), "needs an API key"), (("old",), "does not know the API key")])
def test_a_wrong_key_is_told_with_the_option_that_sets_it(
    server: Scripted, keys: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.replies = [OK, error(401, "invalid_api_key", "send `Authorization: Bearer KEY`")]
    options = [part for key in keys for part in ("--api-key", key)]
    assert cli.main(["health", "--bind", server.bind, "--model", "tiny", *options]) == 1
    told = capsys.readouterr().err
    assert reason in told
    assert "--api-key" in told


def test_a_load_that_takes_too_long_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        waiting, codes = in_background("health", "--bind", f"127.0.0.1:{port}", "--model", "tiny", "--wait", "0.5")
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b'HTTP/1.1 200 \r\nContent-Length: 15\r\n\r\n{"status":"ok"}')
        loading, _ = listener.accept()
        with loading:
            waiting.join()
    assert codes == [1]
    assert "has not loaded `tiny` in time, after 0.5 s" in capsys.readouterr().err


def test_an_interrupt_ends_the_wait(
    free_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert cli.main(["health", "--bind", f"127.0.0.1:{free_port}", "--wait", "1h"]) == 130
    assert capsys.readouterr().err == "shimmy: interrupted\n"
