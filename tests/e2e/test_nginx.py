"""Two servers behind a real nginx with the configuration of packaging/nginx/: who gets a request, and what is lost."""

import gzip
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from itertools import chain
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

from shimmy.api.routes import ROUTES
from tests.e2e.conftest import StartServer
from tests.e2e.harness import (
    CHAT,
    COMPLETION,
    ENDLESS,
    HOST,
    ROOT,
    STEADY_SEED,
    Call,
    Json,
    Reply,
    Server,
    Stream,
    chat_body,
    serving,
)
from tests.e2e.processes import DEADLINE_S, wait_for
from tests.packaging.conftest import free_port
from tests.packaging.nginx import debian_nginx, running
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.timeout(180)  # nginx is fetched

CONFIGURATION = ROOT / "packaging" / "nginx"
RESPONSES = "/v1/responses"
Asked = TypeVar("Asked", bound=Call)
MAIN = """
pid nginx.pid; error_log stderr;
events { worker_connections 1024; }
http {
    log_format key escape=json '{"key": "$shimmy_key", "status": $status}';
    access_log requests key;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
    include shimmy*.conf;
}
"""


class Nginx:
    """An nginx in front of servers; made by `balancing`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._log = folder / "requests"
        self._n_requests = 0

    def request(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        """One request on a connection of its own; `body` is bytes as they are, or a value to be sent as JSON."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._n_requests += 1
        with closing(HTTPConnection(HOST, self.port, timeout=DEADLINE_S)) as connection:
            connection.request(method, path, content, named)
            return Reply.read(connection.getresponse())

    def post(self, path: str, body: object, **headers: str) -> Reply:
        return self.request("POST", path, body, **headers)

    def last_key(self) -> str:
        """What the last request was assigned by; nginx writes that down after its reply."""
        wait_for("the line", lambda: self._log.read_text().count("\n") == self._n_requests)
        key: str = json.loads(self._log.read_text().splitlines()[-1])["key"]
        return key


def replaced(pattern: str, replacement: str, text: str) -> str:
    changed, n_times = re.subn(pattern, replacement, text)
    assert n_times == 1, pattern
    return changed


@contextmanager
def balancing(folder: Path, *servers: Server | int) -> Iterator[Nginx]:
    """nginx in front of servers, or of ports, for the length of the block."""
    folder.mkdir()
    port = free_port()
    ports = [server if isinstance(server, int) else server.port for server in servers]
    lines = "".join(f"    server {HOST}:{number} max_fails=0;\n" for number in ports)
    site, upstream = ((CONFIGURATION / name).read_text() for name in ("shimmy.conf", "shimmy-servers.conf"))
    (folder / "shimmy.conf").write_text(replaced("listen 11435;", f"listen {HOST}:{port};", site))
    (folder / "shimmy-servers.conf").write_text(replaced(r"(?:    server \S+ max_fails=0;\n)+", lines, upstream))
    (folder / "nginx.conf").write_text(MAIN)
    with running(*debian_nginx(), folder, port):
        yield Nginx(folder, port)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[tuple[Server, Server]]:
    folder = tmp_path_factory.mktemp("pair")
    with serving(folder / "1", "--model-path", models) as one, serving(folder / "2", "--model-path", models) as two:
        yield one, two


@pytest.fixture
def nginx(tmp_path: Path, pair: tuple[Server, Server]) -> Iterator[Nginx]:
    with balancing(tmp_path / "nginx", *pair) as balanced:
        yield balanced


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """Nobody is behind it."""
    with balancing(tmp_path_factory.mktemp("lonely") / "nginx", 1, 2) as balanced:  # ports of services of the past
        yield balanced


def two_wide(start: StartServer, folder: Path, *arguments: str) -> tuple[Server, Server]:
    """Two servers with room for many jobs of some thousand tokens."""
    model = write_tiny_model(folder, "alpha", n_ctx_train=65536, seed=STEADY_SEED)
    one, two = (start("--model-path", model, "--ctx-size", "65536", *arguments) for _ in range(2))
    return one, two


