"""One connection: clients that leave, replies that nobody reads, and deadlines."""

import asyncio
import json
import socket
from contextlib import suppress

import pytest

from shimmy.http import connection
from tests.http.harness import GET, POST, Client, on_loop, serving

# -- clients that leave, and replies that are not read -----------------------------------------------------------------


@on_loop
async def test_a_reply_before_the_end_of_a_large_body_is_seen_and_leaves_nothing_behind() -> None:
    async with serving() as harness:
        for _ in range(3):
            client = await harness.client()
            client.send(POST.replace(b"/a", b"/rude") % 20_000_000)
            body = asyncio.create_task(_send_all(client, 20_000_000))
            assert await client.reply() == (413, b"too large")
            await body
            client.writer.close()
        await harness.until(harness.is_empty)


async def _send_all(client: Client, n_bytes: int) -> None:
    with suppress(ConnectionError):
        for _ in range(n_bytes // 100_000):
            client.send(bytes(100_000))
            await client.writer.drain()


@on_loop
async def test_a_client_that_leaves_in_its_body_is_told_to_the_application() -> None:
    async with serving() as harness:
        client = await harness.client()
        client.send(POST % 100 + b"half")
        await harness.until(lambda: harness.app.n_running)
        client.writer.transport.abort()
        await harness.until(harness.is_empty)
        assert harness.app.n_left == 1


@pytest.mark.parametrize(
    "behind",
    [GET, POST % 300_000 + bytes(300_000), POST % 9_000_000 + bytes(9_000_000)],
    ids=["little", "more", "much"],
)
@pytest.mark.parametrize("how", ["abort", "close"])
@on_loop
async def test_a_client_that_leaves_with_another_request_behind_leaves_nothing_behind(behind: bytes, how: str) -> None:
    async with serving() as harness:
        client = await harness.client()
        client.send(GET.replace(b"/a", b"/watch") + behind)
        await harness.until(lambda: harness.app.n_running)
        await asyncio.sleep(0.1)
        if how == "abort":
            client.writer.transport.abort()
        else:
            client.writer.write_eof()
        await harness.until(harness.is_empty)
        assert harness.app.n_left == 1


@pytest.mark.usefixtures("_quick")
@on_loop
async def test_a_reply_that_nobody_reads_is_given_up() -> None:
    async with serving() as harness:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connection, "_UNREAD_S", 0.5)
            with socket.create_connection(("127.0.0.1", harness.port)) as sock:
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_sendall(sock, GET.replace(b"/a", b"/huge"))
                await harness.until(lambda: harness.connections._open)
                await harness.until(harness.is_empty)


@pytest.mark.usefixtures("_quick")
@on_loop
async def test_a_reply_that_is_read_slowly_arrives_whole() -> None:
    async with serving() as harness:
        client = await harness.client()
        client.send(GET.replace(b"/a", b"/huge").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await asyncio.sleep(1)  # longer than all deadlines for what is not a reply
        status, body = await client.reply()
        assert (status, len(body)) == (200, 50_000_001)


@on_loop
async def test_a_bug_of_the_application_cuts_its_reply_only(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as harness:
        client = await harness.client()
        assert (await client.ask(GET.replace(b"/a", b"/broken")))[0] == 500
        assert await (await harness.client()).ask(GET) == (200, b"0")
    assert "ZeroDivisionError" in caplog.text


# -- deadlines ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    ("begun", "status"),
    [
        (b"", 0),
        (b"GET /a HT", 408),
        (b"GET /a HTTP/1.1\r\nHost: x\r\n", 408),
        (POST % 100 + b"half", 408),
        (POST.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") + b"5\r\nhe", 408),
    ],
    ids=["silent", "line", "head", "body", "chunked"],
)
@pytest.mark.parametrize("before", [b"", GET], ids=["new", "kept-alive"])
@on_loop
async def test_what_does_not_come_to_its_end_is_ended(begun: bytes, status: int, before: bytes) -> None:
    async with serving() as harness:
        client = await harness.client()
        if before:
            assert await client.ask(before) == (200, b"0")
        answered, body = await client.ask(begun)
        assert answered == status
        if status:
            assert json.loads(body)["error"]["code"] == "request_timeout"
        assert await client.is_closed()
        await harness.until(harness.is_empty)


@pytest.mark.usefixtures("_quick")
@on_loop
async def test_a_head_of_a_byte_now_and_then_is_ended() -> None:
    async with serving() as harness:
        client = await harness.client()

        async def trickle() -> None:
            with suppress(ConnectionError):
                while True:
                    client.send(b"x")
                    await client.writer.drain()
                    await asyncio.sleep(0.02)

        task = asyncio.create_task(trickle())
        assert (await client.reply())[0] == 408
        task.cancel()


@pytest.mark.usefixtures("_quick")
@on_loop
async def test_a_slow_body_that_gets_on_is_waited_for() -> None:
    async with serving() as harness:
        client = await harness.client()
        client.send(POST % 20_000)
        for _ in range(10):
            await asyncio.sleep(0.1)  # all of it takes three times the deadline
            client.send(bytes(2000))
        assert await client.reply() == (200, b"20000")


@pytest.mark.usefixtures("_quick")
@on_loop
async def test_a_reply_may_take_longer_than_any_deadline() -> None:
    async with serving() as harness:
        client = await harness.client()
        client.send(GET.replace(b"/a", b"/wait"))
        await asyncio.sleep(1)
        harness.app.go_on.set()
        assert await client.reply() == (200, b"0")
