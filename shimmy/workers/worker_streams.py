"""What a worker says about one job or call, for the caller that waits for it: text, embeddings or tokens, and the end.

Knows events and asyncio; nothing of processes or sockets. The order is part of the protocol: first `accepted`, once,
then how far the job is and the prompt where these are wanted, then pieces, then the end. An event out of order, or with
more text than the context of its job can hold, is a ProtocolError.
"""

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable
from typing import Any

from shimmy.errors import ShimmyError, WorkerDied
from shimmy.messages.event import (
    Accepted,
    Echo,
    Embeddings,
    Finished,
    JobOutput,
    JobProgress,
    Piece,
    PromptProgress,
    QueuePlace,
    Vectors,
)
from shimmy.messages.request import EmbeddingJob
from shimmy.wire.frames import ProtocolError

# Of a job's text, for each of its tokens; the longest ones in use have 256 bytes.
_CHARACTERS_FOR_EACH = 1024
# Beyond that, of a job's text and of its events.
_SLACK = 64 * 1024
# Tokens that a character of a text can become: normal forms make many characters of one.
_TOKENS_FOR_EACH = 32
_ANSWER_SLACK = 1024
_MAX_PROMPT_CHARACTERS = 2**26  # of a rendered prompt
_N_WITH_LOGPROBS = 16  # pieces


class JobStream:
    """What the worker says about one job. Pieces that were not read yet are joined, so a slow reader costs nothing.

    Its prompt and its reply have `n_tokens_max` tokens at most; the prompt comes only where it is `echoed`, and how far
    the job is where it `tells_progress`.
    """

    def __init__(
        self,
        job_id: int,
        cancel: Callable[[int], None],
        n_tokens_max: int = 2**24,
        *,
        echoed: bool = True,
        tells_progress: bool = True,
    ) -> None:
        self._id = job_id
        self._cancel = cancel
        self._n_tokens_max = n_tokens_max
        self._echoed = echoed
        self._tells_progress = tells_progress
        self._n_told = 0  # tokens of all pieces; beside them, of all that was said: characters, tokens, events
        self._n_characters = 0
        self._n_logprobs = 0
        self._n_events = 0
        self._accepted: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._pieces: list[Piece] = []
        self._echoes: list[Echo] = []
        self._progress: list[JobProgress] = []
        self._end: Finished | ShimmyError | None = None
        self._is_over = False
        self._waiter: asyncio.Future[None] | None = None  # the reader that waits for the next event

    def put(self, event: JobOutput | ShimmyError) -> None:
        """Called by the client for each event of this job; raises ProtocolError for one that it cannot have now."""
        match event:
            case Piece(text, n_tokens, logprobs):
                self._check(text, n_tokens, len(logprobs))
                self._pieces.append(event)
            case Echo(text, logprobs):
                if not self._echoed or self._n_told:
                    raise ProtocolError("a prompt that was not asked for")
                self._check(text, 0, len(logprobs))
                self._echoes.append(event)
            case QueuePlace() | PromptProgress():
                if not self._tells_progress or self._n_told:
                    raise ProtocolError("progress that was not asked for")
                self._check("", 0, 0)
                if self._progress and isinstance(event, QueuePlace) and isinstance(self._progress[-1], QueuePlace):
                    self._progress.pop()  # the latest place is what counts
                self._progress.append(event)
            case Accepted():
                if self._accepted.done():
                    raise ProtocolError("a job accepted twice")
                self._accepted.set_result(event)
                return
            case Vectors():
                raise ProtocolError("vectors for a job that writes text")
            case Finished() if not self._accepted.done():
                raise ProtocolError("the end of a job that was not accepted")
            case _:
                self._end = event
                if not self._accepted.done() and isinstance(event, ShimmyError):
                    self._accepted.set_exception(event)
                    self._accepted.exception()  # marks it as retrieved, for a caller that left
        self._wake()

    def _check(self, text: str, n_tokens: int, n_logprobs: int) -> None:
        if not self._accepted.done():
            raise ProtocolError("text of a job that was not accepted")
        self._n_events += 1
        self._n_told += n_tokens
        self._n_characters += len(text)
        self._n_logprobs += n_logprobs
        if (
            self._n_told > self._n_tokens_max
            or self._n_logprobs > self._n_tokens_max
            or self._n_events > 2 * self._n_tokens_max + _SLACK
            or self._n_characters > _CHARACTERS_FOR_EACH * self._n_tokens_max + _SLACK
        ):
            raise ProtocolError("more text than the context of its job holds")

    async def accepted(self) -> Accepted:
        """The worker's `accepted`; raises the error that came instead."""
        return await asyncio.shield(self._accepted)

    def __aiter__(self) -> AsyncIterator[JobProgress | Echo | Piece | Finished]:
        """How far the job is and the prompt where these are wanted, pieces, then Finished; raises the error that ended
        the job. One reader."""
        return self

    async def __anext__(self) -> JobProgress | Echo | Piece | Finished:
        # Not a generator, and no asyncio.Event: this runs once for each token of each stream.
        while not self._pieces and not self._echoes and not self._progress and self._end is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._n_logprobs and len(self._pieces) + len(self._echoes) > 1:
            await asyncio.sleep(0)  # each takes its time, and there are more of them
        if self._progress:
            return self._progress.pop(0)
        if self._echoes:
            return self._echoes.pop(0)
        if self._pieces:
            return self._joined()
        if isinstance(self._end, ShimmyError):
            raise self._end
        if self._is_over or self._end is None:
            raise StopAsyncIteration
        self._is_over = True
        return self._end

    def _joined(self) -> Piece:
        """The pieces that were not read yet, in one. With log-probabilities only some: each takes time to convert."""
        if len(self._pieces) == 1:
            return self._pieces.pop()
        n_taken = len(self._pieces) if self._n_logprobs == 0 else _N_WITH_LOGPROBS
        taken, self._pieces = self._pieces[:n_taken], self._pieces[n_taken:]
        logprobs = tuple([logprob for piece in taken for logprob in piece.logprobs])
        return Piece("".join([piece.text for piece in taken]), sum([piece.n_tokens for piece in taken]), logprobs)

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
        self._id = job.id
        self._n_vectors = len(job.request.inputs)
        self._cancel = cancel
        n_dimensions = job.request.n_dimensions
        self._n_bytes = None if n_dimensions is None else 4 * n_dimensions  # of a vector, once it is known
        self._vectors: list[bytes] = []
        self._end: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()

    def put(self, event: JobOutput | ShimmyError) -> None:
        """Called by the client for each event of this job; raises ProtocolError for one that it cannot have."""
        match event:
            case Vectors(vectors):
                self._vectors += vectors
                if self._n_bytes is None and vectors:
                    self._n_bytes = len(vectors[0])
                if len(self._vectors) > self._n_vectors or any(len(vec) != self._n_bytes for vec in vectors):
                    raise ProtocolError("vectors that were not asked for")
            case Finished() if len(self._vectors) == self._n_vectors:
                self._end.set_result(event)
            case ShimmyError():
                self._end.set_exception(event)
                self._end.exception()  # marks it as retrieved, for a caller that left
            case _:
                raise ProtocolError("an event that a job of embeddings does not have")

    async def result(self) -> Embeddings:
        """All vectors; raises the error that ended the job."""
        finished = await asyncio.shield(self._end)
        return Embeddings(tuple(self._vectors), finished)

    def close(self) -> None:
        """Cancel the job unless it has ended; safe to call twice."""
        if not self._end.done():
            self._cancel(self._id)