def texts_of(nginx: Nginx, servers: Sequence[Server], n_texts: int) -> list[list[str]]:
    """For each server as many first messages that lead to it."""
    found: list[list[str]] = [[] for _ in servers]
    for number in range(99):
        n_before = [server.metric("shimmy_prompt_tokens_total", "alpha") for server in servers]
        text = f"hello world {number}"
        assert nginx.post(CHAT, chat_body(text, max_tokens=1)).status == 200
        for server, texts, n_tokens in zip(servers, found, n_before, strict=True):
            if server.metric("shimmy_prompt_tokens_total", "alpha") > n_tokens:
                texts.append(text)
        if min(map(len, found)) >= n_texts:
            return [texts[:n_texts] for texts in found]
    raise AssertionError("all conversations went to one server")


# -- where a request goes ----------------------------------------------------------------------------------------------

N_CONVERSATIONS, N_TURNS = 16, 3


def converse(port: int) -> tuple[int, int]:
    """Conversations in turns, every other one with a name: the tokens of all prompts, and those that were there."""
    conversations: list[list[Json]] = [[{"role": "system", "content": "hello world"}] for _ in range(N_CONVERSATIONS)]
    order = Random(0)  # or else servers that take turns would each have the same conversations again
    n_prompt = n_cached = 0
    for _ in range(N_TURNS):
        for number in order.sample(range(N_CONVERSATIONS), N_CONVERSATIONS):
            messages = conversations[number]
            messages.append({"role": "user", "content": f"hello world {number} " + "tell the user " * 8})
            body = {"model": "alpha", "messages": messages, "temperature": 0, "max_tokens": 4}
            with closing(HTTPConnection(HOST, port, timeout=DEADLINE_S)) as connection:
                session = {} if number % 2 else {"X-Session-Id": f"session {number}"}
                connection.request("POST", CHAT, json.dumps(body), session)
                reply = Reply.read(connection.getresponse())
            assert reply.status == 200, reply.body
            messages.append(reply.json()["choices"][0]["message"])
            usage = reply.json()["usage"]
            n_prompt += usage["prompt_tokens"]
            n_cached += usage["prompt_tokens_details"]["cached_tokens"]
    return n_prompt, n_cached


def test_conversations_stay_where_their_prefix_is(start: StartServer, tmp_path: Path) -> None:
    one, other = two_wide(start, tmp_path)
    with balancing(tmp_path / "nginx", one, other) as nginx:
        n_prompt, n_cached = converse(nginx.port)
    alone = start("--model-path", tmp_path / "alpha.gguf", "--ctx-size", "65536")
    n_prompt_alone, n_cached_alone = converse(alone.port)
    assert n_cached / n_prompt >= 0.95 * n_cached_alone / n_prompt_alone
    assert n_cached_alone / n_prompt_alone > 0.4


USER: Json = {"role": "user", "content": 'say "hi" to \\'}
SYSTEM: Json = {"role": "system", "content": "be kind"}
PARTS = [{"type": "text", "text": "see"}]
CLIENT = f"{HOST} Bearer k"


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        (CHAT, {"messages": [USER]}, r"say \"hi\" to \\"),
        (CHAT, {"model": "m", "messages": [SYSTEM, USER, {"role": "assistant", "content": "hi"}]}, r"say \"hi\" to \\"),
        (CHAT, {"messages": [USER, {"role": "user", "content": "more"}], "stream": True}, r"say \"hi\" to \\"),
        (CHAT, {"messages": [{"role": "system", "content": '"role":"user","content":"n"'}, USER]}, r"say \"hi\" to \\"),
        (CHAT, {"messages": [{"content": "first", "role": "user"}, {"content": "more", "role": "user"}]}, "first"),
        (CHAT, {"messages": [{"content": "be kind", "role": "system"}, {"content": "first", "role": "user"}]}, "first"),
        (CHAT, {"messages": [SYSTEM, {"role": "user", "content": PARTS}]}, "see"),
        (CHAT, {"messages": [{"role": "user", "content": [{"text": "see", "type": "text"}]}]}, "see"),
        (CHAT, {"messages": [{"content": PARTS, "role": "user"}]}, "see"),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "see"}]}]}, "see"),
        (RESPONSES, {"input": "see", "model": "m"}, "see"),
        (COMPLETION, {"prompt": "p" * 300}, "p" * 200),
        (COMPLETION, {"prompt": [1, 2]}, CLIENT),
        (CHAT, {"messages": [SYSTEM]}, CLIENT),
        (CHAT, {"messages": [{"role": "user", "content": "long" * 2**19}]}, CLIENT),
    ],
)  # fmt: skip
@pytest.mark.parametrize("spaces", [None, 2])
def test_a_conversation_is_known_by_the_first_words_of_its_user(
    lonely: Nginx, path: str, body: Json, key: str, spaces: int | None
) -> None:
    text = json.dumps(body, indent=spaces, separators=None if spaces else (",", ":")).encode()
    lonely.post(path, text, Authorization="Bearer k")
    assert lonely.last_key() == key
    lonely.post(path, text, Authorization="Bearer k", X_Session_Id="s 1")
    assert lonely.last_key() == "s 1"


