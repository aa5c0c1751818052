"""What a worker is told before anything else, and the sizes of the engine that both processes reckon with."""

import math
from dataclasses import dataclass

# Names of llama.cpp's file types, and about how many bits each takes for a weight.
SAFETENSORS_TYPES = {
    "f32": 32.0, "bf16": 16.0, "f16": 16.0, "q8_0": 8.5, "q6_k": 6.57, "q5_k_m": 5.7, "q5_k_s": 5.57, "q5_1": 6.1,
    "q5_0": 5.6, "q4_k_m": 4.85, "q4_k_s": 4.67, "q4_1": 5.1, "q4_0": 4.5, "iq4_nl": 4.7, "iq4_xs": 4.46,
    "mxfp4_moe": 4.5, "q3_k_l": 4.43, "q3_k_m": 4.0, "q3_k_s": 3.64, "iq3_m": 3.76, "iq3_s": 3.65, "iq3_xs": 3.5,
    "iq3_xxs": 3.25, "q2_k": 3.16, "q2_k_s": 2.97, "iq2_m": 2.93, "iq2_s": 2.74, "iq2_xs": 2.59, "iq2_xxs": 2.38,
    "iq1_m": 2.15, "iq1_s": 2.0, "q2_0": 2.7, "tq2_0": 2.5, "tq1_0": 2.1, "q1_0": 1.6,
}  # fmt: skip
# Those that llama.cpp makes only with an importance matrix, and those that it makes the same with and without.
NEEDS_MATRIX = frozenset(
    ("iq3_xs", "iq3_xxs", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")
)  # fmt: skip
IGNORES_MATRIX = frozenset(("f32", "bf16", "f16", "q8_0", "mxfp4_moe", "q2_0", "tq2_0", "tq1_0", "q1_0"))


def matrix_fault(file_type: str | None, *, has_matrix: bool) -> str | None:
    """Why weights do not become `file_type` with, or without, an importance matrix; None where they do."""
    if file_type in NEEDS_MATRIX and not has_matrix:
        return (
            f"`{file_type}` is only made with an importance matrix: give one with `--imatrix FILE`, or have "
            f"`shimmy convert FOLDER --type {file_type} --calibrate TEXT_FILE` compute one"
        )
    if has_matrix and file_type is None:
        return "an importance matrix is for `--safetensors-type`: without a type nothing is quantised"
    if has_matrix and file_type in IGNORES_MATRIX:
        return f"`{file_type}` is the same with an importance matrix and without one: leave it out"
    return None


# A KV pool that grows holds what is resident twice for a moment; it takes all its cells before that is more than this
# share of them.
MOVING_SHARE = 1 / 4
# What the elements of a KV cache may be, by ggml's names, and how many bits each takes.
KV_TYPES = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5, "f32": 32.0}
USUAL_KV_TYPE = "f16"
# With this one, attention is exact, too: flash attention, which rounds to F16, computes no model that can do without.
EXACT_KV_TYPE = "f32"


def cell_bytes(n_kv: int, kv_type: str = USUAL_KV_TYPE) -> int:
    """What one more cell of a KV pool takes, which has so many elements."""
    return int(n_kv * KV_TYPES[kv_type] / 8)


# Bytes for a row and a cell, of architectures whose layers score all tokens (in F32, with a mask of which), and attend
# to the best (with another). MiniMax M3 has three masks, and for each of the four heads of keys of its published model
# one of the blocks that are chosen, twice in F32.
_SCORING = {"deepseek32": 8, "glm-dsa": 8, "minimax-m3": 6 + 4 * 8}


def attention_bytes(architecture: str, n_heads: int, kv_type: str = USUAL_KV_TYPE) -> int:
    """What a decode takes for each of its rows and each cell of the pool, in bytes: a mask in F16 that says whether the
    one attends to the other, and more for some models. Without flash attention, masks are in F32, windows that slide
    have one of their own, and each head has a score in F32."""
    n_mask_bytes = _SCORING.get(architecture, 2)
    return 2 * n_mask_bytes + 4 + 4 * n_heads if kv_type == EXACT_KV_TYPE else n_mask_bytes


MAX_SEQUENCES = 256  # of a context (llama.cpp's LLAMA_MAX_SEQ)
CELLS_STEP = 256  # llama.cpp rounds the cells of a pool up to a multiple of this (llama_context's constructor)
MAX_DRAFT_ROWS = 32
MAX_UBATCH_ROWS = 256
# Tokens that a draft model looks at: what comes next hardly hangs on what stood farther back.
_MAX_DRAFT_CTX = 2048
MIN_DRAFT_CTX = 256
# Tokens that it reads in one decode, of those that it has not seen yet: the model itself waits for that.
DRAFT_BATCH = 32
# Vocabularies of one family may differ by a few tokens at the end (llama.cpp's SPEC_VOCAB_MAX_SIZE_DIFFERENCE).
MAX_VOCABULARY_DIFFERENCE = 128


