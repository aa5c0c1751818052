"""Loads the model of a worker, shows that it works, and opens the prompts that the disk has of it.

Knows what has to be checked before the engine opens a file, and in which order; nothing of sockets, threads or jobs.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shimmy.engine import lora_adapters as adapters
from shimmy.engine.cpu_variants import variants
from shimmy.engine.cpu_variants.variant_trust import TrustedVariants
from shimmy.engine.llama.binding import LIBRARY, LIBRARY_FOLDER
from shimmy.engine.llama.context import form_of_cells
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.load_progress import progress_told
from shimmy.errors import ModelUnavailable, TemplateFailed
from shimmy.formats import pooling_type
from shimmy.formats.gguf import reader, vocabulary
from shimmy.formats.gguf.header import CONTEXT_LIMIT
from shimmy.messages.model_info import LoadProgress, ModelFacts, PromptCacheStats
from shimmy.messages.request import ChatPrompt, Message
from shimmy.wire import worker_options

if TYPE_CHECKING:
    from shimmy.engine.gpu.devices import EngineDevices
    from shimmy.engine.kv.cache_keys import Sources
    from shimmy.engine.kv.prompt_store import PromptStore
    from shimmy.engine.prepare_prompt import PromptPreparer

logger = logging.getLogger(__name__)

# Cells and sequences that a KV pool begins with: enough for a short conversation and for idle sequences beside it.
_FIRST = (512, 4)
_MAX_DIGITS = 10  # of a number of tokens


def open_sources(options: worker_options.WorkerOptions) -> "Sources | None":
    """The files that are about to be loaded, whose digests the keys of stored prompts need; None: store none."""
    if options.prompt_cache_bytes is None:
        return None
    from shimmy.engine.kv.cache_keys import Sources  # few workers need it

    adapters = (*(path for path, _ in options.lora), *options.siblings)
    with contextlib.suppress(OSError, reader.InvalidGguf):  # the load will say why
        return Sources(Path(options.model_path), map(Path, adapters))
    return None


def open_prompts(
    sources: "Sources | None",
    model: LlamaModel,
    preparer: "PromptPreparer",
    options: worker_options.WorkerOptions,
    tell: Callable[[PromptCacheStats], None],
) -> "PromptStore | None":
    """The prompts on the disk for the loaded `model`; None, with a warning in the log, where they cannot be used."""
    if sources is None or options.prompt_cache_bytes is None:
        return None
    from shimmy.engine.kv.cache_keys import digest_of  # few workers need them
    from shimmy.engine.kv.prompt_files import PromptFiles
    from shimmy.engine.kv.prompt_store import PromptStore

    try:
        if options.cache_dir is None:
            raise OSError(0, "there is no cache folder; `--cache-dir` names one")
        cache = PromptFiles(
            Path(options.cache_dir) / "prompts",
            options.prompt_cache_bytes,
            max_tokens=model.n_ctx,
            in_part=model.can_rewind,
            on_written=lambda n, n_all: tell(PromptCacheStats(written_bytes=n, stored_bytes=n_all)),
        )
        keys = sources.keys(preparer.adapters, digest_of(LIBRARY), form_of_cells(options.kv_type), *model.place)
    except OSError as exc:
        logger.warning("no prompts are kept: %s", exc.strerror or exc)
        return None
    return PromptStore(cache, keys.of, model.backend, tell)


def trusted_backend(forced: str | None, cache_dir: str | None) -> CpuBackend:
    """The best CPU variant that computes right on this machine, or the forced one; raises ModelUnavailable."""
    folder = None if cache_dir is None else Path(cache_dir)
    trusted = TrustedVariants(variants.libraries(LIBRARY_FOLDER, forced), folder, is_forced=forced is not None)
    try:
        cpu = CpuBackend(trusted)
    except ModelUnavailable as error:
        raise ModelUnavailable("; ".join(filter(None, (error.message, trusted.note)))) from error
    cpu.note = trusted.note
    return cpu


def load(
    options: worker_options.WorkerOptions, n_threads: int, tell: Callable[[LoadProgress], None]
) -> tuple[LlamaModel, list[adapters.Offer]]:
    """Load the model and its adapters without trying them; raises ModelUnavailable. `tell` is called on another thread
    with how far that is, where it takes a while."""
    path = Path(options.model_path)
    try:
        found = reader.validated(path)  # what the engine would abort on has to be found before it looks
    except reader.InvalidGguf as exc:
        raise ModelUnavailable(f"`{path.name}` cannot be loaded: {exc}") from exc
    except OSError as exc:
        raise ModelUnavailable(f"`{path.name}` cannot be loaded: {exc.strerror}") from exc
    header = found.header
    reason = pooling_type.refusal(header, pooling=options.pooling, embeddings=options.embeddings)
    if header.is_embedding and reason:
        raise ModelUnavailable(f"`{path.name}` {reason}")
    cpu = trusted_backend(options.cpu_variant, options.cache_dir)
    repacks = options.weights != "mapped"
    devices = _devices(options)
    special_tokens = vocabulary.special_tokens(path, found)
    with progress_told(reader.shard_paths(path, header), tell):
        model = LlamaModel(
            path, cpu, devices=devices, repacks=repacks, longest_token_bytes=found.longest_token_bytes,
            special_tokens=special_tokens, words=found.words,
        )  # fmt: skip
    offers = adapters.load(model, path, header, options)
    n_positions = _n_positions(model, found.n_positions)
    if not header.is_embedding:
        model.book(
            options.n_booked,
            worker_options.cell_bytes(header.n_kv, options.kv_type),
            worker_options.attention_bytes(header.architecture, header.n_heads, options.kv_type),
        )
        # llama.cpp takes the long factors for all texts where the pool could hold a long one.
        n_pool = min(options.n_ctx, n_positions) if b"rope_factors_long.weight" in found.tensors else options.n_ctx
        model.open_context(
            n_ctx=n_pool,
            first=_FIRST,
            n_batch=max(options.n_batch, options.n_sequences),
            n_ubatch=options.n_ubatch,
            n_sequences=options.n_sequences,
            n_outputs=options.n_outputs,
            kv_type=options.kv_type,
            n_threads=n_threads,
        )
        model.backend.n_ctx = min(model.n_ctx, n_positions)
    plan = pooling_type.plan(
        header,
        n_ctx=min(options.n_booked, n_positions),
        n_batch=options.n_batch,
        pooling=options.pooling,
        embeddings=options.embeddings,
    )
    if plan is not None:
        model.open_embeddings(plan, n_threads)
    return model, offers


def _n_positions(model: LlamaModel, n_in_table: int | None) -> int:
    """The length up to which the engine computes a text rightly.

    What is beyond a table of positions would be looked up nonetheless, and some models have been converted for a part
    of their context.
    """
    limit = model.metadata(CONTEXT_LIMIT) or ""
    # Of a hostile file, it may be a text, of more digits than Python takes for a number.
    limits = [int(limit)] if limit.isdecimal() and len(limit) <= _MAX_DIGITS and int(limit) > 0 else []
    return min([*limits, *([] if n_in_table is None else [n_in_table])], default=sys.maxsize)


def _devices(options: worker_options.WorkerOptions) -> "EngineDevices | None":
    if options.offload.has_remote:
        from shimmy.engine.remote.machines import open_all  # few workers need it

        return open_all(options)
    return devices_of(options.offload, None if options.cache_dir is None else Path(options.cache_dir))


def devices_of(offload: worker_options.Offload, cache_dir: Path | None) -> "EngineDevices | None":
    """Those of `offload`, where it has any; raises ModelUnavailable."""
    if not offload.devices:
        return None
    from shimmy.engine.gpu.devices import open_devices  # few workers need it

    return open_devices(offload, cache_dir)


def explained(path: Path, reason: str) -> str:
    """Why the engine gave up on the model at `path`: in words where its vocabulary is at fault, else by `reason`."""
    with contextlib.suppress(OSError, reader.InvalidGguf):
        return vocabulary.fault(path, reader.contents(path)) or reason
    return reason


def validate(
    model: LlamaModel, offers: Sequence[adapters.Offer], options: worker_options.WorkerOptions
) -> "tuple[PromptPreparer, ModelFacts]":
    """What prepares the jobs of `model`, and what it is, once it has shown that it works.

    Raises ModelUnavailable when it computes no tokens, or no embeddings where it makes nothing else. A chat template
    that does not render is only a fact: plain text can be completed without it.
    """
    from shimmy.engine.prepare_prompt import PromptPreparer  # imported on another thread meanwhile, as it takes long

    model.warm_up()
    preparer = PromptPreparer(model, options.chat_template, adapters.try_out(model, offers))
    if model.embeddings is not None:
        model.set_embedding_scales([adapter.scale for adapter in preparer.adapters])
    template_error = None
    if model.writes:
        try:
            preparer.render(ChatPrompt((Message("user", "Hello"),)))
        except TemplateFailed as error:
            template_error = error.message
    facts = model.facts(has_chat_template=preparer.has_chat_template, adapters=preparer.adapters)
    return preparer, replace(facts, template_error=template_error, device_note=options.offload.note)
