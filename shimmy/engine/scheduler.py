"""Many jobs in one batch: admits them, plans each decode, samples, and says what happened.

Sees token ids and a `Backend`, never llama_cpp, templates or sockets. Runs on one thread, which owns everything here.
A job has tokens (its prompt and what was sampled) and a sequence that holds some of them; a step decodes more of them,
and a job whose last token was decoded gets the next one. So a prompt, a generation, and a job that gave its cells up
and starts over are all the same case.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from shimmy.engine import prefix
from shimmy.engine.speculation import Costs
from shimmy.engine.task import Guide, Task
from shimmy.engine.turns import Turns
from shimmy.errors import BadRequest, Internal, ShimmyError
from shimmy.messages import Echo, Event, FinishReason, Piece, TokenLogprob

if TYPE_CHECKING:
    from shimmy.engine.prompts import Ready  # few workers need it

# Prompt rows beside decode rows: enough to keep the processor busy, few enough that the streams go on flowing.
_SHARED_PREFILL_ROWS = 128
# Cells a job must find free beyond its prompt before it joins others, so that it does not have to leave at once.
_ADMISSION_SLACK = 64
# Each resident cell costs every later row a look at its mask (2,000 of them slow a decode by 7 %, SmolLM2 on 2 cores),
# so idle sequences, beside the one used last, may hold this share of the pool,
_IDLE_SHARE = 0.25
# and there may be this many of them before prompts have shown that they come back to more.
_MIN_IDLE_SEQUENCES = 3
# Tokens that a guide may force at once: a batch has to hold those of all jobs.
_MAX_FORCED = 32
# Beside other jobs, forced tokens may make a decode so many times as long.
_FORCED_COST = 1.05
# A prompt waits for another that is computing the same beginning when that has so many tokens.
_WORTH_WAITING = 64

Scales = tuple[float, ...]
JobEvent = tuple[int, Event | ShimmyError]


class Batch(Protocol):
    """The rows of the next decode."""

    def clear(self) -> None: ...
    def add(self, tokens: Sequence[int], position: int, sequence: int, *, n_outputs: int) -> int: ...


class StoredPrompts(Protocol):
    """What the scheduler needs of the prompts on the disk: `prompts.Prompts`."""

    @property
    def is_writing(self) -> bool: ...
    def is_coming(self, prompt: Sequence[int], scales: Scales, n_resident: int, *, wait: bool) -> bool: ...
    def take(self, prompt: Sequence[int], scales: Scales, n_resident: int) -> "Ready | None": ...
    def put(self, ready: "Ready", sequence: int) -> bool: ...
    def keep(self, tokens: Sequence[int], scales: Scales, sequence: int, *, is_urgent: bool = False) -> bool: ...
    def rest(self) -> None: ...
    def flush(self, timeout_s: float) -> None: ...


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
    def logprob(self, row: int, token: int, n_top: int) -> TokenLogprob: ...
    def first_logprob(self, token: int) -> TokenLogprob: ...
    def wipe(self) -> None: ...
    def is_end(self, token: int) -> bool: ...
    def piece(self, token: int) -> bytes: ...


@dataclass(slots=True)
class _Rows:
    """Consecutive rows of one task in the batch, from the row `first` on.

    `output` is the row with the logits of the task's last token, if that is among them; those of a draft follow.
    """

    task: Task
    tokens: list[int]
    first: int
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
        prompts: StoredPrompts | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._backend = backend
        self._emit = emit
        self._clock = clock
        self._prompts = prompts
        self._drafts = speculate and backend.can_rewind
        self._sequences = [prefix.Sequence(number) for number in range(backend.n_sequences)]
        self._waiting: deque[Task] = deque()
        self._running: list[Task] = []  # in the order of their admission
        self._events: list[JobEvent] = []
        self._costs = Costs()
        self._allowance = prefix.Allowance(_MIN_IDLE_SEQUENCES, backend.n_sequences)
        self._turns = Turns(backend.set_scales)
        self._n_forced_max = max(0, min(_MAX_FORCED, backend.n_batch // backend.n_sequences - 1))
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
        rows = self._plan(self._turns.of(self._running))
        if rows:
            status = self._backend.decode()
            if status == 0:
                self._advance(rows)
                # Setting other adapter scales takes time, which the first decode after it pays.
                if len(rows) == 1 and rows[0].output is not None and self._turns.n_steps > 1:
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
        """Give waiting tasks a sequence, first come first served, while the pool has room for their prompts.

        One whose prompt begins like another that is being computed lets others pass until it can share that.
        """
        for task in tuple(self._waiting) if len(self._running) < self._backend.n_sequences else ():
            if self._can_share_soon(task) or self._is_coming(task):
                continue
            choice = prefix.choose(self._sequences, task.tokens, task.scales)
            if choice is None:
                return
            n_spoken_for = sum(len(other.tokens) for other in self._running)
            if self._running and n_spoken_for + len(task.tokens) + _ADMISSION_SLACK > self._backend.n_ctx:
                return
            self._waiting.remove(task)
            self._start(task, choice)
            if len(self._running) == self._backend.n_sequences:
                return

    def _can_share_soon(self, task: Task) -> bool:
        if not (task.uses_cache and self._backend.can_rewind):
            return False
        computing = [other for other in self._running if other.scales == task.scales and not other.is_generating]
        if not computing:
            return False
        alike = [sequence for sequence in self._sequences if sequence.scales == task.scales]
        n_there = max(prefix.n_common(sequence.tokens, task.tokens) for sequence in alike)
        n_soon = max(prefix.n_common(other.tokens, task.tokens) for other in computing)
        return n_soon >= _WORTH_WAITING and n_soon > n_there

    # -- prompts on the disk -------------------------------------------------------------------------------------

    def _is_coming(self, task: Task) -> bool:
        """Whether more of its prompt is being read from the disk than the pool has; awaited where no job runs."""
        if self._prompts is None or not task.uses_cache:
            return False
        alike = (sequence for sequence in self._sequences if sequence.scales == task.scales)
        n_there = max((prefix.n_common(sequence.tokens, task.tokens) for sequence in alike), default=0)
        return self._prompts.is_coming(task.tokens, task.scales, n_there, wait=not self._running)

    def _put(self, ready: "Ready", sequence: prefix.Sequence) -> int:
        """Give `sequence`, instead of what it holds, what has come from the disk; returns how much of it is of use."""
        assert self._prompts is not None
        self._trim(sequence, 0)
        if not self._make_room(len(ready.tokens)) or not self._prompts.put(ready, sequence.id):
            return 0
        sequence.tokens += ready.tokens
        self._n_resident += len(ready.tokens)
        return self._trim(sequence, ready.n_tokens)

    def _keep(self, sequence: prefix.Sequence) -> None:
        """Let the disk have a sequence that is about to go, where that takes no time."""
        if self._prompts is not None:
            self._prompts.keep(sequence.tokens, sequence.scales, sequence.id, is_urgent=True)

    def store_one(self) -> bool:
        """Let the disk have one of the resident sequences while no job runs; whether to ask again soon."""
        if self._prompts is None or self._running or self._waiting:
            return False
        self._prompts.rest()
        if self._prompts.is_writing:
            return True
        return any(self._prompts.keep(each.tokens, each.scales, each.id) for each in self._by_use())

    def store_all(self, deadline_s: float) -> None:
        """Let the disk have all sequences, the latest first, until `deadline_s` of the clock: it is the end."""
        for sequence in self._by_use():
            if self._prompts is None or self._clock() >= deadline_s:
                return
            self._prompts.keep(sequence.tokens, sequence.scales, sequence.id)
            self._prompts.flush(deadline_s - self._clock())

    def _by_use(self) -> list[prefix.Sequence]:
        return sorted(self._sequences, key=lambda sequence: (sequence.busy, sequence.last_used), reverse=True)

    def _start(self, task: Task, choice: prefix.Choice) -> None:
        sequence = choice.sequence
        n_keep = self._resume(task, choice)
        sequence.busy = True
        sequence.scales = task.scales
        task.sequence = sequence
        if not task.started_s:
            self._allowance.asked(task.tokens)
            task.started_s = self._clock()
            task.n_cached = n_keep
        self._running.append(task)

    def _resume(self, task: Task, choice: prefix.Choice) -> int:
        """Give the sequence of `choice` what there is of the task's prompt, in the pool or on the disk."""
        sequence = choice.sequence
        if not task.uses_cache:
            return self._trim(sequence, 0)
        ready = self._prompts.take(task.tokens, task.scales, choice.n_kept) if self._prompts is not None else None
        if ready is not None:
            return self._put(ready, sequence)
        if choice.source is None:
            return self._trim(sequence, choice.n_kept)
        self._trim(sequence, 0)
        return self._share(choice)

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
        n_keep = min(n_keep, len(sequence.tokens))
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
            self._keep(victim)
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
        task.n_forced = 0
        self._waiting.appendleft(task)

    # -- one decode ----------------------------------------------------------------------------------------------

    def _plan(self, turn: list[Task]) -> list[_Rows]:
        """Fill the batch: the last tokens of each generating job of `turn`, then prompt chunks in turn."""
        self._backend.batch.clear()
        while not self._make_room(sum(task.n_pending for task in turn if task.is_generating)):
            self._preempt(self._running[-1])
            turn = [task for task in turn if task.sequence is not None]
        if len(self._running) == len(turn) == 1 and turn[0].is_generating and not turn[0].n_forced:
            return [self._add_with_draft(turn[0])]
        rows = [self._add(task, task.n_pending) for task in turn if task.is_generating]
        prefilling = [task for task in turn if not task.is_generating]
        n_left = self._backend.n_batch - self._n_planned(rows)
        n_outputs_left = self._backend.n_outputs - len(rows)
        if any(task.is_generating for task in self._running):
            n_left = min(n_left, _SHARED_PREFILL_ROWS)
        if prefilling:
            self._turns.end()  # a chunk takes as long as a few decodes
        first = self._n_steps % len(prefilling) if prefilling else 0
        for task in prefilling[first:] + prefilling[:first]:
            n_chunk = min(n_left, task.n_pending)
            if task.wants_prompt_logprobs:
                n_chunk = min(n_chunk, n_outputs_left)
            if n_chunk <= 0 or not self._make_room(self._n_planned(rows) + n_chunk):
                break
            rows.append(self._add(task, n_chunk))
            n_left -= n_chunk
            n_outputs_left -= n_chunk if task.wants_prompt_logprobs else 1
        return rows

    @staticmethod
    def _n_planned(rows: list[_Rows]) -> int:
        return sum(len(planned.tokens) for planned in rows)

    def _add(self, task: Task, n_tokens: int) -> _Rows:
        assert task.sequence is not None
        start = len(task.sequence.tokens)
        tokens = task.tokens[start : start + n_tokens]
        is_last = start + n_tokens == len(task.tokens)
        n_outputs = n_tokens if task.wants_prompt_logprobs else int(is_last)
        row = self._backend.batch.add(tokens, start, task.sequence.id, n_outputs=n_outputs)
        return _Rows(task, tokens, row - n_tokens + 1, row if is_last else None)

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
        return _Rows(task, tokens, last - len(draft), last - len(draft), len(draft))

    def _advance(self, rows: list[_Rows]) -> None:
        """Book the decoded rows, and sample where a job's last token was among them."""
        for planned in rows:
            task = planned.task
            assert task.sequence is not None
            if task.wants_prompt_logprobs and task.n_echoed < task.n_prompt:
                self._echo(planned, len(task.sequence.tokens))
            task.sequence.tokens += planned.tokens
            task.n_forced = 0
            self._n_resident += len(planned.tokens)
        if self._turns.scales and not self._are_numbers(rows):
            return
        for planned in rows:
            if planned.output is None:
                continue
            if planned.n_drafted:
                self._verify(planned.task, planned.output, planned.tokens[1:])
            else:
                self._sample(planned.task, planned.output)

    def _echo(self, planned: _Rows, start: int) -> None:
        """Say how likely the tokens of the prompt were that these rows, from position `start` on, have predicted."""
        task = planned.task
        assert task.job.n_logprobs is not None
        logprobs = []
        if task.n_echoed == 0:
            logprobs.append(self._backend.first_logprob(task.tokens[0]))
        for place in range(max(start, task.n_echoed + len(logprobs) - 1), start + len(planned.tokens)):
            if place + 1 < task.n_prompt:
                row = planned.first + place - start
                logprobs.append(self._backend.logprob(row, task.tokens[place + 1], task.job.n_logprobs))
        task.n_echoed += len(logprobs)
        self._events.append((task.job.id, Echo("", tuple(logprobs))))

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
        """Sample one row after the other as long as what was guessed is what comes; drop the cells of the rest.

        What a guide forces after a token needs no row: it is right or wrong like the guess that stands in its place.
        """
        assert task.sequence is not None
        sequence, n_known, n_accepted = task.sequence, len(task.tokens), 0
        while task.sequence is not None:
            self._sample(task, row + n_accepted)
            new = task.tokens[n_known:]
            while n_accepted < min(len(draft), len(new)) and draft[n_accepted] == new[n_accepted]:
                n_accepted += 1
            if n_accepted < len(new):
                break
        task.lookup.learn(len(draft), n_accepted)
        task.n_drafted += len(draft)
        task.n_accepted += n_accepted
        self._trim(sequence, n_known + n_accepted)
        if task.sequence is not None:
            task.n_forced = task.n_pending - 1

    def _sample(self, task: Task, row: int) -> None:
        """The next token of a job, and those that its guide forces after it, said as far as they can be."""
        if not task.first_token_s:
            task.first_token_s = self._clock()
        if task.n_limit == 0:
            self._finish(task, FinishReason.LENGTH)
            return
        try:
            token = task.pick(row)
            if self._take(task, token, row) and task.guide is not None:
                self._force(task, task.guide)
        except ShimmyError as error:  # the guide's
            self._fail_task(task, error)

    def _force(self, task: Task, guide: Guide) -> None:
        """Take the tokens that have to come next: nobody samples them, and one decode computes many of them.

        Not where each token's log-probability is wanted, which the decode of the one before it tells.
        """
        if task.job.n_logprobs is not None:
            return
        if not task.forced:
            task.forced.extend(guide.forced())
        for _ in range(min(len(task.forced), self._n_forced_now())):
            token = task.pick_forced()
            task.n_forced += 1
            if not self._take(task, token):
                return

    def _n_forced_now(self) -> int:
        """How many tokens may be forced at once; beside others, as many as hardly make the next decode longer."""
        n_others = len(self._running) - 1
        if not n_others:
            return self._n_forced_max
        limit = _FORCED_COST * self._costs.of(n_others + 1)
        return sum(self._costs.of(n_others + 1 + n) <= limit for n in range(1, self._n_forced_max + 1))

    def _take(self, task: Task, token: int, row: int | None = None) -> bool:
        """Add a token to a job; whether it goes on. `row` is the one that predicted it, where that may be told."""
        task.count()
        logprob = None
        if row is not None and task.job.n_logprobs is not None:
            logprob = self._backend.logprob(row, token, task.job.n_logprobs)
        if self._backend.is_end(token):
            task.end(logprob)
            self._finish(task, FinishReason.STOP)
            return False
        if task.guide is not None:
            task.guide.accept(token)
        self._say(task, task.take(token, self._backend.piece(token), logprob))
        if task.is_stopped or (task.guide is not None and task.guide.is_over):
            self._finish(task, FinishReason.STOP)
        elif task.n_generated >= task.n_limit or len(task.tokens) >= self._backend.n_ctx:
            self._finish(task, FinishReason.LENGTH)
        return task.sequence is not None

    def _say(self, task: Task, piece: Piece | None) -> None:
        if piece is None:
            return
        earlier = self._events[-1] if self._events else None
        # An accepted draft, or what a guide forces, says several pieces in one step.
        if earlier is not None and earlier[0] == task.job.id and isinstance(earlier[1], Piece):
            said = earlier[1]
            piece = Piece(said.text + piece.text, said.n_tokens + piece.n_tokens, said.logprobs + piece.logprobs)
            self._events.pop()
        self._events.append((task.job.id, piece))

    # -- how a job ends ------------------------------------------------------------------------------------------

    def _finish(self, task: Task, reason: FinishReason) -> None:
        self._say(task, task.rest())
        self._events.append((task.job.id, task.finished(reason, self._clock())))
        self._release(task)

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
            self._keep(victim)
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
