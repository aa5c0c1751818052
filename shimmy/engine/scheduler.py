"""Many jobs in one batch: admits them, plans each decode, samples, and says what happened.

Sees token ids and a `Backend`, never llama_cpp, templates or sockets. Runs on one thread, which owns everything here.
A job has tokens (its prompt and what was sampled) and a sequence that holds some of them; a step decodes more of them,
and a job whose last token was decoded gets the next one. So a prompt, a generation, and a job that gave its cells up
and starts over are all the same case.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from shimmy.engine import prefix
from shimmy.engine.speculation import Costs, Lookup
from shimmy.engine.text import StopFilter, TextDecoder
from shimmy.errors import BadRequest, Internal, ShimmyError
from shimmy.messages import Event, Finished, FinishReason, Job, Piece, Timings, Usage

# Prompt rows beside decode rows: enough to keep the processor busy, few enough that the streams go on flowing.
_SHARED_PREFILL_ROWS = 128
# Cells a job must find free beyond its prompt before it joins others, so that it does not have to leave at once.
_ADMISSION_SLACK = 64
# Each resident cell costs every later row a look at its mask (2,000 of them slow a decode by 7 %, SmolLM2 on 2 cores),
# so idle sequences, beside the one used last, may hold this share of the pool,
_IDLE_SHARE = 0.25
# and there may be this many of them before prompts have shown that they come back to more.
_MIN_IDLE_SEQUENCES = 3
# Decodes of jobs with the same adapter scales before others get their turn; setting other scales costs half a decode of
# a small model (SmolLM2: 3 of 7 ms).
_TURN_STEPS = 4
# The limit of a job that may generate until the context is full.
_NO_LIMIT = 2**31

JobEvent = tuple[int, Event | ShimmyError]


class Sampler(Protocol):
    """One job's chain; `close` frees it."""

    def sample(self, row: int) -> int: ...
    def close(self) -> None: ...


class Guide(Protocol):
    """What the tokens of a job have to obey. It is told all of them, in order, and is never asked about a draft.

    Its methods raise BadRequest when what the caller wants has outgrown their limits.
    """

    @property
    def is_over(self) -> bool: ...  # nothing may follow any more
    def allows(self, token: int) -> bool: ...
    def allowed(self) -> bytes: ...  # a bit for each token of the vocabulary, the lowest of a byte first
    def accept(self, token: int) -> None: ...
    def forced(self) -> list[int]: ...  # the tokens that have to come next, none where there is a choice


class Batch(Protocol):
    """The rows of the next decode."""

    def clear(self) -> None: ...
    def add(self, tokens: Sequence[int], position: int, sequence: int, *, n_outputs: int) -> int: ...


class Backend(Protocol):
    """What the scheduler needs of an engine: `llama.LlamaModel`, or a few lines of arithmetic in a test."""

    n_ctx: int
    n_batch: int
    n_sequences: int
    n_outputs: int
    can_rewind: bool

    @property
    def batch(self) -> Batch: ...
    def decode(self) -> int: ...
    def forget(self, sequence: int, start: int) -> bool: ...
    def share(self, source: int, target: int, n_tokens: int) -> bool: ...
    def set_scales(self, scales: Sequence[float]) -> None: ...
    def has_numbers(self, row: int) -> bool: ...
    def wipe(self) -> None: ...
    def is_end(self, token: int) -> bool: ...
    def piece(self, token: int) -> bytes: ...


