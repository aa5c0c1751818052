"""What the scheduler and the embedder need of an engine, and what they emit.

Production has `llama.LlamaBackend` and `llama.EmbeddingContext` behind these; tests have a few lines of arithmetic.
"""

from collections.abc import Sequence
from typing import Protocol

from shimmy.engine.kv.kv_pool import KvBackend
from shimmy.errors import ShimmyError
from shimmy.messages.event import JobOutput, TokenLogprob

JobEvent = tuple[int, JobOutput | ShimmyError]  # a job's id, and what happened to the job


class DecodeBatch(Protocol):
    """The rows of the next decode."""

    def clear(self) -> None: ...
    def add(self, tokens: Sequence[int], position: int, sequence: int, *, n_outputs: int) -> int: ...


class DecodeBackend(KvBackend, Protocol):
    """A KV pool, and decodes that give logits. One thread may use it."""

    n_batch: int  # rows of one decode
    n_outputs: int  # of these, how many may have logits

    @property
    def batch(self) -> DecodeBatch: ...
    def decode(self) -> int: ...
    def set_scales(self, scales: Sequence[float]) -> None: ...
    def has_numbers(self, row: int) -> bool: ...
    def logprob(self, row: int, token: int, n_top: int) -> TokenLogprob: ...
    def first_logprob(self, token: int) -> TokenLogprob: ...
    def is_end(self, token: int) -> bool: ...
    def piece(self, token: int) -> bytes: ...


class EmbeddingBackend(Protocol):
    """Decodes that give one vector for each sequence. One thread may use it."""

    n_ctx: int  # tokens of all inputs that are being read
    n_batch: int  # rows of one decode
    n_packed: int  # rows of one decode with several inputs
    n_sequences: int
    in_parts: bool  # an input may take several decodes

    @property
    def batch(self) -> DecodeBatch: ...
    def compute(self) -> int: ...
    def vector(self, sequence: int) -> list[float]: ...
    def forget(self, sequence: int) -> None: ...
    def wipe(self) -> None: ...
