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
from typing import Protocol

from shimmy.engine.kv import prefix_tree
from shimmy.engine.kv.kv_pool import KvBackend, KvPool, StoredPrompts
from shimmy.engine.schedule.lora_turns import LoraTurns
from shimmy.engine.schedule.prefill_budget import PrefillBudget
from shimmy.engine.schedule.task import Guide, Task
from shimmy.engine.speculate.speculation import DecodeCosts, Draft, Drafter
from shimmy.errors import BadRequest, Internal, OutOfMemory, ShimmyError
from shimmy.messages.event import Echo, FinishReason, JobOutput, Piece, TokenLogprob

# Cells a job must find free beyond its prompt before it joins others, so that it does not have to leave at once.
_ADMISSION_SLACK = 64
# A reply is expected to have so many tokens, where its limit says no less.
_EXPECTED_REPLY = 256
# Tokens that a guide may force at once: a batch has to hold those of all jobs.
_MAX_FORCED = 32
# A prompt waits for another that is computing the same beginning when that has so many tokens.
_WORTH_WAITING = 64

JobEvent = tuple[int, JobOutput | ShimmyError]


class DecodeBatch(Protocol):
    """The rows of the next decode."""

    def clear(self) -> None: ...
    def add(self, tokens: Sequence[int], position: int, sequence: int, *, n_outputs: int) -> int: ...


class DecodeBackend(KvBackend, Protocol):
    """What the scheduler needs of an engine: `llama.LlamaModel`, or a few lines of arithmetic in a test."""

    n_batch: int
    n_outputs: int

    @property
    def batch(self) -> DecodeBatch: ...
    def decode(self) -> int: ...
    def set_scales(self, scales: Sequence[float]) -> None: ...
    def has_numbers(self, row: int) -> bool: ...
    def logprob(self, row: int, token: int, n_top: int) -> TokenLogprob: ...
    def first_logprob(self, token: int) -> TokenLogprob: ...
    def is_end(self, token: int) -> bool: ...
    def piece(self, token: int) -> bytes: ...


@dataclass(slots=True)
class _Rows:
    """Consecutive rows of one task in the batch, from the row `first` on.

    `output` is the row with the logits of the task's last token, if that is among them; those of a guess follow.
    """

    task: Task
    tokens: list[int]
    first: int
    output: int | None
    guess: Draft | None = None
    guessing_s: float = 0.0  # what it took to make the guess, or to find that there is none
    is_prompt: bool = False


