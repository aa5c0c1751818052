"""What the soak takes for a failure. Nothing here runs for long, and no server of ours is asked."""

import asyncio
import json
from dataclasses import astuple
from typing import Any

import pytest

from tests.bench.soak.connection import Answer, Connection, Failed, Refused
from tests.bench.soak.replies import choices, response
from tests.bench.soak.resources import Quiet, trends
from tests.fakes import on_loop

HEAD = b"HTTP/1.1 200 OK\r\n"
JSON = HEAD + b"Content-Length: 2\r\n\r\n{}"
ERROR = {"message": "m", "type": "t", "param": None, "code": "out_of_memory"}
USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def whole(body: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, headers, json.dumps(body).encode())


def streamed(*events: Any, end: bytes = b"data: [DONE]\n\n") -> Answer:
    return Answer(200, {}, b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + end)


def choice(index: int = 0, reason: str | None = "stop") -> dict[str, Any]:
    return {"index": index, "text": "a", "finish_reason": reason}


async def asked(*replies: bytes, n_times: int = 1) -> Answer:
    """The last answer to so many requests, of a server that sends a reply to each and closes after the last."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        connection = Connection(server.sockets[0].getsockname()[1])
        answers = [await connection.ask("GET", "/") for _ in range(n_times)]
        connection.close()
        return answers[-1]


@on_loop
async def test_a_connection_is_kept_and_opened_anew_where_the_server_has_closed_it() -> None:
    assert (await asked(JSON, JSON, n_times=2)).body == b"{}"
    assert (await asked(JSON, n_times=3)).body == b"{}"
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\n\r\n"
    assert (await asked(chunked, JSON, chunked, n_times=3)).body == b"abc"


@pytest.mark.parametrize(
    "reply",
    [
        b"", HEAD, HEAD + b"Content-Length: 3\r\n\r\n{}", HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)  # fmt: skip
@on_loop
async def test_a_reply_that_was_cut_off_has_failed(reply: bytes) -> None:
    with pytest.raises(Failed, match="cut off"):
        await asked(reply)


def test_only_documented_refusals_are_none_of_our_doing() -> None:
    with pytest.raises(Refused, match="out_of_memory"):
        whole({"error": ERROR}, 503, **{"retry-after": "1"}).good()
    with pytest.raises(Refused, match="model_unloaded"):
        whole({"error": ERROR | {"code": "model_unloaded"}}, 409).good()
    with pytest.raises(Refused, match="out_of_memory"):
        streamed({"error": ERROR}, end=b"").events()
    for answer in (
        whole({"error": ERROR}, 503), whole({"error": ERROR | {"code": "internal_error"}}, 500),
        whole({"error": "no"}, 503), whole({"error": ERROR | {"code": "worker_died"}}, 502),
    ):  # fmt: skip
        with pytest.raises(Failed):
            answer.good()
    with pytest.raises(Failed, match="worker_died"):
        streamed({"error": ERROR | {"code": "worker_died"}}).events()


def test_a_good_reply_is_taken_apart() -> None:
    body = {"prompt": ["x", "y"], "stream": True, "max_tokens": 2}
    usage: dict[str, Any] = {"choices": [], "usage": USAGE}
    (first, second) = choices(streamed({"choices": [choice(1), choice(0, None)]}, {"choices": [choice()]}, usage), body)
    assert (first.text, second.text, first.reason) == ("aa", "a", "stop")


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (whole({"choices": [choice()]}), {"n": 2}),
        (whole({"choices": [choice(1)]}), {}),
        (whole({"choices": [choice(reason=None)]}), {}),
        (whole({"choices": [choice()], "usage": USAGE}), {"max_tokens": 2}),
        (whole({"choices": [choice()], "usage": USAGE | {"total_tokens": 6}}), {}),
        (streamed({"choices": [choice()]}, end=b""), {"stream": True}),
    ],
    ids=["too few", "another index", "no reason", "too many tokens", "usage", "no end"],
)
def test_a_reply_with_something_amiss_has_failed(answer: Answer, body: dict[str, Any]) -> None:
    with pytest.raises(Failed):
        choices(answer, body)


def test_a_response_goes_to_its_end() -> None:
    done = {"status": "completed", "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}}
    end = {"type": "response.completed", "sequence_number": 1, "response": done}
    begin = {"type": "response.created", "sequence_number": 0}
    assert response(streamed(begin, end), is_streamed=True) == response(whole(done), is_streamed=False) == done
    for answer in (streamed(begin), streamed(begin, end | {"sequence_number": 2})):
        with pytest.raises(Failed):
            response(answer, is_streamed=True)


def test_what_grows_is_seen_and_what_is_filled_once_is_not() -> None:
    flat = Quiet(100.0, 30.0, 50.0, 10, 5, 6, 4)
    empty = Quiet(*(0.5 * value for value in astuple(flat)))
    assert all(trend.is_flat for trend in trends([empty, flat, flat]))
    grown = Quiet(100.0, 33.0, 50.0, 10, 7, 6, 4)
    grew = [trend.name for trend in trends([flat, flat, flat, grown, grown]) if not trend.is_flat]
    assert grew == ["server_mb", "worker_files"]
