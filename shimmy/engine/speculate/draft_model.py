"""A draft model: a small model that drafts the next tokens of the model beside it.

Knows the small model, the tokens resident in it and how long it takes; `speculation.DraftPlanner` decides when asking
it pays. Before a draft its one sequence is brought in step with the tokens asked about, of whichever job these are: no
call tells it that a job has ended, starts over or has lost its cells.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from shimmy.engine.kv import prefix_tree
from shimmy.engine.llama.model import LlamaModel
from shimmy.engine.speculate import vocab_match
from shimmy.engine.speculate.decode_costs import DecodeCosts
from shimmy.engine.speculate.speculation import Draft, DraftPlanner
from shimmy.errors import ModelUnavailable
from shimmy.formats.gguf import reader
from shimmy.formats.gguf.header import GgufKind
from shimmy.wire.worker_options import DRAFT_BATCH, MIN_DRAFT_CTX, WorkerOptions

logger = logging.getLogger(__name__)

# A draft goes on while the draft model's own probability of a token is at least this (llama.cpp's p_min).
_SURE = 0.75
_TIME_WEIGHT = 0.2  # of the latest measurement
# New tokens of a job that it is in step with: the sampled one, and before that the last of its own draft.
_IN_STEP = 2
# Cells that stay free for drafts.
_SLACK = 32


class DraftModel:
    """Drafts for a model with `n_vocab` tokens. Belongs to the thread that decodes."""

    def __init__(
        self,
        model: LlamaModel,
        n_ctx: int,
        n_vocab: int,
        *,
        sure: float = _SURE,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """`model` has a context of `n_ctx` tokens, MIN_DRAFT_CTX at least, for one sequence."""
        self._backend = model.backend
        self._n_ctx = n_ctx
        self._n_vocab = min(n_vocab, model.vocab.n_vocab)
        self._sure = sure
        self._clock = clock
        self._resident: list[int] = []  # tokens whose cells its sequence has
        self._token_s = 0.0  # of computing one token; this and the next are 0 until they are measured
        self._read_s = 0.0  # of reading one of many
        self._is_broken = False

    def set_threads(self, n_threads: int) -> None:
        self._backend.set_threads(n_threads)

    def draft(
        self, tokens: list[int], n_max: int, costs: DecodeCosts, planner: DraftPlanner, rival: Draft | None
    ) -> Draft | None:
        """A draft of at most `n_max` tokens to follow `tokens`; None where none promises more than `rival`.

        A long text that is new to the draft model is read in several calls, once that promises to pay; the calls
        before the last return None.
        """
        token_cost = costs.in_rows(self._token_s)
        if token_cost is None or self._is_broken:
            return None  # the cost of a decode without a draft is not known yet
        n_wanted, gain = planner.plan(n_max, costs, token_cost, rival)
        if not n_wanted:
            return None
        window = self._window(tokens)
        n_kept = min(prefix_tree.n_common(self._resident, window), len(window) - 1)
        n_unread = len(window) - n_kept - _IN_STEP
        if not planner.pays_back(costs.in_rows(self._read_s * n_unread) or 0.0, gain):
            return None
        pending = self._follow(window, n_kept)
        if pending is None:
            return None
        drafted = self._compute(pending, n_wanted, planner)
        n_worth, gain = planner.worth(len(drafted), costs)
        if not n_worth or (rival is not None and gain < rival.gain):
            return None
        return Draft(drafted[:n_worth], gain, planner.outcomes)

    def _window(self, tokens: list[int]) -> list[int]:
        """The tokens to read: all of `tokens`, or the first and the latest ones.

        The window moves on by half its length at a time: each move changes positions, so that all is read again.
        """
        step = self._n_ctx // 2
        n_excess = len(tokens) + _SLACK - self._n_ctx
        n_skipped = max(0, -(-n_excess // step) * step)
        return [*tokens[:1], *tokens[n_skipped + 1 :]] if n_skipped else tokens

    def _follow(self, window: list[int], n_kept: int) -> list[int] | None:
        """Keep the first tokens of `window`, which are resident, and return the others; None while they are too many
        for one decode, or where there are some among them that only the other model knows."""
        self._backend.forget(0, n_kept)
        del self._resident[n_kept:]
        pending = window[n_kept:]
        if max(pending) >= self._n_vocab:
            return None
        if len(pending) <= DRAFT_BATCH:
            return pending
        start_s = self._clock()
        self._decode(pending[:DRAFT_BATCH], n_outputs=0)
        self._read_s = _mean(self._read_s, (self._clock() - start_s) / DRAFT_BATCH)
        return None

    def _compute(self, pending: list[int], n_wanted: int, planner: DraftPlanner) -> list[int]:
        """The most likely continuation after `pending`, up to the first token that the model is not sure of."""
        drafted: list[int] = []
        is_in_step = len(pending) <= _IN_STEP
        n_computed, start_s = 0, self._clock()
        while len(drafted) < n_wanted:
            row = self._decode(pending, n_outputs=1)
            if row is None:
                return []
            token, probability = self._backend.likeliest(row)
            n_computed += 1
            if not probability >= self._sure or token >= self._n_vocab or self._backend.is_end(token):
                break
            drafted.append(token)
            pending = [token]
        if is_in_step:
            self._token_s = _mean(self._token_s, (self._clock() - start_s) / n_computed)
        planner.learn(len(drafted), n_computed)
        return drafted

    def _decode(self, tokens: list[int], *, n_outputs: int) -> int | None:
        """Read `tokens`; returns the row of the last. None where the engine fails: there are no more drafts then."""
        batch = self._backend.batch
        batch.clear()
        row = batch.add(tokens, len(self._resident), 0, n_outputs=n_outputs)
        if (status := self._backend.decode()) != 0:
            logger.error("the draft model failed to decode (status %d) and is not asked any more", status)
            self._is_broken = True
            return None
        self._resident += tokens
        return row


def _mean(known_s: float, latest_s: float) -> float:
    return known_s + _TIME_WEIGHT * (latest_s - known_s) if known_s else latest_s


def load(options: WorkerOptions, model: LlamaModel, n_threads: int) -> DraftModel | None:
    """The draft model of `options`, for `model`; None without one, or, with a warning, where it cannot be used."""
    if options.draft_model is None or not model.writes:
        return None
    path = Path(options.draft_model)
    try:
        return _open(path, options, model, n_threads)
    except reader.InvalidGguf as exc:
        reason = str(exc)
    except OSError as exc:
        reason = exc.strerror or "it cannot be read"
    except ModelUnavailable as error:
        reason = error.message
    name = Path(options.model_path).name
    logger.warning("`%s` is served without the draft model `%s`: %s", name, path.name, reason)
    return None


def _open(path: Path, options: WorkerOptions, model: LlamaModel, n_threads: int) -> DraftModel:
    """Raises InvalidGguf, OSError or ModelUnavailable."""
    header = reader.validate(path)  # what the engine would abort on has to be found before it looks
    if header.kind is not GgufKind.MODEL or header.is_embedding:
        raise ModelUnavailable("it does not write text")
    if header.n_ctx_train < MIN_DRAFT_CTX:
        raise ModelUnavailable(f"its training length is {header.n_ctx_train} tokens, fewer than {MIN_DRAFT_CTX}")
    if not model.can_rewind:
        raise ModelUnavailable("the model keeps a state from which no wrong guess can be dropped")
    draft = LlamaModel(path, model.cpu)
    try:
        if reason := vocab_match.difference(draft.vocab, model.vocab):
            raise ModelUnavailable(reason)
        if not draft.can_rewind:
            raise ModelUnavailable("it keeps a state from which no wrong guess can be dropped")
        n_ctx = min(options.n_ctx_draft, header.n_ctx_train)
        draft.open_context(n_ctx=n_ctx, n_batch=DRAFT_BATCH, n_sequences=1, n_outputs=1, n_threads=n_threads)
        draft.warm_up()
    except ModelUnavailable:
        draft.close()
        raise
    logger.info("`%s` guesses for `%s`", path.name, Path(options.model_path).name)
    return DraftModel(draft, n_ctx, model.vocab.n_vocab)
