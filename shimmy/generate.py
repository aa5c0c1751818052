"""THE one path of a request, shared by every dialect: find the model, have its worker ready, run the job, count it.

Knows no dialect and no wire. A dialect makes a GenerateRequest, awaits `accepted`, and reads events.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from shimmy.config import Config
from shimmy.engine import pooling
from shimmy.errors import BadRequest, Internal
from shimmy.events import Events
from shimmy.messages import (
    Accepted,
    Echo,
    Embeddings,
    EmbedRequest,
    Finished,
    GenerateRequest,
    Piece,
    TokenLogprob,
)
from shimmy.metrics import Metrics
from shimmy.pool import Pool
from shimmy.registry import Model, Registry

if TYPE_CHECKING:
    from shimmy.engine.streams import JobStream

Result = TypeVar("Result")


@dataclass(slots=True)
class Services:
    """What a request needs; made once by the server."""

    config: Config
    registry: Registry
    pool: Pool
    metrics: Metrics
    events: Events
    discover: Callable[[], Awaitable[None]]  # look at the disk now
    ready: bool = False  # the catalog is published, and shutdown has not begun


async def no_discovery() -> None:
    """`Services.discover` where the catalog is given."""


class Generation:
    """One job on its way. Await `accepted`, then iterate; `aclose` in a `finally`, whatever happened."""

    def __init__(self, services: Services, model: Model, request: GenerateRequest) -> None:
        self.model = model
        self._services = services
        self._request = request
        self._started_s = monotonic()
        self._stream: JobStream | None = None
        self._has_begun = False
        self._waited_s = 0.0  # for a worker
        self._submission = asyncio.create_task(self._submit())

    @property
    def converted_percent(self) -> int | None:
        """How far the conversion is that its model's load begins with; None where there is none."""
        slot = self._services.pool.slot(self.model.name)
        return None if slot is None or slot.progress is None else int(100 * slot.progress)

    async def accepted(self) -> Accepted:
        """The worker's yes; raises the ShimmyError that stands against it. May be awaited again."""
        return await asyncio.shield(self._submission)

    def __aiter__(self) -> AsyncIterator[Echo | Piece | Finished]:
        """What the job says until it is finished; raises WorkerDied when its worker ends."""
        return self

    async def __anext__(self) -> Echo | Piece | Finished:
        if self._stream is None:
            await self.accepted()
            assert self._stream is not None
        try:
            event = await anext(self._stream)
        except BadRequest as error:
            self._name_field(error)
            raise
        if isinstance(event, Finished):
            self._count(event)
        elif not self._has_begun:
            self._has_begun = True
            self._services.metrics.first_token_s.observe(monotonic() - self._started_s, self.model.name)
        return event

    async def aclose(self) -> None:
        """Cancel what still runs of it; safe at any moment and more than once."""
        self._submission.cancel()
        if self._submission.done() and not self._submission.cancelled():
            self._submission.exception()  # taken note of: a caller that left before does not make it an unhandled one
        if self._stream is not None:
            self._stream.close()

    async def _submit(self) -> Accepted:
        worker = await self._services.pool.ensure_ready(self.model, self._request.keep_alive_s)
        self._waited_s = monotonic() - self._started_s
        self._stream = worker.submit(self._request)
        try:
            return await self._stream.accepted()
        except BadRequest as error:
            self._name_field(error)
            raise

    def _name_field(self, error: BadRequest) -> None:
        """A worker that objects to a grammar knows of no fields."""
        if type(error) is BadRequest and error.param is None:
            error.param = self._request.constrained_by

    def _count(self, finished: Finished) -> None:
        metrics, name, usage = self._services.metrics, self.model.name, finished.usage
        metrics.queue_wait_s.observe(self._waited_s + finished.timings.queue_ms / 1000, name)
        metrics.prompt_tokens.add(usage.n_prompt, name)
        metrics.cached_tokens.add(usage.n_cached, name)
        metrics.completion_tokens.add(usage.n_completion, name)
        timings = finished.timings
        metrics.drafted_tokens.add(timings.n_drafted - timings.n_model_drafted, name, "lookup")
        metrics.accepted_tokens.add(timings.n_accepted - timings.n_model_accepted, name, "lookup")
        metrics.drafted_tokens.add(timings.n_model_drafted, name, "draft_model")
        metrics.accepted_tokens.add(timings.n_model_accepted, name, "draft_model")


def generate(services: Services, request: GenerateRequest) -> Generation:
    """Start a job for `request`. Never takes another model than the one asked for.

    Raises ModelNotFound at once, and BadRequest for a model that writes no text.
    """
    model = services.registry.resolve(request.model)
    if model.is_embedding:
        message = f"`{model.name}` was made for embeddings and writes no text: ask another model, or `/v1/embeddings`"
        raise BadRequest(message, param="model")
    return Generation(services, model, request)


@dataclass(frozen=True, slots=True)
class Whole:
    """All that one job said, and how it ended; `echo` is its prompt where that was wanted."""

    accepted: Accepted
    echo: Echo
    said: Piece
    finished: Finished


async def whole(generation: Generation) -> Whole:
    """Wait for the end of `generation`, whatever it says in between; raises what stands against it or ends it."""
    accepted = await generation.accepted()
    echoes: list[Echo] = []
    pieces: list[Piece] = []
    async for event in generation:
        match event:
            case Piece():
                pieces.append(event)
            case Echo():
                echoes.append(event)
            case Finished():
                echo = Echo("".join([part.text for part in echoes]), _logprobs(echoes))
                n_tokens = sum(piece.n_tokens for piece in pieces)
                said = Piece("".join([piece.text for piece in pieces]), n_tokens, _logprobs(pieces))
                return Whole(accepted, echo, said, event)
    raise Internal("the generation ended without a reason")


def _logprobs(parts: Sequence[Echo | Piece]) -> tuple[TokenLogprob, ...]:
    return tuple([logprob for part in parts for logprob in part.logprobs])


async def together(works: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What each of `works` returns; the first error of any ends the others, and is raised as it is."""
    if len(works) == 1:
        return [await works[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def close(generations: Sequence[Generation]) -> None:
    """Cancel what still runs of them; safe at any moment and more than once."""
    for generation in generations:
        await generation.aclose()


async def embed(services: Services, request: EmbedRequest) -> tuple[Model, Embeddings]:
    """The model and its embeddings of all inputs; a caller that is cancelled ends the job.

    Raises ModelNotFound, BadRequest for a model that makes no embeddings, and what the worker says against the job.
    """
    started_s = monotonic()
    model, config, metrics = services.registry.resolve(request.model), services.config, services.metrics
    if reason := pooling.refusal(model, pooling=config.pooling, embeddings=config.embeddings):
        raise BadRequest(f"`{model.name}` {reason}", param="model")
    worker = await services.pool.ensure_ready(model, request.keep_alive_s)
    waited_s = monotonic() - started_s
    stream = worker.embed(request)
    try:
        embeddings = await stream.result()
    finally:
        stream.close()
    finished = embeddings.finished
    metrics.queue_wait_s.observe(waited_s + finished.timings.queue_ms / 1000, model.name)
    metrics.prompt_tokens.add(finished.usage.n_prompt, model.name)
    return model, embeddings
