"""The embeddings of many jobs in one batch: packs inputs into decodes and takes the vector of each input.

Sees token ids and an `EmbeddingBackend`, never llama_cpp, text or sockets. Runs on the thread that decodes, beside the
scheduler. Inputs are taken from all jobs in turn, so that a short job does not wait for a job of thousands of inputs;
the inputs of one job are taken in their order.
"""

import math
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from shimmy.engine.schedule.interfaces import EmbeddingBackend, JobEvent
from shimmy.errors import Internal, ShimmyError
from shimmy.messages.event import Finished, FinishReason, Timings, Usage, Vectors


@dataclass(slots=True, eq=False)
class EmbeddingTask:
    """A job in the embedder: its inputs as tokens, each of one at least and no more than the backend's `n_ctx`."""

    id: int
    inputs: list[list[int]]
    n_dimensions: int
    received_s: float
    started_s: float = field(init=False, default=0.0)
    n_taken: int = field(init=False, default=0)
    n_made: int = field(init=False, default=0)


@dataclass(slots=True)
class _Reading:
    """An input that is being computed, and the sequence that holds its first `n_read` tokens."""

    task: EmbeddingTask
    tokens: list[int]
    sequence: int
    n_read: int = 0
    n_rows: int = 0  # of the next decode

    @property
    def n_left(self) -> int:
        return len(self.tokens) - self.n_read


class Embedder:
    """Owns `backend`. Feed it tasks, call `step` while it has some, take what it emits."""

    def __init__(
        self,
        backend: EmbeddingBackend,
        emit: Callable[[list[JobEvent]], None],
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._backend = backend
        self._emit = emit
        self._clock = clock
        self._tasks: dict[int, EmbeddingTask] = {}
        self._untaken: deque[EmbeddingTask] = deque()  # tasks with inputs that are still to be read, in turn
        self._begun: _Reading | None = None  # the one input that takes more than one decode

    @property
    def n_tasks(self) -> int:
        return len(self._tasks)

    def submit(self, task: EmbeddingTask) -> None:
        self._tasks[task.id] = task
        self._untaken.append(task)

    def cancel(self, job_id: int) -> None:
        """Forget a job; an unknown or ended one is fine."""
        task = self._tasks.pop(job_id, None)
        if task is None:
            return
        if task in self._untaken:
            self._untaken.remove(task)
        if self._begun is not None and self._begun.task is task:
            self._backend.forget(self._begun.sequence)
            self._begun = None

    def step(self) -> None:
        """One decode, and the vectors that came of it."""
        readings = self._plan()
        if not readings:
            return
        status = self._backend.compute()
        if status != 0:
            self._fail(readings, Internal(f"the engine failed to compute an embedding (status {status})"))
            return
        vectors: dict[int, list[bytes]] = {}
        for reading in readings:
            reading.n_read += reading.n_rows
            if reading.n_left:
                self._begun = reading
                continue
            vector = unit(self._backend.vector(reading.sequence), reading.task.n_dimensions)
            if vector is None:
                self._fail(readings, Internal("the model computes no numbers for this input"))
                return
            self._backend.forget(reading.sequence)
            vectors.setdefault(reading.task.id, []).append(vector)
        events: list[JobEvent] = []
        for job_id, made in vectors.items():
            events.append((job_id, Vectors(tuple(made))))
            task = self._tasks[job_id]
            task.n_made += len(made)
            if task.n_made == len(task.inputs):
                del self._tasks[job_id]
                events.append((job_id, self._finished(task)))
        if events:
            self._emit(events)

    # -- one decode ----------------------------------------------------------------------------------------------

    def _plan(self) -> list[_Reading]:
        """Fill the batch: the begun input, then an input of each task in turn, as many as fit."""
        backend = self._backend
        backend.batch.clear()
        readings: list[_Reading] = []
        n_rows = n_cells = 0
        first_sequence = self._begun.sequence if self._begun else 0
        while len(readings) < backend.n_sequences and (reading := self._next()):
            n_free = backend.n_packed - n_rows if readings else backend.n_batch
            reading.n_rows = min(n_free, reading.n_left)
            if reading.n_rows < reading.n_left and not (backend.in_parts and reading.n_rows > 0):
                break
            n_cells += len(reading.tokens)
            if n_cells > backend.n_ctx:
                break
            self._take(reading)
            reading.sequence = (first_sequence + len(readings)) % backend.n_sequences
            chunk = reading.tokens[reading.n_read : reading.n_read + reading.n_rows]
            backend.batch.add(chunk, reading.n_read, reading.sequence, n_outputs=len(chunk))
            readings.append(reading)
            n_rows += len(chunk)
            if reading.n_rows < reading.n_left:
                break
        return readings

    def _next(self) -> _Reading | None:
        """The input whose turn it is."""
        if self._begun is not None or not self._untaken:
            return self._begun
        task = self._untaken[0]
        return _Reading(task, task.inputs[task.n_taken], 0)

    def _take(self, reading: _Reading) -> None:
        if reading is self._begun:
            self._begun = None
            return
        task = self._untaken.popleft()
        task.started_s = task.started_s or self._clock()
        task.n_taken += 1
        if task.n_taken < len(task.inputs):
            self._untaken.append(task)

    # -- how a job ends ------------------------------------------------------------------------------------------

    def _finished(self, task: EmbeddingTask) -> Finished:
        usage = Usage(sum(map(len, task.inputs)), 0, 0)
        queue_ms, prompt_ms = (task.started_s - task.received_s) * 1e3, (self._clock() - task.started_s) * 1e3
        return Finished(FinishReason.STOP, usage, Timings(queue_ms, prompt_ms, 0.0))

    def _fail(self, readings: list[_Reading], error: ShimmyError) -> None:
        """Fail all jobs of a decode: one NaN in it spoils the rows of the other jobs."""
        self._begun = None
        self._backend.wipe()
        job_ids = dict.fromkeys(reading.task.id for reading in readings)
        for job_id in job_ids:
            self.cancel(job_id)
        self._emit([(job_id, error) for job_id in job_ids])


def unit(values: Sequence[float], n_dimensions: int) -> bytes | None:
    """The first `n_dimensions` of `values`, scaled to the length 1, as Vectors has them; None when they are no numbers.

    A vector of zeros stays one, as in llama.cpp.
    """
    kept = values[:n_dimensions]
    length = math.hypot(*kept)
    if len(kept) < n_dimensions or not math.isfinite(length):
        return None
    scale = 1 / length if length else 0.0
    return struct.pack(f"<{n_dimensions}f", *[value * scale for value in kept])
