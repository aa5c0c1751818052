"""A job in the scheduler: its tokens, its sequence in the KV pool, and how sampled tokens become events.

Knows text, stop strings and limits; nothing of batches or of other jobs.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shimmy.engine.kv import prefix_tree
from shimmy.engine.speculate.prompt_lookup import PromptLookup
from shimmy.engine.speculate.speculation import Draft, DraftPlanner
from shimmy.messages.event import Finished, FinishReason, Piece, PromptProgress, Timings, TokenLogprob, Usage
from shimmy.messages.reply import ReplyFormat
from shimmy.messages.request import Job
from shimmy.text.detokenizer import TextDecoder
from shimmy.text.reply_parser import ReplyParser
from shimmy.text.string_matcher import StopFilter

# How much of a prompt is read is told again after this share of it.
_TOLD_EVERY = 0.01
# The limit of a job that may generate until the context is full.
_NO_LIMIT = 2**31


class Guide(Protocol):
    """What the tokens of a job have to obey. `accept` is called with each token, in order; never with a rejected draft.

    The methods raise BadRequest when what the caller wants has outgrown their limits.
    """

    @property
    def is_over(self) -> bool: ...  # nothing may follow any more
    def allows(self, token: int) -> bool: ...
    def allowed(self) -> bytes: ...  # a bit for each token of the vocabulary, the lowest of a byte first
    def accept(self, token: int) -> None: ...
    def forced(self) -> list[int]: ...  # the tokens that have to come next, none where there is a choice


class Sampler(Protocol):
    """One job's chain; `close` frees it."""

    def sample(self, row: int) -> int: ...
    def sample_within(self, row: int, guide: Guide) -> int: ...
    def accept(self, tokens: Sequence[int]) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class Task:
    """A job in the scheduler: its prompt as tokens at first, and everything that happens to it."""

    job: Job
    tokens: list[int]
    sampler: Sampler
    received_s: float
    scales: tuple[float, ...] = ()  # of each adapter of the model
    guide: Guide | None = None
    format: ReplyFormat = field(default_factory=ReplyFormat)
    marks: Mapping[int, bytes] = field(default_factory=dict)  # control tokens that ReplyParser has to see as text
    warnings: tuple[str, ...] = ()  # about constraints that are not enforced
    n_prompt: int = field(init=False)
    n_limit: int = field(init=False)
    sequence: prefix_tree.Sequence | None = field(init=False, default=None)
    n_cached: int = field(init=False, default=0)
    n_echoed: int = field(init=False, default=0)  # tokens of the prompt whose log-probabilities were emitted
    place_told: int = field(init=False, default=-1)  # its place in the queue, as it was told last
    n_read_told: int = field(init=False, default=-1)  # tokens of the prompt that are read, as it was told last
    n_generated: int = field(init=False, default=0)
    n_forced: int = field(
        init=False, default=0
    )  # of the pending tokens, those that a guide has forced behind the last one
    forced: deque[int] = field(init=False, default_factory=deque)  # tokens that the guide forces, not taken yet
    lookup: PromptLookup = field(init=False, default_factory=PromptLookup)
    draft: Draft | None = field(init=False, default=None)  # what its next tokens are compared with
    draft_planner: DraftPlanner = field(init=False, default_factory=DraftPlanner)  # of drafts by a draft model
    started_s: float = field(init=False, default=0.0)
    first_token_s: float = field(init=False, default=0.0)
    _decoder: TextDecoder = field(init=False, default_factory=TextDecoder)
    _stops: StopFilter = field(init=False)  # for a text that is all content
    _reader: ReplyParser | None = field(init=False, default=None)  # for a text that has to be parsed for its content
    _n_unsent: int = field(init=False, default=0)  # tokens whose text is still held back
    _unsent: list[TokenLogprob] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.n_prompt = len(self.tokens)
        request = self.job.request
        self.n_limit = _NO_LIMIT if request.n_predict is None else request.n_predict
        form = self.format.with_stop(request.stop)
        if form.stop:
            self._reader = ReplyParser(form)
        self._stops = StopFilter(() if form.stop else request.stop)

    @property
    def n_pending(self) -> int:
        """Tokens whose cells are not in the KV pool yet."""
        return len(self.tokens) - (len(self.sequence.tokens) if self.sequence else 0)

    @property
    def n_left(self) -> int:
        """Tokens that it may still generate."""
        return self.n_limit - self.n_generated

    @property
    def is_generating(self) -> bool:
        """Whether all but the last generated tokens are in the KV pool: the next decode gives the next token."""
        return self.n_pending == 1 + self.n_forced

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.job.request.echo and self.job.request.n_logprobs is not None

    @property
    def uses_cache(self) -> bool:
        """Whether the resident tokens of its prompt are reused; these have no logits any more."""
        return self.job.request.cache_prompt and not self.wants_prompt_logprobs

    @property
    def tells_progress(self) -> bool:
        """Whether the caller wants to know how far the job is, and the job has not begun its reply."""
        return self.job.request.tells_progress and not self.first_token_s

    @property
    def is_stopped(self) -> bool:
        """A stop string is complete."""
        return self._stop_string is not None

    @property
    def _stop_string(self) -> str | None:
        return self._stops.matched if self._reader is None else self._reader.stopped_by

    def progress(self, now: float) -> PromptProgress | None:
        """How much of the prompt is read; None where that is hardly more than what was told last."""
        n_read = min(self.n_prompt, len(self.sequence.tokens) if self.sequence else 0)
        n_new = n_read - self.n_read_told
        is_news = self.n_read_told < 0 or n_new >= _TOLD_EVERY * self.n_prompt or (n_new and n_read == self.n_prompt)
        if not is_news:
            return None
        self.n_read_told = n_read
        return PromptProgress(self.n_prompt, self.n_cached, n_read, (now - self.started_s) * 1e3)

    def pick(self, row: int) -> int:
        """The next token, forced or sampled from a row of the last decode; raises what the guide raises."""
        if self.forced:
            return self.pick_forced()
        return self.sampler.sample(row) if self.guide is None else self.sampler.sample_within(row, self.guide)

    def pick_forced(self) -> int:
        """The next of `forced`; penalties count it too."""
        token = self.forced.popleft()
        self.sampler.accept([token])
        return token

    def take(self, token: int, data: bytes, logprob: TokenLogprob | None) -> Piece | None:
        """Add a token that stands for `data`; returns the text that can be emitted now."""
        self.tokens.append(token)
        if logprob is not None:
            self._unsent.append(logprob)
        text = self._stops.feed(self._decoder.feed(self.marks.get(token, data)))
        if self._reader is not None:
            self._reader.feed(text)  # the parent parses the same text, and ends the content at the same place
        return self._piece(text) if text else None

    def end(self, logprob: TokenLogprob | None) -> None:
        """Note the log-probability of the token that ends the reply. It is emitted where the prompt is scored:
        evaluation harnesses generate one token behind their text and drop the last entry, whatever that token is."""
        if logprob is not None and self.wants_prompt_logprobs:
            self._unsent.append(logprob)

    def count(self, token: int) -> None:
        """Count a generated token, also the one that ends the reply."""
        self.n_generated += 1
        self._n_unsent += 1
        if self.draft is not None:
            self.draft.meet(token)

    def rest(self, reason: FinishReason) -> Piece | None:
        """The text that was held back, at the end of the reply; no part of a character that the limit has cut."""
        if self.is_stopped:
            return None
        broken = "" if reason is FinishReason.LENGTH else self._decoder.flush()
        text = self._stops.feed(broken) + self._stops.flush()
        return self._piece(text) if text or self._unsent else None

    def _piece(self, text: str) -> Piece:
        piece = Piece(text, self._n_unsent, tuple(self._unsent))
        self._n_unsent, self._unsent = 0, []
        return piece

    def finished(self, reason: FinishReason, now: float) -> Finished:
        usage = Usage(self.n_prompt, self.n_cached, self.n_generated)
        looked_up, computed = self.lookup.outcomes, self.draft_planner.outcomes
        timings = Timings(
            queue_ms=(self.started_s - self.received_s) * 1e3,
            prompt_ms=(self.first_token_s - self.started_s) * 1e3,
            predicted_ms=(now - self.first_token_s) * 1e3,
            n_drafted=looked_up.n_drafted + computed.n_drafted,
            n_accepted=looked_up.n_accepted + computed.n_accepted,
            n_model_drafted=computed.n_drafted,
            n_model_accepted=computed.n_accepted,
        )
        return Finished(reason, usage, timings, self._stop_string)
