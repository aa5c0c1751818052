"""The one path of a request, shared by every dialect: find the model, have its worker ready, run the job, count it.

Knows no dialect and no wire. A dialect makes a GenerateRequest, awaits `accepted`, and reads events.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from shimmy.catalog.catalog import Model, Registry
from shimmy.config import Config
from shimmy.errors import BadRequest, Internal
from shimmy.formats import pooling_type
from shimmy.messages.event import Accepted, Echo, Embeddings, Finished, JobProgress, Piece, TokenLogprob
from shimmy.messages.reply import ArgumentSyntax, ReplyFormat
from shimmy.messages.request import ChatPrompt, EmbedRequest, GenerateRequest
from shimmy.metrics import Metrics
from shimmy.model_events import ModelEvents
from shimmy.pool.pool import Pool
from shimmy.prompt_length import refuse_longer, refuse_longer_inputs

if TYPE_CHECKING:
    from shimmy.messages.model_info import LoadProgress
    from shimmy.workers.worker_streams import JobStream

Result = TypeVar("Result")


@dataclass(slots=True)
class Services:
    """What a request needs; made once by the server."""

    config: Config
    registry: Registry
    pool: Pool
    metrics: Metrics
    events: ModelEvents
    discover: Callable[[], Awaitable[None]]  # look at the disk now
    ready: bool = False  # the catalog is published, and shutdown has not begun
    preloads: set[str] = field(default_factory=set)  # names of `--preload` whose models have not been loaded yet


async def no_discovery() -> None:
    """`Services.discover` where the catalog is given."""


class _Submission:
    """Jobs that are submitted together, once their model's worker is ready; `streams` has the events of each."""

    def __init__(self, services: Services, model: Model, requests: Sequence[GenerateRequest]) -> None:
        self.started_s = monotonic()
        self.waited_s = 0.0  # for a worker
        self._services = services
        self.model = model
        self._is_wanted = [True] * len(requests)
        self._streams = asyncio.create_task(self._submit(requests))

    async def streams(self) -> "list[JobStream]":
        """Raises the ShimmyError that ended all of them. May be awaited again, and by many."""
        return await asyncio.shield(self._streams)

    async def _submit(self, requests: Sequence[GenerateRequest]) -> "list[JobStream]":
        pool = self._services.pool
        n_ctx = pool.n_ctx(self.model)
        for request in requests:
            refuse_longer(request.prompt, n_ctx)
        worker = await pool.ensure_ready(self.model, requests[0].keep_alive_s, len(requests))
        self.waited_s = monotonic() - self.started_s
        for request in requests:
            refuse_longer(request.prompt, worker.facts.n_ctx, worker.facts.longest_token_bytes)
        streams = worker.submit_all(requests)
        for stream, is_wanted in zip(streams, self._is_wanted, strict=True):
            if not is_wanted:
                stream.close()
        return streams

    def leave(self, index: int) -> None:
        """Cancel job number `index`; once all are cancelled, none is submitted. Safe to call twice."""
        self._is_wanted[index] = False
        if not self._streams.done():
            if not any(self._is_wanted):
                self._streams.cancel()
        # Asking for the exception marks it as retrieved, for a caller that left before it came.
        elif not self._streams.cancelled() and self._streams.exception() is None:
            self._streams.result()[index].close()


_OPEN_SYNTAXES = frozenset((ArgumentSyntax.TAGGED, ArgumentSyntax.PYTHON, ArgumentSyntax.ELEMENTS))


def _completed(form: ReplyFormat, request: GenerateRequest) -> ReplyFormat:
    """The format of a reply with what only the request says of it."""
    form = form.with_stop(request.stop)
    syntax = None if form.tools is None else form.tools.syntax
    if syntax not in _OPEN_SYNTAXES or not isinstance(request.prompt, ChatPrompt):
        return form
    from shimmy.text.speech.argument_types import argument_schemas, argument_types  # few models need it

    tools = request.prompt.tools
    if syntax is ArgumentSyntax.ELEMENTS:
        return replace(form, argument_schemas=argument_schemas(tools))
    return replace(form, argument_types=argument_types(tools))


