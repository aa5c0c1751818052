"""One loaded model of llama.cpp with its contexts, as the scheduler's Backend.

Knows ctypes and llama.cpp's rules (who frees what, what aborts); knows nothing of jobs, text or the wire. All methods
but `tokenize`, `detokenize` and `chat_template` belong to the thread that decodes.
"""

import ctypes
import logging
import math
import mmap
import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shimmy.engine.llama.binding import function, llama, log
from shimmy.engine.llama.context import Batch, EmbeddingContext, context_params
from shimmy.engine.llama.sampler import Likelihood, LlamaSampler, Probe
from shimmy.engine.llama.sampler_chain import SamplerChain, SamplerStage
from shimmy.engine.llama.sequence_state import State, States
from shimmy.engine.llama.tokenizer import Tokenizer
from shimmy.engine.pulse import engine as activity
from shimmy.errors import ModelUnavailable, OutOfMemory
from shimmy.formats.pooling_type import EmbeddingPlan
from shimmy.messages.event import Candidate, TokenLogprob
from shimmy.messages.model_info import Adapter, ModelFacts
from shimmy.system import memory
from shimmy.wire.worker_options import CELLS_STEP

logger = logging.getLogger(__name__)

_SPARE_BYTES = 128 * 10**6  # that the system is left with where a pool grows
_MAX_SEQUENCES = 256  # of a context (LLAMA_MAX_SEQ)
_CONTROL = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
_SPECIAL = _CONTROL | llama.LLAMA_TOKEN_ATTR_USER_DEFINED
_MARK_OF_TURN = re.compile(
    r"<[|\uff5c][^<>]+>|<[^<>]+[|\uff5c]>|\[/?INST\]|\[gMASK\]|"
    r"</?[^<>\s]*(?:turn|role|system|user|assistant|bos|eos|sop)[^<>\s]*>"
)
# llama.cpp takes tokens with these texts for control tokens, whatever the file says (`llama_vocab::impl::load`).
_ALWAYS_CONTROL = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>"),
    *("[EOT]", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<end_of_utterance>", "<|eom_id|>", "<|fim_prefix|>"),
    *("<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>", "\u2581<PRE>", "<|code_prefix|>"),
    *("<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>"),
    *("\u2581<SUF>", "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>"),
    *(
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
        "<|fim_pad|>",
        "<fim-pad>",
    ),
    *("<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    *("<|file_sep|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "[EOS]", "<eos>", "<turn|>"),
    *("<|tool_response>", "[e~["),
    *("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"),  # and these for tokens that users define
)
_N_FIRST_TOKENS = 512  # among which the tokens of bytes mostly are
_NEVER_ADD_SPACES = (llama.LLAMA_VOCAB_TYPE_BPE, llama.LLAMA_VOCAB_TYPE_WPM, llama.LLAMA_VOCAB_TYPE_RWKV)
_NEVER = -9999.0  # the logarithm of the probability of what cannot come, as OpenAI writes it
_SIGNS_OF_NO_MEMORY = ("bad_alloc", "failed to allocate", "unable to allocate", "Cannot allocate memory")

_backend_load = function("ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)
# The binding declares pointers to pointers here, which cost a cast each.
_pointers, _floats = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_float)
_adapter_init = function("llama_adapter_lora_init", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_adapter_free = function("llama_adapter_lora_free", None, ctypes.c_void_p)
_set_adapters = function(
    "llama_set_adapters_lora", ctypes.c_int32, ctypes.c_void_p, _pointers, ctypes.c_size_t, _floats
)


@llama.llama_progress_callback  # type: ignore[untyped-decorator]
def _on_progress(_share: float, _user_data: object) -> bool:
    """Called for each tensor that is loaded; False would end the load."""
    activity.n_steps += 1
    return True


class CpuBackend:
    """The CPU variant of ggml this process runs on; loaded once, before any model."""

    note = ""  # what a person should know of better variants that do not work here

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


def quantize(source: Path, target: Path, file_type: int, n_threads: int) -> None:
    """Write the model of the GGUF file `source` to `target` with weights of `file_type` (llama_ftype); its progress is
    not told. Raises ModelUnavailable."""
    params = llama.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = n_threads
    if llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)) != 0:
        raise ModelUnavailable(f"the engine could not quantise `{source.name}`: {log.reason()}")