@dataclass(frozen=True, slots=True)
class CpuShare:
    """Who else wants the processor. Threads of two workers that wait for each other would take turns at waiting."""

    n_workers: int = 1  # that decode, the one that is told among them
    n_loading: int = 0  # others that load a model, each with one thread

    def n_threads(self, n_cores: int) -> int:
        """How many of the threads that `n_cores` are good for a worker shall use."""
        return max(1, (n_cores - self.n_loading) // self.n_workers)


def is_remote(device: str) -> bool:
    """Whether a device is another machine's: ADDRESS/NAME."""
    return "/" in device


@dataclass(frozen=True, slots=True)
class Offload:
    """What of a model lies on devices beside the processor; without devices, nothing does."""

    devices: tuple[str, ...] = ()  # their names, in the order in which they have the layers
    layers: tuple[int, ...] = ()  # of each; behind the layers of a model stands its output, which counts as one
    n_bytes: tuple[int, ...] = ()  # about what that takes of the memory of each
    n_system_bytes: int = 0  # of these, in main memory: some devices have none of their own
    n_cpu_moe: int = 0  # so many of the first layers of the model keep their experts on the processor
    note: str = ""  # why there is no more on them, for a person

    @property
    def n_layers(self) -> int:
        """As llama.cpp counts them: the last ones, with the output."""
        return sum(self.layers)

    @property
    def has_remote(self) -> bool:
        """Whether some are on other machines."""
        return any(map(is_remote, self.devices))


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker is told before anything else."""

    model_path: str
    n_ctx: int
    n_sequences: int
    n_batch: int
    n_threads: int | None  # None: the physical cores this process may use
    cpu_variant: str | None  # None: the best this processor runs
    chat_template: str | None  # None: the model's own
    lora: tuple[tuple[str, float], ...] = ()  # path and scale of the adapters that were asked for
    siblings: tuple[str, ...] = ()  # and those that lie beside the model, which it does not depend on
    speculate: bool = True
    draft_model: str | None = None  # path of a GGUF that guesses what the model will say
    embeddings: bool = False  # also of a model that was not made for them
    pooling: str | None = None  # None: the model's own
    log_level: str = "info"
    log_format: str = "text"
    share: CpuShare = CpuShare()  # until another one is told
    cache_dir: str | None = None  # for what can be made again
    kv_type: str = USUAL_KV_TYPE  # one of KV_TYPES; of text alone
    weights: str = "repacked"  # or `mapped`; `auto`: what a trial has found
    may_tune: bool = False  # whether a trial may take memory for a while that nobody has reckoned with
    safetensors_type: str | None = None  # what the weights of a SafeTensors folder become; None: what they are
    imatrix: str | None = None  # path of an importance matrix that they are quantised by, where it is the model's
    worker_timeout_s: float = math.inf  # without a sign of life or progress it is killed; the server sees to that
    load_timeout_s: float = math.inf  # the same while it loads its model
    prompt_cache_bytes: int | None = None  # of all prompts that are kept in the cache folder; None: no prompt is
    offload: Offload = Offload()
    rival: Offload = Offload()  # without an offload: what a trial may compare with
    rival_key: str = ""  # by which its outcome is kept
    rpc_key_file: str | None = None  # path of the key that other machines have, too; None: they are on this machine
    rpc_timeout_s: float = 10.0  # after so much silence, another machine is lost
    n_ctx_booked: int | None = None  # of `n_ctx`, what memory is set aside for; None: all. The rest is looked for later

    @property
    def n_booked(self) -> int:
        return self.n_ctx if self.n_ctx_booked is None else min(self.n_ctx, self.n_ctx_booked)

    @property
    def n_cells(self) -> int:
        """Cells of the pool, at most: it grows in steps."""
        return -(-self.n_ctx // CELLS_STEP) * CELLS_STEP

    @property
    def n_ubatch(self) -> int:
        """Rows of a batch that the engine computes together, in memory that it keeps for so many. More of them are not
        faster (SmolLM2 and gemma-3-270m, 1,500 tokens in 512, 256 or 128 at a time: no difference beyond the noise)."""
        return min(self.n_batch, MAX_UBATCH_ROWS)

    @property
    def n_outputs(self) -> int:
        """Rows of logits that one decode may ask for: one for each sequence, or those of a draft."""
        return max(self.n_sequences, MAX_DRAFT_ROWS)

    @property
    def n_ctx_draft(self) -> int:
        """Tokens that the draft model looks at, unless its training length is smaller."""
        return max(MIN_DRAFT_CTX, min(self.n_ctx, _MAX_DRAFT_CTX))


def look_every_s(worker_timeout_s: float, load_timeout_s: float) -> float:
    """How often a worker says how it is, and is looked at: often enough for both limits, and rarely enough for a
    machine that has nothing to do."""
    limit_s = min(worker_timeout_s, load_timeout_s)
    return 5.0 if math.isinf(limit_s) else min(5.0, max(0.1, limit_s / 8))