@dataclass(slots=True)
class Task:
    """A job in the scheduler: its prompt as tokens at first, and everything that happens to it."""

    job: Job
    tokens: list[int]
    sampler: Sampler
    received_s: float
    scales: tuple[float, ...] = ()  # of each adapter of the model
    n_prompt: int = field(init=False)
    n_limit: int = field(init=False)
    decoder: TextDecoder = field(init=False, default_factory=TextDecoder)
    stops: StopFilter = field(init=False)
    sequence: prefix.Sequence | None = field(init=False, default=None)
    n_cached: int = field(init=False, default=0)
    n_generated: int = field(init=False, default=0)
    n_unsent: int = field(init=False, default=0)  # tokens whose text is still held back
    n_drafted: int = field(init=False, default=0)
    n_accepted: int = field(init=False, default=0)
    lookup: Lookup = field(init=False, default_factory=Lookup)
    started_s: float = field(init=False, default=0.0)
    first_token_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.n_prompt = len(self.tokens)
        self.n_limit = _NO_LIMIT if self.job.n_predict is None else self.job.n_predict
        self.stops = StopFilter(self.job.stop)

    @property
    def n_pending(self) -> int:
        """Tokens whose cells are not in the KV pool yet; 1 while the job generates."""
        return len(self.tokens) - (len(self.sequence.tokens) if self.sequence else 0)


@dataclass(slots=True)
class _Rows:
    """Consecutive rows of one task in the batch.

    `output` is the row with the logits of the task's last token, if that is among them; those of a draft follow.
    """

    task: Task
    tokens: list[int]
    output: int | None
    n_drafted: int = 0


