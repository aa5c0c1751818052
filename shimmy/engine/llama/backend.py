"""A model's context for text: one unified KV pool, the decodes in it, and what these gave. The scheduler's backend.

Knows ctypes and llama.cpp's rules; nothing of jobs, text or the wire. All of it belongs to the thread that decodes.
"""

import ctypes
import math
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shimmy.engine.llama import no_memory
from shimmy.engine.llama.binding import llama, log
from shimmy.engine.llama.context import Batch, keep_blocks, set_adapters
from shimmy.engine.llama.sampler import Likelihood
from shimmy.engine.llama.sequence_state import State, States
from shimmy.errors import ModelUnavailable, OutOfDeviceMemory, OutOfMemory
from shimmy.messages.event import LEAST_LOGPROB, Candidate, TokenLogprob
from shimmy.system import memory
from shimmy.wire.worker_options import CELLS_STEP, MAX_SEQUENCES

if TYPE_CHECKING:
    from shimmy.engine.llama.model import LlamaModel

_SPARE_BYTES = 128 * 10**6  # that stay free for the system where a pool grows


class LlamaBackend:
    """The KV pool of `model` for text; `LlamaModel.open_context` makes it."""

    def __init__(
        self, model: "LlamaModel", params: Any, *, n_outputs: int, first: tuple[int, int] | None = None
    ) -> None:
        """`params` are those of the pool at its largest. See `LlamaModel.open_context`, and for the errors too."""
        self._model = model
        self._vocab = model.vocab
        self._architecture = model.metadata("general.architecture") or ""
        # The scheduler asks for these with each token: no detour by a method of this class.
        self.is_end, self.piece = model.vocab.is_end, model.vocab.piece
        self.can_rewind = model.can_rewind
        self._n_window: int = llama.llama_model_n_swa(model.pointer) if self.can_rewind else 0
        self._has_devices = model.devices is not None
        self._scales: Sequence[float] = ()
        self._probe = model.probe
        self._likelihood = Likelihood(self._probe)
        if model.attends_to_blocks:
            keep_blocks(params)
        self._params = params
        self.n_batch: int = params.n_batch
        self.n_sequences: int = params.n_seq_max
        # 0 would reserve n_ubatch rows, exceeding it aborts; llama.cpp itself makes room for one row of each sequence.
        self.n_outputs = n_outputs
        self._params.n_outputs_max = max(n_outputs, self.n_sequences + 1)
        self.n_booked, self._cell_bytes, self._attention_bytes = model.booked
        n_ctx: int = self._n_movable(params.n_ctx) if first else params.n_ctx
        self.n_ctx = -(-n_ctx // CELLS_STEP) * CELLS_STEP
        self.n_booked = min(self.n_ctx, self.n_booked or self.n_ctx)
        self.n_cells = 0
        n_cells, n_open = first if first and self._can_resize() else (n_ctx, self.n_sequences)
        self._open(min(n_cells, n_ctx), min(n_open, self.n_sequences))
        if not (llama.llama_model_has_decoder(model.pointer) and self._memory):
            self.close()
            raise ModelUnavailable(f"`{model.name}` does not write one token after the other: it cannot generate text")
        self.batch = Batch(self.n_batch)

    def _open(self, n_cells: int, n_open: int) -> None:
        self._params.n_ctx = -(-n_cells // CELLS_STEP) * CELLS_STEP  # less would also be the most rows of a batch
        # States of sliding windows are put together in a sequence that holds no job (`sequence_state`).
        self._params.n_seq_max = min(n_open + bool(self._n_window), MAX_SEQUENCES)
        self._context = self._probe.context = llama.llama_init_from_model(self._model.pointer, self._params)
        if not self._context:
            raise self._no_context(n_cells)
        self._memory = llama.llama_get_memory(self._context)
        self.n_cells = llama.llama_n_ctx(self._context)
        self.n_open = n_open

    def _no_context(self, n_cells: int) -> ModelUnavailable:
        reason, buffers = log.reason(), self._model.buffers
        is_quantised = self._params.type_v not in (llama.GGML_TYPE_F16, llama.GGML_TYPE_F32)
        if is_quantised and not self.n_cells:  # one that grows suits the model
            message = "no context with a quantised KV cache, where `--kv-type f16` may do"
            error = no_memory.failure(message, reason, buffers)
            if not isinstance(error, OutOfMemory | OutOfDeviceMemory):  # for want of memory F16 would not do
                return error
        return no_memory.of_context(f"no context of {n_cells} tokens", reason, buffers)

    def _can_resize(self) -> bool:
        """Whether the pool can be moved: states can, and a larger context has the same position factors."""
        n_original = self._n_original()
        return self.can_rewind and (n_original is None or self.n_ctx <= n_original)

    def _n_movable(self, n_ctx: int) -> int:
        """The most cells, up to `n_ctx`, of a pool that grows to them; of one that cannot grow, the booked cells."""
        n_original, n_booked = self._n_original(), self.n_booked or n_ctx
        if not self.can_rewind:
            return min(n_ctx, n_booked)
        return n_ctx if n_original is None else min(n_ctx, max(n_booked, n_original))

    def _n_original(self) -> int | None:
        """The number of cells beyond which llama.cpp uses other position factors; None where it never does."""
        n_original = self._model.metadata(f"{self._architecture}.rope.scaling.original_context_length")
        return None if n_original is None else int(n_original)

    def resize(self, n_cells: int, n_open: int) -> bool:
        """Give the pool `n_cells`, and sequences below `n_open`, and move what is resident there; False without the
        memory for that. Sequences from `n_open` on have to be empty.

        During the move all resident cells are in memory twice. The logits of the last decode are lost.
        """
        n_bytes = llama.llama_state_get_size(self._context)
        if n_cells > self.n_booked and not self._has_memory(n_cells, n_bytes):
            return False
        try:
            state = mmap.mmap(-1, n_bytes)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                state.madvise(mmap.MADV_HUGEPAGE)  # first use of small pages takes longer than the copy
        except OSError:
            return False
        copy = (ctypes.c_uint8 * n_bytes).from_buffer(state)
        llama.llama_state_get_data(self._context, copy, n_bytes)
        before = self.n_cells, self.n_open
        llama.llama_free(self._context)
        try:
            self._open(n_cells, n_open)
        except (OutOfMemory, OutOfDeviceMemory):
            self._open(*before)
        if llama.llama_state_set_data(self._context, copy, n_bytes) != n_bytes:
            raise OutOfMemory(f"could not move {n_bytes} bytes into a context of {self.n_cells} tokens")
        self.set_scales(self._scales)
        return (self.n_cells, self.n_open) != before

    def _has_memory(self, n_cells: int, n_state_bytes: int) -> bool:
        """Whether system and devices have memory for a pool of `n_cells`, beside a copy of what is resident now."""
        free_bytes, devices = memory.free_bytes(), self._model.devices
        n_compute_bytes = self._params.n_ubatch * n_cells * self._attention_bytes
        new_bytes = (n_cells - self.n_cells) * self._cell_bytes + n_compute_bytes
        if devices is not None and not devices.have_memory(new_bytes):
            return False
        return free_bytes is None or n_state_bytes + new_bytes + _SPARE_BYTES <= free_bytes

    def warm_up(self, n_rows: int = 1) -> None:
        """Decode so many tokens at most, and leave the pool empty. Raises ModelUnavailable where that does not work."""
        self.batch.clear()
        tokens = [self._vocab.bos_token() or 0] * min(n_rows, self.n_batch, self.n_cells)
        row = self.batch.add(tokens, 0, 0, n_outputs=1)
        if self.decode() != 0:
            raise no_memory.failure("the engine could not decode with this model", log.reason(), self._model.buffers)
        logits = llama.llama_get_logits_ith(self._context, row)
        if math.isnan(sum(logits[: self._vocab.n_vocab])):
            self.wipe()
            raise ModelUnavailable("the model computes no numbers (NaN): its weights are damaged")
        self.forget(0, 0)

    def set_threads(self, n_threads: int) -> None:
        """From the next decode on."""
        self._params.n_threads = self._params.n_threads_batch = n_threads
        llama.llama_set_n_threads(self._context, n_threads, n_threads)

    def set_scales(self, scales: Sequence[float]) -> None:
        """Of each adapter of the model, for what is decoded from now on; one of scale 0 costs nothing."""
        self._scales = scales
        set_adapters(self._context, self._model.adapters, scales)

    def close(self) -> None:
        llama.llama_free(self._context)

    # -- decoding ------------------------------------------------------------------------------------------------

    def decode(self) -> int:
        """Run the rows of `batch`: 0 done, 1 no room in the KV pool, anything else an error of the engine. One of
        devices raises ModelUnavailable: what lies there may be lost, and the next decode would fail as well.

        Returns when they are computed, so that the time until then is theirs: devices only queue a decode.
        """
        status = int(llama.llama_decode(self._context, self.batch.struct))
        if self._has_devices:
            llama.llama_synchronize(self._context)
            if status not in (0, 1):
                raise no_memory.of_decode(status, log.reason(), self._model.buffers)
        return status

    def forget(self, sequence: int, start: int) -> bool:
        """Drop the cells of `sequence` from position `start` on. False where the rest could not be continued, or where
        this kind of memory cannot drop only a tail."""
        if start and not self._reaches_back(sequence, start):
            return False
        return bool(llama.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def _reaches_back(self, sequence: int, n_tokens: int) -> bool:
        """Whether a token behind the first `n_tokens` finds all cells that it attends to.

        Cells that a sliding window has passed may belong to another sequence by now, although the pool has free ones:
        llama.cpp reuses the first cells that it may.
        """
        first = llama.llama_memory_seq_pos_min(self._memory, sequence) if self._n_window else 0
        return bool(first <= max(0, n_tokens - self._n_window + 1))

    def share(self, source: int, target: int, n_tokens: int) -> bool:
        """Let the empty sequence `target` use the first cells of `source`; False where that cannot be."""
        if not self.can_rewind:
            return False  # a recurrent state is of the whole sequence, and no prefix has one
        if not self._reaches_back(source, n_tokens):
            return False
        llama.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)
        return True

    def save_sequence(self, sequence: int, n_tokens: int) -> State | None:
        """The cells of all `n_tokens` of `sequence`, as bytes in parts; None where some cells are gone."""
        return self._states().save(sequence, n_tokens)

    def load_sequence(self, sequence: int, n_tokens: int, data: memoryview) -> bool:
        """Put the joined parts of a `save_sequence` into the empty `sequence`; False, and it stays empty, where they do
        not fit.

        `data` is writable. The caller has verified that this engine saved it of this model; llama.cpp does not.
        """
        return self._states().load(sequence, n_tokens, data)

    def sequence_bytes(self, sequence: int) -> int:
        """About how much `save_sequence` would copy."""
        return self._states().size(sequence)

    def _states(self) -> States:
        return States(self._model.pointer, self._context, self._params.n_seq_max, can_rewind=self.can_rewind)

    def has_numbers(self, row: int) -> bool:
        """Whether batch row `row` is free of NaN: one NaN in a layer makes all logits NaN."""
        return not math.isnan(llama.llama_get_logits_ith(self._context, row)[0])

    def logprob(self, row: int, token: int, n_top: int) -> TokenLogprob:
        """The log-probability of `token` in batch row `row`, and the `n_top` most likely tokens there."""
        chosen, top = self._likelihood.of(row, token, n_top)
        return TokenLogprob(
            self._candidate(token, chosen), tuple(self._candidate(other, logprob) for other, logprob in top)
        )

    def likeliest(self, row: int) -> tuple[int, float]:
        """The most likely token in batch row `row`, and its probability among the few most likely ones."""
        return self._likelihood.best(row)

    def first_logprob(self, token: int) -> TokenLogprob:
        """The log-probability of the first token of a text: NaN, as no row predicts it."""
        return TokenLogprob(Candidate(token, self._vocab.spelled(token), math.nan))

    def _candidate(self, token: int, logprob: float) -> Candidate:
        return Candidate(token, self._vocab.spelled(token), max(logprob, LEAST_LOGPROB))

    def wipe(self) -> None:
        """Empty the KV pool and clear its memory: a NaN in a free cell spoils what is computed beside it."""
        llama.llama_memory_clear(self._memory, True)
