"""What both kinds of context of a model share (rows of a batch, parameters, adapters), and the one for embeddings.

Knows ctypes and llama.cpp's rules. The context for text is in `backend`.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

from shimmy.engine.llama import no_memory
from shimmy.engine.llama.binding import function, llama, log
from shimmy.engine.pulse import nodes
from shimmy.errors import ModelUnavailable
from shimmy.formats.pooling_type import EmbeddingPlan
from shimmy.wire.worker_options import EXACT_KV_TYPE, USUAL_KV_TYPE

# The binding declares pointers to pointers here, which cost a cast each.
_pointers, _floats = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_float)
_set_adapters = function(
    "llama_set_adapters_lora", ctypes.c_int32, ctypes.c_void_p, _pointers, ctypes.c_size_t, _floats
)


class Batch:
    """The rows of one decode, in arrays of our own: llama.cpp never frees them (never call llama_batch_free)."""

    def __init__(self, n_rows_max: int) -> None:
        int_array = ctypes.c_int32 * n_rows_max
        self._tokens, self._positions, self._sequences = int_array(), int_array(), int_array()
        self._n_sequences = int_array(*[1] * n_rows_max)
        self._outputs = (ctypes.c_int8 * n_rows_max)()
        self._sequence_pointers = (ctypes.POINTER(ctypes.c_int32) * n_rows_max)()
        start, size = ctypes.addressof(self._sequences), ctypes.sizeof(ctypes.c_int32)
        for row in range(n_rows_max):
            address = ctypes.c_void_p(start + row * size)
            self._sequence_pointers[row] = ctypes.cast(address, ctypes.POINTER(ctypes.c_int32))
        self.n_rows = 0
        self.struct = llama.llama_batch(
            0, self._tokens, None, self._positions, self._n_sequences, self._sequence_pointers, self._outputs
        )

    def clear(self) -> None:
        self.n_rows = 0

    def add(self, tokens: Sequence[int], position: int, sequence: int, *, n_outputs: int) -> int:
        """Append consecutive `tokens` of one sequence; the last `n_outputs` get logits. Returns the row of the last."""
        first, n_tokens = self.n_rows, len(tokens)
        last = first + n_tokens - 1
        if n_tokens == 1:
            self._tokens[first] = tokens[0]
            self._positions[first] = position
            self._sequences[first] = sequence
            self._outputs[first] = n_outputs
        else:
            end = last + 1
            self._tokens[first:end] = list(tokens)
            self._positions[first:end] = list(range(position, position + n_tokens))
            self._sequences[first:end] = [sequence] * n_tokens
            self._outputs[first:end] = [int(index >= n_tokens - n_outputs) for index in range(n_tokens)]
        self.n_rows = last + 1
        self.struct.n_tokens = self.n_rows
        return last


def context_params(n_ctx: int, n_batch: int, n_sequences: int, n_threads: int, kv_type: str = USUAL_KV_TYPE) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch = params.n_ubatch = n_batch
    params.n_seq_max = n_sequences
    params.n_threads = params.n_threads_batch = n_threads
    params.type_k = params.type_v = getattr(llama, f"GGML_TYPE_{kv_type.upper()}")
    if kv_type == EXACT_KV_TYPE:
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.kv_unified = True  # prompt and decode rows share one graph
    params.swa_full = True  # a window that forgets cannot be rolled back to a shared prefix
    params.no_perf = True
    if nodes.callback is not None:
        params.abort_callback = llama.ggml_abort_callback(nodes.callback)
        params.abort_callback_data = nodes.address
    return params


def keep_blocks(params: Any) -> None:
    """Change `params` so that llama.cpp computes sparse attention to blocks: it does that for one sequence alone and
    with flash attention, and otherwise lets each token attend to all others, without an error."""
    params.n_seq_max = 1
    params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED


def set_adapters(context: Any, adapters: Sequence[int], scales: Sequence[float]) -> None:
    """Use each of `adapters` (pointers) with its scale in what `context` computes from now on; 0 costs nothing."""
    used = [(adapter, scale) for adapter, scale in zip(adapters, scales, strict=True) if scale]
    pointers = (ctypes.c_void_p * len(used))(*[adapter for adapter, _ in used])
    floats = (ctypes.c_float * len(used))(*[scale for _, scale in used])
    _set_adapters(context, pointers, len(used), floats)


def form_of_cells(kv_type: str = USUAL_KV_TYPE) -> bytes:
    """What the parameters of a context say of its cells: a pool of another form cannot take them over."""
    params = context_params(n_ctx=1, n_batch=1, n_sequences=1, n_threads=1, kv_type=kv_type)
    of_memory = ("type_k", "type_v", "flash_attn_type", "swa_full", "attention_type")
    of_rope = ("rope_scaling_type", "rope_freq_base", "rope_freq_scale")
    of_yarn = ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx")
    return repr([getattr(params, name) for name in (*of_memory, *of_rope, *of_yarn)]).encode()


class EmbeddingContext:
    """A context that gives one vector for each sequence instead of logits, as the embedder's backend."""

    def __init__(
        self,
        model: Any,
        plan: EmbeddingPlan,
        n_threads: int,
        buffers: Sequence[str] = (),
        *,
        attends_to_blocks: bool = False,
    ) -> None:
        """Open it for the model behind the pointer `model`; OutOfMemory without the memory, OutOfDeviceMemory where it
        is that of devices, which have `buffers`."""
        # llama.cpp lays its graph out with as many rows of each sequence, and aborts where that is more than the batch.
        n_rows = -(-plan.n_batch // plan.n_sequences) * plan.n_sequences
        params = context_params(plan.n_ctx, n_rows, plan.n_sequences, n_threads)
        params.n_outputs_max = n_rows  # every row of a batch is an output
        params.embeddings = True
        if attends_to_blocks:
            keep_blocks(params)
        params.pooling_type = getattr(llama, f"LLAMA_POOLING_TYPE_{plan.pooling.upper()}")
        self.pointer = llama.llama_init_from_model(model, params)
        if not self.pointer:
            raise no_memory.of_context(f"no context of {plan.n_ctx} tokens for embeddings", log.reason(), buffers)
        self._buffers = buffers
        self._memory = llama.llama_get_memory(self.pointer)  # encoders have none
        self._compute = llama.llama_decode if llama.llama_model_has_decoder(model) else llama.llama_encode
        is_causal = self._memory and llama.llama_get_causal_attn(self.pointer)
        self.in_parts = plan.in_parts and bool(is_causal)
        # Other inputs have to be in one batch, and what is beyond a table of positions would be looked up nonetheless.
        self.n_ctx = plan.n_ctx if self.in_parts else min(plan.n_ctx, plan.n_batch)
        if not is_causal:
            self.n_ctx = min(self.n_ctx, llama.llama_model_n_ctx_train(model))
        self.n_batch = plan.n_batch
        self.n_packed = plan.n_packed
        self.n_sequences: int = params.n_seq_max
        self.n_embd: int = llama.llama_model_n_embd_out(model)
        self.batch = Batch(plan.n_batch)

    def set_threads(self, n_threads: int) -> None:
        """From the next batch on."""
        llama.llama_set_n_threads(self.pointer, n_threads, n_threads)

    def compute(self) -> int:
        """Run the rows of `batch`: 0 done, anything else an error of the engine. One of devices raises
        ModelUnavailable, as in `LlamaBackend.decode`."""
        status = int(self._compute(self.pointer, self.batch.struct))
        if status != 0 and self._buffers:
            raise no_memory.of_decode(status, log.reason(), self._buffers)
        return status

    def vector(self, sequence: int) -> list[float]:
        """The embedding of a sequence in the last batch, not normalised; empty when it was not in it."""
        values = llama.llama_get_embeddings_seq(self.pointer, sequence)
        return list(values[: self.n_embd]) if values else []

    def forget(self, sequence: int) -> None:
        llama.llama_memory_seq_rm(self._memory, sequence, 0, -1)

    def wipe(self) -> None:
        """Empty the context and clear its memory: a NaN in a free cell spoils what is computed beside it."""
        llama.llama_memory_clear(self._memory, True)

    def warm_up(self, tokens: Sequence[int]) -> None:
        """Compute an embedding; raises ModelUnavailable when that is not possible."""
        self.batch.clear()
        self.batch.add(tokens, 0, 0, n_outputs=len(tokens))
        if self.compute() != 0:
            raise ModelUnavailable(f"the engine could not compute an embedding with this model: {log.reason()}")
        if not math.isfinite(sum(self.vector(0))):
            self.wipe()
            raise ModelUnavailable("the model computes no numbers (NaN): its weights are damaged")
        self.forget(0)
