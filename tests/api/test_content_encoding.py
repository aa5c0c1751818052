"""Bodies that came compressed, or with a byte order mark."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from time import thread_time

import pytest

from shimmy.api.app import create_app
from shimmy.api.content_encoding import inflate
from shimmy.errors import BadRequest, PayloadTooLarge
from tests.fakes import Call, FakeWorker, Reply, fetch, on_loop, services

BODY = json.dumps({"tokens": [104, 105]}).encode()
PACKED = gzip.compress(BODY, mtime=0)  # the name of a test has no time in it
GZIP = 31


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


async def detokenize(body: bytes, *encodings: bytes) -> Reply:
    headers = [(b"content-encoding", encoding) for encoding in encodings]
    return await fetch(create_app(services(FakeWorker(), max_body_mb=1)), "POST", "/detokenize", body, headers=headers)


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        (b"gzip", gzip.compress),
        (b"x-gzip", gzip.compress),
        (b"GZip", gzip.compress),
        (b"gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]) + gzip.compress(b"")),
        (b"deflate", zlib.compress),
        (b"deflate", raw_deflate),
        (b"identity", bytes),
        (b"", bytes),
    ],
    ids=["gzip", "x-gzip", "upper", "members", "zlib", "raw", "identity", "empty"],
)
@on_loop
async def test_a_compressed_body_is_read(encoding: bytes, compress: Callable[[bytes], bytes]) -> None:
    assert (await detokenize(compress(BODY), encoding)).json() == {"content": "hi"}


@pytest.mark.parametrize("encodings", [(b"br",), (b"zstd",), (b"gzip, gzip",), (b"gzip", b"gzip"), (b"\xff" * 99,)])
@on_loop
async def test_an_encoding_that_is_not_known_is_a_415_that_names_those_that_are(encodings: tuple[bytes, ...]) -> None:
    reply = await detokenize(BODY, *encodings)
    assert reply.status == 415
    assert reply.json()["error"]["code"] == "unsupported_encoding"
    assert reply.headers[b"accept-encoding"] == b"gzip, deflate"


@on_loop
async def test_an_unknown_encoding_is_refused_before_the_body_is_read() -> None:
    call = Call(create_app(services()), "POST", "/tokenize", headers=[(b"content-encoding", b"br")])
    await call.run()  # nothing was received
    assert call.reply().status == 415


@pytest.mark.parametrize("damage", [PACKED[:-9], b"plain", PACKED + b"more", b"\x1f"])
@on_loop
async def test_what_is_damaged_or_cut_off_is_a_400(damage: bytes) -> None:
    assert (await detokenize(damage, b"gzip")).status == 400


@on_loop
async def test_a_body_that_inflates_over_the_limit_is_a_413() -> None:
    assert (await detokenize(gzip.compress(bytes(2**21)), b"gzip")).status == 413


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(bytes(2**24)),
        gzip.compress(b"") * 50_000,
        gzip.compress(json.dumps([*range(500_000)]).encode(), 1),
    ],
    ids=["bomb", "members", "dense"],
)
@on_loop
async def test_the_loop_has_its_turn_while_a_body_is_inflated(body: bytes) -> None:
    task = asyncio.create_task(inflate(body, GZIP, 2**25))
    longest_s, last_s = 0.0, thread_time()  # of the processor: how busy the machine is does not count
    while not task.done():
        await asyncio.sleep(0)
        now_s = thread_time()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    await task
    assert longest_s < 0.2  # ten times what a step takes


@on_loop
async def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    with pytest.raises(PayloadTooLarge):
        await inflate(gzip.compress(bytes(2**26)), GZIP, 2**20)
    with pytest.raises(BadRequest):
        await inflate(b"\x1f\x8b", GZIP, 2**20)


@pytest.mark.parametrize("name", ["utf-8-sig", "utf-16", "utf-32"])
@on_loop
async def test_a_byte_order_mark_says_how_the_text_is_written(name: str) -> None:
    assert (await detokenize(BODY.decode().encode(name))).json() == {"content": "hi"}


@pytest.mark.parametrize("mark", [b"\xfe\xff", b"\x00\x00\xfe\xff"], ids=["utf-16", "utf-32"])
@on_loop
async def test_the_high_byte_may_come_first(mark: bytes) -> None:
    name = "utf-16-be" if len(mark) == 2 else "utf-32-be"
    assert (await detokenize(mark + BODY.decode().encode(name))).json() == {"content": "hi"}


@pytest.mark.parametrize("body", [b"\xef\xbb\xbf", b"\xff\xfe\x00", b"\xff\xfe{", b"\xef\xbb\xbf\xef\xbb\xbf{}"])
@on_loop
async def test_a_mark_before_what_is_no_json_is_a_400(body: bytes) -> None:
    assert (await detokenize(body)).status == 400