class Scheduler:
    """Owns the KV pool of `backend`. Feed it tasks, call `step` while it has work, take what it emits."""

    def __init__(
        self,
        backend: DecodeBackend,
        emit: Callable[[list[JobEvent]], None],
        *,
        speculate: bool = True,
        drafter: Drafter | None = None,
        prompts: StoredPrompts | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._backend = backend
        self._emit = emit
        self._clock = clock
        self._drafts = speculate and backend.can_rewind
        self._drafter = drafter
        self._cells = KvPool(backend, prompts)
        self._waiting: deque[Task] = deque()
        self._running: list[Task] = []  # in the order of their admission
        self._events: list[JobEvent] = []
        self._costs = DecodeCosts()
        self._pace = PrefillBudget()
        self._turns = LoraTurns(backend.set_scales)
        self._n_forced_max = max(0, min(_MAX_FORCED, backend.n_batch // backend.n_sequences - 1))
        self._n_steps = 0
        self.n_begun = 0  # jobs that have had their first token

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def n_new(self, task: Task) -> int:
        """How many tokens of its prompt are not resident."""
        n_common = self._cells.n_common(task.tokens, task.scales) if task.uses_cache else 0
        return len(task.tokens) - n_common

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

    def store_one(self) -> bool:
        """Let the disk have one of the resident sequences while no job runs; whether to ask again soon."""
        return not (self._running or self._waiting) and self._cells.store_one()

    def store_all(self, deadline_s: float) -> None:
        """Let the disk have all sequences, the latest first, until `deadline_s` of the clock: it is the end."""
        self._cells.store_all(lambda: deadline_s - self._clock())

    def rest(self) -> None:
        """Give memory back that nobody is going to miss, while there is nothing to do."""
        if not self._running:
            self._cells.shrink()

    def step(self) -> None:
        """One decode of the jobs that can move together, and the events it led to."""
        self._n_steps += 1
        self._admit()
        start_s = self._clock()
        rows = self._plan(self._turns.of(self._running))
        if rows:
            status = self._backend.decode()
            if status == 0:
                self._advance(rows)
                # Setting other adapter scales takes time, which the first decode after it pays.
                if self._turns.n_steps > 1:
                    self._learn(rows, self._clock() - start_s)
            elif status == 1:
                self._give_up_cells()
            else:
                self._fail(rows, status)
        if self._events:
            events, self._events = self._events, []
            self._emit(events)

    def _learn(self, rows: list[_Rows], seconds: float) -> None:
        """What a decode of `rows` took, for those who plan the next ones."""
        seconds -= sum(planned.guessing_s for planned in rows)
        if len(rows) == 1 and rows[0].output is not None:
            self._costs.observe(len(rows[0].tokens), seconds)
        prompts = [planned for planned in rows if planned.is_prompt]
        if not any(planned.task.wants_prompt_logprobs for planned in prompts):  # telling them takes longer
            n_prompt_rows = self._n_planned(prompts)
            self._pace.observe(self._n_planned(rows) - n_prompt_rows, n_prompt_rows, seconds)

    # -- who runs ------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give waiting tasks a sequence, first come first served, while the pool has room for their prompts.

        One whose prompt begins like another that is being computed lets others pass until it can share that.
        """
        n_before = len(self._running)
        for task in tuple(self._waiting) if n_before < self._backend.n_sequences else ():
            if self._can_share_soon(task) or self._is_coming(task):
                continue
            choice = self._cells.choose(task.tokens, task.scales)
            if choice is None or not self._has_room_for(task, choice):
                break
            self._waiting.remove(task)
            self._start(task, choice)
        if len(self._running) > n_before:
            self._cells.expect(sum(task.n_pending + min(task.n_left, _EXPECTED_REPLY) for task in self._running))

    def _can_share_soon(self, task: Task) -> bool:
        if not (task.uses_cache and self._backend.can_rewind):
            return False
        computing = [other for other in self._running if other.scales == task.scales and not other.is_generating]
        if not computing:
            return False
        n_soon = max(prefix_tree.n_common(other.tokens, task.tokens) for other in computing)
        return n_soon >= _WORTH_WAITING and n_soon > self._cells.n_common(task.tokens, task.scales)

    def _is_coming(self, task: Task) -> bool:
        """Whether more of its prompt is being read from the disk; awaited where no job runs."""
        return task.uses_cache and self._cells.is_coming(task.tokens, task.scales, wait=not self._running)

    def _has_room_for(self, task: Task, choice: prefix_tree.PrefixMatch) -> bool:
        """Whether a task can join those that run without taking the cells they need next."""
        if not self._running:
            return True
        n_kept = choice.n_kept if task.uses_cache else 0
        n_wanted = sum(other.n_pending for other in self._running) + len(task.tokens) - n_kept + _ADMISSION_SLACK
        return self._cells.n_taken_with(choice, n_kept) + n_wanted <= self._cells.n_most

    def _start(self, task: Task, choice: prefix_tree.PrefixMatch) -> None:
        n_kept = self._cells.take(choice, task.tokens, task.scales, uses_cache=task.uses_cache)
        task.sequence = choice.sequence
        if not task.started_s:
            self._cells.asked(task.tokens)
            task.started_s = self._clock()
            task.n_cached = n_kept
        self._running.append(task)

    def _give_up_cells(self) -> None:
        """Free a sequence where the pool has no room although it should: an idle one, else that of the youngest job."""
        if self._cells.evict():
            return
        if len(self._running) > 1:
            self._preempt(self._running[-1])
        else:
            message = f"there is no memory for more than {self._backend.n_cells} tokens of context: shorten the prompt"
            self._fail_task(self._running[0], OutOfMemory(message))

    def _preempt(self, task: Task) -> None:
        """Take a job's cells away; it starts over, with what it has generated so far, when there is room again."""
        assert task.sequence is not None
        self._running.remove(task)
        self._cells.free(task.sequence)
        task.sequence = None
        task.n_forced = 0
        self._waiting.appendleft(task)

    # -- one decode ----------------------------------------------------------------------------------------------

    def _plan(self, turn: list[Task]) -> list[_Rows]:
        """Fill the batch: the last tokens of each generating job of `turn`, then a chunk of a prompt or more."""
        self._backend.batch.clear()
        while not self._cells.make_room(sum(task.n_pending for task in turn if task.is_generating)):
            self._give_up_cells()
            turn = [task for task in turn if task.sequence is not None]
        # Whoever waits for the first token does not wait for guesses at more.
        if (
            len(self._running) == len(turn) == 1
            and turn[0].is_generating
            and turn[0].n_generated
            and not turn[0].n_forced
        ):
            return [self._add_with_draft(turn[0])]
        rows = [self._add(task, task.n_pending) for task in turn if task.is_generating]
        prefilling = [task for task in turn if not task.is_generating]
        n_left = self._backend.n_batch - self._n_planned(rows)
        # Beyond the last row of each job; an echo takes more, and what it takes the others have no use for.
        n_outputs_left = self._backend.n_outputs - len(rows) - len(prefilling)
        if prefilling:
            self._turns.end()  # a chunk takes as long as a few decodes
            if n_streams := sum(task.is_generating for task in self._running):
                n_left = min(n_left, self._pace.n_prompt_rows(self._n_planned(rows), n_streams, len(prefilling)))
        n_enough = self._pace.n_enough_rows()
        for task in self._in_order(prefilling):
            n_chunk = min(n_left, task.n_pending)
            if task.wants_prompt_logprobs:
                n_chunk = min(n_chunk, n_outputs_left + 1)
            if n_chunk <= 0 or not self._cells.make_room(self._n_planned(rows) + n_chunk):
                break
            rows.append(self._add(task, n_chunk))
            # Others join it where that makes the decode better, not where its first token would wait for theirs.
            n_enough -= n_chunk
            n_left = min(n_left - n_chunk, n_enough)
            n_outputs_left -= n_chunk - 1 if task.wants_prompt_logprobs else 0
        if prefilling and not rows:
            self._give_up_cells()
        return rows

    def _in_order(self, prefilling: list[Task]) -> list[Task]:
        """The shortest first, as most wait least then; the oldest first in every other step, so that it gets on."""
        return prefilling if self._n_steps % 2 else sorted(prefilling, key=lambda task: task.n_pending)

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
        return _Rows(task, tokens, row - n_tokens + 1, row if is_last else None, is_prompt=not task.is_generating)

    def _add_with_draft(self, task: Task) -> _Rows:
        """The last token of a job that has the engine for itself, and a guess at what follows it."""
        assert task.sequence is not None
        guess, guessing_s = None, 0.0
        if self._drafts:
            n_free = self._cells.n_free  # nothing is evicted for a guess
            n_max = min(self._backend.n_outputs, n_free, task.n_left) - 1
            guess = task.lookup.draft(task.tokens, n_max, self._costs, is_guided=task.guide is not None)
            if self._drafter is not None:
                start_s = self._clock()
                guess = self._drafter.draft(task.tokens, n_max, self._costs, task.outlook, guess) or guess
                guessing_s = self._clock() - start_s
        tokens = [task.tokens[-1], *(guess.tokens if guess else ())]
        last = self._backend.batch.add(tokens, len(task.sequence.tokens), task.sequence.id, n_outputs=len(tokens))
        first = last - len(tokens) + 1
        return _Rows(task, tokens, first, first, guess, guessing_s)

    def _advance(self, rows: list[_Rows]) -> None:
        """Book the decoded rows, and sample where a job's last token was among them."""
        for planned in rows:
            task = planned.task
            assert task.sequence is not None
            if task.wants_prompt_logprobs and task.n_echoed < task.n_prompt:
                self._echo(planned, len(task.sequence.tokens))
            self._cells.extend(task.sequence, planned.tokens)
            task.n_forced = 0
        if self._turns.scales and not self._are_numbers(rows):
            return
        for planned in rows:
            if planned.output is None:
                continue
            if planned.guess is not None:
                self._verify(planned.task, planned.output, planned.guess)
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
        self._cells.wipe()
        return False

    def _verify(self, task: Task, row: int, guess: Draft) -> None:
        """Sample one row after the other as long as what was guessed is what comes; drop the cells of the rest.

        What a guide forces after a token needs no row: it is right or wrong like the guess that stands in its place.
        """
        assert task.sequence is not None
        sequence, n_known = task.sequence, len(task.tokens)
        task.guess = guess
        guess.begin()
        while task.sequence is not None:
            self._sample(task, row + guess.n_accepted)
            if guess.n_accepted < len(task.tokens) - n_known:
                break
        guess.end()
        task.guess = None
        self._cells.trim(sequence, n_known + guess.n_accepted)
        if task.sequence is not None:
            task.n_forced = task.n_pending - 1

    def _sample(self, task: Task, row: int) -> None:
        """The next token of a job, and those that its guide forces after it, said as far as they can be."""
        if not task.first_token_s:
            task.first_token_s = self._clock()
            self.n_begun += 1
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
        if len(self._running) == 1:
            return self._n_forced_max
        n_others = sum(task.n_forced for task in self._running)  # forced tokens of other jobs in the same decode
        return max(0, self._pace.n_more_rows(len(self._running), self._n_forced_max) - n_others)

    def _take(self, task: Task, token: int, row: int | None = None) -> bool:
        """Add a token to a job; whether it goes on. `row` is the one that predicted it, where that may be told."""
        task.count(token)
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
        """Let the job go and keep its tokens resident."""
        assert task.sequence is not None
        self._running.remove(task)
        self._cells.release(task.sequence)
        task.sequence = None
        task.sampler.close()

    def _fail(self, rows: list[_Rows], status: int) -> None:
        """The engine could not decode these rows; what it left in the pool under their sequences is not trusted."""
        for planned in rows:
            self._fail_task(planned.task, Internal(f"the engine failed to decode (status {status})"))

    def _fail_task(self, task: Task, error: ShimmyError) -> None:
        assert task.sequence is not None
        self._cells.free(task.sequence)
        self._events.append((task.job.id, error))
        self._release(task)