class Answer:
    """The answer to one call, a text or tokens, of `n_most` characters or tokens at most; it comes in parts."""

    def __init__(self, n_most: int, *, is_text: bool) -> None:
        self._is_text = is_text
        self._n_left = n_most
        self._texts: list[str] = []
        self._tokens = array("i")  # of a list, the garbage collector would look at each token again and again
        self._whole: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @classmethod
    def tokens_of(cls, text: str) -> "Answer":
        """For the tokens of `text`."""
        return cls(_TOKENS_FOR_EACH * len(text) + _ANSWER_SLACK, is_text=False)

    @classmethod
    def text_of(cls, n_tokens: int) -> "Answer":
        """For the text of `n_tokens` tokens."""
        return cls(_CHARACTERS_FOR_EACH * n_tokens + _ANSWER_SLACK, is_text=True)

    @classmethod
    def rendered_prompt(cls) -> "Answer":
        """For a chat as its template renders it."""
        return cls(_MAX_PROMPT_CHARACTERS, is_text=True)

    def put(self, part: list[int] | str | ShimmyError, *, more: bool) -> None:
        """Called by the client for each part; raises ProtocolError for one that it cannot have."""
        if self._whole.done():
            return
        if isinstance(part, ShimmyError):
            self._whole.set_exception(part)
            self._whole.exception()  # marks it as retrieved, for a caller that left
            return
        self._n_left -= len(part)
        if isinstance(part, str) != self._is_text or self._n_left < 0:
            raise ProtocolError("an answer that was not asked for")
        if isinstance(part, str):
            self._texts.append(part)
        else:
            self._tokens.extend(part)
        if not more:
            self._whole.set_result("".join(self._texts) if self._is_text else self._tokens)

    async def whole(self) -> Any:
        """The answer; raises the error that came instead."""
        return await self._whole
