"""Estimates the memory that a loaded model takes, from the sizes in its header.

Knows bytes; nothing of workers, and decides nothing. An estimate is meant to be a little too high: SmolLM2 and
gemma-3-270m take 93 to 98 % of theirs (`Pss` after eight long prompts, with 2,048 and 8,192 tokens of context).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shimmy.wire.worker_options import MOVING_SHARE, USUAL_KV_TYPE, Offload, attention_bytes, cell_bytes

if TYPE_CHECKING:
    from shimmy.catalog.catalog import Model
    from shimmy.formats.gguf.header import GgufHeader
    from shimmy.formats.pooling_type import EmbeddingPlan

# What a worker takes before it has opened a model: Python, the engine's code and its buffers of fixed size.
PROCESS_BYTES = 40 * 10**6
# What a second model takes of that (SmolLM2 as a draft model: 68 MB beside its weights, 57 of them KV and logits).
_MODEL_BYTES = 15 * 10**6
# What a driver of a device takes of main memory (llvmpipe takes 70 MB, and 150 MB more while it compiles).
_DRIVER_BYTES = 150 * 10**6
# The server itself, which has to fit under a limit too.
SERVER_BYTES = 35 * 10**6

_STATE_BYTES = 4  # of an element of a recurrent state: F32
_TOKEN_BYTES = 160  # of a token of the vocabulary: its text, its score, and the tables to find it by
_CANDIDATE_BYTES = 12  # llama_token_data, of which each job's sampler holds one for each token
_N_SAMPLERS = 8  # jobs that sample at once, as a rule


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of main memory that a worker takes: `weights` are pages of the file, the others its own."""

    weights: int
    kv: int
    compute: int
    on_devices: tuple[tuple[str, int], ...] = ()  # names, and what it takes of the memory of each besides

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute

    def __add__(self, other: "MemoryEstimate") -> "MemoryEstimate":
        return MemoryEstimate(
            self.weights + other.weights,
            self.kv + other.kv,
            self.compute + other.compute,
            self.on_devices + other.on_devices,
        )


def estimate(
    model: "Model",
    *,
    n_ctx: int,
    n_batch: int,
    n_sequences: int,
    n_outputs: int,
    n_adapter_bytes: int = 0,
    plan: "EmbeddingPlan | None" = None,
    kv_type: str = USUAL_KV_TYPE,
) -> MemoryEstimate:
    """What `model` takes with a KV pool of `n_ctx` tokens of type `kv_type`, computing `n_batch` rows at once of which
    `n_outputs` have logits, and with a context for embeddings opened to `plan`: beside the pool, or without it where it
    writes no text.
    """
    vocabulary = model.n_vocab * (_TOKEN_BYTES + min(n_sequences, _N_SAMPLERS) * _CANDIDATE_BYTES)
    kv, compute = 0, PROCESS_BYTES + vocabulary + n_adapter_bytes
    if not model.is_embedding:
        kv += cell_bytes(model.n_kv, kv_type) * n_ctx + model.n_state * n_sequences * _STATE_BYTES
        compute += _compute(model, n_ctx, n_batch, 2 * n_outputs, kv_type) + int(MOVING_SHARE * kv)
    if plan is not None:
        kv += cell_bytes(model.n_kv) * plan.n_ctx + model.n_state * plan.n_sequences * _STATE_BYTES
        # llama.cpp keeps room for the logits of every row, and an encoder does not compute them.
        compute += _compute(model, plan.n_ctx, plan.n_batch, plan.n_batch * (2 if model.is_causal else 1))
    return MemoryEstimate(model.size_bytes, kv, compute)


def table_bytes(model: "Model") -> int:
    """About what the table of a model's tokens takes, which also is or resembles the weights of its output."""
    return min(model.size_bytes, model.n_vocab * model.n_embd * model.size_bytes // max(1, model.n_params))


def expert_bytes(model: "Model") -> int:
    """About what the experts of one layer take."""
    n_params = min(model.n_expert_params, model.n_params)
    return n_params * model.size_bytes // max(1, model.n_params * model.n_layers)


def beside(whole: MemoryEstimate, model: "Model", offload: Offload) -> MemoryEstimate:
    """What of an estimate for a `model` stays in main memory where devices have the layers of `offload`."""
    if not offload.devices:
        return whole
    n_on_devices = min(offload.n_layers - 1, model.n_layers)  # the table of tokens stays here
    weights = whole.weights - (whole.weights - table_bytes(model)) * n_on_devices // model.n_layers
    weights += expert_bytes(model) * max(0, offload.n_cpu_moe - (model.n_layers - n_on_devices))
    kv = whole.kv - whole.kv * n_on_devices // model.n_layers
    on_devices = tuple(zip(offload.devices, offload.n_bytes, strict=True))
    return MemoryEstimate(weights, kv, whole.compute + _DRIVER_BYTES + offload.n_system_bytes, on_devices)


def draft_estimate(header: "GgufHeader", *, size_bytes: int, n_ctx: int, n_batch: int) -> MemoryEstimate:
    """What a draft model of `size_bytes` in all shards takes beside the model it guesses for."""
    vocabulary = header.n_vocab * (_TOKEN_BYTES + _CANDIDATE_BYTES)
    compute = _MODEL_BYTES + vocabulary + _compute(header, n_ctx, n_batch, 2)
    return MemoryEstimate(size_bytes, cell_bytes(header.n_kv) * n_ctx, compute)


def _compute(model: "Model | GgufHeader", n_ctx: int, n_batch: int, n_logits: int, kv_type: str = USUAL_KV_TYPE) -> int:
    """The buffers llama.cpp reports at its start: `n_logits` rows of logits (in the graph and handed out), the
    attention masks of a batch and what else attention takes, the activations of a batch in F32."""
    logits = n_logits * model.n_vocab * 4
    activations = n_batch * 3 * (model.n_embd + model.n_ff) * 4
    attention = n_batch * n_ctx * attention_bytes(model.architecture, model.n_heads, kv_type)
    return logits + attention + activations
