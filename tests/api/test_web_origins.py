"""Names of the server and pages in a browser: who is refused, and what an allowed page needs to see its reply."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from shimmy.api.app import create_app
from shimmy.api.http_exchange import ASGIApp, ASGIMessage
from shimmy.api.routes import ROUTES
from shimmy.api.web_origins import is_loopback
from tests.fakes import SCRIPT, FakeWorker, Reply, fetch, on_loop, services

LOOPBACK, WIDE, LAN = "127.0.0.1:1", "0.0.0.0:1", "192.168.1.5:1"
OWN_HOST = (b"host", b"localhost:11435")
CHAT = "/v1/chat/completions"
BODY = {"model": "tiny.q4-1", "messages": [{"role": "user", "content": "hi"}]}
PREFLIGHT = [(b"access-control-request-method", b"POST"), (b"access-control-request-headers", b"authorization,x-a")]


async def reach(app: ASGIApp, address: str, host: bytes, path: str = "/v1/models") -> int:
    """The status for a client that reached `address` and named `host`."""
    sent: asyncio.Queue[ASGIMessage] = asyncio.Queue()
    scope = {
        "type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [(b"host", host)],
        "server": (address, 1),
    }  # fmt: skip
    await app(scope, asyncio.Queue().get, sent.put)
    status: int = (await sent.get())["status"]
    return status


async def ask(
    origin: bytes | None, *, method: str = "POST", headers: Sequence[tuple[bytes, bytes]] = (), **options: list[str]
) -> Reply:
    """The answer to a page of `origin` that asks for a chat."""
    sent = [OWN_HOST, *headers, *([(b"origin", origin)] if origin is not None else [])]
    settings: dict[str, Any] = {**options}
    app = create_app(services(FakeWorker(SCRIPT), **settings))
    return await fetch(app, method, CHAT if method == "POST" else "/v1/models", BODY, headers=sent)


def assert_forbidden(reply: Reply, option: str) -> None:
    assert reply.status == 403
    error = reply.json()["error"]
    assert error["code"] == "forbidden"
    assert option in error["message"]
    assert b"access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize(
    "host",
    [
        b"localhost", b"localhost:11435", b"LocalHost.:80", b"app.localhost:1", b"127.0.0.1", b"127.9.8.7:1",
        b"[::1]:11435", b"[::1]", b"",
    ],
)  # fmt: skip
@pytest.mark.parametrize(("bind", "address"), [(LOOPBACK, "127.0.0.1"), ("[::1]:1", "::1")])
@on_loop
async def test_a_server_on_the_loopback_device_has_the_names_of_this_machine(
    host: bytes, bind: str, address: str
) -> None:
    assert await reach(create_app(services(bind=bind)), address, host) == 200


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example", b"evil.example:11435", b"localhost.evil.example", b"127.0.0.1.evil.example", b"evillocalhost",
        b"192.168.1.5:1", b"0.0.0.0", b"127.evil", b"[::2]:1", b"\xff", b"::1", b"@localhost", b"a@127.0.0.1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics", "/docs", "/nothing", "/api/models"])
@on_loop
async def test_it_has_no_other_name_so_that_a_page_cannot_rebind_one(host: bytes, path: str) -> None:
    app = create_app(services(bind=LOOPBACK))
    assert await reach(app, "127.0.0.1", host, path) == 403
    assert_forbidden(await fetch(app, "GET", path, headers=[(b"host", host)]), "--allowed-hosts")


@on_loop
async def test_the_name_that_was_bound_is_one_of_its_names() -> None:
    app = create_app(services(bind="MyHost:1"))
    assert await reach(app, "127.0.1.1", b"myhost:1") == 200
    assert await reach(app, "127.0.1.1", b"evil.example") == 403
    assert await reach(app, "192.168.1.5", b"whatever") == 200  # the name leads there too


@pytest.mark.parametrize("bind", [WIDE, "[::]:1", LAN])
@on_loop
async def test_a_server_for_other_machines_may_be_called_anything(bind: str) -> None:
    app = create_app(services(bind=bind))
    assert await reach(app, "192.168.1.5", b"ai.example") == 200


@pytest.mark.parametrize("bind", [WIDE, LAN, LOOPBACK])
@on_loop
async def test_allowed_hosts_are_its_names_beside_its_addresses(bind: str) -> None:
    app = create_app(services(bind=bind, allowed_hosts=["AI.example,*.b.example"]))
    for host in (b"ai.example", b"ai.example:80", b"x.b.example", b"192.168.1.5:1", b"localhost", b"127.0.0.1"):
        assert await reach(app, "192.168.1.5", host) == 200, host
    for host in (b"evil.example", b"b.example", b"ai.example.evil", b"192.168.1.6"):
        assert await reach(app, "192.168.1.5", host) == 403, host


@on_loop
async def test_a_star_allows_every_name() -> None:
    assert await reach(create_app(services(bind=LOOPBACK, allowed_hosts=["*"])), "127.0.0.1", b"evil.example") == 200


@pytest.mark.parametrize(
    "origin",
    [
        b"http://evil.example", b"https://evil.example:11435", b"null", b"http://localhost.evil.example",
        b"http://127.0.0.1.evil.example", b"file://", b"chrome-extension://abc", b"localhost:11435", b"",
        b"http://localhost:1/x", b"\xff", b"http://localhost:1" + b":1" * 9000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
@on_loop
async def test_a_page_of_elsewhere_is_refused_before_anything_is_done(origin: bytes, method: str) -> None:
    if origin:
        assert_forbidden(await ask(origin, method=method, headers=PREFLIGHT), "--cors-origins")
    else:
        assert (await ask(origin, method=method)).status in (200, 405)  # an empty one is none


@pytest.mark.parametrize("method", ["POST", "GET"])
@on_loop
async def test_the_servers_own_page_may_do_everything(method: str) -> None:
    reply = await ask(b"http://localhost:11435", method=method, cors_origins=["none"])
    assert reply.status == 200
    assert b"access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (b"http://localhost:3000", None),
        (b"https://localhost", None),
        (b"http://app.localhost:5173", None),
        (b"http://127.0.0.1:8080", None),
        (b"http://[::1]:8080", None),
        (b"https://chat.example", "https://chat.example/,http://other"),
        (b"https://CHAT.example", "https://chat.example:443"),
        (b"https://x.example", "https://*.example"),
        (b"http://localhost:3000", "http://localhost:*"),
        (b"null", "null"),
        (b"app://obsidian.md", "app://obsidian.md"),
    ],
)
@pytest.mark.parametrize("keys", [(), ("secret",)])
@on_loop
async def test_a_page_that_may_sees_every_reply_and_its_preflight_needs_no_key(
    origin: bytes, allowed: str | None, keys: Sequence[str]
) -> None:
    options: dict[str, Any] = dict({"cors_origins": [allowed]} if allowed else {}) | (
        {"api_key": [*keys]} if keys else {}
    )
    preflight = await ask(origin, method="OPTIONS", headers=PREFLIGHT, **options)
    assert (preflight.status, preflight.body) == (204, b"")
    assert b"POST" in preflight.headers[b"access-control-allow-methods"]
    assert b"DELETE" in preflight.headers[b"access-control-allow-methods"]
    assert preflight.headers[b"access-control-allow-headers"] == b"authorization,x-a"
    reply = await ask(origin, headers=[(b"authorization", b"Bearer secret")], **options)
    failed = await ask(origin, headers=[(b"authorization", b"Bearer wrong"), (b"content-encoding", b"br")], **options)
    assert (reply.status, failed.status) == (200, 401 if keys else 415)
    for seen in (preflight, reply, failed):
        assert seen.headers[b"access-control-allow-origin"] == origin
        assert seen.headers[b"access-control-allow-credentials"] == b"true"
        assert b"Origin" in seen.headers[b"vary"]


@pytest.mark.parametrize("origin", [b"http://localhost:3000", b"https://chat.example.evil", b"https://example"])
@on_loop
async def test_origins_that_are_named_are_all_that_may(origin: bytes) -> None:
    assert_forbidden(await ask(origin, cors_origins=["https://chat.example,https://*.example"]), "--cors-origins")


@on_loop
async def test_none_closes_the_server_for_pages_of_this_machine_too() -> None:
    assert_forbidden(await ask(b"http://localhost:3000", cors_origins=["none"]), "--cors-origins")


@pytest.mark.parametrize(("keys", "answer"), [((), b"*"), (("secret",), b"http://evil.example")])
@on_loop
async def test_a_star_is_all_pages_without_credentials_and_is_never_said_with_a_key(
    keys: Sequence[str], answer: bytes
) -> None:
    options: dict[str, Any] = {"cors_origins": ["*"]} | ({"api_key": [*keys]} if keys else {})
    reply = await ask(b"http://evil.example", headers=[(b"x-api-key", b"secret")], **options)
    assert reply.status == 200
    assert reply.headers[b"access-control-allow-origin"] == answer
    assert b"access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize(
    ("origin", "allowed", "is_let_in"),
    [
        (b"http://evil.example", "*", False),
        (b"null", "*", False),
        (b"null", "null", False),
        (b"https://evil.example", "https://*", False),
        (b"http://evil.example:81", "http://*:*", False),
        (b"http://evil.example", "*,http://chat.example", False),
        (b"http://chat.example", "*,http://chat.example", True),
        (b"http://chat.example", "http://*.example", True),
        (b"http://localhost:3000", "", True),
        (b"http://localhost:11435", "*", True),
        (None, "*", True),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("DELETE", "/api/models/none"), ("POST", "/api/models/pull")])
@on_loop
async def test_pages_delete_and_pull_models_only_if_their_host_is_named(
    origin: bytes | None, allowed: str, is_let_in: bool, method: str, path: str
) -> None:
    options: dict[str, Any] = {"cors_origins": [allowed]} if allowed else {}
    sent = [OWN_HOST, *([(b"origin", origin)] if origin is not None else [])]
    reply = await fetch(create_app(services(**options)), method, path, {"model": 7}, headers=sent)
    if is_let_in:
        assert reply.status == (404 if method == "DELETE" else 400)
    else:
        assert reply.status == 403
        assert "--cors-origins" in reply.json()["error"]["message"]
        assert b"access-control-allow-origin" in reply.headers  # so that the page sees why


@on_loop
async def test_without_an_origin_a_browser_deletes_nothing_from_another_site() -> None:
    app = create_app(services(cors_origins=["*"]))
    headers = [OWN_HOST, (b"sec-fetch-site", b"cross-site")]
    assert (await fetch(app, "DELETE", "/api/models/none", headers=headers)).status == 403


@on_loop
async def test_a_stream_is_for_the_page_too() -> None:
    app = create_app(services(FakeWorker(SCRIPT)))
    headers = [OWN_HOST, (b"origin", b"http://localhost:3000")]
    reply = await fetch(app, "POST", CHAT, BODY | {"stream": True}, headers=headers)
    assert reply.headers[b"content-type"].startswith(b"text/event-stream")
    assert reply.headers[b"access-control-allow-origin"] == b"http://localhost:3000"


@pytest.mark.parametrize("path", [path.replace("{rest:path}", "x").replace("{rest}", "x") for _, path, _ in ROUTES])
@on_loop
async def test_every_path_answers_preflights(path: str) -> None:
    headers = [OWN_HOST, (b"origin", b"http://localhost:3000"), *PREFLIGHT]
    headers.append((b"access-control-request-private-network", b"true"))
    reply = await fetch(create_app(services(api_key=["secret"])), "OPTIONS", path, headers=headers)
    assert reply.status == 204
    assert reply.headers[b"access-control-allow-private-network"] == b"true"


@pytest.mark.parametrize(
    ("fetched", "status"),
    [
        ({b"sec-fetch-site": b"cross-site", b"sec-fetch-mode": b"no-cors", b"sec-fetch-dest": b"image"}, 403),
        ({b"sec-fetch-site": b"cross-site", b"sec-fetch-mode": b"navigate", b"sec-fetch-dest": b"iframe"}, 403),
        ({b"sec-fetch-site": b"cross-site", b"sec-fetch-mode": b"navigate", b"sec-fetch-dest": b"document"}, 200),
        ({b"sec-fetch-site": b"same-origin", b"sec-fetch-mode": b"cors", b"sec-fetch-dest": b"empty"}, 200),
        ({b"sec-fetch-site": b"none", b"sec-fetch-mode": b"navigate", b"sec-fetch-dest": b"document"}, 200),
    ],
)
@on_loop
async def test_images_and_scripts_of_other_sites_are_refused_and_links_are_not(
    fetched: dict[bytes, bytes], status: int
) -> None:
    assert (await ask(None, method="GET", headers=[*fetched.items()])).status == status
    assert (await ask(None, method="GET", headers=[*fetched.items()], cors_origins=["*"])).status == 200


@on_loop
async def test_refusals_are_counted_and_bound_to_no_path() -> None:
    all_services = services()
    app = create_app(all_services)
    await fetch(app, "POST", CHAT, BODY, headers=[OWN_HOST, (b"origin", b"http://evil.example")])
    assert 'shimmy_requests_total{route="other",status="403"} 1' in all_services.metrics.render()


def test_addresses_of_the_loopback_device_are_told_from_names_that_look_like_them() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1", "::1", "localhost", "a.localhost", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("127.a", "127", "1.127.0.0.1", "::2", "localhost.a", "", "127.0.0.1.2")))
