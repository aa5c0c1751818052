"""Who connects: more clients than there is room for, clients that say nothing, web pages; and addresses as people type
them."""

import gzip
import json
import socket
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, HOST, PROGRAM, PROMPTS, Reply, Server, chat_body, run
from tests.e2e.processes import DEADLINE_S, wait_for

HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"


@contextmanager
def connected(server: Server, n_clients: int, saying: bytes = b"") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(server.connect())) for _ in range(n_clients)]
        for client in clients:
            client.sendall(saying)
        yield clients


def n_lines(server: Server) -> int:
    return len(server.log.splitlines())


def limited(n_files: int) -> Sequence[str]:
    return ("sh", "-c", f'ulimit -n {n_files} && exec "$@"', "sh", *PROGRAM)


@pytest.mark.parametrize("saying", [b"", HALF[:40], HALF], ids=["silent", "half-a-head", "half-a-body"])
def test_eleven_hundred_connections_cost_a_line_at_most(start: StartServer, saying: bytes) -> None:
    server = start()
    server.chat(PROMPTS[0])
    before = n_lines(server)
    with connected(server, 1100, saying):
        assert server.get("/health").status == 200
        if saying != HALF:
            server.chat(PROMPTS[0])
    assert n_lines(server) - before <= 1
    assert "Traceback" not in server.log
    wait_for("room", lambda: server.post(CHAT, chat_body(PROMPTS[0])).status == 200)


@pytest.mark.parametrize("saying", [b"", HALF], ids=["silent", "half-a-body"])
def test_sixty_four_descriptors_are_enough_to_be_alive(start: StartServer, saying: bytes) -> None:
    server = start(program=limited(64))
    server.chat(PROMPTS[0])
    before = n_lines(server)
    with connected(server, 200, saying):
        assert server.get("/health").status == 200
        refused = server.post(CHAT, chat_body(PROMPTS[0]))
        if saying:
            assert refused.status == 503
            assert "--max-connections" in refused.error["message"]
        else:
            assert refused.status == 200
    assert n_lines(server) - before <= 1
    assert "Traceback" not in server.log
    wait_for("room", lambda: server.post(CHAT, chat_body(PROMPTS[0], "beta")).status == 200)


def test_the_soft_limit_of_descriptors_is_raised(start: StartServer) -> None:
    server = start(program=("sh", "-c", 'ulimit -Sn 64 && exec "$@"', "sh", *PROGRAM))
    limits = Path(f"/proc/{server.pid}/limits").read_text()
    soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    assert soft == hard
    with connected(server, 100, HALF):
        server.chat(PROMPTS[0])


def test_max_connections_is_how_many_may_be_busy(start: StartServer) -> None:
    server = start("--max-connections", "2")
    with connected(server, 2, HALF):
        assert server.get("/health").status == 200
        refused = server.get("/v1/models")
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"].isdigit()
    wait_for("room", lambda: server.get("/v1/models").status == 200)


# -- web pages --------------------------------------------------------------------------------------------------------


def ask(
    server: Server, method: str, path: str, headers: dict[str, str], body: object = None, host: str = HOST
) -> Reply:
    with closing(HTTPConnection(host, server.port, timeout=DEADLINE_S)) as connection:
        connection.request(method, path, json.dumps(body) if body else None, headers)
        return Reply.read(connection.getresponse())


def test_a_name_that_was_rebound_to_this_machine_reads_nothing(server: Server) -> None:
    for path in ("/v1/models", "/metrics", "/api/models", "/docs"):
        refused = ask(server, "GET", path, {"Host": f"evil.example:{server.port}"})
        assert refused.status == 403
        assert "--allowed-hosts" in refused.error["message"]
    for name in ("localhost", f"LOCALHOST:{server.port}", "127.0.0.1", "[::1]:1", "a.localhost"):
        assert ask(server, "GET", "/v1/models", {"Host": name}).status == 200


def test_a_page_of_another_site_loads_no_model_with_a_simple_request(start: StartServer) -> None:
    server = start()
    headers = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    for path in (CHAT, "/api/models/alpha/load"):
        refused = ask(server, "POST", path, headers, chat_body(PROMPTS[0]))
        assert refused.status == 403
        assert "--cors-origins https://evil.example" in refused.error["message"]
        assert "access-control-allow-origin" not in refused.headers
    assert not server.workers()


def test_a_page_of_this_machine_chats_after_its_preflight_with_a_key_too(start: StartServer) -> None:
    server = start("--api-key", "secret")
    origin = {"Origin": "http://localhost:3000"}
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = ask(server, "OPTIONS", CHAT, origin | asking)
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    for key, status in (("secret", 200), ("wrong", 401)):
        for streamed in (True, False):
            body = chat_body(PROMPTS[0], max_tokens=4, stream=streamed)
            reply = ask(server, "POST", CHAT, origin | {"x-api-key": key}, body)
            assert reply.status == status
            assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "Lifespan" not in server.log
    assert not [line for line in server.log.splitlines() if " INFO " not in line]


# -- requests as clients write them -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/", "//v1/chat/completions", "/chat/completions", "/v1/v1/chat/completions",
        "/v1//chat/completions",
    ],
)  # fmt: skip
def test_a_base_url_may_be_typed_in_many_ways(server: Server, path: str) -> None:
    assert server.post(path, chat_body(PROMPTS[0], max_tokens=4)).status == 200


