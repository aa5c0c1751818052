"""Routes, middleware and error replies of the whole application, and the routes for operators and tools."""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from shimmy import __version__
from shimmy.api.app import create_app
from shimmy.api.http_exchange import ASGIMessage, Exchange
from shimmy.api.routes import OPEN_PATHS, ROUTES
from shimmy.catalog.catalog import Model
from shimmy.errors import Overloaded
from shimmy.pool.model_runtime import Failure
from tests.fakes import SCRIPT, Call, FakeWorker, Reply, fetch, model, on_loop, services, until

# A path and a method for every entry of the route table.
ENTRIES = [(path.replace("{rest:path}", "tiny.q4-1").replace("{rest}", "resp_1"), method) for method, path, _ in ROUTES]
BODYLESS = ("/api/models", "/v1/responses/resp_1")
POSTS = [path for path, method in ENTRIES if method == "POST" and not path.startswith(BODYLESS)]
# `input_tokens` looks like the id of a response to those who ask with another method, and what stands behind a model's
# name like the name of a model to those who delete one.
ALIASES = {"/v1/responses/input_tokens": {"GET", "DELETE"}}
ALIASES |= {path: {"DELETE"} for path, _ in ENTRIES if path.startswith("/api/models/")}


def assert_error(reply: Reply, status: int, code: str) -> dict[str, Any]:
    """The error of a reply, which has OpenAI's shape and nothing else."""
    assert reply.status == status
    assert reply.headers[b"content-type"] == b"application/json"
    assert reply.headers[b"content-length"] == str(len(reply.body)).encode()
    assert list(reply.json()) == ["error"]
    error: dict[str, Any] = reply.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == code
    return error


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/healthy", "/v1/chat"])
@on_loop
async def test_an_unknown_route_is_a_404(path: str) -> None:
    error = assert_error(await fetch(create_app(services()), "GET", path), 404, "not_found")
    assert path in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@on_loop
async def test_an_error_has_nothing_that_a_terminal_obeys_and_an_end(path: str) -> None:
    name = "\x1b]0;x\x07\n12:00:00 ERROR \u202eab" + "y" * 9999
    body = {"model": name, "messages": [{"role": "user", "content": "x"}], "input": "x"}
    reply = await fetch(create_app(services()), "POST", path, json.dumps(body).encode())
    error = assert_error(reply, 404, "model_not_found")
    assert r"\x1b]0;x\x07\n12:00:00 ERROR \u202eabyyy" in error["message"]
    assert error["message"].isprintable()
    assert len(error["message"]) <= 2000


@pytest.mark.parametrize(("path", "method"), ENTRIES)
@on_loop
async def test_a_wrong_method_is_a_405_that_names_the_right_ones(path: str, method: str) -> None:
    right = {method} | {other for same, other in ENTRIES if same == path} | ALIASES.get(path, set())
    for wrong in {"GET", "POST", "PUT", "DELETE", "OPTIONS"} - right:
        reply = await fetch(create_app(services()), wrong, path)
        assert_error(reply, 405, "method_not_allowed")
        assert set(reply.headers[b"allow"].decode().split(", ")) == right | ({"HEAD"} if "GET" in right else set())


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/batches/batch_1/cancel", "/v1/assistants"])
@on_loop
async def test_what_is_not_served_of_the_openai_api_says_what_is(path: str) -> None:
    error = assert_error(await fetch(create_app(services()), "POST", path), 404, "not_found")
    assert error["message"].startswith(f"Shimmy does not serve `{path}`")
    assert "`/v1/chat/completions`" in error["message"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b'{"model": NaN}', b"\xff", b"{}", b"[" * 100_000])
@on_loop
async def test_a_body_that_is_wrong_is_a_400_on_every_route(path: str, body: bytes) -> None:
    assert_error(await fetch(create_app(services()), "POST", path, body), 400, "invalid_value")


@on_loop
async def test_a_refused_field_is_named_by_param() -> None:
    body = {"model": "tiny.q4-1", "messages": [{"role": "user", "content": 5}]}
    error = assert_error(
        await fetch(create_app(services()), "POST", "/v1/chat/completions", body), 400, "invalid_value"
    )
    assert error["param"] == "messages[0].content"
    assert error["message"] == "messages[0].content: expected a string or an array of parts, got a number"


@pytest.mark.parametrize("path", POSTS)
@on_loop
async def test_a_body_over_the_limit_is_a_413_before_it_is_read(path: str) -> None:
    app = create_app(services(max_body_mb=1))
    call = Call(app, "POST", path, headers=[(b"content-length", str(2**20 + 1).encode())])
    await call.run()  # nothing was received
    assert_error(call.reply(), 413, "payload_too_large")


