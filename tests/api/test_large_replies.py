"""Replies that are large, or large to make: they go out in parts, and the event loop is free meanwhile."""

import asyncio
import json
import time

import pytest

from shimmy.api.app import create_app
from shimmy.messages.event import Accepted, Candidate, JobOutput, Piece, TokenLogprob
from tests.fakes import FINISHED, Call, FakeWorker, Reply, services

pytestmark = pytest.mark.usefixtures("collections_as_in_a_server")

CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HI = [{"role": "user", "content": "hi"}]
N_TOKENS = 4000
ODDS = TokenLogprob(Candidate(5, b"ab", -1.0), tuple(Candidate(token, b"xyz%d" % token, -2.0) for token in range(20)))
TEXT: tuple[JobOutput, ...] = (Accepted(12), Piece("word " * 400_000, 1000), FINISHED)
CANDIDATES: tuple[JobOutput, ...] = (Accepted(12), *(Piece("ab", 1, (ODDS,)) for _ in range(N_TOKENS)), FINISHED)
HALF = (*CANDIDATES[: N_TOKENS // 2], FINISHED)


class Watched:
    """A call, and for how long at most its event loop did one thing, in seconds of its thread's own time."""

    def __init__(self, path: str, body: object, script: tuple[JobOutput, ...]) -> None:
        self._call = Call(create_app(services(FakeWorker(script))), "POST", path, json.dumps(body).encode())
        self.longest_s = 0.0
        self.part_sizes: list[int] = []

    async def reply(self) -> Reply:
        task = self._call.start()
        while not task.done():
            before_s = time.thread_time()
            await asyncio.sleep(0)
            self.longest_s = max(self.longest_s, time.thread_time() - before_s)
        await task
        start, *messages = [self._call.sent.get_nowait() for _ in range(self._call.sent.qsize())]
        self.part_sizes = [len(message["body"]) for message in messages]
        return Reply(start["status"], dict(start["headers"]), b"".join([message["body"] for message in messages]))


@pytest.mark.parametrize(
    ("path", "fields", "script"),
    [
        (CHAT, {"messages": HI}, TEXT),
        (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 20, "n": 2}, HALF),
        (COMPLETION, {"prompt": "hi", "logprobs": 20}, CANDIDATES),
        (RESPONSE, {"input": "hi"}, TEXT),
        (RESPONSE, {"input": "hi", "top_logprobs": 20}, HALF),
        (RESPONSE, {"input": "hi", "instructions": "x" * 3_000_000}, TEXT),
    ],
    ids=["chat", "chat-candidates", "completion-candidates", "response", "response-candidates", "response-echo"],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_nobody_waits_for_a_large_reply(
    path: str, fields: dict[str, object], script: tuple[JobOutput, ...], stream: bool
) -> None:
    call = Watched(path, {"model": "tiny.q4-1", "stream": stream, **fields}, script)
    reply = asyncio.run(call.reply())
    assert reply.status == 200
    assert call.longest_s < 0.15, "and several times that on the loop"
    if not stream:
        assert reply.headers[b"content-length"] == str(len(reply.body)).encode()
        assert max(call.part_sizes) <= 2**18
        json.loads(reply.body)
