"""The routes to a tokenizer and a template are work like jobs: bounded, and called off when their client leaves."""

import asyncio

import pytest

from shimmy.api.app import create_app
from tests.fakes import Call, FakeWorker, fetch, on_loop, services

BODIES = {
    "/tokenize": b'{"content":"hi"}',
    "/detokenize": b'{"tokens":[1]}',
    "/apply-template": b'{"messages":[{"role":"user","content":"hi"}]}',
}


class SlowWorker(FakeWorker):
    """Answers no call before the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Queue[str]()
        self.called_off = asyncio.Queue[str]()
        self.may_answer = asyncio.Event()

    async def _wait(self, name: str) -> None:
        self.begun.put_nowait(name)
        self.n_asked += 1
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.called_off.put_nowait(name)
            raise
        finally:
            self.n_asked -= 1

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        await self._wait("/tokenize")
        return await super().tokenize(text, add_special=add_special, parse_special=parse_special)

    async def detokenize(self, tokens: object) -> str:
        await self._wait("/detokenize")
        return str(tokens)

    async def apply_template(self, prompt: object) -> str:
        await self._wait("/apply-template")
        return str(prompt)


@pytest.mark.parametrize("path", BODIES)
def test_a_client_that_leaves_calls_its_call_off(path: str) -> None:
    async def run() -> None:
        worker = SlowWorker()
        call = Call(create_app(services(worker)), "POST", path, BODIES[path])
        task = call.start()
        assert await worker.begun.get() == path
        call.leave()
        assert await worker.called_off.get() == path
        await task
        assert call.sent.empty()

    asyncio.run(run())


@on_loop
async def test_calls_count_for_the_queue() -> None:
    worker = SlowWorker()
    app = create_app(services(worker, parallel=1, max_queue=1))
    tasks = [Call(app, "POST", path, body).start() for path, body in [*BODIES.items()][:2]]
    for _ in tasks:
        await worker.begun.get()
    for path, body in BODIES.items():
        reply = await fetch(app, "POST", path, body)
        assert (reply.status, reply.json()["error"]["code"]) == (503, "overloaded")
        assert reply.headers[b"retry-after"] == b"2"
    worker.may_answer.set()
    await asyncio.gather(*tasks)
    assert (await fetch(app, "POST", "/tokenize", b'{"content":"hi"}')).json() == {"tokens": [0, 1, 104, 105]}