@on_loop
async def test_a_body_that_grows_over_the_limit_is_a_413_while_it_is_read() -> None:
    call = Call(create_app(services(max_body_mb=1)), "POST", "/tokenize")
    for _ in range(3):
        call.received.put_nowait({"type": "http.request", "body": bytes(2**19), "more_body": True})
    await call.run()
    assert_error(call.reply(), 413, "payload_too_large")


@on_loop
async def test_a_body_in_many_parts_is_put_together() -> None:
    call = Call(create_app(services(FakeWorker())), "POST", "/detokenize")
    for byte in b'{"tokens": [104, 105]}':
        call.received.put_nowait({"type": "http.request", "body": bytes([byte]), "more_body": True})
    call.received.put_nowait({"type": "http.request"})
    await call.run()
    assert call.reply().json() == {"content": "hi"}


@on_loop
async def test_a_client_that_leaves_in_its_body_gets_no_reply() -> None:
    all_services = services()
    call = Call(create_app(all_services), "POST", "/tokenize")
    call.received.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
    call.leave()
    await call.run()
    assert call.sent.empty()
    assert 'shimmy_requests_total{route="/tokenize",status="499"} 1' in all_services.metrics.render()


@pytest.mark.parametrize(("path", "method"), ENTRIES)
@on_loop
async def test_a_key_is_needed_everywhere_but_for_probes(path: str, method: str) -> None:
    all_services = services(FakeWorker(SCRIPT), api_key=["secret", "other"])
    app = create_app(all_services)
    authorizations = [b"", b"Bearer ", b"Bearer wrong", b"Basic secret", b"secret", b"Bearer secret2", b"Bearer \xff"]
    for authorization in authorizations:
        reply = await fetch(app, method, path, headers=[(b"authorization", authorization)])
        if path in OPEN_PATHS:
            assert reply.status == 200
        else:
            assert_error(reply, 401, "invalid_api_key")
            assert reply.headers[b"www-authenticate"] == b"Bearer"
    rights = [(b"authorization", b"Bearer secret"), (b"authorization", b"bearer other")]
    for right in [*rights, (b"x-api-key", b"secret"), (b"api-key", b"other")]:
        call = Call(app, method, path, headers=[(b"authorization", b""), right][right in rights :])
        task = call.start()
        first = await call.sent.get()
        assert first["status"] != 401
        call.leave()
        await asyncio.wait({task})


@on_loop
async def test_an_unknown_route_needs_the_key_too() -> None:
    assert (await fetch(create_app(services(api_key=["secret"])), "GET", "/nothing")).status == 401


@on_loop
async def test_a_bug_is_a_500_without_internals_and_its_traceback_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("/secret/path")

    all_services = services()
    monkeypatch.setattr(all_services.metrics, "render", broken)
    with caplog.at_level(logging.ERROR):
        error = assert_error(await fetch(create_app(all_services), "GET", "/metrics"), 500, "internal_error")
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]
    assert "ZeroDivisionError: /secret/path" in caplog.text


@on_loop
async def test_a_busy_server_says_when_to_come_back() -> None:
    reply = await fetch(
        create_app(services(FakeWorker([Overloaded("the queue is full")]))),
        "POST",
        "/v1/completions",
        {"model": "tiny.q4-1", "prompt": "a"},
    )
    assert_error(reply, 503, "overloaded")
    assert reply.headers[b"retry-after"].isdigit()


@on_loop
async def test_an_error_after_the_reply_began_is_left_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def half(exchange: Exchange) -> None:
        await exchange.start([])
        raise ZeroDivisionError

    monkeypatch.setattr("shimmy.api.app.ROUTES", (("GET", "/health", half),))
    call = Call(create_app(services()), "GET", "/health")
    with pytest.raises(ZeroDivisionError):
        await call.run()
    assert call.sent.qsize() == 1


@on_loop
async def test_requests_are_counted_by_route_and_status() -> None:
    all_services = services()
    app = create_app(all_services)
    for path in ("/health", "/health", "/v1/models/x", "/wp-login.php", "/.env"):
        await fetch(app, "GET", path)
    lines = (await fetch(app, "GET", "/metrics")).body.decode().splitlines()
    counted = [line.removeprefix("shimmy_requests_total") for line in lines if line.startswith("shimmy_requests")]
    assert counted == [
        '{route="/health",status="200"} 2',
        '{route="/v1/models/{rest:path}",status="404"} 1',
        '{route="other",status="404"} 2',
    ]


@on_loop
async def test_metrics_can_be_switched_off() -> None:
    reply = await fetch(create_app(services()), "GET", "/metrics")
    assert reply.headers[b"content-type"] == b"text/plain; version=0.0.4; charset=utf-8"
    assert_error(await fetch(create_app(services(metrics=False)), "GET", "/metrics"), 404, "not_found")


