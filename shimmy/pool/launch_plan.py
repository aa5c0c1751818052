"""What a worker of a model is told at its start, and the memory it will take.

Knows the person's options and what a header says; nothing of which workers run.
"""

import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from shimmy.catalog.catalog import Model
from shimmy.config import Config
from shimmy.formats import pooling_type
from shimmy.formats.gguf import reader
from shimmy.formats.gguf.header import GgufHeader
from shimmy.formats.safetensors import huggingface
from shimmy.option_table import ConfigError
from shimmy.pool import memory_estimate
from shimmy.pool.memory_estimate import MemoryEstimate
from shimmy.system import memory
from shimmy.wire.worker_options import DRAFT_BATCH, MAX_VOCABULARY_DIFFERENCE, WorkerOptions

# Unless asked for otherwise, a pool may grow to the training length, and memory is set aside for this many tokens: that
# of a long training length is rarely wanted, and where it is, the worker looks whether there is memory.
_BOOKED_N_CTX = 8192
# What a pool that can only have what is set aside may take of `--max-memory` beyond that: other models want some, too.
_SHARE_OF_LIMIT = 0.5
# Where that does not fit, a smaller one will do, down to this.
_LEAST_N_CTX = 2048

# What of the configuration depends on the model too, and is worked out for each worker.
_OF_MODEL = {"n_ctx", "n_batch", "lora", "draft_model", "cache_dir"}
# All else that has one name in Config and in WorkerOptions is told as it is.
_SAME_FIELDS = (
    frozenset(field.name for field in fields(WorkerOptions)) & {field.name for field in fields(Config)} - _OF_MODEL
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Draft:
    """The draft model: what its file says, and how large it is in all shards. Whether it fits, a worker finds out."""

    path: Path
    header: GgufHeader
    size_bytes: int

    @classmethod
    def read(cls, path: Path) -> "_Draft":
        """Raises ConfigError when there is no GGUF file at `path`."""
        try:
            header = reader.read_header(path)
            shards = map(str, reader.shard_paths(path, header))
        except reader.InvalidGguf as exc:
            raise ConfigError(f"the draft model `{path}` cannot be used: {exc}") from exc
        except OSError as exc:
            raise ConfigError(f"the draft model `{path}` cannot be read: {exc.strerror}") from exc
        return cls(path.absolute(), header, memory.size_of(shards))

    def need(self, model: Model, options: WorkerOptions) -> MemoryEstimate:
        """What it takes in a worker of `model`: nothing where headers tell already that it does not fit."""
        if model.is_embedding or abs(self.header.n_vocab - model.n_vocab) > MAX_VOCABULARY_DIFFERENCE:
            return MemoryEstimate(0, 0, 0)
        n_ctx = options.n_ctx_draft
        return memory_estimate.draft_estimate(self.header, size_bytes=self.size_bytes, n_ctx=n_ctx, n_batch=DRAFT_BATCH)


class LaunchPlanner:
    """The terms on which workers start with one configuration; ConfigError when there is no draft model to read."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._draft = _Draft.read(config.draft_model) if config.draft_model and config.speculate else None

    def options(self, model: Model, n_ctx: int | None = None) -> WorkerOptions:
        """For a worker with a pool of `n_ctx` tokens; None: what was asked for, or the model's training length."""
        config = self._config
        own = [(path, 1.0) for path in model.adapters] if model.needs_adapters else []
        draft = self._draft.path if self._draft and self._draft.path != model.path else None
        told: dict[str, Any] = {name: getattr(config, name) for name in _SAME_FIELDS}
        return WorkerOptions(
            **told,
            model_path=str(model.path),
            n_ctx=n_ctx or config.n_ctx or model.n_ctx_train or _BOOKED_N_CTX,
            n_ctx_booked=None if self._books_all else _BOOKED_N_CTX,
            n_batch=max(config.n_batch, config.n_sequences),
            lora=tuple((str(path), scale) for path, scale in (*own, *config.lora)),
            siblings=() if own else tuple(map(str, model.adapters)),
            draft_model=None if draft is None else str(draft),
            cache_dir=None if config.cache_dir is None else str(config.cache_dir),
            may_tune=config.max_memory_bytes is None,
        )

    @property
    def _books_all(self) -> bool:
        """Whether memory is set aside for the whole pool: it was asked for, or a limit has to hold."""
        return self._config.n_ctx is not None or self._config.max_memory_bytes is not None

    def fitting(self, model: Model, n_most_bytes: float) -> WorkerOptions:
        """Like `options`, with a smaller pool than the default one where `n_most_bytes` demand it."""
        options = self.options(model)
        if self._config.n_ctx is not None:
            return options
        n_wanted = min(options.n_ctx, _BOOKED_N_CTX)
        while options.n_ctx // 2 >= _LEAST_N_CTX:
            is_large = options.n_ctx > _BOOKED_N_CTX
            share = _SHARE_OF_LIMIT if is_large and self._books_all else 1.0
            if self.need(model, replace(options, n_ctx_booked=None)).total <= share * n_most_bytes:
                break
            n_less = options.n_ctx // 2
            options = self.options(model, max(n_less, _BOOKED_N_CTX) if is_large else n_less)
        if options.n_ctx < n_wanted:
            logger.warning("`%s` gets a context of %d tokens: there is no memory for more", model.name, options.n_ctx)
        return options

    def need(self, model: Model, options: WorkerOptions) -> MemoryEstimate:
        """The memory that is set aside for a worker with these `options`."""
        need = memory_estimate.estimate(
            model,
            n_adapter_bytes=memory.size_of(
                str(huggingface.adapter_file(Path(path)))
                for path in (*(path for path, _ in options.lora), *options.siblings)
            ),
            n_ctx=options.n_booked,
            n_batch=options.n_ubatch,
            n_sequences=options.n_sequences,
            n_outputs=options.n_outputs,
            plan=pooling_type.plan(
                model,
                n_ctx=options.n_booked,
                n_batch=options.n_batch,
                pooling=options.pooling,
                embeddings=options.embeddings,
            ),
        )
        return need if self._draft is None or options.draft_model is None else need + self._draft.need(model, options)