class LlamaModel:
    """A model in memory with one context over one unified KV pool, one for embeddings, or both."""

    def __init__(
        self,
        path: Path,
        cpu: CpuBackend,
        *,
        repacks: bool = True,
        longest_token_bytes: int = 0,
        special_tokens: Sequence[int] | None = None,
    ) -> None:
        """Map the weights of `path`, or with `repacks` copy those into an order of the processor's for which ggml has
        one; raises ModelUnavailable with the engine's own reason. `longest_token_bytes` is what its vocabulary has of
        the longest token; 0 where that is not known."""
        params = llama.llama_model_default_params()
        params.use_extra_bufts = repacks
        params.progress_callback = _on_progress
        self._model = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            reason = log.reason()
            kind = OutOfMemory if any(sign in reason for sign in _SIGNS_OF_NO_MEMORY) else ModelUnavailable
            raise kind(f"the engine could not load `{path.name}`: {reason}")
        self._name = path.name
        self.cpu = cpu
        self._vocab = llama.llama_model_get_vocab(self._model)
        self.tokenizer = Tokenizer(self._vocab, self.metadata, longest_token_bytes)
        self.n_ctx_train: int = llama.llama_model_n_ctx_train(self._model)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self.adds_bos: bool = llama.llama_vocab_get_add_bos(self._vocab)
        self._check_vocabulary()
        self.can_rewind: bool = not (
            llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model)
        )
        self._n_window: int = llama.llama_model_n_swa(self._model) if self.can_rewind else 0
        self._special_tokens = special_tokens
        self._pieces: list[bytes | None] = [None] * self.n_vocab
        self._suppressed = self._suppress_tokens()
        self._adapters: list[int] = []  # pointers
        self._context: Any = None
        self.n_booked = self._cell_bytes = 0
        self._scales: Sequence[float] = ()
        self._probe = Probe()
        self._likelihood = Likelihood(self._probe)
        self.embeddings: EmbeddingContext | None = None

    def _check_vocabulary(self) -> None:
        """Refuse a vocabulary that lacks a token its tokenizer puts around a text: llama.cpp would abort there."""
        is_wordpiece = llama.llama_vocab_type(self._vocab) == llama.LLAMA_VOCAB_TYPE_WPM
        wanted = {
            "bos": is_wordpiece or self.adds_bos,
            "eos": not is_wordpiece and llama.llama_vocab_get_add_eos(self._vocab),
            "sep": is_wordpiece,
        }
        for which, is_wanted in wanted.items():
            if is_wanted and getattr(llama, f"llama_vocab_{which}")(self._vocab) < 0:
                raise ModelUnavailable(f"`{self._name}` has no {which} token, which its tokenizer puts around a text")
        if llama.llama_vocab_type(self._vocab) == llama.LLAMA_VOCAB_TYPE_SPM and (
            missing := self._bytes_without_token()
        ):
            raise ModelUnavailable(f"`{self._name}` has no token for the byte {missing[0]:#04x}, which a text may have")

    def _bytes_without_token(self) -> list[int]:
        """The bytes that a tokenizer like SentencePiece has no token for: llama.cpp would abort at a text with one."""
        texts = set(map(partial(llama.llama_vocab_get_text, self._vocab), range(min(self.n_vocab, _N_FIRST_TOKENS))))
        missing = [byte for byte in range(256) if b"<0x%02X>" % byte not in texts]
        if missing:  # they stand somewhere else
            texts = set(map(partial(llama.llama_vocab_get_text, self._vocab), range(self.n_vocab)))
            missing = [byte for byte in missing if b"<0x%02X>" % byte not in texts and bytes([byte]) not in texts]
        return missing

    @property
    def writes(self) -> bool:
        """Whether it has a context for text."""
        return self._context is not None

    def add_adapter(self, path: Path) -> None:
        """Load the LoRA adapter at `path`, checked by `formats.lora`, before the context is opened, which reserves the
        room for its computations. Raises ModelUnavailable."""
        adapter = _adapter_init(self._model, os.fsencode(path))
        if not adapter:
            raise ModelUnavailable(log.reason())
        self._adapters.append(adapter)

    def remove_adapter(self, index: int) -> None:
        """Free an adapter that is not set for embeddings; those behind it move up, and none is set."""
        self.set_scales([0.0] * len(self._adapters))
        _adapter_free(self._adapters.pop(index))
        self._scales = [0.0] * len(self._adapters)

    def book(self, n_cells: int, cell_bytes: int) -> None:
        """Before the pool is opened: memory is set aside for `n_cells` of it, of `cell_bytes` each. One that cannot
        move has no more, and one that grows beyond looks first whether there is memory."""
        self.n_booked, self._cell_bytes = n_cells, cell_bytes

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
        exact: bool = False,
    ) -> None:
        """Make a KV pool that may have `n_ctx` cells for `n_sequences` sequences; OutOfMemory without the memory, and
        ModelUnavailable when the model cannot generate text.

        `first` is how many cells and sequences it has at first; all of them where that is None, or where a model cannot
        move what it holds: cells are memory, and each sequence is room for one row of logits. `n_ubatch` rows of a
        decode are computed together, and `n_outputs` of it may have logits. `exact` keeps the pool in F32 and does
        without flash attention, which rounds to F16: slower and twice the memory, for comparing with a reference.
        """
        self._params = context_params(n_ctx, n_batch, n_sequences, n_threads)
        self._params.n_ubatch = n_ubatch or n_batch
        # 0 would reserve n_ubatch rows, exceeding it aborts; llama.cpp itself makes room for one row of each sequence.
        self.n_outputs = n_outputs
        self._params.n_outputs_max = max(n_outputs, n_sequences + 1)
        if exact:
            self._params.type_k = self._params.type_v = llama.GGML_TYPE_F32
            self._params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        n_ctx = self._n_movable(n_ctx) if first else n_ctx
        self.n_ctx = -(-n_ctx // CELLS_STEP) * CELLS_STEP
        self.n_booked = min(self.n_ctx, self.n_booked or self.n_ctx)
        n_cells, n_open = first if first and self._can_resize() else (n_ctx, n_sequences)
        self._open(min(n_cells, n_ctx), min(n_open, n_sequences))
        if not (llama.llama_model_has_decoder(self._model) and self._memory):
            raise ModelUnavailable(f"`{self._name}` does not write one token after the other: it cannot generate text")
        self.n_batch = n_batch
        self.n_sequences = n_sequences
        self.batch = Batch(n_batch)

    def _open(self, n_cells: int, n_open: int) -> None:
        self._params.n_ctx = -(-n_cells // CELLS_STEP) * CELLS_STEP  # less would also be the most rows of a batch
        # What is behind a sliding window passes through a sequence that nobody else uses.
        self._params.n_seq_max = min(n_open + bool(self._n_window), _MAX_SEQUENCES)
        self._context = self._probe.context = llama.llama_init_from_model(self._model, self._params)
        if not self._context:
            raise OutOfMemory(f"no context of {n_cells} tokens: {log.reason()}")
        self._memory = llama.llama_get_memory(self._context)
        self.n_cells: int = llama.llama_n_ctx(self._context)
        self.n_open = n_open

    def _can_resize(self) -> bool:
        """Not where states cannot be moved, nor where the engine takes other position factors in larger contexts."""
        n_original = self._n_original()
        return self.can_rewind and (n_original is None or self.n_ctx <= n_original)

    def _n_movable(self, n_ctx: int) -> int:
        """Of `n_ctx` cells, those that a pool can have that grows to them, or those booked where it has all at once."""
        n_original, n_booked = self._n_original(), self.n_booked or n_ctx
        if not self.can_rewind:
            return min(n_ctx, n_booked)
        return n_ctx if n_original is None else min(n_ctx, max(n_booked, n_original))

    def _n_original(self) -> int | None:
        """Cells from which on the engine takes other position factors; None: from none."""
        architecture = self.metadata("general.architecture")
        n_original = self.metadata(f"{architecture}.rope.scaling.original_context_length")
        return None if n_original is None else int(n_original)

    def resize(self, n_cells: int, n_open: int) -> bool:
        """Give the pool `n_cells` for the sequences below `n_open`, which are all that hold anything, and to its new
        cells what it holds; False without the memory for it.

        For a moment there is what is resident twice. The rows of the last decode are gone.
        """
        n_bytes = llama.llama_state_get_size(self._context)
        if n_cells > self.n_booked and not self._has_memory(n_cells, n_bytes):
            return False
        try:
            state = mmap.mmap(-1, n_bytes)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                state.madvise(mmap.MADV_HUGEPAGE)  # to touch it for the first time takes longer than to fill it
        except OSError:
            return False
        copy = (ctypes.c_uint8 * n_bytes).from_buffer(state)
        llama.llama_state_get_data(self._context, copy, n_bytes)
        before = self.n_cells, self.n_open
        llama.llama_free(self._context)
        try:
            self._open(n_cells, n_open)
        except OutOfMemory:
            self._open(*before)
        if llama.llama_state_set_data(self._context, copy, n_bytes) != n_bytes:
            raise OutOfMemory(f"could not move {n_bytes} bytes into a context of {self.n_cells} tokens")
        self._set_scales(self._context, self._scales)
        return (self.n_cells, self.n_open) != before

    def _has_memory(self, n_cells: int, n_state_bytes: int) -> bool:
        """Whether the system has memory for a pool of `n_cells`, and for what is in this one meanwhile."""
        free_bytes = memory.free_bytes()
        mask_bytes = self._params.n_ubatch * n_cells * 2
        n_bytes = n_state_bytes + (n_cells - self.n_cells) * self._cell_bytes + mask_bytes
        return free_bytes is None or n_bytes + _SPARE_BYTES <= free_bytes

    def open_embeddings(self, plan: EmbeddingPlan, n_threads: int) -> None:
        """Make a context for embeddings, after the one for text where there is one; OutOfMemory without the memory,
        and ModelUnavailable when it would take no input."""
        self.embeddings = EmbeddingContext(self._model, plan, n_threads)
        if self.embeddings.n_ctx < 1:
            raise ModelUnavailable(f"`{self._name}` has a training length of 0 tokens: it can read nothing")
        if self._context is None:
            self.n_ctx, self.n_sequences = self.embeddings.n_ctx, self.embeddings.n_sequences

    def close(self) -> None:
        """Free a model that will not be used after all, and its context for text."""
        if self._context is not None:
            llama.llama_free(self._context)
        llama.llama_model_free(self._model)

    def warm_up(self) -> None:
        """Decode one token, or embed a word where the model does nothing else: a model that cannot is refused, and the
        first request does not pay for first-use allocations and mapped pages. Leaves the pool empty. Raises
        ModelUnavailable."""
        if self._context is None:
            assert self.embeddings is not None
            tokens = self.tokenize("hello", add_special=True, parse_special=False) or [0]
            self.embeddings.warm_up(tokens[: self.embeddings.n_ctx])
            return
        self.batch.clear()
        self.batch.add([self.bos_token() or 0], 0, 0, n_outputs=1)
        if self.decode() != 0:
            raise ModelUnavailable(f"the engine could not decode with this model: {log.reason()}")
        logits = llama.llama_get_logits_ith(self._context, 0)
        if math.isnan(sum(logits[: self.n_vocab])):
            self.wipe()
            raise ModelUnavailable("the model computes no numbers (NaN): its weights are damaged")
        self.forget(0, 0)

    def set_threads(self, n_threads: int) -> None:
        """From the next decode on."""
        if self._context is not None:
            self._params.n_threads = self._params.n_threads_batch = n_threads
        for context in filter(None, (self._context, self.embeddings and self.embeddings.pointer)):
            llama.llama_set_n_threads(context, n_threads, n_threads)

    # -- decoding ------------------------------------------------------------------------------------------------

    def decode(self) -> int:
        """Run the rows of `batch`: 0 done, 1 no room in the KV pool, anything else an error of the engine."""
        return int(llama.llama_decode(self._context, self.batch.struct))

    def forget(self, sequence: int, start: int) -> bool:
        """Drop the cells of `sequence` from position `start` on. False: what is before it could not be gone on from, or
        this kind of memory cannot drop only a tail."""
        if start and not self._reaches_back(sequence, start):
            return False
        return bool(llama.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def _reaches_back(self, sequence: int, n_tokens: int) -> bool:
        """Whether what follows the first `n_tokens` finds all cells that it looks at.

        A sliding window that has passed some may have lost them to another sequence, although the pool has room for
        all: llama.cpp takes the first cells that it may take.
        """
        first = llama.llama_memory_seq_pos_min(self._memory, sequence) if self._n_window else 0
        return bool(first <= max(0, n_tokens - self._n_window + 1))

    def share(self, source: int, target: int, n_tokens: int) -> bool:
        """Let the empty sequence `target` use the first cells of `source`; nothing is copied. False: it cannot."""
        if not self.can_rewind:
            return False  # its state is that of the whole sequence; there is none of a prefix
        if not self._reaches_back(source, n_tokens):
            return False
        llama.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)
        return True

    def save_sequence(self, sequence: int, n_tokens: int) -> State | None:
        """The cells of `sequence`, those of `n_tokens`, as bytes in parts; None where some are gone."""
        return self._states().save(sequence, n_tokens)

    def load_sequence(self, sequence: int, n_tokens: int, data: memoryview) -> bool:
        """Put what `save_sequence` gave, joined, into the empty `sequence`; False: it is empty, nothing fits.

        `data` is writable, and it has been proven that it is what this engine saved of this model: it is not checked.
        """
        return self._states().load(sequence, n_tokens, data)

    def sequence_bytes(self, sequence: int) -> int:
        """About how much `save_sequence` would copy."""
        return self._states().size(sequence)

    def _states(self) -> States:
        return States(self._model, self._context, self._params.n_seq_max, can_rewind=self.can_rewind)

    def set_scales(self, scales: Sequence[float]) -> None:
        """Of each adapter, for what is decoded from now on; one of scale 0 costs nothing."""
        if self._context is None:
            self.set_embedding_scales(scales)
        else:
            self._scales = scales
            self._set_scales(self._context, scales)

    def set_embedding_scales(self, scales: Sequence[float]) -> None:
        """The same, for embeddings."""
        assert self.embeddings is not None
        self._set_scales(self.embeddings.pointer, scales)

    def _set_scales(self, context: Any, scales: Sequence[float]) -> None:
        used = [(adapter, scale) for adapter, scale in zip(self._adapters, scales, strict=True) if scale]
        pointers = (ctypes.c_void_p * len(used))(*[adapter for adapter, _ in used])
        floats = (ctypes.c_float * len(used))(*[scale for _, scale in used])
        _set_adapters(context, pointers, len(used), floats)

    def has_numbers(self, row: int) -> bool:
        """Whether batch row `row` was computed in numbers: one NaN in a layer makes all logits NaN."""
        return not math.isnan(llama.llama_get_logits_ith(self._context, row)[0])

    def logprob(self, row: int, token: int, n_top: int) -> TokenLogprob:
        """How likely the model found `token` in batch row `row`, and the `n_top` tokens it found most likely there."""
        chosen, top = self._likelihood.of(row, token, n_top)
        return TokenLogprob(
            self._candidate(token, chosen), tuple(self._candidate(other, logprob) for other, logprob in top)
        )

    def likeliest(self, row: int) -> tuple[int, float]:
        """The most likely token in batch row `row`, and its probability among the few most likely ones."""
        return self._likelihood.best(row)

    def first_logprob(self, token: int) -> TokenLogprob:
        """The same of the first token of a text, which nothing predicts."""
        return TokenLogprob(Candidate(token, self.spelled(token), math.nan))

    def _candidate(self, token: int, logprob: float) -> Candidate:
        return Candidate(token, self.spelled(token), max(logprob, _NEVER))

    def wipe(self) -> None:
        """Empty the KV pool and clear its memory: a NaN in a free cell still spoils what is computed beside it."""
        llama.llama_memory_clear(self._memory, True)

    def new_sampler(
        self,
        chain: SamplerChain,
        biases: Sequence[tuple[int, float]],
        breakers: Sequence[str],
        history: Sequence[int] = (),
    ) -> LlamaSampler:
        """Build `chain` on any thread. `biases` (and the tokens the model itself suppresses) come before its stages.

        Those that look back at the prompt are shown the end of `history`."""
        pointer = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        biases = [*biases, *self._suppressed]
        if biases:
            array = (llama.llama_logit_bias * len(biases))(*biases)
            stage = llama.llama_sampler_init_logit_bias(self.n_vocab, len(biases), array)
            llama.llama_sampler_chain_add(pointer, stage)
        for stage in chain.stages:
            sampler = self._new_stage(stage, breakers)
            for token in history[-stage.n_history :] if stage.n_history else ():
                llama.llama_sampler_accept(sampler, token)
            llama.llama_sampler_chain_add(pointer, sampler)
        never = frozenset(token for token, bias in biases if bias == -math.inf)
        return LlamaSampler(pointer, self._probe, has_history=chain.looks_back, never=never)

    def _new_stage(self, stage: SamplerStage, breakers: Sequence[str]) -> Any:
        create = getattr(llama, f"llama_sampler_init_{stage.name}")
        if stage.name == "dry":
            texts = [text.encode("utf-8", "replace") for text in breakers]
            array = (ctypes.c_char_p * len(texts))(*texts)
            return create(self._vocab, *stage.arguments, array, len(texts))
        if stage.name in {"penalties", "mirostat"}:
            return create(self.n_vocab, *stage.arguments)
        return create(*stage.arguments)

    # -- vocabulary ----------------------------------------------------------------------------------------------

    def is_end(self, token: int) -> bool:
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def end_tokens(self) -> list[int]:
        """Every end-of-generation token; walks the whole vocabulary."""
        return [token for token in range(self.n_vocab) if self.is_end(token)]

    def piece(self, token: int) -> bytes:
        """The bytes of a token as text shows them; control tokens are empty."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self.token_bytes(token, special=False)
        return piece

    def spelled(self, token: int) -> bytes:
        """The bytes of a token as a vocabulary lists them; control tokens have theirs too."""
        return self.piece(token) or self.token_bytes(token, special=True)

    def token_bytes(self, token: int, *, special: bool) -> bytes:
        """The bytes of a token, those of control tokens only with `special`."""
        return self.tokenizer.token_bytes(token, special=special)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self.tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)

    def control_texts(self) -> list[str]:
        """The texts that the tokenizer takes for control tokens where it looks for special ones.

        llama.cpp knows some as tokens that users define, as it shows them in replies or a file says so: those that look
        like the mark of a turn (`<|start|>`, `<start_of_turn>`). Of others (`<think>`, `<table>`) users may well write.
        """
        attribute, text_of, found = llama.llama_vocab_get_attr, llama.llama_vocab_get_text, []
        for token in self._maybe_special():
            if (attributes := attribute(self._vocab, token)) & _SPECIAL:
                text = text_of(self._vocab, token).decode("utf-8", "ignore")
                if attributes & _CONTROL or _MARK_OF_TURN.fullmatch(text):
                    found.append(text)
        return found

    def _maybe_special(self) -> Iterable[int]:
        """The tokens that the file says are special, and those that llama.cpp takes for such by their texts."""
        if self._special_tokens is None:
            return range(self.n_vocab)
        named = (self.tokenize(text, add_special=False, parse_special=True) for text in _ALWAYS_CONTROL)
        tokens = {tokens[0] for tokens in named if len(tokens) == 1}
        return sorted(tokens.union(token for token in self._special_tokens if token < self.n_vocab))

    @property
    def may_add_spaces(self) -> bool:
        """Whether its tokenizer may put a space before a text."""
        return llama.llama_vocab_type(self._vocab) not in _NEVER_ADD_SPACES

    def tokenizer_addresses(self) -> tuple[int, int]:
        """Of the vocabulary, which lives as long as the model, and of llama_tokenize, for who calls it without us."""
        return int(self._vocab), ctypes.cast(llama._lib.llama_tokenize, ctypes.c_void_p).value or 0

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` (all inside the vocabulary), special tokens written out."""
        return b"".join(self.token_bytes(token, special=True) for token in tokens).decode("utf-8", "replace")

    def special_text(self, which: str) -> str:
        """How a template writes the `bos` or `eos` token; empty when the model has none."""
        token = getattr(llama, f"llama_vocab_{which}")(self._vocab)
        return "" if token < 0 else self.token_bytes(token, special=True).decode("utf-8", "replace")

    def bos_token(self) -> int | None:
        token = int(llama.llama_vocab_bos(self._vocab))
        return None if token < 0 else token

    def fill_tokens(self) -> tuple[int, int, int] | None:
        """The tokens before a prefix, before a suffix, and before the middle to be written; None without them."""
        names = ("fim_pre", "fim_suf", "fim_mid")
        before, behind, middle = (int(getattr(llama, f"llama_vocab_{name}")(self._vocab)) for name in names)
        return None if min(before, behind, middle) < 0 else (before, behind, middle)

    def chat_template(self, name: str | None = None) -> str | None:
        """The template stored in the model file, or its variant called `name`, unread and untrusted."""
        source = llama.llama_model_chat_template(self._model, name and name.encode())
        return None if source is None else bytes(source).decode("utf-8", "replace")

    def metadata(self, key: str) -> str | None:
        """The value of a metadata key as text; None where the model has none."""
        n_bytes = llama.llama_model_meta_val_str(self._model, key.encode(), None, 0)
        if n_bytes < 0:
            return None
        buffer = ctypes.create_string_buffer(n_bytes + 1)
        llama.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def _suppress_tokens(self) -> list[tuple[int, float]]:
        n_tokens = ctypes.c_int32(0)
        suppress = function(
            "llama_vocab_get_suppress_tokens",
            ctypes.POINTER(ctypes.c_int32),
            ctypes.c_void_p,
            ctypes.POINTER(ctypes.c_int32),
        )
        tokens = suppress(self._vocab, ctypes.byref(n_tokens))
        return [(tokens[i], float("-inf")) for i in range(n_tokens.value)]

    # -- facts ---------------------------------------------------------------------------------------------------

    def facts(self, *, has_chat_template: bool, adapters: tuple[Adapter, ...] = ()) -> ModelFacts:
        buffer = ctypes.create_string_buffer(256)
        llama.llama_model_desc(self._model, buffer, len(buffer))
        return ModelFacts(
            n_ctx=self.n_ctx,
            n_ctx_train=self.n_ctx_train,
            n_vocab=self.n_vocab,
            n_sequences=self.n_sequences,
            n_params=llama.llama_model_n_params(self._model),
            size_bytes=llama.llama_model_size(self._model),
            description=buffer.value.decode("utf-8", "replace"),
            cpu_variant=self.cpu.name,
            cpu_variant_note=self.cpu.note,
            has_chat_template=has_chat_template,
            adapters=adapters,
            longest_token_bytes=self.tokenizer.longest_token_bytes(),
        )
