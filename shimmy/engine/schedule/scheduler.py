"""Many jobs in one batch: admits jobs, decodes what the planner put into the batch, samples, and emits what happened.

Sees token ids and a `DecodeBackend`, never llama_cpp, templates or sockets. One thread owns everything here. A job has
tokens (its prompt and what was sampled) and a sequence whose cells hold the first of these; a step decodes more of
them, and a job whose last token was decoded gets the next one. So a prompt, a generation, and a job that lost its cells
and starts over are all the same case.
"""

from collections import deque
from collections.abc import Callable
from time import perf_counter

from shimmy.engine.kv import prefix_tree
from shimmy.engine.kv.kv_pool import KvPool, StoredPrompts
from shimmy.engine.schedule.batch_plan import BatchPlanner, PlannedRows
from shimmy.engine.schedule.interfaces import DecodeBackend, JobEvent
from shimmy.engine.schedule.task import Guide, Task
from shimmy.engine.speculate.speculation import Draft, Drafter
from shimmy.errors import BadRequest, Internal, ModelUnavailable, OutOfMemory, ShimmyError
from shimmy.messages.event import Echo, FinishReason, Piece, QueuePlace

# Cells that must be free beyond a job's prompt before the job joins others, so that it does not have to leave at once.
_ADMISSION_SLACK = 64
# Tokens that a reply is expected to have, where its limit is not lower.
_EXPECTED_REPLY = 256
# A prompt waits for another that is computing the same beginning when the beginning has so many tokens.
_WORTH_WAITING = 64


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
        self._kv = KvPool(backend, prompts)
        self._planner = BatchPlanner(
            backend, self._kv, self._give_up_cells, speculate=speculate, drafter=drafter, clock=clock
        )
        self._waiting: deque[Task] = deque()
        self._has_queue_moved = False  # since the places of the waiting tasks were told
        self._running: list[Task] = []  # in the order of their admission
        self._events: list[JobEvent] = []
        self.n_begun = 0  # jobs that have had their first token

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_kv_used(self) -> int:
        """Cells of the KV pool that hold a token, of a job or kept for later prompts."""
        return self._kv.n_used

    def n_new(self, task: Task) -> int:
        """How many tokens of its prompt are not resident."""
        n_common = self._kv.n_common(task.tokens, task.scales) if task.uses_cache else 0
        return len(task.tokens) - n_common

    def submit(self, task: Task) -> None:
        """Queue a task whose prompt fits into the context."""
        self._waiting.append(task)
        self._has_queue_moved = True

    def cancel(self, job_id: int) -> None:
        """Forget a job; an unknown or ended one is fine. Its tokens stay resident for other prompts like it."""
        for task in self._waiting:
            if task.job.id == job_id:
                self._waiting.remove(task)
                self._has_queue_moved = True
                task.sampler.close()
                return
        for task in self._running:
            if task.job.id == job_id:
                self._release(task)
                return

    def store_one(self) -> bool:
        """Store one resident sequence on the disk while no job runs; returns whether to call again soon."""
        return not (self._running or self._waiting) and self._kv.store_one()

    def store_all(self, deadline_s: float) -> None:
        """At the end: store all sequences on the disk, the latest first, until `deadline_s` of the clock."""
        self._kv.store_all(lambda: deadline_s - self._clock())

    def rest(self) -> None:
        """Shrink the KV pool to what its resident sequences need, while no job runs."""
        if not self._running:
            self._kv.shrink()

    def step(self) -> None:
        """One decode of the jobs that can move together, and the events it led to."""
        self._admit()
        if self._has_queue_moved:
            self._tell_places()
        self._flush()  # what is known before a decode, which may take long
        start_s = self._clock()
        rows = self._planner.plan(self._running)
        if rows:
            status = self._backend.decode()
            if status == 0:
                self._advance(rows)
                self._planner.learn(rows, self._clock() - start_s)
            elif status == 1:
                self._give_up_cells()
            else:
                self._fail(rows, status)
        self._flush()

    def _flush(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._emit(events)

    # -- which jobs run ------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give waiting tasks a sequence, first come first served, while the pool has room for their prompts.

        A task whose prompt begins like one that is being computed lets others pass until it can share that beginning.
        """
        n_before = len(self._running)
        for task in tuple(self._waiting) if n_before < self._backend.n_sequences else ():
            if self._can_share_soon(task) or self._is_coming(task):
                continue
            match = self._kv.choose(task.tokens, task.scales)
            if match is None or not self._has_room_for(task, match):
                break
            self._waiting.remove(task)
            self._has_queue_moved = True
            self._start(task, match)
        if len(self._running) > n_before:
            self._kv.expect(sum(task.n_pending + min(task.n_left, _EXPECTED_REPLY) for task in self._running))

    def _can_share_soon(self, task: Task) -> bool:
        if not (task.uses_cache and self._backend.can_rewind):
            return False
        computing = [other for other in self._running if other.scales == task.scales and not other.is_generating]
        if not computing:
            return False
        n_soon = max(prefix_tree.n_common(other.tokens, task.tokens) for other in computing)
        return n_soon >= _WORTH_WAITING and n_soon > self._kv.n_common(task.tokens, task.scales)

    def _is_coming(self, task: Task) -> bool:
        """Whether more of the task's prompt is being read from the disk; waits for that where no job runs."""
        return task.uses_cache and self._kv.is_coming(task.tokens, task.scales, wait=not self._running)

    def _has_room_for(self, task: Task, match: prefix_tree.PrefixMatch) -> bool:
        """Whether a task can join the running ones without taking the cells that these need next."""
        if not self._running:
            return True
        n_kept = match.n_kept if task.uses_cache else 0
        n_wanted = sum(other.n_pending for other in self._running) + len(task.tokens) - n_kept + _ADMISSION_SLACK
        return self._kv.n_taken_with(match, n_kept) + n_wanted <= self._kv.n_most

    def _start(self, task: Task, match: prefix_tree.PrefixMatch) -> None:
        n_kept = self._kv.take(match, task.tokens, task.scales, uses_cache=task.uses_cache)
        task.sequence = match.sequence
        if not task.started_s:
            self._kv.asked(task.tokens)
            task.started_s = self._clock()
            task.n_cached = n_kept
        self._running.append(task)
        if task.tells_progress:
            self._tell_progress(task)

    def _give_up_cells(self) -> None:
        """Free a sequence where the pool has no room although it should: an idle one, else the youngest job's."""
        if self._kv.evict():
            return
        if len(self._running) > 1:
            self._preempt(self._running[-1])
        else:
            message = f"there is no memory for more than {self._backend.n_cells} tokens of context: shorten the prompt"
            self._fail_task(self._running[0], OutOfMemory(message))

    def _preempt(self, task: Task) -> None:
        """Take a job's cells away. The job starts over, with what it has generated so far, when there is room again."""
        assert task.sequence is not None
        self._running.remove(task)
        self._kv.free(task.sequence)
        task.sequence = None
        task.n_forced = 0
        self._waiting.appendleft(task)
        self._has_queue_moved = True

    def _tell_places(self) -> None:
        self._has_queue_moved = False
        for place, task in enumerate(self._waiting):
            # An eighth in front of a job is what it is told of a long queue, as all of one are told at each move.
            if task.tells_progress and (task.place_told < 0 or abs(task.place_told - place) > place // 8):
                task.place_told = place
                self._events.append((task.job.id, QueuePlace(place)))

    def _tell_progress(self, task: Task) -> None:
        if progress := task.progress(self._clock()):
            self._events.append((task.job.id, progress))

    # -- after a decode ------------------------------------------------------------------------------------------

    def _advance(self, rows: list[PlannedRows]) -> None:
        """Note the decoded rows as resident, and sample where a job's last token was among them."""
        for planned in rows:
            task = planned.task
            assert task.sequence is not None
            if task.wants_prompt_logprobs and task.n_echoed < task.n_prompt:
                self._echo(planned, len(task.sequence.tokens))
            self._kv.extend(task.sequence, planned.tokens)
            if task.tells_progress:
                self._tell_progress(task)
            task.n_forced = 0
        if not self._are_numbers(rows):
            return
        for planned in rows:
            if planned.output is None:
                continue
            if planned.draft is not None:
                self._verify(planned.task, planned.output, planned.draft)
            else:
                self._sample(planned.task, planned.output)

    def _echo(self, planned: PlannedRows, start: int) -> None:
        """Emit the log-probabilities of the prompt's tokens that these rows, from position `start` on, predicted."""
        task = planned.task
        assert task.job.request.n_logprobs is not None
        logprobs = []
        if task.n_echoed == 0:
            logprobs.append(self._backend.first_logprob(task.tokens[0]))
        for place in range(max(start, task.n_echoed + len(logprobs) - 1), start + len(planned.tokens)):
            if place + 1 < task.n_prompt:
                row = planned.first + place - start
                logprobs.append(self._backend.logprob(row, task.tokens[place + 1], task.job.request.n_logprobs))
        task.n_echoed += len(logprobs)
        self._events.append((task.job.id, Echo("", tuple(logprobs))))

    def _are_numbers(self, rows: list[PlannedRows]) -> bool:
        """Whether the rows were computed in numbers. If not, the jobs of these rows fail and all others start over.

        Damaged weights and adapters with large scales can make a NaN, for some texts alone, and one in the KV pool
        spoils every row that is computed beside it.
        """
        spoilt = [row.task for row in rows if row.output is not None and not self._backend.has_numbers(row.output)]
        if not spoilt:
            return True
        for task in spoilt:
            if any(task.scales):
                message = "the model computes no numbers with these adapters: use smaller scales"
                self._fail_task(task, BadRequest(message, param="lora"))
            elif not self._planner.turns.scales:
                message = "the model computes no numbers (NaN) for this text, or one beside it: its weights are damaged"
                self._fail_task(task, ModelUnavailable(message))
            else:
                self._fail_task(task, Internal("the adapters of another job spoilt what was computed for this one"))
        for task in reversed(self._running.copy()):
            self._preempt(task)
        self._kv.wipe()
        return False

    def _verify(self, task: Task, row: int, draft: Draft) -> None:
        """Sample one row after the other while the drafted tokens are the sampled ones; drop the cells of the rest.

        A token that a guide forces needs no row: it is compared with the drafted token in its place like a sampled one.
        """
        assert task.sequence is not None
        sequence, n_known = task.sequence, len(task.tokens)
        task.draft = draft
        draft.begin()
        while task.sequence is not None:
            self._sample(task, row + draft.n_accepted)
            if draft.n_accepted < len(task.tokens) - n_known:
                break
        draft.end()
        task.draft = None
        self._kv.trim(sequence, n_known + draft.n_accepted)
        if task.sequence is not None:
            task.n_forced = task.n_pending - 1

    def _sample(self, task: Task, row: int) -> None:
        """Take the next token of a job, and those that its guide forces after it; emit the text that is complete."""
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
        """Take the tokens that have to come next: they need no sampling, and one decode computes many of them.

        Takes none where log-probabilities are wanted: a token's comes from the decode of the token before it.
        """
        if task.job.request.n_logprobs is not None:
            return
        if not task.forced:
            task.forced.extend(guide.forced())
        for _ in range(min(len(task.forced), self._planner.n_forced_now(self._running))):
            token = task.pick_forced()
            task.n_forced += 1
            if not self._take(task, token):
                return

    def _take(self, task: Task, token: int, row: int | None = None) -> bool:
        """Add a token to a job; returns whether the job goes on. `row` predicted the token; None for a forced one."""
        task.count(token)
        logprob = None
        if row is not None and task.job.request.n_logprobs is not None:
            logprob = self._backend.logprob(row, token, task.job.request.n_logprobs)
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
        # An accepted draft and forced tokens make several pieces in one step: they are emitted as one.
        if earlier is not None and earlier[0] == task.job.id and isinstance(earlier[1], Piece):
            said = earlier[1]
            piece = Piece(said.text + piece.text, said.n_tokens + piece.n_tokens, said.logprobs + piece.logprobs)
            self._events.pop()
        self._events.append((task.job.id, piece))

    # -- how a job ends ------------------------------------------------------------------------------------------

    def _finish(self, task: Task, reason: FinishReason) -> None:
        self._say(task, task.rest(reason))
        self._events.append((task.job.id, task.finished(reason, self._clock())))
        self._release(task)

    def _release(self, task: Task) -> None:
        """End the job's part in the schedule; its tokens stay resident."""
        assert task.sequence is not None
        self._running.remove(task)
        self._kv.release(task.sequence)
        task.sequence = None
        task.sampler.close()

    def _fail(self, rows: list[PlannedRows], status: int) -> None:
        """Fail the jobs of rows that the engine could not decode, and free their sequences, whose cells are unknown."""
        for planned in rows:
            self._fail_task(planned.task, Internal(f"the engine failed to decode (status {status})"))

    def _fail_task(self, task: Task, error: ShimmyError) -> None:
        assert task.sequence is not None
        self._kv.free(task.sequence)
        self._events.append((task.job.id, error))
        self._release(task)
