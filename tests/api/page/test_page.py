"""Browsers get a page at `/` that is one reply, runs its own script alone and loads nothing; programs get JSON."""

import base64
import gzip
import hashlib
import re
import subprocess
import sys

import pytest

from shimmy.api.app import create_app
from shimmy.api.page.assembled import page
from tests.fakes import FakeWorker, Reply, fetch, on_loop, services

# What Chromium and Firefox send from their address bar.
BROWSER = (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8")
GZIP = (b"accept-encoding", b"gzip, deflate, br, zstd")
PROGRAMS: tuple[list[tuple[bytes, bytes]], ...] = (
    [],
    [(b"accept", b"*/*")],
    [(b"accept", b"application/json")],
    [(b"accept", b"application/json, text/html")],
)


async def _get(*headers: tuple[bytes, bytes], method: str = "GET", key: str | None = None) -> Reply:
    house = services(FakeWorker(())) if key is None else services(FakeWorker(()), api_key=[key])
    return await fetch(create_app(house), method, "/", headers=headers)


@on_loop
async def test_a_browser_gets_the_page() -> None:
    reply = await _get(BROWSER)
    assert reply.status == 200
    assert reply.headers[b"content-type"] == b"text/html; charset=utf-8"
    assert reply.body.startswith(b"<!doctype html>")
    assert b"content-encoding" not in reply.headers


@pytest.mark.parametrize("headers", PROGRAMS)
@on_loop
async def test_a_program_gets_json(headers: list[tuple[bytes, bytes]]) -> None:
    assert (await _get(*headers)).json()["name"] == "shimmy"


@on_loop
async def test_the_page_is_compressed_for_those_who_take_that() -> None:
    plain, packed = await _get(BROWSER), await _get(BROWSER, GZIP)
    assert packed.headers[b"content-encoding"] == b"gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert {b"Accept", b"Accept-Encoding"} <= {*packed.headers[b"vary"].split(b", ")}
    refused = await _get(BROWSER, (b"accept-encoding", b"br, gzip;q=0"))
    assert b"content-encoding" not in refused.headers


@on_loop
async def test_a_browser_that_has_the_page_is_not_sent_it_again() -> None:
    for encoding in (GZIP, (b"accept-encoding", b"identity")):
        tag = (await _get(BROWSER, encoding)).headers[b"etag"]
        for known in (tag, b"W/" + tag, b'"other", ' + tag):
            again = await _get(BROWSER, encoding, (b"if-none-match", known))
            assert (again.status, again.body) == (304, b"")
            assert again.headers[b"etag"] == tag
        assert (await _get(BROWSER, encoding, (b"if-none-match", b'"other"'))).status == 200


@on_loop
async def test_the_two_encodings_have_different_tags() -> None:
    assert (await _get(BROWSER)).headers[b"etag"] != (await _get(BROWSER, GZIP)).headers[b"etag"]


@on_loop
async def test_the_page_needs_no_key_and_json_needs_one() -> None:
    assert (await _get(BROWSER, key="secret")).status == 200
    assert (await _get((b"accept", b"*/*"), key="secret")).status == 401
    assert (await _get(BROWSER, method="POST", key="secret")).status in (401, 405)


def test_the_page_is_small() -> None:
    packed, _ = page()
    assert len(gzip.decompress(packed)) <= 150 * 1024
    assert len(packed) <= 60_000


def test_nothing_runs_but_the_script_and_the_style_of_the_page() -> None:
    packed, policy = page()
    html = gzip.decompress(packed).decode()
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert (len(scripts), len(styles)) == (1, 1)
    rules = dict(rule.split(" ", 1) for rule in policy.decode().split("; "))
    for name, text in (("script-src", scripts[0]), ("style-src", styles[0])):
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert "unsafe" not in policy.decode()


def test_the_page_has_no_handler_in_its_markup_and_no_address_of_another_server() -> None:
    html = gzip.decompress(page()[0]).decode()
    frame = re.sub(r"<(script|style)[^>]*>.*?</\1>|<!--.*?-->", "", html, flags=re.DOTALL)
    assert not re.search(r"\son\w+=", frame)
    assert "<script" not in frame
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", frame)  # the name of a format, in the icon


def test_the_page_is_the_same_each_time() -> None:
    assert page() == page()


def test_nothing_of_the_page_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, shimmy.api.app; print([name for name in sys.modules if name.startswith('shimmy.api.page')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
