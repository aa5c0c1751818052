"""Plans the next decode: which jobs take part, how many rows each has, and which draft is verified beside its token.

Knows tasks, the KV pool's room and what decodes cost so far; decodes nothing and samples nothing, which the scheduler
does with the rows planned here. Runs on the scheduler's thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from shimmy.engine.kv.kv_pool import KvPool
from shimmy.engine.schedule.interfaces import DecodeBackend
from shimmy.engine.schedule.lora_turns import LoraTurns
from shimmy.engine.schedule.prefill_budget import PrefillBudget
from shimmy.engine.schedule.task import Task
from shimmy.engine.speculate.decode_costs import DecodeCosts
from shimmy.engine.speculate.speculation import Draft, Drafter

# Tokens that a guide may force at once: a batch has to hold those of all jobs.
_MAX_FORCED = 32


@dataclass(slots=True)
class PlannedRows:
    """Consecutive rows of one task in the batch, from the row `first` on.

    `output` is the row with the logits of the task's last token, if that token is among them; the rows of a draft
    follow.
    """

    task: Task
    tokens: list[int]
    first: int
    output: int | None
    draft: Draft | None = None
    drafting_s: float = 0.0  # what it took to make the draft, or to find that there is none
    is_prompt: bool = False


class BatchPlanner:
    """Fills the batch of `backend`, and learns from the time of each decode how much the next one may hold."""

    def __init__(
        self,
        backend: DecodeBackend,
        kv: KvPool,
        give_up_cells: Callable[[], None],
        *,
        speculate: bool,
        drafter: Drafter | None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """`give_up_cells` frees cells where the pool has no room for the rows: an idle sequence, or a running job's,
        which then leaves the list of running jobs."""
        self._backend = backend
        self._kv = kv
        self._give_up_cells = give_up_cells
        self._drafts = speculate and backend.can_rewind
        self._drafter = drafter
        self._clock = clock
        self._costs = DecodeCosts()
        self._budget = PrefillBudget()
        self.turns = LoraTurns(backend.set_scales)
        self._n_forced_max = max(0, min(_MAX_FORCED, backend.n_batch // backend.n_sequences - 1))
        self._n_plans = 0

    def plan(self, running: list[Task]) -> list[PlannedRows]:
        """Fill the batch for the jobs of `running` whose turn it is: the last tokens of each generating job, then
        chunks of prompts. Empty where no job can move."""
        self._n_plans += 1
        turn = self.turns.of(running)
        self._backend.batch.clear()
        while not self._kv.make_room(sum(task.n_pending for task in turn if task.is_generating)):
            self._give_up_cells()
            turn = [task for task in turn if task.sequence is not None]
        if len(running) == len(turn) == 1 and _may_draft(turn[0]):
            return [self._add_with_draft(turn[0])]
        rows = [self._add(task, task.n_pending) for task in turn if task.is_generating]
        prefilling = [task for task in turn if not task.is_generating]
        if prefilling:
            self.turns.end()  # a chunk takes as long as a few decodes
            n_streams = sum(task.is_generating for task in running)
            self._add_chunks(rows, prefilling, n_streams)
            if not rows:
                self._give_up_cells()
        return rows

    def _add_chunks(self, rows: list[PlannedRows], prefilling: list[Task], n_streams: int) -> None:
        """Add the next chunks of the prompts of `prefilling` to `rows`, while `n_streams` jobs wait for the decode."""
        n_rows = n_planned(rows)
        n_left = self._backend.n_batch - n_rows
        if n_streams:
            n_left = min(n_left, self._budget.n_prompt_rows(n_rows, n_streams, len(prefilling)))
        # Outputs beyond the last row of each job: an echo needs one for each of its rows.
        n_outputs_left = self._backend.n_outputs - len(rows) - len(prefilling)
        n_enough = self._budget.n_enough_rows()
        for task in self._in_order(prefilling):
            n_chunk = min(n_left, task.n_pending)
            if task.wants_prompt_logprobs:
                n_chunk = min(n_chunk, n_outputs_left + 1)
            if n_chunk <= 0 or not self._kv.make_room(n_planned(rows) + n_chunk):
                break
            rows.append(self._add(task, n_chunk))
            # Other prompts join where that makes the decode better, not where this first token would wait for theirs.
            n_enough -= n_chunk
            n_left = min(n_left - n_chunk, n_enough)
            n_outputs_left -= n_chunk - 1 if task.wants_prompt_logprobs else 0

    def _in_order(self, prefilling: list[Task]) -> list[Task]:
        """The shortest first, as most wait least then; the oldest first in every other step, so that it gets on."""
        return prefilling if self._n_plans % 2 else sorted(prefilling, key=lambda task: task.n_pending)

    def _add(self, task: Task, n_tokens: int) -> PlannedRows:
        assert task.sequence is not None
        start = len(task.sequence.tokens)
        tokens = task.tokens[start : start + n_tokens]
        is_last = start + n_tokens == len(task.tokens)
        n_outputs = n_tokens if task.wants_prompt_logprobs else int(is_last)
        row = self._backend.batch.add(tokens, start, task.sequence.id, n_outputs=n_outputs)
        return PlannedRows(task, tokens, row - n_tokens + 1, row if is_last else None, is_prompt=not task.is_generating)

    def _add_with_draft(self, task: Task) -> PlannedRows:
        """The last token of a job that has the engine for itself, and a draft of what may follow it."""
        assert task.sequence is not None
        draft, drafting_s = None, 0.0
        if self._drafts:
            n_free = self._kv.n_free  # no sequence is evicted for a draft
            n_max = min(self._backend.n_outputs, n_free, task.n_left) - 1
            draft = task.lookup.draft(task.tokens, n_max, self._costs, is_guided=task.guide is not None)
            if self._drafter is not None:
                start_s = self._clock()
                draft = self._drafter.draft(task.tokens, n_max, self._costs, task.draft_planner, draft) or draft
                drafting_s = self._clock() - start_s
        tokens = [task.tokens[-1], *(draft.tokens if draft else ())]
        last = self._backend.batch.add(tokens, len(task.sequence.tokens), task.sequence.id, n_outputs=len(tokens))
        first = last - len(tokens) + 1
        return PlannedRows(task, tokens, first, first, draft, drafting_s)

    def learn(self, rows: list[PlannedRows], seconds: float) -> None:
        """Note that the decode of `rows`, with their planning and sampling, took `seconds`."""
        if self.turns.n_steps <= 1:
            return  # setting other adapter scales takes time, which the first decode after it pays
        seconds -= sum(planned.drafting_s for planned in rows)
        if len(rows) == 1 and rows[0].output is not None:
            self._costs.observe(len(rows[0].tokens), seconds)
        prompts = [planned for planned in rows if planned.is_prompt]
        if not any(planned.task.wants_prompt_logprobs for planned in prompts):  # computing these takes longer
            n_prompt_rows = n_planned(prompts)
            self._budget.observe(n_planned(rows) - n_prompt_rows, n_prompt_rows, seconds)

    def n_forced_now(self, running: list[Task]) -> int:
        """How many tokens a guide may add to its job at once. Beside other jobs: as many as hardly make the next decode
        longer."""
        if len(running) == 1:
            return self._n_forced_max
        n_others = sum(task.n_forced for task in running)  # forced tokens of other jobs in the same decode
        return max(0, self._budget.n_more_rows(len(running), self._n_forced_max) - n_others)


def n_planned(rows: list[PlannedRows]) -> int:
    """How many rows of the batch these are."""
    return sum(len(planned.tokens) for planned in rows)


def _may_draft(task: Task) -> bool:
    """Whether a draft may go beside the last token of a job that runs alone; its first token does not wait for one."""
    return task.is_generating and task.n_generated > 0 and not task.n_forced