class Generation:
    """One job on its way. Await `accepted`, then iterate; `aclose` in a `finally`, whatever happened."""

    def __init__(self, services: Services, submission: _Submission, index: int, request: GenerateRequest) -> None:
        """The job number `index` of `submission`, for `request`."""
        self.model = submission.model
        self._services = services
        self._submission = submission
        self._index = index
        self._field = request.constrained_by
        self._request = request
        self._stream: JobStream | None = None
        self._has_begun = False

    @property
    def load_progress(self) -> "LoadProgress | None":
        """How far the load of its model is; None while there is none, and of one that is soon done."""
        runtime = self._services.pool.runtime(self.model.name)
        return None if runtime is None else runtime.progress

    async def accepted(self) -> Accepted:
        """The worker's acceptance; raises the ShimmyError that came instead. May be awaited again."""
        if self._stream is None:
            self._stream = (await self._submission.streams())[self._index]
        try:
            accepted = await self._stream.accepted()
        except BadRequest as error:
            self._name_field(error)
            raise
        return replace(accepted, format=_completed(accepted.format, self._request))

    def __aiter__(self) -> AsyncIterator[JobProgress | Echo | Piece | Finished]:
        """The events of the job until it is finished; raises WorkerDied when its worker ends."""
        return self

    async def __anext__(self) -> JobProgress | Echo | Piece | Finished:
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
        elif not self._has_begun and not isinstance(event, JobProgress):
            self._has_begun = True
            self._services.metrics.first_token_s.observe(monotonic() - self._submission.started_s, self.model.name)
        return event

    async def aclose(self) -> None:
        """Cancel what still runs of it; safe at any moment and more than once."""
        self._submission.leave(self._index)

    def _name_field(self, error: BadRequest) -> None:
        """A worker that objects to a grammar knows of no fields."""
        if type(error) is BadRequest and error.param is None:
            error.param = self._field

    def _count(self, finished: Finished) -> None:
        metrics, name, usage = self._services.metrics, self.model.name, finished.usage
        metrics.queue_wait_s.observe(self._submission.waited_s + finished.timings.queue_ms / 1000, name)
        metrics.prompt_tokens.add(usage.n_prompt, name)
        metrics.cached_tokens.add(usage.n_cached, name)
        metrics.completion_tokens.add(usage.n_completion, name)
        timings = finished.timings
        if usage.n_completion:
            metrics.token_s.observe(timings.predicted_ms / 1000 / usage.n_completion, name)
        metrics.drafted_tokens.add(timings.n_drafted - timings.n_model_drafted, name, "lookup")
        metrics.accepted_tokens.add(timings.n_accepted - timings.n_model_accepted, name, "lookup")
        metrics.drafted_tokens.add(timings.n_model_drafted, name, "draft_model")
        metrics.accepted_tokens.add(timings.n_model_accepted, name, "draft_model")


def generate(services: Services, request: GenerateRequest) -> Generation:
    """Start a job for `request`. Never takes another model than the one asked for.

    Raises ModelNotFound at once, and BadRequest for a model that writes no text.
    """
    return generate_all(services, [request])[0]


def generate_all(services: Services, requests: Sequence[GenerateRequest]) -> list[Generation]:
    """The same for requests that differ in their prompts and seeds alone: they reach their worker together."""
    model = services.registry.resolve(requests[0].model)
    if model.is_embedding:
        message = f"`{model.name}` was made for embeddings and writes no text: ask another model, or `/v1/embeddings`"
        raise BadRequest(message, param="model")
    submission = _Submission(services, model, requests)
    return [Generation(services, submission, index, each) for index, each in enumerate(requests)]


@dataclass(frozen=True, slots=True)
class CompletedJob:
    """All that one job said, and how it ended; `echo` is its prompt where that was wanted."""

    accepted: Accepted
    echo: Echo
    said: Piece
    finished: Finished


async def collect(generation: Generation) -> CompletedJob:
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
                return CompletedJob(accepted, echo, said, event)
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
    if reason := pooling_type.refusal(model, pooling=config.pooling, embeddings=config.embeddings):
        raise BadRequest(f"`{model.name}` {reason}", param="model")
    refuse_longer_inputs(request.inputs, services.pool.n_ctx(model))
    worker = await services.pool.ensure_ready(model, request.keep_alive_s)
    waited_s = monotonic() - started_s
    refuse_longer_inputs(request.inputs, worker.facts.n_ctx, worker.facts.longest_token_bytes)
    stream = worker.embed(request)
    try:
        embeddings = await stream.result()
    finally:
        stream.close()
    finished = embeddings.finished
    metrics.queue_wait_s.observe(waited_s + finished.timings.queue_ms / 1000, model.name)
    metrics.prompt_tokens.add(finished.usage.n_prompt, model.name)
    return model, embeddings
