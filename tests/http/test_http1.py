"""Requests on real sockets: odd ones, and bytes that are none."""

import asyncio
import json

import pytest

from tests.http.harness import GET, POST, on_loop, serving


@on_loop
async def test_requests_of_a_connection_are_answered_one_after_the_other() -> None:
    async with serving() as harness:
        client = await harness.client()
        assert await client.ask(GET) == (200, b"0")
        assert await client.ask(POST % 5 + b"hello") == (200, b"5")
        client.send(b"\r\n")
        await asyncio.sleep(0.05)
        client.send(GET + POST % 2 + b"hi" + GET)
        assert [await client.reply() for _ in range(3)] == [(200, b"0"), (200, b"2"), (200, b"0")]


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://host.example/v1/models", "/v1/models", b"host.example"),
        (b"HTTPS://host.example:8/v1/a%20b?q=1", "/v1/a b", b"host.example:8"),
        (b"http://host.example", "/", b"host.example"),
        (b"http://[::1]:8?q=1", "/", b"[::1]:8"),
        (b"/http://host.example/x", "/http://host.example/x", b"x"),
        (b"*", "*", b"x"),
    ],
)
@on_loop
async def test_a_target_in_absolute_form_is_its_path_and_its_host(target: bytes, path: str, host: bytes) -> None:
    async with serving() as harness:
        client = await harness.client()
        assert (await client.ask(GET.replace(b"/a", target)))[0] == 200
        (scope,) = harness.app.scopes
        assert scope["path"] == path
        assert [value for name, value in scope["headers"] if name == b"host"] == [host]
        assert scope["query_string"] == (b"q=1" if b"q=1" in target else b"")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nNo colon\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a HTTP/3.7\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000,
        b" \r\n" * 20_000,
    ],
    ids=lambda data: repr(data[:40]),
)
@on_loop
async def test_what_is_no_request_is_an_error_in_shape_and_no_traceback(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as harness:
        client = await harness.client()
        status, body = await client.ask(request_bytes)
        assert status in (400, 431, 501)
        assert list(json.loads(body)["error"]) == ["message", "type", "param", "code"]
        assert await client.is_closed()
    assert caplog.records == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /a HTTP/1.0\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX-Folded: one\r\n two\r\n\r\n",
        b"\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n2;x=1\r\nhi\r\n0\r\nTrailer: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\nhi",
        b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"HEAD /rude HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
    ids=lambda data: repr(data[:60]),
)
@on_loop
async def test_what_is_only_odd_is_answered(request_bytes: bytes) -> None:
    async with serving() as harness:
        client = await harness.client()
        client.send(request_bytes)
        assert (await client.reader.readuntil(b"\r\n")).split()[1] in (b"200", b"413")


@on_loop
async def test_a_body_is_asked_for_when_it_is_wanted() -> None:
    expecting = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") % 5
    async with serving() as harness:
        client = await harness.client()
        assert await client.ask(expecting) == (100, b"")
        assert await client.ask(b"hello") == (200, b"5")
        assert await client.ask(expecting.replace(b"/a", b"/rude")) == (413, b"too large")
        assert await client.is_closed()


@pytest.mark.parametrize("n_chunks", [100_000])
@on_loop
async def test_a_body_of_single_bytes_leaves_the_loop_to_others(n_chunks: int) -> None:
    async with serving() as harness:
        client, other = await harness.client(), await harness.client()
        client.send(b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"1\r\nx\r\n" * n_chunks + b"0\r\n\r\n")
        slow = asyncio.create_task(client.reply())
        n_quick = 0
        while not slow.done():
            assert await other.ask(GET) == (200, b"0")
            n_quick += 1
        assert await slow == (200, b"%d" % n_chunks)
        assert n_quick > 20