def test_what_has_no_beginning_goes_by_its_client_and_embeddings_anywhere(lonely: Nginx) -> None:
    lonely.post(CHAT, gzip.compress(json.dumps({"messages": [USER]}).encode()), Content_Encoding="gzip")
    assert lonely.last_key() == f"{HOST} "
    lonely.request("GET", "/v1/models")
    assert lonely.last_key() == f"{HOST} "
    keys = set()
    for _ in range(3):
        lonely.post("/v1/embeddings", {"input": "see"})
        keys.add(lonely.last_key())
    assert len(keys) == 3


@pytest.mark.parametrize(
    "piece",
    [
        b'"role":"user","content":[', b'"content":[', b'"content":"\\"', b'"content":"a" ,', b'"role"' + b" " * 999,
        b'"role":"user","content":' + b"\t" * 99, b'"prompt":', b'"content":"","role":', b'"text":', b"[", b"\\", b'"',
    ],
)  # fmt: skip
def test_no_body_holds_nginx_up(lonely: Nginx, piece: bytes) -> None:
    body = piece * (1_000_000 // len(piece))
    began_s = time.monotonic()
    assert lonely.post(CHAT, body).status == 502
    assert time.monotonic() - began_s < 2, "some milliseconds, on a machine that has nothing else to do"


def test_what_concerns_one_server_is_refused(lonely: Nginx) -> None:
    for method, route, _ in ROUTES:
        path = re.sub(r"\{[^}]*\}", "some", route)
        reply = lonely.request(method, path)
        if path in {"/", "/metrics"} or path.startswith("/api/"):
            assert (reply.status, reply.error["code"]) == (404, "not_found"), path
        else:
            assert (reply.status, reply.error["code"]) == (502, "no_server"), path
    reply = lonely.request("POST", CHAT, b"x" * (2**24 + 1))
    assert (reply.status, reply.error["code"]) == (413, "payload_too_large")


# -- what passes -------------------------------------------------------------------------------------------------------


def test_tokens_pass_as_they_come_and_a_client_that_leaves_ends_its_job(tmp_path: Path, endless: Server) -> None:
    with balancing(tmp_path / "nginx", endless) as nginx:
        with Stream(nginx.port, CHAT, chat_body("hello", max_tokens=None)) as stream:
            assert stream.read(3).n_pieces == 3
        endless.wait_until_idle("alpha")


def test_keys_and_hosts_pass(start: StartServer, tmp_path: Path) -> None:
    server = start("--api-key", "secret", "--allowed-hosts", "ai.example.com")
    with balancing(tmp_path / "nginx", server) as nginx:
        assert nginx.request("GET", "/v1/models").status == 401
        key = {"Authorization": "Bearer secret"}
        assert nginx.request("GET", "/v1/models", **key, Host="ai.example.com").status == 200
        assert nginx.request("GET", "/v1/models", **key, Host="evil.example.com").status == 403
        assert nginx.request("GET", "/health").status == 200


def test_a_stored_response_is_found_wherever_it_is(nginx: Nginx, pair: tuple[Server, Server]) -> None:
    for text in chain.from_iterable(texts_of(nginx, pair, 2)):
        first = nginx.post(RESPONSES, {"model": "alpha", "input": text, "max_output_tokens": 16})
        assert first.status == 200, first.body
        stored = first.json()["id"]
        assert nginx.request("GET", f"{RESPONSES}/{stored}").json()["id"] == stored
        body = {"model": "alpha", "input": "more", "previous_response_id": stored, "max_output_tokens": 16}
        assert nginx.post(RESPONSES, body).status == 200
    reply = nginx.request("GET", f"{RESPONSES}/resp_none")
    assert reply.status == 404
    assert "resp_none" in reply.error["message"], "the last server's own words"


# -- what is lost ------------------------------------------------------------------------------------------------------


def is_whole(stream: Stream) -> bool:
    """Read a stream to its end, or to where it breaks off."""
    with suppress(HTTPException, OSError):
        stream.finish()
    return stream.is_done


def test_a_killed_server_costs_only_what_has_begun_to_stream(start: StartServer, tmp_path: Path) -> None:
    dead, alive = two_wide(start, tmp_path)
    n_tokens = 200
    with balancing(tmp_path / "nginx", dead, alive) as nginx, ExitStack() as calls:

        def ask(kind: type[Asked], text: str, max_tokens: int | None) -> Asked:
            call = kind(nginx.port, CHAT, chat_body(text, max_tokens=max_tokens))
            calls.enter_context(call)
            return call

        of_dead, of_alive = texts_of(nginx, (dead, alive), 2)
        broken = [ask(Stream, text, None).read(1) for text in of_dead]
        whole = [ask(Stream, text, n_tokens).read(1) for text in of_alive]
        os.kill(dead.worker(), signal.SIGSTOP)  # nothing of it is done before it is killed
        waiting = [ask(Call, text, n_tokens) for text in of_dead + of_alive]
        assert (
            nginx.post(CHAT, chat_body(of_alive[0], max_tokens=4)).status == 200
        )  # so those before it are on their way
        dead.destroy()
        for text in of_dead + of_alive:  # what comes now
            assert nginx.post(CHAT, chat_body(text, max_tokens=4)).status == 200
        for call in waiting:
            reply = call.reply()
            assert reply.status == 200, reply.body
            assert reply.json()["usage"]["completion_tokens"] == n_tokens
        assert [is_whole(stream) for stream in whole] == [True, True]
        assert [is_whole(stream) for stream in broken] == [False, False], "a client sees that there is an end missing"
        assert alive.metric("shimmy_completion_tokens_total", "alpha") >= 6 * n_tokens


def test_a_server_that_shuts_down_costs_no_request(start: StartServer, tmp_path: Path) -> None:
    going, staying = two_wide(start, tmp_path)
    with balancing(tmp_path / "nginx", going, staying) as nginx:
        texts, _ = texts_of(nginx, (going, staying), 3)
        with going.stream(texts[0], **ENDLESS) as stream:
            stream.read(1)
            going.send(signal.SIGTERM)
            wait_for("the shutdown", lambda: "shutting down" in going.log)
            for text in texts:
                assert nginx.post(CHAT, chat_body(text, max_tokens=4)).status == 200
            stream.read(1)
        assert going.wait() == 0
        for text in texts:
            assert nginx.post(CHAT, chat_body(text, max_tokens=4)).status == 200


def test_a_full_queue_passes_its_requests_on(start: StartServer, tmp_path: Path) -> None:
    both = two_wide(start, tmp_path, "--parallel", "1", "--max-queue", "0")
    with balancing(tmp_path / "nginx", *both) as nginx:
        (text, *_), _ = texts_of(nginx, both, 1)
        with both[0].stream("hello", **ENDLESS) as first:
            first.read(1)
            assert nginx.post(CHAT, chat_body(text, max_tokens=4)).status == 200
            with both[1].stream("hello", **ENDLESS) as second:
                second.read(1)
                reply = nginx.post(CHAT, chat_body(text, max_tokens=4))
                assert (reply.status, reply.error["code"]) == (503, "overloaded")
        for server in both:
            server.wait_until_idle("alpha")
        assert nginx.post(CHAT, chat_body(text, max_tokens=4)).status == 200, "none of them counts as dead"
