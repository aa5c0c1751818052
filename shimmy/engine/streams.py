"""What a worker says about one job, for the one who waits for it: pieces of text, or embeddings, and how it ended.

Knows events and asyncio; nothing of processes or sockets. What a job cannot have is a breach of the protocol.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from shimmy.engine.wire import ProtocolError
from shimmy.errors import ShimmyError, WorkerDied
from shimmy.messages import Accepted, Echo, EmbeddingJob, Embeddings, Event, Finished, Piece, TokenLogprob, Vectors


class JobStream:
    """What the worker says about one job. Pieces not taken yet are joined, so a slow reader costs nothing."""

    def __init__(self, job_id: int, cancel: Callable[[int], None]) -> None:
        self._id = job_id
        self._cancel = cancel
        self._accepted: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._texts: list[str] = []
        self._n_tokens = 0
        self._logprobs: list[TokenLogprob] = []
        self._echoes: list[Echo] = []
        self._end: Finished | ShimmyError | None = None
        self._is_over = False
        self._waiter: asyncio.Future[None] | None = None  # who waits for the next event

    def put(self, event: Event | ShimmyError) -> None:
        """Called by the client for each event of this job."""
        match event:
            case Piece(text, n_tokens, logprobs):
                self._texts.append(text)
                self._n_tokens += n_tokens
                self._logprobs += logprobs
            case Echo():
                self._echoes.append(event)
            case Accepted():
                if not self._accepted.done():
                    self._accepted.set_result(event)
                return
            case Vectors():
                raise ProtocolError("vectors for a job that writes text")
            case _:
                self._end = event
                if not self._accepted.done() and isinstance(event, ShimmyError):
                    self._accepted.set_exception(event)
                    self._accepted.exception()  # a caller that left does not make this an unhandled one
        self._wake()

    async def accepted(self) -> Accepted:
        """The worker's yes; raises what it said instead."""
        return await asyncio.shield(self._accepted)

    def __aiter__(self) -> AsyncIterator[Echo | Piece | Finished]:
        """The prompt where it is wanted, pieces, then Finished; raises the error that ended the job. One reader."""
        return self

    async def __anext__(self) -> Echo | Piece | Finished:
        # Not a generator, and no asyncio.Event: this runs once for each token of each stream.
        while not self._texts and not self._echoes and self._end is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._echoes:
            return self._echoes.pop(0)
        if self._texts:
            piece = Piece("".join(self._texts), self._n_tokens, tuple(self._logprobs))
            self._texts, self._n_tokens, self._logprobs = [], 0, []
            return piece
        if isinstance(self._end, ShimmyError):
            raise self._end
        if self._is_over or self._end is None:
            raise StopAsyncIteration
        self._is_over = True
        return self._end

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Cancel the job unless it has ended; safe to call twice."""
        if self._end is None:
            self._cancel(self._id)
            self._end = WorkerDied("the job was cancelled")
            self._wake()


class EmbeddingStream:
    """What the worker says about one job of embeddings: vectors, and how it ended."""

    def __init__(self, job: EmbeddingJob, cancel: Callable[[int], None]) -> None:
        self._job = job
        self._cancel = cancel
        self._vectors: list[bytes] = []
        self._end: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()

    def put(self, event: Event | ShimmyError) -> None:
        """Called by the client for each event of this job; raises ProtocolError for one that it cannot have."""
        match event:
            case Vectors(vectors):
                self._vectors += vectors
                n_bytes = len(self._vectors[0]) if self._vectors else 0
                if len(self._vectors) > len(self._job.inputs) or any(len(vector) != n_bytes for vector in vectors):
                    raise ProtocolError("vectors that nobody asked for")
            case Finished() if len(self._vectors) == len(self._job.inputs):
                self._end.set_result(event)
            case ShimmyError():
                self._end.set_exception(event)
                self._end.exception()  # a caller that left does not make this an unhandled one
            case _:
                raise ProtocolError("an event that a job of embeddings does not have")

    async def result(self) -> Embeddings:
        """All vectors; raises the error that ended the job."""
        finished = await asyncio.shield(self._end)
        return Embeddings(tuple(self._vectors), finished)

    def close(self) -> None:
        """Cancel the job unless it has ended; safe to call twice."""
        if not self._end.done():
            self._cancel(self._job.id)
