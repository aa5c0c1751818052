"""Base URLs as people type them lead to the route that was meant, and nothing else does."""

from urllib.parse import quote

import pytest

from shimmy.api.app import create_app
from shimmy.api.base_urls import BaseUrls
from shimmy.api.routes import ROUTES
from tests.fakes import SCRIPT, FakeWorker, fetch, on_loop, services

ALL = [path.replace("{rest:path}", "org/tiny.q4-1").replace("{rest}", "resp_1") for _, path, _ in ROUTES]
VERSIONED = [path for path in ALL if path.startswith("/v1/")]
meant = BaseUrls(create_app(services()), [path for _, path, _ in ROUTES]).meant


@pytest.mark.parametrize("path", ALL)
def test_every_route_is_reached_with_slashes_too_many(path: str) -> None:
    assert meant(path) == path
    assert meant(f"{path}/") == path
    assert meant(f"/{path}") == path
    assert meant(f"{path.replace('/', '//')}///") == path


@pytest.mark.parametrize("path", VERSIONED)
def test_every_route_under_v1_is_reached_without_it_and_with_two_of_it(path: str) -> None:
    bare = path.removeprefix("/v1")
    for typed in (bare, f"/v1{path}", f"/v1/v1{path}", f"//v1//v1{bare}/", f"/{bare}"):
        assert meant(typed) == path


@pytest.mark.parametrize("end", ["/v1/chat/completions", "/chat/completions", "/v1/completions", "/v1/embeddings/"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/embeddings", "/v1/responses"])
def test_the_path_of_a_route_may_have_been_taken_for_the_base_url(end: str, path: str) -> None:
    assert meant(end + path) == path
    assert meant(end + path.removeprefix("/v1")) == path


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1", "/v1/v1", "/v2/models", "/v1/nothing", "/nothing", "/chat", "/api/v1/models", "/v1/health",
        "/v1x/v1/models", "/x/models", "/v1/chat/completions/x", "*", "", "host:1", "/v1/api/models",
    ],
)  # fmt: skip
def test_what_is_not_served_leads_nowhere(path: str) -> None:
    assert meant(path) in (path, f"/v1{path}")
    assert meant(path) not in {path for _, path, _ in ROUTES} - {"/"}


def test_the_names_of_models_stay_as_they_are() -> None:
    for name in ("org/model", "v1/v1", "models/chat", "tiny:latest", "a b"):
        assert meant(f"/v1/models/{name}") == f"/v1/models/{name}"
        assert meant(f"/api/models/{name}/status/") == f"/api/models/{name}/status"


@pytest.mark.parametrize("path", ["/models", "//v1/models/", "/v1/v1/models", "/models/"])
@on_loop
async def test_requests_are_answered_and_counted_by_the_route(path: str) -> None:
    all_services = services()
    assert (await fetch(create_app(all_services), "GET", path)).status == 200
    assert 'shimmy_requests_total{route="/v1/models",status="200"} 1' in all_services.metrics.render()


@pytest.mark.parametrize("base", ["/chat/completions", "/v1//chat/completions/", "/v1/v1/chat/completions"])
@on_loop
async def test_a_chat_is_answered(base: str) -> None:
    body = {"model": "tiny.q4-1", "messages": [{"role": "user", "content": "hi"}]}
    assert (await fetch(create_app(services(FakeWorker(SCRIPT))), "POST", base, body)).status == 200


@on_loop
async def test_a_probe_needs_no_key_with_a_slash_either() -> None:
    app = create_app(services(api_key=["secret"]))
    assert (await fetch(app, "GET", "/health/")).status == 200
    assert (await fetch(app, "GET", "//v1/models")).status == 401


@on_loop
async def test_unknown_paths_and_wrong_methods_have_errors_in_shape() -> None:
    app = create_app(services())
    for method, path, status in (("GET", "/nothing/", 404), ("GET", "/chat/completions", 405), ("GET", "*", 404)):
        reply = await fetch(app, method, path)
        assert reply.status == status
        assert reply.json()["error"]["type"] == "invalid_request_error"


def test_what_was_quoted_is_decoded_before() -> None:
    assert quote("org/tiny", safe="") == "org%2Ftiny"  # the server below decodes a path, once
    assert meant("/v1/v1/models/org/tiny%2F") == "/v1/models/org/tiny%2F"