class Scheduler:
    """Owns the KV pool of `backend`. Feed it tasks, call `step` while it has work, take what it emits."""

    def __init__(
        self,
        backend: Backend,
        emit: Callable[[list[JobEvent]], None],
        *,
        speculate: bool = True,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._backend = backend
        self._emit = emit
        self._clock = clock
        self._drafts = speculate and backend.can_rewind
        self._sequences = [prefix.Sequence(number) for number in range(backend.n_sequences)]
        self._waiting: deque[Task] = deque()
        self._running: list[Task] = []  # in the order of their admission
        self._events: list[JobEvent] = []
        self._costs = Costs()
        self._allowance = prefix.Allowance(_MIN_IDLE_SEQUENCES, backend.n_sequences)
        self._scales: tuple[float, ...] = ()  # of the adapters, as the backend was told last
        self._n_turn_steps = 0  # decodes with these scales since then
        self._n_steps = 0
        self._n_resident = 0  # tokens of all sequences

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, task: Task) -> None:
        """Queue a task whose prompt fits into the context."""
        self._waiting.append(task)

    def cancel(self, job_id: int) -> None:
        """Forget a job; an unknown or ended one is fine. Its tokens stay resident for the next prompt like it."""
        for task in self._waiting:
            if task.job.id == job_id:
                self._waiting.remove(task)
                task.sampler.close()
                return
        for task in self._running:
            if task.job.id == job_id:
                self._release(task)
                return

    def step(self) -> None:
        """One decode of the jobs that can move together, and the events it led to."""
        self._n_steps += 1
        start_s = self._clock()
        self._admit()
        rows = self._plan(self._turn())
        if rows:
            status = self._backend.decode()
            if status == 0:
                self._advance(rows)
                # Setting other adapter scales takes time, which the first decode after it pays.
                if len(rows) == 1 and rows[0].output is not None and self._n_turn_steps > 1:
                    self._costs.observe(len(rows[0].tokens), self._clock() - start_s)
            elif status == 1:
                self._give_up_cells()
            else:
                self._fail(rows, status)
        if self._events:
            events, self._events = self._events, []
            self._emit(events)

    # -- room in the pool ----------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give waiting tasks a sequence, first come first served, while the pool has room for their prompts."""
        while self._waiting and len(self._running) < self._backend.n_sequences:
            task = self._waiting[0]
            choice = prefix.choose(self._sequences, task.tokens, task.scales)
            if choice is None:
                return
            n_spoken_for = sum(len(other.tokens) for other in self._running)
            if self._running and n_spoken_for + len(task.tokens) + _ADMISSION_SLACK > self._backend.n_ctx:
                return
            self._waiting.popleft()
            self._start(task, choice)

    def _start(self, task: Task, choice: prefix.Choice) -> None:
        sequence = choice.sequence
        n_keep = 0
        if not task.job.cache_prompt or choice.source is not None:
            self._trim(sequence, 0)
        if task.job.cache_prompt:
            n_keep = self._share(choice) if choice.source else self._trim(sequence, choice.n_kept)
        sequence.busy = True
        sequence.scales = task.scales
        task.sequence = sequence
        if not task.started_s:
            self._allowance.asked(task.tokens)
            task.started_s = self._clock()
            task.n_cached = n_keep
        self._running.append(task)

    def _share(self, choice: prefix.Choice) -> int:
        """Give an empty sequence a prefix that another one has computed; 0 where the engine cannot.

        Shared cells count for both, so the pool may look fuller than it is, and never emptier.
        """
        assert choice.source is not None
        if not self._make_room(choice.n_kept, keep=choice.source):
            return 0
        if not self._backend.share(choice.source.id, choice.sequence.id, choice.n_kept):
            return 0
        choice.sequence.tokens += choice.source.tokens[: choice.n_kept]
        self._n_resident += choice.n_kept
        return choice.n_kept

    def _trim(self, sequence: prefix.Sequence, n_keep: int) -> int:
        """Drop what follows the first `n_keep` tokens; recurrent models can only drop all. Returns what was kept."""
        if n_keep < len(sequence.tokens) and not self._backend.forget(sequence.id, n_keep):
            n_keep = 0
            self._backend.forget(sequence.id, 0)
        self._n_resident -= len(sequence.tokens) - n_keep
        del sequence.tokens[n_keep:]
        return n_keep

    def _make_room(self, n_cells: int, keep: prefix.Sequence | None = None) -> bool:
        """Evict idle sequences but `keep` until `n_cells` are free; False when there are none left to evict."""
        while self._backend.n_ctx - self._n_resident < n_cells:
            victim = prefix.evictable(sequence for sequence in self._sequences if sequence is not keep)
            if victim is None:
                return False
            self._trim(victim, 0)
        return True

    def _give_up_cells(self) -> None:
        """Free a sequence although the pool seemed to have room: an idle one, else that of the youngest job."""
        victim = prefix.evictable(self._sequences)
        if victim is not None:
            self._trim(victim, 0)
        elif len(self._running) > 1:
            self._preempt(self._running[-1])
        else:
            self._fail_task(self._running[0], Internal("no room for one more token in an empty KV pool"))

    def _preempt(self, task: Task) -> None:
        """Take a job's cells away; it starts over, with what it has generated so far, when there is room again."""
        assert task.sequence is not None
        self._running.remove(task)
        self._trim(task.sequence, 0)
        task.sequence.busy = False
        task.sequence = None
        self._waiting.appendleft(task)

    # -- one decode ----------------------------------------------------------------------------------------------

    def _turn(self) -> list[Task]:
        """The jobs of this decode: adapters are set for a whole batch, so jobs of other scales take turns."""
        sets = list(dict.fromkeys(task.scales for task in self._running))
        if not sets:
            return []
        if self._scales not in sets:
            self._set_scales(sets[0])
        elif len(sets) > 1 and self._n_turn_steps >= _TURN_STEPS:
            self._set_scales(sets[(sets.index(self._scales) + 1) % len(sets)])
        self._n_turn_steps += 1
        return [task for task in self._running if task.scales == self._scales]

    def _set_scales(self, scales: tuple[float, ...]) -> None:
        self._backend.set_scales(scales)
        self._scales = scales
        self._n_turn_steps = 0

    def _plan(self, turn: list[Task]) -> list[_Rows]:
        """Fill the batch: a row for each generating job of `turn`, then prompt chunks in turn."""
        self._backend.batch.clear()
        while not self._make_room(sum(task.n_pending == 1 for task in turn)):
            self._preempt(self._running[-1])
            turn = [task for task in turn if task.sequence is not None]
        if len(self._running) == len(turn) == 1 and turn[0].n_pending == 1:
            return [self._add_with_draft(turn[0])]
        rows = [self._add(task, 1) for task in turn if task.n_pending == 1]
        prefilling = [task for task in turn if task.n_pending > 1]
        n_left = self._backend.n_batch - len(rows)
        if any(task.n_pending == 1 for task in self._running):
            n_left = min(n_left, _SHARED_PREFILL_ROWS)
        if prefilling:
            self._n_turn_steps = _TURN_STEPS  # a chunk takes as long as a few decodes
        first = self._n_steps % len(prefilling) if prefilling else 0
        for task in prefilling[first:] + prefilling[:first]:
            n_chunk = min(n_left, task.n_pending)
            if n_chunk == 0 or not self._make_room(self._n_planned(rows) + n_chunk):
                break
            rows.append(self._add(task, n_chunk))
            n_left -= n_chunk
        return rows

    @staticmethod
    def _n_planned(rows: list[_Rows]) -> int:
        return sum(len(planned.tokens) for planned in rows)

    def _add(self, task: Task, n_tokens: int) -> _Rows:
        assert task.sequence is not None
        start = len(task.sequence.tokens)
        tokens = task.tokens[start : start + n_tokens]
        is_last = start + n_tokens == len(task.tokens)
        row = self._backend.batch.add(tokens, start, task.sequence.id, n_outputs=int(is_last))
        return _Rows(task, tokens, row if is_last else None)

    def _add_with_draft(self, task: Task) -> _Rows:
        """The last token of a job that has the engine for itself, and a guess at what follows it."""
        assert task.sequence is not None
        draft: list[int] = []
        if self._drafts:
            n_free = self._backend.n_ctx - self._n_resident  # nothing is evicted for a guess
            n_max = min(self._backend.n_outputs, n_free, task.n_limit - task.n_generated) - 1
            draft = task.lookup.draft(task.tokens, n_max, self._costs)
        start = len(task.sequence.tokens)
        tokens = [task.tokens[-1], *draft]
        last = self._backend.batch.add(tokens, start, task.sequence.id, n_outputs=len(tokens))
        return _Rows(task, tokens, last - len(draft), len(draft))

    def _advance(self, rows: list[_Rows]) -> None:
        """Book the decoded rows, and sample where a job's last token was among them."""
        for planned in rows:
            assert planned.task.sequence is not None
            planned.task.sequence.tokens += planned.tokens
            self._n_resident += len(planned.tokens)
        if self._scales and not self._are_numbers(rows):
            return
        for planned in rows:
            if planned.output is None:
                continue
            if planned.n_drafted:
                self._verify(planned.task, planned.output, planned.tokens[1:])
            else:
                self._sample(planned.task, planned.output)

    def _are_numbers(self, rows: list[_Rows]) -> bool:
        """Whether the adapters left the model in its senses; if not, their jobs fail and all others start over.

        Large scales can make a NaN, and one in the KV pool spoils every row that is computed beside it.
        """
        spoilt = [row.task for row in rows if row.output is not None and not self._backend.has_numbers(row.output)]
        if not spoilt:
            return True
        for task in spoilt:
            if any(task.scales):
                message = "the model computes no numbers with these adapters: use smaller scales"
                self._fail_task(task, BadRequest(message, param="lora"))
            else:
                self._fail_task(task, Internal("the adapters of another job spoilt what was computed for this one"))
        for task in reversed(self._running.copy()):
            self._preempt(task)
        for sequence in self._sequences:
            self._trim(sequence, 0)
        self._backend.wipe()
        return False

    def _verify(self, task: Task, row: int, draft: list[int]) -> None:
        """Sample one row after the other while each gives the token that was guessed; drop the cells of the rest."""
        assert task.sequence is not None
        sequence, n_known, n_accepted = task.sequence, len(task.tokens), 0
        for guess in draft:
            if self._sample(task, row + n_accepted) != guess:
                break
            n_accepted += 1
        else:
            self._sample(task, row + n_accepted)
        task.lookup.learn(len(draft), n_accepted)
        task.n_drafted += len(draft)
        task.n_accepted += n_accepted
        self._trim(sequence, n_known + n_accepted)

    def _sample(self, task: Task, row: int) -> int | None:
        """The next token of a job, said as far as it can be; None when it ended the job."""
        if not task.first_token_s:
            task.first_token_s = self._clock()
        if task.n_limit == 0:
            self._finish(task, FinishReason.LENGTH)
            return None
        token = task.sampler.sample(row)
        task.n_generated += 1
        task.n_unsent += 1
        if self._backend.is_end(token):
            self._finish(task, FinishReason.STOP)
            return None
        task.tokens.append(token)
        text = task.stops.feed(task.decoder.feed(self._backend.piece(token)))
        if text:
            self._say(task, text)
        if task.stops.matched is not None:
            self._finish(task, FinishReason.STOP)
        elif task.n_generated >= task.n_limit or len(task.tokens) >= self._backend.n_ctx:
            self._finish(task, FinishReason.LENGTH)
        return token if task.sequence is not None else None

    def _say(self, task: Task, text: str) -> None:
        piece = Piece(text, task.n_unsent)
        task.n_unsent = 0
        if self._events and self._events[-1][0] == task.job.id:  # an accepted draft says several pieces in one step
            earlier = self._events.pop()[1]
            assert isinstance(earlier, Piece)
            piece = Piece(earlier.text + text, earlier.n_tokens + piece.n_tokens)
        self._events.append((task.job.id, piece))

    # -- how a job ends ------------------------------------------------------------------------------------------

    def _finish(self, task: Task, reason: FinishReason) -> None:
        if task.stops.matched is None:
            text = task.stops.feed(task.decoder.flush()) + task.stops.flush()
            if text:
                self._say(task, text)
        now = self._clock()
        self._events.append((task.job.id, Finished(reason, *self._account(task, now), task.stops.matched)))
        self._release(task)

    @staticmethod
    def _account(task: Task, now: float) -> tuple[Usage, Timings]:
        usage = Usage(task.n_prompt, task.n_cached, task.n_generated)
        timings = Timings(
            queue_ms=(task.started_s - task.received_s) * 1e3,
            prompt_ms=(task.first_token_s - task.started_s) * 1e3,
            predicted_ms=(now - task.first_token_s) * 1e3,
            n_drafted=task.n_drafted,
            n_accepted=task.n_accepted,
        )
        return usage, timings

    def _release(self, task: Task) -> None:
        """Let the job go and keep its tokens resident, at the expense of those that were used longer ago."""
        assert task.sequence is not None
        latest = task.sequence
        task.sequence = None
        self._running.remove(task)
        task.sampler.close()
        self._allowance.ended(latest.tokens)
        self._thin_out()
        latest.busy = False
        latest.last_used = self._n_steps

    def _thin_out(self) -> None:
        """Let the idle sequences go that are not worth their cells; the one that comes to them now is."""
        idle = [sequence for sequence in self._sequences if sequence.tokens and not sequence.busy]
        idle.sort(key=lambda sequence: sequence.last_used)
        n_cells = sum(len(sequence.tokens) for sequence in idle)
        while len(idle) >= self._allowance.n_sequences or n_cells > _IDLE_SHARE * self._backend.n_ctx:
            victim = idle.pop(0)
            n_cells -= len(victim.tokens)
            self._trim(victim, 0)

    def _fail(self, rows: list[_Rows], status: int) -> None:
        """The engine could not decode these rows; what it left in the pool under their sequences is not trusted."""
        for planned in rows:
            self._fail_task(planned.task, Internal(f"the engine failed to decode (status {status})"))

    def _fail_task(self, task: Task, error: ShimmyError) -> None:
        assert task.sequence is not None
        self._trim(task.sequence, 0)
        self._backend.forget(task.sequence.id, 0)
        self._events.append((task.job.id, error))
        self._release(task)
