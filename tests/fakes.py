"""Hand-written fakes for tests of the HTTP side: a worker that says what a test tells it to, and a client's two ends
of an ASGI call. Everything between them is the real thing."""

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, cast

from shimmy import config
from shimmy.api.http_exchange import ASGIApp, ASGIMessage
from shimmy.catalog.catalog import Catalog, Model, Registry
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.publisher import CatalogPublisher
from shimmy.errors import ShimmyError
from shimmy.generation import Services
from shimmy.messages.event import Accepted, Finished, FinishReason, JobOutput, Piece, Timings, Usage
from shimmy.messages.model_info import ModelFacts, WorkerLoad
from shimmy.messages.request import ChatPrompt, GenerateRequest
from shimmy.metrics import Metrics
from shimmy.model_events import ModelEvents
from shimmy.pool.pool import Pool
from shimmy.wire.worker_options import WorkerOptions
from shimmy.workers.worker_client import Hooks, WorkerClient
from shimmy.workers.worker_streams import JobStream

Parameters = ParamSpec("Parameters")

FINISHED = Finished(
    FinishReason.STOP,
    Usage(n_prompt=12, n_cached=8, n_completion=3),
    Timings(queue_ms=1.0, prompt_ms=8.0, predicted_ms=30.0),
)


def on_loop(test: Callable[Parameters, Coroutine[Any, Any, None]]) -> Callable[Parameters, None]:
    """Run an async test on an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


async def until(is_so: Callable[[], bool], deadline_s: float = 10.0) -> None:
    """Wait for what other tasks or threads bring about."""
    async with asyncio.timeout(deadline_s):
        while not is_so():  # noqa: ASYNC110 - nothing tells the test
            await asyncio.sleep(0.005)


def model(name: str = "tiny.q4-1") -> Model:
    return Model(
        name=name,
        path=Path("tiny.gguf"),
        files=((1, 2),),
        size_bytes=1000,
        mtime_ns=1_700_000_000_123_456_789,
        architecture="llama",
        quantization="Q4_1",
        n_params=135,
        n_ctx_train=2048,
        n_vocab=1000,
        n_layers=2,
        n_embd=64,
        n_ff=128,
        n_expert_params=0,
        n_heads=4,
        n_kv=256,
        n_state=0,
        has_chat_template=True,
    )


class FakeWorker:
    """Takes jobs as a worker does. Without a script a test drives `streams` itself; with one, every job gets it.

    `scripts` are for jobs that say different things, each of them for one job, in turn.
    """

    name = "tiny.q4-1"
    is_alive = True
    is_idle = True
    n_jobs = n_asked = 0
    n_finished = 0
    idle_since_s = 0.0
    load = WorkerLoad()
    pid = 4321
    facts = ModelFacts(2048, 2048, 256, 4, 135, 1000, "tiny", "haswell", has_chat_template=True)

    def __init__(
        self,
        script: Sequence[JobOutput | ShimmyError] = (),
        *,
        scripts: Sequence[Sequence[JobOutput | ShimmyError]] = (),
    ) -> None:
        self.script = script
        self.scripts = scripts
        self.requests: list[GenerateRequest] = []
        self.streams: asyncio.Queue[JobStream] = asyncio.Queue()
        self.cancelled = asyncio.Event()
        self.cancelled_ids: list[int] = []

    def submit_all(self, requests: Sequence[GenerateRequest]) -> list[JobStream]:
        return [self.submit(request) for request in requests]

    def submit(self, request: GenerateRequest) -> JobStream:
        self.requests.append(request)
        stream = JobStream(len(self.requests), self._cancel)
        scripts = self.scripts
        for event in scripts[(len(self.requests) - 1) % len(scripts)] if scripts else self.script:
            stream.put(event)
        self.streams.put_nowait(stream)
        return stream

    def _cancel(self, job_id: int) -> None:
        self.cancelled_ids.append(job_id)
        self.cancelled.set()

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [int(add_special), int(parse_special), *text.encode()]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode()

    async def apply_template(self, prompt: ChatPrompt) -> str:
        return "".join(f"<{turn.role}>{turn.content}" for turn in prompt.messages)


def services(
    worker: FakeWorker | None = None,
    *,
    models: Sequence[Model] = (model(),),
    load: Callable[[], Awaitable[None]] | None = None,
    **settings: object,
) -> Services:
    """Services whose pool starts `worker`, after `load` where there is one. `settings` are flags by their names."""

    async def start(_name: str, _options: WorkerOptions, _hooks: Hooks) -> WorkerClient:
        if load is not None:
            await load()
        return cast("WorkerClient", worker)

    settings_as_typed = {name: value if isinstance(value, list) else str(value) for name, value in settings.items()}
    loaded, metrics, events = config.load(settings_as_typed, {}), Metrics(), ModelEvents()
    registry = Registry(loaded.aliases, loaded.default_model)
    registry.publish(Catalog(models))
    pool = Pool(loaded, metrics, events, start)
    librarian = CatalogPublisher(loaded, registry, Headers(), pool.follow)
    return Services(loaded, registry, pool, metrics, events, librarian.discover, ready=True)


@dataclass(slots=True)
class Reply:
    status: int
    headers: dict[bytes, bytes]
    body: bytes

    def json(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.body))

    def chunks(self) -> list[Any]:
        """The JSON events of a stream, [DONE] as the string."""
        events = [
            event.removeprefix("data: ") for event in self.body.decode().split("\n\n") if event.startswith("data")
        ]
        return [event if event == "[DONE]" else json.loads(event) for event in events]


@dataclass(slots=True)
class Call:
    """One HTTP request to an app, both ends held by the test. `start` runs it in a task of its own."""

    app: ASGIApp
    method: str
    path: str
    body: bytes = b""
    headers: Sequence[tuple[bytes, bytes]] = ()
    sent: asyncio.Queue[ASGIMessage] = field(default_factory=asyncio.Queue)
    received: asyncio.Queue[ASGIMessage] = field(default_factory=asyncio.Queue)

    def start(self) -> "asyncio.Task[None]":
        self.received.put_nowait({"type": "http.request", "body": self.body, "more_body": False})
        return asyncio.create_task(self.run())

    async def run(self) -> None:
        path, _, query = self.path.partition("?")
        scope = {
            "type": "http", "method": self.method, "path": path, "query_string": query.encode(),
            "headers": list(self.headers),
        }  # fmt: skip
        await self.app(scope, self.received.get, self.sent.put)

    def leave(self) -> None:
        self.received.put_nowait({"type": "http.disconnect"})

    async def write(self) -> bytes:
        """The body of the next write."""
        while True:
            message = await self.sent.get()
            if message["type"] == "http.response.body":
                return cast("bytes", message["body"])

    def reply(self) -> Reply:
        """All that was sent, once the call is over."""
        messages = [self.sent.get_nowait() for _ in range(self.sent.qsize())]
        start = messages[0]
        assert start["type"] == "http.response.start"
        assert [bool(message.get("more_body")) for message in messages[1:]] == [True] * (len(messages) - 2) + [False]
        return Reply(start["status"], dict(start["headers"]), b"".join(message["body"] for message in messages[1:]))


async def fetch(
    app: ASGIApp, method: str, path: str, body: object = None, headers: Sequence[tuple[bytes, bytes]] = ()
) -> Reply:
    """The reply to one request; `body` is bytes as they are, or a value to be sent as JSON."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    call = Call(app, method, path, content, headers)
    await call.start()
    return call.reply()


SCRIPT = (Accepted(12), Piece("Hel", 1), Piece("lo ", 1), Piece('"é"\n', 1), FINISHED)
