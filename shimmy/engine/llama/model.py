"""One loaded model of llama.cpp: its weights and adapters, what it is, and the contexts that compute with it.

Knows ctypes and llama.cpp's rules (who frees what, what aborts); knows nothing of jobs, text or the wire. Any thread
may use `vocab` and what stands under "for any thread". `backend` (the context for text) and `embeddings` belong to the
thread that decodes, and so does everything here that opens, sets or frees.
"""

import ctypes
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shimmy.engine.llama import no_memory
from shimmy.engine.llama.backend import LlamaBackend
from shimmy.engine.llama.binding import function, llama, log
from shimmy.engine.llama.context import EmbeddingContext, context_params, set_adapters
from shimmy.engine.llama.sampler import LlamaSampler, Probe
from shimmy.engine.llama.sampler_chain import SamplerChain, SamplerStage
from shimmy.engine.llama.tokenizer import overrides_for_words
from shimmy.engine.llama.vocab import LlamaVocab
from shimmy.engine.pulse import engine as activity
from shimmy.errors import ModelUnavailable
from shimmy.formats.pooling_type import EmbeddingPlan
from shimmy.messages.model_info import Adapter, ModelFacts
from shimmy.wire.worker_options import USUAL_KV_TYPE

if TYPE_CHECKING:
    from shimmy.engine.gpu.devices import EngineDevices

# Rows of a prompt that show that devices compute: those of one row and of a few are computed by other programs.
_DEVICE_ROWS = 64

# Architectures whose layers attend to a few blocks of tokens.
_OF_BLOCKS = {"minimax-m3"}

