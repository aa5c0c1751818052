"""What a worker of a model is told at its start, and the memory it will take.

Knows the server's options and the model's header; nothing of which workers run.
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
from shimmy.option_kinds import ConfigError
from shimmy.pool import memory_estimate
from shimmy.pool.memory_estimate import MemoryEstimate
from shimmy.system import memory
from shimmy.wire.worker_options import DRAFT_BATCH, MAX_VOCABULARY_DIFFERENCE, Offload, WorkerOptions

# Without `--ctx-size` a KV pool may grow to the training length, but memory is reserved for this many tokens only: few
# jobs use a long training length, and the worker looks for the memory when one does.
_BOOKED_N_CTX = 8192
# Under `--max-memory` a pool can only have what is reserved. One with more tokens than that may take this share of the
# limit: other models need memory too.
_SHARE_OF_LIMIT = 0.5
# Where not even the reserved tokens fit, the pool gets smaller, down to this.
_LEAST_N_CTX = 2048

# What of the configuration depends on the model too, and is worked out for each worker.
_OF_MODEL = {"n_ctx", "n_batch", "lora", "draft_model", "cache_dir", "imatrix", "rpc_key_file"}
# All else that has one name in Config and in WorkerOptions is told as it is.
_SAME_FIELDS = (
    frozenset(field.name for field in fields(WorkerOptions)) & {field.name for field in fields(Config)} - _OF_MODEL
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Draft:
    """The draft model: its header, and its size in all shards. The worker finds out whether it fits the model."""

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

    def estimate(self, model: Model, options: WorkerOptions) -> MemoryEstimate:
        """The memory it takes in a worker of `model`: none where the headers already tell that it does not fit."""
        if model.is_embedding or abs(self.header.n_vocab - model.n_vocab) > MAX_VOCABULARY_DIFFERENCE:
            return MemoryEstimate(0, 0, 0)
        n_ctx = options.n_ctx_draft
        return memory_estimate.draft_estimate(self.header, size_bytes=self.size_bytes, n_ctx=n_ctx, n_batch=DRAFT_BATCH)


class LaunchPlanner:
    """Plans the start of workers with one configuration. Raises ConfigError when the draft model cannot be read."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._draft = _Draft.read(config.draft_model) if config.draft_model and config.speculate else None

    def options(self, model: Model, n_ctx: int | None = None) -> WorkerOptions:
        """For a worker with a KV pool of `n_ctx` tokens; None: `--ctx-size`, or the model's training length."""
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
            imatrix=None if config.imatrix is None else str(config.imatrix),
            rpc_key_file=None if config.rpc_key_file is None else str(config.rpc_key_file),
            may_tune=config.max_memory_bytes is None,
        )

    @property
    def _books_all(self) -> bool:
        """Whether memory is reserved for the whole KV pool: with `--ctx-size`, or where `--max-memory` must hold."""
        return self._config.n_ctx is not None or self._config.max_memory_bytes is not None

    def has_adapters(self, model: Model) -> bool:
        """Whether its worker will load LoRA adapters, of whatever scale, or try to."""
        return bool(model.adapters or self._config.lora)

    def whole(self, model: Model) -> MemoryEstimate:
        """The memory that `model` takes without devices, and without a draft model beside it.

        Of a KV pool whose length no person has asked for, only the beginning counts: devices rather have more layers.
        """
        n_booked = _BOOKED_N_CTX if self._config.n_ctx is None else None
        return self.estimate(model, replace(self.options(model), draft_model=None, n_ctx_booked=n_booked))

    def fitting(self, model: Model, max_bytes: float, offload: Offload) -> WorkerOptions:
        """Like `options`, with layers on devices, but with a smaller KV pool than the default where `max_bytes` of main
        memory require that."""
        options = self.options(model)
        # Times of the processor say nothing about devices.
        options = replace(options, offload=offload, may_tune=options.may_tune and not offload.devices)
        if self._config.n_ctx is not None:
            return options
        n_wanted = min(options.n_ctx, _BOOKED_N_CTX)
        while options.n_ctx // 2 >= _LEAST_N_CTX:
            is_large = options.n_ctx > _BOOKED_N_CTX
            share = _SHARE_OF_LIMIT if is_large and self._books_all else 1.0
            if self.estimate(model, replace(options, n_ctx_booked=None)).total <= share * max_bytes:
                break
            n_less = options.n_ctx // 2
            options = replace(options, n_ctx=max(n_less, _BOOKED_N_CTX) if is_large else n_less)
        if options.n_ctx < n_wanted:
            logger.warning("`%s` gets a context of %d tokens: there is no memory for more", model.name, options.n_ctx)
        return options

    def estimate(self, model: Model, options: WorkerOptions) -> MemoryEstimate:
        """The memory to reserve for a worker with these `options`."""
        estimate = memory_estimate.estimate(
            model,
            n_adapter_bytes=memory.size_of(
                str(huggingface.adapter_file(Path(path)))
                for path in (*(path for path, _ in options.lora), *options.siblings)
            ),
            n_ctx=options.n_booked,
            n_batch=options.n_ubatch,
            n_sequences=options.n_sequences,
            n_outputs=options.n_outputs,
            kv_type=options.kv_type,
            plan=pooling_type.plan(
                model,
                n_ctx=options.n_booked,
                n_batch=options.n_batch,
                pooling=options.pooling,
                embeddings=options.embeddings,
            ),
        )
        estimate = memory_estimate.beside(estimate, model, options.offload)
        if self._draft is None or options.draft_model is None:
            return estimate
        return estimate + self._draft.estimate(model, options)