@on_loop
async def test_alive_and_ready_are_two_questions() -> None:
    all_services = services()
    app = create_app(all_services)
    assert (await fetch(app, "GET", "/ready")).json() == {"status": "ready"}
    assert (await fetch(app, "HEAD", "/ready")).status == 200
    all_services.ready = False
    assert (await fetch(app, "GET", "/ready")).status == 503
    assert (await fetch(app, "GET", "/health")).json() == {"status": "ok"}


@on_loop
async def test_a_server_is_ready_once_the_models_of_preload_have_been_loaded() -> None:
    may_load = asyncio.Event()

    async def load_slowly() -> None:
        await may_load.wait()

    all_services = services(FakeWorker(), load=load_slowly, preload=["missing", "tiny"])
    app = create_app(all_services)
    model = all_services.registry.catalog.models[0]
    all_services.preloads.update(all_services.config.preload)

    async def reason() -> str:
        reply = await fetch(app, "GET", "/ready")
        assert (reply.status, reply.json()["status"]) == (503, "not ready")
        return str(reply.json()["reason"])

    missing = "`missing` of `--preload` is not known here"
    assert await reason() == f"{missing}; `tiny` of `--preload` is not loaded yet"
    load = asyncio.create_task(all_services.pool.ensure_ready(model))
    await until(lambda: all_services.pool.runtime(model.name) is not None)
    assert await reason() == f"{missing}; `tiny` of `--preload` is loading"
    may_load.set()
    await load
    assert await reason() == missing
    all_services.preloads.discard("missing")
    assert (await fetch(app, "GET", "/ready")).json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, "`tiny` of `--preload` could not be loaded: no "), ({"api_key": "secret"}, "1 model of `--preload`")],
)
@on_loop
async def test_why_a_model_of_preload_could_not_be_loaded_is_told_to_those_who_may_know(
    settings: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_services = services(preload="tiny", **settings)
    all_services.preloads.add("tiny")
    monkeypatch.setattr(all_services.pool, "failure", lambda _: Failure(model(), "no " + "o" * 999))
    reason = (await fetch(create_app(all_services), "GET", "/ready")).json()["reason"]
    assert reason.startswith(told)
    assert len(reason) < 300
    assert ("tiny" in reason) == (not settings)


@on_loop
async def test_the_server_says_what_it_is() -> None:
    app = create_app(services())
    assert (await fetch(app, "GET", "/version")).json() == {"version": __version__}
    about = (await fetch(app, "GET", "/")).json()
    assert about == {"name": "shimmy", "version": __version__, "models": 1, "openai_base_path": "/v1"}


@pytest.mark.parametrize(
    ("path", "body", "reply"),
    [
        ("/tokenize", {"content": "A"}, {"tokens": [0, 1, 65]}),
        ("/tokenize", {"content": "", "add_special": True, "parse_special": False}, {"tokens": [1, 0]}),
        ("/tokenize", {"content": "A", "model": "TINY:q4_1", "with_pieces": False}, {"tokens": [0, 1, 65]}),
        ("/detokenize", {"tokens": [195, 169]}, {"content": "é"}),
        ("/detokenize", {"tokens": []}, {"content": ""}),
        ("/apply-template", {"messages": [{"role": "user", "content": "hi"}]}, {"prompt": "<user>hi"}),
    ],
)
@on_loop
async def test_a_models_tokenizer_and_template_can_be_asked(path: str, body: object, reply: object) -> None:
    answer = await fetch(create_app(services(FakeWorker())), "POST", path, body)
    assert answer.status == 200
    assert answer.json() == reply


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"content": "a", "add_special": 1}, "add_special"),
        ("/tokenize", {"content": "a", "with_pieces": True}, "with_pieces"),
        ("/tokenize", {"content": "a", "model": 5}, "model"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]"),
        ("/apply-template", {"messages": "a"}, "messages"),
    ],
)
@on_loop
async def test_what_they_cannot_read_is_named(path: str, body: object, param: str) -> None:
    reply = await fetch(create_app(services(FakeWorker())), "POST", path, body)
    assert assert_error(reply, 400, "invalid_value")["param"] == param


@pytest.mark.parametrize("models", [(), (model("a.q4-1"), model("b.q4-1"))])
@on_loop
async def test_a_model_must_be_named_unless_there_is_just_one(models: Sequence[Model]) -> None:
    app = create_app(services(FakeWorker(), models=models))
    error = assert_error(await fetch(app, "POST", "/tokenize", {"content": "a"}), 400, "invalid_value")
    assert error["param"] == "model"
    reply = await fetch(app, "POST", "/tokenize", {"content": "a", "model": "none"})
    assert_error(reply, 404, "model_not_found")


@on_loop
async def test_a_websocket_is_closed() -> None:
    sent: list[ASGIMessage] = []

    async def send(message: ASGIMessage) -> None:
        sent.append(message)

    received: asyncio.Queue[ASGIMessage] = asyncio.Queue()
    await create_app(services())({"type": "websocket", "path": "/"}, received.get, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