_backend_load = function("ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)
_processor_memory = function("ggml_backend_cpu_buffer_type", ctypes.c_void_p)
_adapter_init = function("llama_adapter_lora_init", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_adapter_free = function("llama_adapter_lora_free", None, ctypes.c_void_p)


class _BufferOverride(ctypes.Structure):
    """llama_model_tensor_buft_override."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def _experts_on_processor(n_layers: int) -> Any:
    """Overrides for the experts of the first layers, by the names that llama.cpp gives their tensors, and a last empty
    one. LLM_FFN_EXPS_REGEX in common/common.h."""
    array = (_BufferOverride * (n_layers + 1))()
    for layer in range(n_layers):
        pattern = rb"blk\.%d\.ffn_(up|down|gate|gate_up)_(ch|)exps" % layer
        array[layer] = _BufferOverride(pattern, _processor_memory())
    return array


@llama.llama_progress_callback  # type: ignore[untyped-decorator]
def _on_progress(_share: float, _user_data: object) -> bool:
    """llama.cpp calls this for each tensor that it loads; False would end the load."""
    activity.n_steps += 1
    return True


class CpuBackend:
    """The CPU variant of ggml this process runs on; loaded once, before any model."""

    note = ""  # which better variants do not work here, for a person

    def __init__(self, libraries: Iterable[tuple[str, str]]) -> None:
        """Take the first of `libraries` (name, path) that ggml accepts here; ModelUnavailable when it accepts none."""
        tried = []
        for name, path in libraries:
            self._registry = _backend_load(path.encode())
            if self._registry:
                self.name = name
                llama.llama_backend_init()
                return
            tried.append(name)
        raise ModelUnavailable(f"no CPU variant runs on this processor (tried: {', '.join(tried) or 'none'})")


class LlamaModel:
    """A model in memory with one context for text, one for embeddings, or both."""

    def __init__(
        self,
        path: Path,
        cpu: CpuBackend,
        *,
        devices: "EngineDevices | None" = None,
        repacks: bool = True,
        longest_token_bytes: int = 0,
        special_tokens: Sequence[int] | None = None,
        words: str = "",
    ) -> None:
        """Map the weights of `path`, or with `repacks` copy those into an order of the processor's for which ggml has
        one, and put the last layers on `devices`; raises ModelUnavailable with the engine's own reason. The last three
        arguments are for its LlamaVocab; without `words` llama.cpp cuts text, nearly alike."""
        params = llama.llama_model_default_params()
        self.devices = devices
        # With no list of devices, or no number of layers, llama.cpp would take all that it can.
        pointers, layers = (devices.pointers, devices.layers) if devices else ((), ())
        device_list = (ctypes.c_void_p * (len(pointers) + 1))(*pointers)
        split = (ctypes.c_float * llama.llama_max_devices())(*layers)
        params.devices = ctypes.addressof(device_list)
        params.tensor_split = split
        params.n_gpu_layers = sum(layers)
        overrides = _experts_on_processor(devices.n_cpu_moe if devices else 0)
        params.tensor_buft_overrides = ctypes.addressof(overrides) if len(overrides) > 1 else None
        params.use_extra_bufts = repacks
        params.progress_callback = _on_progress
        of_words = overrides_for_words() if words else None
        params.kv_overrides = of_words
        self.pointer = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            raise no_memory.failure(f"the engine could not load `{path.name}`", log.reason(), self.buffers)
        self.name = path.name
        self.cpu = cpu
        self.vocab = LlamaVocab(
            self.pointer,
            path.name,
            self.metadata,
            longest_token_bytes=longest_token_bytes,
            special_tokens=special_tokens,
            words=words,
        )
        self.n_ctx_train: int = llama.llama_model_n_ctx_train(self.pointer)
        self.n_layers: int = llama.llama_model_n_layer(self.pointer)
        self.can_rewind: bool = not (
            llama.llama_model_is_recurrent(self.pointer) or llama.llama_model_is_hybrid(self.pointer)
        )
        self.attends_to_blocks: bool = self.metadata("general.architecture") in _OF_BLOCKS
        self.adapters: list[int] = []  # pointers
        self.booked = (0, 0, 0)  # as `book` is told
        self.probe = Probe()
        self._backend: LlamaBackend | None = None
        self.embeddings: EmbeddingContext | None = None

    @property
    def writes(self) -> bool:
        """Whether it has a context for text."""
        return self._backend is not None

    @property
    def backend(self) -> LlamaBackend:
        """The context for text, of a model that `writes`."""
        assert self._backend is not None
        return self._backend

    @property
    def buffers(self) -> Sequence[str]:
        """The names of the types of buffers that its devices have."""
        return self.devices.buffers if self.devices else ()

    @property
    def place(self) -> tuple[bytes, ...]:
        """What cells depend on beside the engine, where devices compute them: other kernels round otherwise."""
        devices = self.devices
        return (repr((devices.description, devices.layers)).encode(),) if devices else ()

    @property
    def n_ctx(self) -> int:
        """Tokens of a prompt and its reply, or of an input where the model only makes embeddings."""
        return self._main_context.n_ctx

    @property
    def n_sequences(self) -> int:
        return self._main_context.n_sequences

    @property
    def _main_context(self) -> LlamaBackend | EmbeddingContext:
        context = self._backend or self.embeddings
        assert context is not None
        return context

    def add_adapter(self, path: Path) -> None:
        """Load the LoRA adapter at `path`, checked by `formats.gguf.lora`. Call it before the context is opened, which
        reserves the memory for the adapters' computations. Raises ModelUnavailable."""
        adapter = _adapter_init(self.pointer, os.fsencode(path))
        if not adapter:
            raise ModelUnavailable(log.reason())
        self.adapters.append(adapter)

    def remove_adapter(self, index: int) -> None:
        """Free an adapter that is not set for embeddings; those behind it move up, and none is set."""
        self.set_scales([0.0] * len(self.adapters))
        _adapter_free(self.adapters.pop(index))
        self.set_scales([0.0] * len(self.adapters))

    def set_scales(self, scales: Sequence[float]) -> None:
        """Set the scale of each adapter, for text, or for embeddings where the model makes nothing else."""
        if self._backend is None:
            self.set_embedding_scales(scales)
        else:
            self._backend.set_scales(scales)

    def set_embedding_scales(self, scales: Sequence[float]) -> None:
        """Set the scale of each adapter, for embeddings."""
        assert self.embeddings is not None
        set_adapters(self.embeddings.pointer, self.adapters, scales)

    def book(self, n_cells: int, cell_bytes: int, attention_bytes: int) -> None:
        """Before the pool is opened: memory is set aside for `n_cells` of it, of `cell_bytes` each, and a decode takes
        `attention_bytes` for each of them and of its rows. A pool that cannot move has no more cells, and one that
        grows beyond first looks whether there is memory."""
        self.booked = n_cells, cell_bytes, attention_bytes

    def open_context(
        self,
        *,
        n_ctx: int,
        n_batch: int,
        n_sequences: int,
        n_outputs: int,
        n_threads: int,
        n_ubatch: int | None = None,
        first: tuple[int, int] | None = None,
        kv_type: str = USUAL_KV_TYPE,
    ) -> LlamaBackend:
        """Make a KV pool that may have `n_ctx` cells for `n_sequences` sequences; OutOfMemory or OutOfDeviceMemory
        without the memory, and ModelUnavailable when the model cannot generate text.

        `first` is how many cells and sequences the pool has at first; all of them where that is None, or where a model
        cannot move what its pool holds: cells are memory, and each sequence is room for one row of logits. `n_ubatch`
        rows of a decode are computed together, and `n_outputs` of a decode may have logits. `kv_type` is one of
        KV_TYPES, of which quantised ones do not suit all models (ModelUnavailable). A model that attends to blocks has
        one sequence, whatever `n_sequences` says.
        """
        params = context_params(n_ctx, n_batch, n_sequences, n_threads, kv_type)
        params.n_ubatch = n_ubatch or n_batch
        self._backend = LlamaBackend(self, params, n_outputs=n_outputs, first=first)
        return self._backend

    def open_embeddings(self, plan: EmbeddingPlan, n_threads: int) -> None:
        """Make a context for embeddings, after the one for text where there is one; OutOfMemory or OutOfDeviceMemory
        without the memory, and ModelUnavailable when it would take no input."""
        self.embeddings = EmbeddingContext(
            self.pointer, plan, n_threads, self.buffers, attends_to_blocks=self.attends_to_blocks
        )
        if self.embeddings.n_ctx < 1:
            raise ModelUnavailable(f"`{self.name}` has a training length of 0 tokens: it can read nothing")

    def close(self) -> None:
        """Free a model that will not be used after all, and its context for text."""
        if self._backend is not None:
            self._backend.close()
        llama.llama_model_free(self.pointer)

    def warm_up(self) -> None:
        """Decode one token, or embed a word where the model does nothing else: a model that cannot is refused, and the
        first request does not pay for first-use allocations and mapped pages. Raises ModelUnavailable."""
        if self._backend is not None:
            self._backend.warm_up()
            if self.devices is not None:  # drivers compile what they need at its first use
                self._backend.warm_up(_DEVICE_ROWS)
            return
        assert self.embeddings is not None
        tokens = self.vocab.tokenize("hello", add_special=True, parse_special=False) or [0]
        self.embeddings.warm_up(tokens[: self.embeddings.n_ctx])

    def set_threads(self, n_threads: int) -> None:
        """From the next decode on."""
        if self._backend is not None:
            self._backend.set_threads(n_threads)
        if self.embeddings is not None:
            self.embeddings.set_threads(n_threads)

    # -- for any thread ------------------------------------------------------------------------------------------

    def new_sampler(
        self,
        chain: SamplerChain,
        biases: Sequence[tuple[int, float]],
        breakers: Sequence[str],
        history: Sequence[int] = (),
    ) -> LlamaSampler:
        """Build `chain`. `biases`, and those that suppress tokens of the model itself, come before its stages.

        Stages that look back at the prompt are shown the end of `history`. Raises BadRequest for `breakers` that
        llama.cpp would get wrong."""
        if any(stage.name == "dry" for stage in chain.stages):
            self.vocab.tokenizer.check_breakers(breakers)
        pointer = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        biases = [*biases, *self.vocab.suppressed]
        if biases:
            array = (llama.llama_logit_bias * len(biases))(*biases)
            stage = llama.llama_sampler_init_logit_bias(self.vocab.n_vocab, len(biases), array)
            llama.llama_sampler_chain_add(pointer, stage)
        for stage in chain.stages:
            sampler = self._new_stage(stage, breakers)
            for token in history[-stage.n_history :] if stage.n_history else ():
                llama.llama_sampler_accept(sampler, token)
            llama.llama_sampler_chain_add(pointer, sampler)
        never = frozenset(token for token, bias in biases if bias == -math.inf)
        return LlamaSampler(pointer, self.probe, has_history=chain.looks_back, never=never)

    def _new_stage(self, stage: SamplerStage, breakers: Sequence[str]) -> Any:
        create = getattr(llama, f"llama_sampler_init_{stage.name}")
        if stage.name == "dry":
            texts = [text.encode("utf-8", "replace") for text in breakers]
            array = (ctypes.c_char_p * len(texts))(*texts)
            return create(self.vocab.pointer, *stage.arguments, array, len(texts))
        if stage.name in {"penalties", "mirostat"}:
            return create(self.vocab.n_vocab, *stage.arguments)
        return create(*stage.arguments)

    def chat_template(self, name: str | None = None) -> str | None:
        """The template stored in the model file, or its variant called `name`, unread and untrusted."""
        source = llama.llama_model_chat_template(self.pointer, name and name.encode())
        return None if source is None else bytes(source).decode("utf-8", "replace")

    def metadata(self, key: str) -> str | None:
        """The value of a metadata key as text; None where the model has none."""
        n_bytes = llama.llama_model_meta_val_str(self.pointer, key.encode(), None, 0)
        if n_bytes < 0:
            return None
        buffer = ctypes.create_string_buffer(n_bytes + 1)
        llama.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def facts(self, *, has_chat_template: bool, adapters: tuple[Adapter, ...] = ()) -> ModelFacts:
        buffer = ctypes.create_string_buffer(256)
        llama.llama_model_desc(self.pointer, buffer, len(buffer))
        return ModelFacts(
            n_ctx=self.n_ctx,
            n_ctx_train=self.n_ctx_train,
            n_vocab=self.vocab.n_vocab,
            n_sequences=self.n_sequences,
            n_params=llama.llama_model_n_params(self.pointer),
            size_bytes=llama.llama_model_size(self.pointer),
            description=buffer.value.decode("utf-8", "replace"),
            cpu_variant=self.cpu.name,
            cpu_variant_note=self.cpu.note,
            has_chat_template=has_chat_template,
            adapters=adapters,
            longest_token_bytes=self.vocab.tokenizer.longest_token_bytes(),
            device=self.devices.names if self.devices else "",
            device_description=self.devices.description if self.devices else "",
            n_layers=self.n_layers + 1,
            n_device_layers=min(self.devices.n_layers, self.n_layers + 1) if self.devices else 0,
        )
