"""Requests and models that mean harm: they are refused, and everybody else is served as before."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, LONG_PROMPT, PROMPTS, STEADY_SEED, Json, Server, chat_body
from tests.tiny_models import CHATML, write_tiny_bpe, write_tiny_model

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(autouse=True)
def others_are_served(server: Server) -> Iterator[None]:
    """Whatever a test did, the server answers as it did before."""
    before = server.chat(PROMPTS[0])
    yield
    assert server.chat(PROMPTS[0]) == before
    assert server.n_jobs("alpha") == 0
    assert "Traceback" not in server.log


def answer(server: Server, request: bytes, *, then_close: bool = False) -> bytes:
    """What the server says to these bytes, which are sent while it is listened to."""
    said = b""
    with server.connect() as connection:
        sender = threading.Thread(target=send, args=(connection, request, then_close))
        sender.start()
        with suppress(ConnectionResetError):
            while not is_whole(said) and (data := connection.recv(65536)):
                said += data
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        sender.join()
    return said


def send(connection: socket.socket, request: bytes, then_close: bool) -> None:
    with suppress(OSError):  # the server need not listen to the end
        connection.sendall(request)
        if then_close:
            connection.shutdown(socket.SHUT_WR)


def is_whole(said: bytes) -> bool:
    head, _, body = said.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    return bool(lengths) and len(body) >= int(lengths[0])


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"model":"alpha","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"model":"alpha","max_tokens":' + b"9" * 100_000 + b"}",
        b'{"model":"alpha","temperature":NaN}',
        b'{"model":"alpha"',
        b"\xff\xfe\x00",
        b"",
        b"null",
    ],
    ids=["open", "arrays", "objects", "digits", "nan", "cut", "not-utf-8", "empty", "null"],
)
def test_a_body_that_makes_no_sense_is_a_bad_request(server: Server, body: bytes) -> None:
    reply = server.post(CHAT, body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"


def test_a_body_over_the_limit_is_refused_before_it_is_read(server: Server) -> None:
    body = json.dumps(chat_body("x" * 20_000_000)).encode()
    said = answer(server, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert said.startswith(b"HTTP/1.1 413")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "payload_too_large"


def test_a_body_over_the_limit_that_does_not_say_so_is_refused(server: Server) -> None:
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    said = answer(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 300 + b"0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: -1\r\n",
        b"Content-Length: many\r\n",
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Transfer-Encoding: compressed\r\n",
        b"No colon at all\r\n",
        b"".join(b"X-Header-%d: %b\r\n" % (number, b"x" * 100) for number in range(10_000)),
        b"X-Long: " + b"x" * 1_000_000 + b"\r\n",
    ],
    ids=["negative", "words", "two-lengths", "encoding", "no-colon", "many", "long"],
)
def test_headers_that_make_no_sense_are_refused(server: Server, head: bytes) -> None:
    said = answer(server, HEAD + head + b"\r\n{}")
    assert said[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 431 ", b"HTTP/1.1 501 ", b"HTTP/1.1 413 ")


def test_a_body_shorter_than_it_says_is_no_request(server: Server) -> None:
    body = json.dumps(chat_body("hello")).encode()
    assert b" 200 " not in answer(server, HEAD + b"Content-Length: 100000\r\n\r\n" + body, then_close=True)


def test_bytes_that_are_not_http_get_no_further(server: Server) -> None:
    said = answer(server, bytes(range(256)) * 1000)
    assert said.startswith(b"HTTP/1.1 400") or not said


@pytest.mark.parametrize("path", ["/v1", "/v1/chat", "/v1/models/../../etc/passwd", "/%00", "/" + "a" * 5000])
def test_unknown_paths_are_not_found(server: Server, path: str) -> None:
    reply = server.get(path)
    assert reply.status == 404
    assert reply.error["type"] == "invalid_request_error"


def test_wrong_methods_are_told_the_right_ones(server: Server) -> None:
    for method, path, allowed in (("GET", CHAT, "POST"), ("DELETE", "/v1/models", "GET, HEAD"), ("BREW", CHAT, "POST")):
        reply = server.request(method, path)
        assert reply.status == 405
        assert reply.headers["allow"] == allowed
        assert reply.error["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {"999999999": 1}},
        {"repeat_penalty": 0},
        {"top_k": 2**40},
        {"temperature": 1e300},
        {"min_keep": -5, "mirostat": 7},
        {"stop": ["x"] * 1000},
        {"dry_multiplier": 1, "dry_base": -1e38},
        {"prompt": [10**9]},
    ],
    ids=json.dumps,
)
def test_values_that_would_abort_the_engine_do_not_reach_it(server: Server, fields: dict[str, object]) -> None:
    pids = server.workers()
    reply = server.post("/v1/completions", {"model": "alpha", "prompt": "hello", "max_tokens": 2} | fields)
    assert reply.status in (200, 400)
    assert server.workers() == pids


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'x' * 10 ** 10 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages.__class__.__mro__[-1].__subclasses__() }}",
        "{% for message in messages",
    ],
    ids=["endless", "doubling", "huge", "recursion", "escape", "broken"],
)
def test_a_hostile_template_fails_its_chats_only(start: StartServer, tmp_path: Path, template: str) -> None:
    write_tiny_model(tmp_path, "hostile", chat_template=template)
    write_tiny_model(tmp_path, "alpha", seed=STEADY_SEED)
    own = start("--model-path", tmp_path)
    text = own.chat(LONG_PROMPT, max_tokens=4000)
    completion = {"model": "hostile", "prompt": "hello", "max_tokens": 4}
    assert own.post("/v1/completions", completion).status == 200
    with own.later(CHAT, chat_body("hello", "hostile")) as chat, own.stream(LONG_PROMPT, max_tokens=4000) as stream:
        assert stream.finish().text == text
        assert own.post("/v1/completions", completion).status == 200
        refused = chat.reply()
        assert refused.status == 400
        assert refused.error["code"] == "chat_template_failed"
    assert own.post("/v1/completions", completion).status == 200
    assert own.metric("shimmy_worker_deaths_total", "hostile") == 0


@pytest.mark.parametrize(
    "offer",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eHh4eHh4eA==\r\n",
    ],
    ids=["http2", "websocket"],
)
def test_an_offer_to_change_the_protocol_is_passed_over(server: Server, offer: bytes) -> None:
    said = answer(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + offer + b"\r\n")
    assert said.startswith(b"HTTP/1.1 200")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["status"] == "ok"


def test_http_2_without_asking_is_refused(server: Server) -> None:
    said = answer(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
    assert said.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("pre", ["gpt-4o", "deepseek-v3"])
def test_a_stream_goes_on_while_others_ask_for_what_takes_long(pre: str, tmp_path: Path, start: StartServer) -> None:
    """A prompt of 200,000 letters ended the worker, and one of 10,000 messages had everybody wait for it."""
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    template = "{% if messages[0].content == 'forever' %}" + endless + "{% endif %}" + CHATML
    write_tiny_bpe(tmp_path, "alpha", pre=pre, n_ctx_train=65536, chat_template=template)
    own = start("--model-path", tmp_path, "--ctx-size", "16384")
    schema = {"properties": {f"property{number}": {"type": "string"} for number in range(1000)}}
    shaped: Json = {"response_format": {"type": "json_schema", "json_schema": {"name": "large", "schema": schema}}}
    requests: list[tuple[str, Json, int]] = [
        ("/tokenize", {"model": "alpha", "content": "A" * 200_000}, 200),
        ("/tokenize", {"model": "alpha", "content": "\u6f22" * 60_000}, 200),
        (CHAT, {"model": "alpha", "messages": [{"role": "user", "content": "hi"}] * 500, "max_tokens": 4}, 200),
        (CHAT, chat_body("forever"), 400),
        (CHAT, chat_body("hello", max_tokens=4, **shaped), 200),
    ]
    with own.stream("hello", max_tokens=16_000) as stream, ExitStack() as calls:
        stream.read(5)
        asked = [(calls.enter_context(own.later(path, body)), status) for path, body, status in requests]
        worst_s, last_s = 0.0, monotonic()
        for _ in range(200):
            stream.read(1)
            now_s = monotonic()
            worst_s, last_s = max(worst_s, now_s - last_s), now_s
        assert stream.n_pieces >= 205, stream.error
        assert worst_s < 3, "tenfold of what is aimed at"
        assert [call.reply().status for call, _ in asked] == [status for _, status in asked]
        assert stream.read(1).error is None
