"""A draft model: a small model that guesses what the one beside it will say next.

Knows the small model, what it has read and how long it takes; when asking it pays, `speculation.Outlook` knows. Its one
sequence is brought in step with the tokens that it is asked about, whoever's they are: nobody has to tell it that a job
has ended, starts over or has lost its cells.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from shimmy.engine import prefix, vocabulary
from shimmy.engine.llama import LlamaModel
from shimmy.engine.speculation import Costs, Guess, Outlook
from shimmy.engine.wire import DRAFT_BATCH, MIN_DRAFT_CTX, WorkerOptions
from shimmy.errors import ModelUnavailable
from shimmy.formats import gguf
from shimmy.formats.gguf_header import Kind

logger = logging.getLogger(__name__)

# It goes on guessing while its own probability of a token is at least this (llama.cpp's p_min).
_SURE = 0.75
_TIME_WEIGHT = 0.2  # of the latest measurement
# Cells that stay free for what it guesses.
_SLACK = 32


class DraftModel:
    """Guesses for a model with `n_vocab` tokens. Belongs to the thread that decodes."""

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
        self._model = model
        self._n_ctx = n_ctx
        self._n_vocab = min(n_vocab, model.n_vocab)
        self._sure = sure
        self._clock = clock
        self._resident: list[int] = []  # tokens whose cells its sequence has
        self._token_s = 0.0  # of computing one token
        self._is_broken = False

    def set_threads(self, n_threads: int) -> None:
        self._model.set_threads(n_threads)

    def draft(self, tokens: list[int], n_max: int, costs: Costs, outlook: Outlook, rival: Guess | None) -> Guess | None:
        """What may follow `tokens`, at most `n_max` of it; None where that does not promise more than `rival`.

        It reads a long text that is new to it in several calls, and guesses nothing before it is done.
        """
        token_cost = costs.in_rows(self._token_s)
        if token_cost is None or self._is_broken:
            return None  # what a guess has to be compared with is not known yet
        n_wanted, gain = outlook.plan(n_max, costs, token_cost, rival)
        if not n_wanted:
            return None
        pending = self._follow(self._window(tokens))
        if pending is None:
            return None
        drafted = self._compute(pending, n_wanted, outlook)
        n_worth = outlook.n_worth(len(drafted), costs)
        return Guess(drafted[:n_worth], gain, outlook.outcomes) if n_worth else None

    def _window(self, tokens: list[int]) -> list[int]:
        """What it looks at: all of `tokens`, or the first and the latest ones.

        It moves on by half its length at a time: what is left of it has to be read again, as it stands elsewhere.
        """
        step = self._n_ctx // 2
        n_excess = len(tokens) + _SLACK - self._n_ctx
        n_skipped = max(0, -(-n_excess // step) * step)
        return [*tokens[:1], *tokens[n_skipped + 1 :]] if n_skipped else tokens

    def _follow(self, window: list[int]) -> list[int] | None:
        """Keep what is resident of `window` and return the rest of it, the last token at least; None while there is too
        much of that for one decode, or where it has tokens that only the other model knows."""
        n_kept = min(prefix.n_common(self._resident, window), len(window) - 1)
        self._model.forget(0, n_kept)
        del self._resident[n_kept:]
        pending = window[n_kept:]
        if max(pending) >= self._n_vocab:
            return None
        if len(pending) <= DRAFT_BATCH:
            return pending
        self._decode(pending[:DRAFT_BATCH], n_outputs=0)
        return None

    def _compute(self, pending: list[int], n_wanted: int, outlook: Outlook) -> list[int]:
        """The most likely continuation after `pending`, as long as it is sure of each token of it."""
        drafted: list[int] = []
        is_in_step = len(pending) <= 2  # the last token, and before it what it had guessed itself
        n_computed, start_s = 0, self._clock()
        while len(drafted) < n_wanted:
            row = self._decode(pending, n_outputs=1)
            if row is None:
                return []
            token, probability = self._model.likeliest(row)
            n_computed += 1
            if not probability >= self._sure or token >= self._n_vocab or self._model.is_end(token):
                break
            drafted.append(token)
            pending = [token]
        if is_in_step:
            token_s = (self._clock() - start_s) / n_computed
            self._token_s += _TIME_WEIGHT * (token_s - self._token_s) if self._token_s else token_s
        outlook.learn(len(drafted), n_computed)
        return drafted

    def _decode(self, tokens: list[int], *, n_outputs: int) -> int | None:
        """Read `tokens`; the row of the last. None when the engine fails, after which nobody asks it any more."""
        batch = self._model.batch
        batch.clear()
        row = batch.add(tokens, len(self._resident), 0, n_outputs=n_outputs)
        if (status := self._model.decode()) != 0:
            logger.error("the draft model failed to decode (status %d) and is not asked any more", status)
            self._is_broken = True
            return None
        self._resident += tokens
        return row


def load(options: WorkerOptions, model: LlamaModel, n_threads: int) -> DraftModel | None:
    """The draft model of `options`, for `model`; None where there is none, or with a warning, where it cannot guess."""
    if options.draft_model is None or not model.writes:
        return None
    path = Path(options.draft_model)
    try:
        return _open(path, options, model, n_threads)
    except gguf.InvalidGguf as exc:
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
    header = gguf.validate(path)  # what the engine would abort on has to be found before it looks
    if header.kind is not Kind.MODEL or header.is_embedding:
        raise ModelUnavailable("it does not write text")
    if header.n_ctx_train < MIN_DRAFT_CTX:
        raise ModelUnavailable(f"its training length is {header.n_ctx_train} tokens, fewer than {MIN_DRAFT_CTX}")
    if not model.can_rewind:
        raise ModelUnavailable("the model keeps a state from which no wrong guess can be dropped")
    draft = LlamaModel(path, model.cpu)
    try:
        if reason := vocabulary.difference(draft, model):
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
    return DraftModel(draft, n_ctx, model.n_vocab)