@pytest.mark.parametrize("path", ["/v1/models/alpha/", "/models/alpha", "/v1/v1/models/%61lpha", "//models//alpha/"])
def test_a_model_is_found_with_a_base_url_typed_in_many_ways(server: Server, path: str) -> None:
    assert server.get(path).json()["id"] == "alpha"


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("identity", lambda body: b"\xef\xbb\xbf" + body),
        ("identity", lambda body: body.decode().encode("utf-16")),
    ],
    ids=["gzip", "deflate", "utf-8-mark", "utf-16"],
)
def test_a_body_may_be_compressed_or_begin_with_a_mark(
    server: Server, encoding: str, encode: Callable[[bytes], bytes]
) -> None:
    body = encode(json.dumps(chat_body(PROMPTS[0])).encode())
    reply = server.request("POST", CHAT, body, {"Content-Encoding": encoding})
    assert reply.json()["choices"][0]["message"]["content"] == server.chat(PROMPTS[0])


def test_a_body_that_inflates_over_the_limit_holds_nobody_up(server: Server) -> None:
    bomb = gzip.compress(bytes(1 << 27))
    assert len(bomb) < 1 << 18
    reply = server.request("POST", CHAT, bomb, {"Content-Encoding": "gzip"})
    assert (reply.status, reply.error["code"]) == (413, "payload_too_large")
    assert server.request("POST", CHAT, bomb, {"Content-Encoding": "br"}).status == 415


def test_a_target_in_absolute_form_is_served(server: Server) -> None:
    body = json.dumps(chat_body(PROMPTS[0], max_tokens=4)).encode()
    for authority, status in ((b"localhost:1", b"200"), (b"evil.example", b"403")):
        with server.connect() as client:
            client.sendall(
                b"POST http://%b/v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
                % (authority, len(body), body)
            )
            assert client.recv(65536).split()[1] == status


# -- addresses --------------------------------------------------------------------------------------------------------


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("bind", ["localhost:0", "ip6-localhost:0", "[::1]:0", "127.0.0.2:0"])
def test_a_name_or_an_address_is_listened_on(start: StartServer, bind: str) -> None:
    host = bind.rpartition(":")[0].strip("[]")
    try:
        reached = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][4][0]
    except socket.gaierror:
        reached = HOST  # a machine without that name
    if ":" in str(reached) and not has_ipv6():
        reached = HOST
    if reached == HOST:
        bind, host = "localhost:0", "localhost"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "HOST", str(reached))
        server = start(bind=bind)
        assert server.get("/health").status == 200
        authority = f"[{host}]" if ":" in host else host
        assert ask(server, "GET", "/v1/models", {"Host": f"{authority}:{server.port}"}, host=str(reached)).status == 200
        assert ask(server, "GET", "/v1/models", {"Host": "evil.example"}, host=str(reached)).status == 403


def test_listening_for_everybody_without_a_key_is_said_aloud(start: StartServer) -> None:
    def warnings(server: Server) -> list[str]:
        return [line for line in server.log.splitlines() if "WARNING" in line]

    (line,) = warnings(start(bind="0.0.0.0:0"))
    assert "use, load, unload, delete and fetch models" in line
    assert "--api-key" in line
    assert "--bind" in line
    assert not warnings(start("--api-key", "secret", bind="0.0.0.0:0"))
    assert not warnings(start())


def test_a_name_that_is_nobodys_is_could_not_start(tmp_path: Path) -> None:
    result = run(tmp_path, "serve", "--bind", "no-such-host.invalid:0")
    assert result.returncode == 3
    assert result.stderr.startswith("shimmy: cannot listen on no-such-host.invalid")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("blank", ["", " "])
def test_an_empty_key_does_not_open_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    plain = harness.environment
    monkeypatch.setattr(harness, "environment", lambda folder: plain(folder) | {"SHIMMY_API_KEY": blank})
    result = run(tmp_path, "serve", "--bind", "127.0.0.1:0")
    assert result.returncode == 2
    assert result.stderr.startswith("shimmy: SHIMMY_API_KEY")


def test_a_service_called_shimmy_in_kubernetes_is_no_address(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = harness.environment
    added = {"SHIMMY_PORT": "tcp://10.0.0.1:80", "SHIMMY_SERVICE_HOST": "10.0.0.1", "SHIMMY_SERVICE_PORT": "80"}
    monkeypatch.setattr(harness, "environment", lambda folder: plain(folder) | added)
    assert start(bind="").get("/health").status == 200


# -- a working directory that was removed -----------------------------------------------------------------------------


def in_a_removed_folder(folder: Path) -> Sequence[str]:
    (folder / "gone").mkdir(exist_ok=True)
    return ("sh", "-c", f'cd {folder}/gone && rmdir {folder}/gone && exec "$@"', "sh", *PROGRAM)


def test_a_server_needs_no_working_directory(start: StartServer, tmp_path: Path, models: Path) -> None:
    server = start("--model-path", models, program=in_a_removed_folder(tmp_path))
    server.chat(PROMPTS[0])
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("list",), 0),
        (("list", "--model-path", "a.gguf"), 2),
        (("serve", "--model-path", "a.gguf"), 2),
        (("probe", "a.gguf"), 1),
        (("convert", "."), 2),
    ],
    ids=repr,
)
def test_what_needs_a_working_directory_says_so(tmp_path: Path, arguments: Sequence[str], code: int) -> None:
    environment = harness.environment(tmp_path) | {"HOME": str(tmp_path)}
    result = subprocess.run(
        [*in_a_removed_folder(tmp_path), *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == code
    assert len(result.stderr.splitlines()) == (1 if code else 0)
