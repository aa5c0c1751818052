"""How much memory a loaded model takes, and how much there is: a header's sizes and the system's figures.

Knows bytes; nothing of workers, and decides nothing. What it predicts is meant to be a little too much: SmolLM2 and
gemma-3-270m take 93 to 98 % of it (`Pss` after eight long prompts, with 2,048 and 8,192 tokens of context).
"""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from shimmy import cgroups
from shimmy.cgroups import Group

if TYPE_CHECKING:
    from shimmy.engine.pooling import EmbeddingPlan
    from shimmy.formats.gguf_header import GgufHeader
    from shimmy.registry import Model

# What a worker takes before it has opened a model: Python, the engine's code and its buffers of fixed size.
PROCESS_BYTES = 40 * 10**6
# What a second model takes of that (SmolLM2 as a draft model: 68 MB beside its weights, 57 of them KV and logits).
_MODEL_BYTES = 15 * 10**6
# The server itself, which has to fit under a limit too.
SERVER_BYTES = 35 * 10**6

# A KV pool that grows holds what is resident twice for a moment; it takes all its cells before that is more than this
# share of them.
MOVING_SHARE = 1 / 4

_KV_BYTES = 2  # of an element: F16
_STATE_BYTES = 4  # of an element of a recurrent state: F32
_TOKEN_BYTES = 160  # of a token of the vocabulary: its text, its score, and the tables to find it by
_CANDIDATE_BYTES = 12  # llama_token_data, of which each job's sampler holds one for each token
_N_SAMPLERS = 8  # jobs that sample at once, as a rule

_MEMINFO = Path("/proc/meminfo")
# The files of a control group with its limit and its usage, in both versions.
_CGROUP_FILES = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a worker takes: `weights` are pages of the file, the others its own."""

    weights: int
    kv: int
    compute: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute

    def __add__(self, other: "Need") -> "Need":
        return Need(self.weights + other.weights, self.kv + other.kv, self.compute + other.compute)


def need(
    model: "Model",
    *,
    n_ctx: int,
    n_batch: int,
    n_sequences: int,
    n_outputs: int,
    n_adapter_bytes: int = 0,
    plan: "EmbeddingPlan | None" = None,
) -> Need:
    """What `model` takes with a KV pool of `n_ctx` tokens, computing `n_batch` rows at once of which `n_outputs` have
    logits, and with a context for embeddings opened to `plan`: beside the pool, or without it where it writes no text.
    """
    vocabulary = model.n_vocab * (_TOKEN_BYTES + min(n_sequences, _N_SAMPLERS) * _CANDIDATE_BYTES)
    kv, compute = 0, PROCESS_BYTES + vocabulary + n_adapter_bytes
    if not model.is_embedding:
        kv += model.n_kv * n_ctx * _KV_BYTES + model.n_state * n_sequences * _STATE_BYTES
        compute += _compute(model, n_ctx, n_batch, 2 * n_outputs) + int(MOVING_SHARE * kv)
    if plan is not None:
        kv += model.n_kv * plan.n_ctx * _KV_BYTES + model.n_state * plan.n_sequences * _STATE_BYTES
        # llama.cpp keeps room for the logits of every row, and an encoder does not compute them.
        compute += _compute(model, plan.n_ctx, plan.n_batch, plan.n_batch * (2 if model.is_causal else 1))
    return Need(model.size_bytes, kv, compute)


def cell_bytes(n_kv: int) -> int:
    """What one more cell of a KV pool takes."""
    return n_kv * _KV_BYTES


def draft_need(header: "GgufHeader", *, size_bytes: int, n_ctx: int, n_batch: int) -> Need:
    """What a draft model of `size_bytes` in all shards takes beside the model it guesses for."""
    vocabulary = header.n_vocab * (_TOKEN_BYTES + _CANDIDATE_BYTES)
    compute = _MODEL_BYTES + vocabulary + _compute(header, n_ctx, n_batch, 2)
    return Need(size_bytes, header.n_kv * n_ctx * _KV_BYTES, compute)


def _compute(model: "Model | GgufHeader", n_ctx: int, n_batch: int, n_logits: int) -> int:
    """The buffers llama.cpp reports at its start: `n_logits` rows of logits (in the graph and handed out), the
    attention mask of a batch in F16, the activations of a batch in F32."""
    logits = n_logits * model.n_vocab * 4
    mask = n_batch * n_ctx * 2
    activations = n_batch * 3 * (model.n_embd + model.n_ff) * 4
    return logits + mask + activations


def size_of(files: Iterable[str]) -> int:
    """Bytes of `files`; one that is not there has none."""
    n_bytes = 0
    for file in files:
        with contextlib.suppress(OSError):
            n_bytes += Path(file).stat().st_size
    return n_bytes


def free_bytes() -> int | None:
    """What new processes can have before the system swaps or the control group's limit ends them; None: unknown.

    Pages of mapped files count as free, those of loaded models among them.
    """
    known = [figure for figure in (_available(), *_left_in_cgroups()) if figure is not None]
    return min(known, default=None)


def resident_bytes(pid: int) -> int | None:
    """What a process has in memory, its pages of mapped files included; None: unknown."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def shown(n_bytes: float) -> str:
    """`n_bytes` for a person: `1.3 GB`, `98 MB`."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _available() -> int | None:
    """MemAvailable of /proc/meminfo."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _left_in_cgroups() -> list[int]:
    """For each control group we are in that has a limit: what is left of it, its page cache counted as left."""
    left = []
    for group in _limited_groups():
        limit, usage = _CGROUP_FILES[group.version]
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = dict(line.split() for line in group.read("memory.stat").splitlines())
            n_cached = int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))
            left.append(int(group.read(limit)) - int(group.read(usage)) + n_cached)
    return left


@cache
def _limited_groups() -> list[Group]:
    return [group for group in cgroups.groups("memory") if _is_limit(group)]


def _is_limit(group: Group) -> bool:
    try:
        return (
            0 < int(group.read(_CGROUP_FILES[group.version][0])) < 2**60
        )  # version 1 has a number near 2**63 for none
    except (OSError, ValueError):  # there is no such file, or it says `max`
        return False
